"""Building a store from files of structures, which are read one structure at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eqnet.data.array_folder import Column, writing
from eqnet.data.frame import Frame
from eqnet.data.label_choice import Keys
from eqnet.data.labels import LabelReport
from eqnet.data.read import Reader, stream_images
from eqnet.data.store import LABELS, LAYOUT, PER_ATOM, is_store
from eqnet.errors import InputError
from eqnet.files import digest

if TYPE_CHECKING:
    from ase import Atoms


def build(
    files: Sequence[str | Path],
    target: str | Path,
    keys: Keys | None = None,
    *,
    require: Sequence[str] = (),
    overwrite: bool = False,
) -> LabelReport:
    """Make a store of all structures of some files, as `read` would read them.

    Memory does not grow with the number of structures. The files are read twice: labels are chosen
    by what all of them have. Tensors and other values than labels and weights are left out.

    Args:
        files: whatever `read` reads but stores; all must name their labels alike.
        target: folder of the store.
        keys: names of the labels, where they are not the usual ones.
        require: labels that at least one frame must have.
        overwrite: whether a store that is there is replaced.

    Raises:
        InputError: as `read`; a file is a store, there is no label at all, or the folder is there.
        OSError: the store cannot be written.
    """
    target, paths = Path(target), [Path(file) for file in files]
    for path in paths:
        if is_store(path):
            raise InputError(
                f"{path} is a store already; give the files that it was built from, which its "
                "arrays.json names"
            )
    _check_target(target, overwrite)
    before = _states(paths)
    reader = Reader(lambda: _images(paths), keys or Keys(), require, ", ".join(map(str, paths)))
    if not any(reader.sources.values()):
        raise InputError(
            f"{reader.file}: no frame has energy, forces or stress under a name that is known; "
            "say which keys hold them with --energy_key, --forces_key, --stress_key"
        )
    layout = {n: k for n, k in LAYOUT.items() if n not in LABELS or reader.sources[n] is not None}
    with writing(target, layout, overwrite=overwrite) as (columns, facts):
        types = _write(reader, columns)
        if _states(paths) != before:
            raise InputError(
                f"{reader.file}: changed while it was read; try again when it is whole"
            )
        report = reader.report()
        facts |= {
            "frames": report.num_frames,
            "atoms": columns["numbers"].length,
            "sources": [{"file": str(path), "sha256": _digest(path)} for path in paths],
            "labels": [asdict(row) for row in report.rows],
            "notes": report.notes,
            "unused": report.unused,
            "isolated": {str(z): energy for z, energy in sorted(reader.isolated.items())},
            "config_types": types,
        }
    return report


def _images(paths: Sequence[Path]) -> Iterator[tuple[Atoms, str, int]]:
    for path in paths:
        with _reading(path):
            for index, atoms in enumerate(stream_images(path)):
                yield atoms, str(path), index


def _digest(path: Path) -> str:
    with _reading(path):
        return digest(path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """An error of a file that is read is not one of the store that is written."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _states(paths: Sequence[Path]) -> list[tuple[int, int] | None]:
    """Size and time of each file; `stream_images` says that one is missing."""
    stats = []
    for path in paths:
        with _reading(path):
            stats.append(path.stat() if path.exists() else None)
    return [stat and (stat.st_size, stat.st_mtime_ns) for stat in stats]


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.resolve().parent.is_dir():
        raise InputError(f"{target}: the folder {target.parent} does not exist; make it first")
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists; name another folder, or add --overwrite")
    if target.exists() and not is_store(target):
        raise InputError(f"{target} is no store, and is not overwritten; name another folder")


def _write(frames: Reader, columns: dict[str, Column]) -> list[str]:
    """Append all frames; returns their config_types."""
    types: dict[str, int] = {}
    atoms = 0
    columns["offsets"].append(atoms)
    for frame in frames:
        atoms += len(frame)
        columns["offsets"].append(atoms)
        columns["config_type"].append(types.setdefault(frame.config_type, len(types)))
        columns["weights"].append([getattr(frame, f"{label}_weight") for label in LABELS])
        for name in columns.keys() & ("numbers", "positions", "cell", "pbc", *LABELS):
            columns[name].append(_value(frame, name))
    return list(types)


def _value(frame: Frame, name: str) -> np.ndarray:
    """An array of a frame, NaN where it lacks the label."""
    value = getattr(frame, name)
    if value is not None:
        return np.asarray(value)
    rows = len(frame) if name in PER_ATOM else 1
    return np.full((rows, *LAYOUT[name][1]), np.nan)
