"""Reading labelled structures from extended XYZ and every other format that ASE knows."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eqnet.data import check
from eqnet.data.frame import Frame, from_atoms, to_atoms
from eqnet.data.labels import (
    Keys,
    LabelReport,
    LabelRow,
    label_frames,
    make_report,
    unused_labels,
)
from eqnet.errors import InputError
from eqnet.files import digest

if TYPE_CHECKING:
    from ase import Atoms

__all__ = [
    "Dataset",
    "Frame",
    "Keys",
    "LabelReport",
    "LabelRow",
    "from_atoms",
    "read",
    "read_images",
    "to_atoms",
]

_XYZ = {".xyz", ".extxyz", ".exyz"}
_OPENERS = {b"\x1f\x8b": gzip.GzipFile, b"BZh": bz2.BZ2File, b"\xfd7zXZ": lzma.LZMAFile}
MOST_COMPRESSED = 1000  # times smaller than its text, of a file that is no bomb
SMALL = 10_000_000  # bytes of text that are read in any case
_COMPRESSED = {".gz", ".bz2", ".xz"}
_ISOLATED = {"isolatedatom", "isolated_atom"}


@dataclass
class Dataset:
    """The frames of one file, the energies of isolated atoms found in it, and what was read."""

    frames: list[Frame]
    isolated: dict[int, float]  # atomic number -> eV
    report: LabelReport
    sha256: str = ""  # of the file that was read

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur in the frames, ascending."""
        return tuple(int(z) for z in np.unique(np.concatenate([f.numbers for f in self.frames])))


def read(
    path: str | Path,
    keys: Keys | None = None,
    *,
    require: Sequence[str] = ("energy", "forces"),
    isolated: bool = True,
) -> Dataset:
    """Read a file of structures with labels.

    Args:
        path: extended XYZ (also compressed) or any file that ASE reads.
        keys: names of the labels in the file, where they are not the usual ones.
        require: labels that at least one frame must have; () reads bare structures.
        isolated: whether single atoms without a config_type count as isolated atoms, too.

    Returns:
        The frames, without isolated atoms; energies of isolated atoms; a report of the labels.

    Raises:
        InputError: the file is missing, malformed or lacks what was asked for.
    """
    file = str(path)
    images, sha256 = _read_unchanged(Path(path))
    frames, sources, notes = label_frames(images, keys or Keys(), require, file)
    energies, rest = _isolated_atoms(frames, len(images), unmarked=isolated)
    if not rest:
        raise InputError(
            f"{file}: all {len(frames)} frames are isolated atoms; give a file with structures too"
        )
    if energies:
        notes.append(
            f"{len(frames) - len(rest)} frames of isolated atoms give reference energies and are "
            "not among the structures"
        )
    report = make_report(file, rest, sources, notes)
    report.unused.extend(unused_labels(images, sources))
    absent = sorted(set(require) - {row.label for row in report.rows})
    if absent:
        raise InputError(f"{file}: only isolated atoms have {absent[0]}; structures need it too")
    return Dataset(rest, energies, report, sha256)


def _read_unchanged(path: Path) -> tuple[list[Atoms], str]:
    """The structures and the SHA-256 of their file, which nobody writes meanwhile."""
    before = path.stat() if path.exists() else None
    images, sha256, after = read_images(path), digest(path), path.stat()
    if before is None or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InputError(f"{path}: the file changed while it was read; try again when it is whole")
    return images, sha256


def read_images(path: str | Path) -> list[Atoms]:
    """Read all structures of a file as checked ASE atoms.

    Raises:
        InputError: naming the file, the frame and the line where it can be known.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: there is no such file")
    if path.is_dir():
        raise InputError(f"{path}: this is a folder; give a file with structures")
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in _COMPRESSED]
    images = _read_xyz(path) if suffixes and suffixes[-1] in _XYZ else _read_other(path)
    for index, atoms in enumerate(images):
        check.check_structure(atoms, f"{path}, frame {index} of {len(images)}")
    return images


def _read_xyz(path: Path) -> list[Atoms]:
    from ase.io.extxyz import read_xyz

    blocks = check.scan(_text(path), str(path))
    images = []
    for index, block in enumerate(blocks):
        try:
            text = io.StringIO("\n".join(block.lines))
            images += list(read_xyz(text, slice(None)))  # pyright: ignore[reportArgumentType]
        except Exception as error:  # ASE raises whatever float(), numpy and its tables raise
            reason = check.explain(block) or f"ASE cannot read it ({_first_line(error)})"
            raise InputError(f"{path}, frame {index} of {len(blocks)}, {reason}") from None
        if len(images) != index + 1:
            raise InputError(f"{path}, frame {index} of {len(blocks)}: ASE does not read it")
    return images


def _text(path: Path) -> str:
    """Text of a file, decompressed by its content, whatever its name says."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    for magic, opener in _OPENERS.items():
        if content.startswith(magic):
            most = max(MOST_COMPRESSED * len(content), SMALL)
            try:
                with _open(opener, content) as file:
                    content = file.read(most + 1)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise InputError(
                    f"{path}: the compressed file is damaged or cut short ({error})"
                ) from None
            if len(content) > most:
                raise InputError(
                    f"{path}: refused, it unpacks to more than {MOST_COMPRESSED} times its size, "
                    "which no text of atoms does"
                )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {line}: byte {error.start} is not UTF-8 text; convert the file to UTF-8"
        ) from None


def _open(opener: type, content: bytes) -> Any:
    stream = io.BytesIO(content)
    return opener(fileobj=stream) if opener is gzip.GzipFile else opener(stream)


def _read_other(path: Path) -> list[Atoms]:
    import ase.io

    try:
        images = ase.io.read(path, index=":")
    except Exception as error:  # every reader of ASE has its own exceptions
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise InputError(f"{path}: ASE cannot read this file ({reason})") from None
    if not images:
        raise InputError(f"{path}: 0 frames; give a file with structures")
    return images if isinstance(images, list) else [images]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]


def _isolated_atoms(
    frames: list[Frame], total: int, *, unmarked: bool
) -> tuple[dict[int, float], list[Frame]]:
    """Take out isolated atoms: marked by config_type, or single atoms that are not periodic."""
    isolated: dict[int, float] = {}
    rest: list[Frame] = []
    for frame in frames:
        marked = frame.config_type.lower() in _ISOLATED
        alone = len(frame) == 1 and not frame.pbc.any() and frame.config_type == "Default"
        if not marked and not (unmarked and alone and frame.energy is not None):
            rest.append(frame)
            continue
        where = f"{frame.file}, frame {frame.index} of {total}"
        if len(frame) != 1:
            raise InputError(
                f"{where}: config_type={frame.config_type}, but it has {len(frame)} atoms; "
                "an isolated atom is one atom"
            )
        if frame.energy is None:
            raise InputError(
                f"{where}: config_type={frame.config_type}, but it has no energy; add the energy "
                "or remove the frame"
            )
        number = int(frame.numbers[0])
        if abs(isolated.get(number, frame.energy) - frame.energy) > 1e-6:
            raise InputError(
                f"{where}: a second isolated atom of atomic number {number} with another energy "
                f"({frame.energy} after {isolated[number]} eV); keep one, or give the other "
                "another config_type"
            )
        isolated[number] = frame.energy
    return isolated, rest
