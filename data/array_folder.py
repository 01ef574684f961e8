"""A folder of .npy arrays, memory-mapped, and a manifest with their digests: whole or not there."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from eqnet.errors import InputError, reason
from eqnet.files import digest

MANIFEST = "arrays.json"
FORMAT = 1
MOST_MAPPED = 64 << 20  # bytes that may stay in memory; they are read again when needed
AROUND = 1 << 16  # bytes that the system reads around one place

Layout = Mapping[str, tuple[str, tuple[int, ...]]]  # by name: dtype, shape of one row


class Column:
    """A .npy file that grows; its length is written into the header at the end."""

    def __init__(self, path: Path, dtype: str, row: tuple[int, ...]) -> None:
        self.path, self.dtype, self.row, self.length = path, np.dtype(dtype), row, 0
        self.file = path.open("wb")
        self._write_header()

    def append(self, rows: Any) -> None:
        """Add rows at the end."""
        array = np.asarray(rows, dtype=self.dtype).reshape(-1, *self.row)
        self.file.write(array.tobytes())
        self.length += len(array)

    def close(self) -> str:
        """Return, once it is on the disk, the SHA-256 of the file."""
        self.file.seek(0)
        self._write_header()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return digest(self.path)

    def _write_header(self) -> None:
        """Numpy leaves room in a header for any length of the first axis."""
        shape = (self.length, *self.row)
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)


@contextmanager
def writing(
    target: Path, layout: Layout, *, overwrite: bool = False
) -> Iterator[tuple[dict[str, Column], dict[str, Any]]]:
    """Write a folder of arrays; it appears at the end, and not at all after an error.

    Args:
        target: the folder.
        layout: of the arrays.
        overwrite: whether a folder that is there is replaced; else that is an OSError.

    Yields:
        The arrays, to append to, and what the manifest is to hold beside them, to fill.
    """
    folder = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    columns: dict[str, Column] = {}
    folder.mkdir()
    try:
        for name, kind in layout.items():
            columns[name] = Column(folder / f"{name}.npy", *kind)
        facts: dict[str, Any] = {}
        yield columns, facts
        digests = {name: column.close() for name, column in columns.items()}
        with (folder / MANIFEST).open("w", encoding="utf-8") as file:
            file.write(_text({"format": FORMAT, **facts, "arrays": digests}))
            file.flush()
            os.fsync(file.fileno())
        _put(folder, target, overwrite)
    finally:
        for column in columns.values():
            column.file.close()
        shutil.rmtree(folder, ignore_errors=True)


def _put(folder: Path, target: Path, overwrite: bool) -> None:
    if not (overwrite and target.exists()):
        folder.rename(target)
        return
    before = folder.with_suffix(".old")
    target.rename(before)
    try:
        folder.rename(target)
    except OSError:
        before.rename(target)
        raise
    shutil.rmtree(before)


class ArrayFolder:
    """Arrays of a folder, mapped into memory and read where they are asked for.

    Attributes:
        path: the folder.
        manifest: what its manifest holds.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        """Open a folder and compare every array with its digest.

        Args:
            path: the folder.
            layout: arrays it may have; those of the manifest are among them.

        Raises:
            InputError: a file is missing, damaged, or of another format.
        """
        self.path = path
        self.manifest = read_manifest(path)
        self._maps = {
            name: _mapped(path / f"{name}.npy", layout.get(name), sha256)
            for name, sha256 in self.manifest["arrays"].items()
        }
        self._arrays = {name: array.view(np.ndarray) for name, array in self._maps.items()}
        self._touched = 0

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def length(self, name: str) -> int:
        """Rows of an array."""
        return len(self._arrays[name])

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """A copy of some rows of an array."""
        rows = self._arrays[name][start:stop].copy()
        self._touched += rows.nbytes + AROUND
        if self._touched > MOST_MAPPED:
            self._let_go()
        return rows

    def _let_go(self) -> None:
        """Give the memory of what was read back, which the system does only when it must."""
        self._touched = 0
        for array in self._maps.values():
            if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                array.base.madvise(mmap.MADV_DONTNEED)


def _text(manifest: dict[str, Any]) -> str:
    """A manifest as JSON, with its own digest at the end."""
    sha256 = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return json.dumps({**manifest, "sha256": sha256}, indent=1) + "\n"


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the manifest of a folder holds.

    Raises:
        InputError: it is missing, damaged, or of another format.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text)
        version = found["format"]
        changed = _text({k: v for k, v in found.items() if k != "sha256"}) != text
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: damaged ({reason(error)}); build the folder again") from None
    if version != FORMAT:
        raise InputError(
            f"{path}: format {version}, and this version of eqnet reads format {FORMAT}; build the "
            "folder again"
        )
    if changed:
        raise InputError(f"{path}: changed since it was written; build the folder again")
    return found


def _mapped(path: Path, kind: tuple[str, tuple[int, ...]] | None, sha256: str) -> np.ndarray:
    again = "build the folder again"
    if kind is None or not path.is_file():
        raise InputError(f"{path}: {'is missing' if kind else 'is no array of ours'}; {again}")
    if digest(path) != sha256:
        raise InputError(f"{path}: cut short or changed (its SHA-256 differs); {again}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no array of numbers ({reason(error)}); {again}") from None
    if array.dtype != np.dtype(kind[0]) or array.shape[1:] != kind[1] or not array.ndim:
        raise InputError(f"{path}: {array.dtype} {array.shape} is not what belongs here; {again}")
    return array
