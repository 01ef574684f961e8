"""Store: frames in a folder of memory-mapped arrays, read when they are asked for.

For data larger than memory: `eqnet data build` makes it once. Frames are the same as those read
from the files it was made from, in their order, without isolated atoms, whose energies are in the
manifest. How many neighbours each atom has is counted at the first use of a cutoff and kept.
"""

from __future__ import annotations

import errno
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from eqnet.data.array_folder import MANIFEST, ArrayFolder, Layout, read_manifest, writing
from eqnet.data.frame import Frame
from eqnet.data.items import Item, LazyItems, Sizes, make_item, make_items
from eqnet.data.label_choice import Keys
from eqnet.data.labels import LabelReport, LabelRow
from eqnet.data.part import Part, take
from eqnet.data.read import Dataset
from eqnet.errors import InputError
from eqnet.files import digest

LABELS = ("energy", "forces", "stress")
# F frames, A atoms of all frames; a label that a frame lacks is NaN.
PER_FRAME: Layout = {
    "cell": ("<f8", (3, 3)),
    "pbc": ("|b1", (3,)),
    "energy": ("<f8", ()),
    "stress": ("<f8", (3, 3)),
    "weights": ("<f8", (3,)),  # of energy, forces and stress
    "config_type": ("<i4", ()),  # index into config_types of the manifest
}
PER_ATOM: Layout = {"numbers": ("|u1", ()), "positions": ("<f8", (3,)), "forces": ("<f8", (3,))}
OFFSETS: Layout = {"offsets": ("<i8", ())}  # [F + 1], first atom of each frame, and A
LAYOUT: Layout = {**PER_FRAME, **PER_ATOM, **OFFSETS}
NEIGHBORS: Layout = {"counts": ("<i4", ()), "shortest": ("<f8", ())}  # [A], [F]
READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}


class StoredFrames(Sequence[Frame]):
    """The frames of a store; each is read when it is asked for."""

    def __init__(self, folder: ArrayFolder) -> None:
        self.folder = folder
        self._types: list[str] = folder.manifest["config_types"]
        self._neighbors: dict[float, ArrayFolder] = {}  # by cutoff

    def __len__(self) -> int:
        return self.folder.length("cell")

    def __getitem__(self, index: Any) -> Any:  # a frame, or a part for a slice
        if isinstance(index, slice):
            return Part(self, np.arange(len(self))[index])
        i, rows = range(len(self))[index], self.folder.rows
        start, stop = rows("offsets", i, i + 2)
        found: dict[str, Any] = {}
        for label in LABELS:
            if label in self.folder:
                place = (start, stop) if label in PER_ATOM else (i, i + 1)
                value = rows(label, *place) if label in PER_ATOM else rows(label, *place)[0]
                if not np.isnan(value).any():
                    found[label] = float(value) if label == "energy" else value
        weights = rows("weights", i, i + 1)[0].tolist()
        return Frame(
            numbers=rows("numbers", start, stop).astype(np.int64),
            positions=rows("positions", start, stop),
            cell=rows("cell", i, i + 1)[0],
            pbc=rows("pbc", i, i + 1)[0],
            config_type=self._types[int(rows("config_type", i, i + 1)[0])],
            **{f"{k}_weight": weight for k, weight in zip(LABELS, weights, strict=True)},
            file=str(self.folder.path),
            index=i,
            **found,
        )

    def sizes(self, cutoff: float) -> Sizes:
        """Numbers of neighbours, counted at the first use of a cutoff."""
        if cutoff not in self._neighbors:
            self._neighbors[cutoff] = _neighbors(self, cutoff)
        found = self._neighbors[cutoff]
        counts = _Counts(found, self.folder)
        return Sizes(counts, found.rows("shortest", 0, len(self)))


class _Counts(Sequence[np.ndarray]):
    """Neighbours of the atoms of each frame."""

    def __init__(self, neighbors: ArrayFolder, frames: ArrayFolder) -> None:
        self._neighbors, self._frames = neighbors, frames

    def __len__(self) -> int:
        return self._frames.length("cell")

    def __getitem__(self, index: Any) -> Any:
        i = range(len(self))[index]
        return self._neighbors.rows("counts", *self._frames.rows("offsets", i, i + 2))


def items_of(frames: Sequence[Frame], elements: Sequence[int], cutoff: float) -> Sequence[Item]:
    """`make_items`, or, for frames of a store, items that are made when they are asked for.

    Raises:
        InputError: as `make_item`; all frames of a store are looked at.
    """
    whole = frames.whole if isinstance(frames, Part) else frames
    if not isinstance(whole, StoredFrames):
        return make_items(frames, elements, cutoff)
    sizes = whole.sizes(cutoff)
    if isinstance(frames, Part):
        sizes = Sizes(take(sizes.counts, frames.indices), sizes.shortest[frames.indices])
    return LazyItems(frames, elements, cutoff, sizes)


def is_store(path: str | Path) -> bool:
    """Whether a path is a store, be it damaged."""
    return (Path(path) / MANIFEST).is_file()


def read_store(path: str | Path, keys: Keys | None = None, require: Sequence[str] = ()) -> Dataset:
    """Open a store, after comparing its arrays with their digests.

    Args:
        path: the folder.
        keys: none may be given: labels were chosen when the store was made.
        require: labels that at least one frame must have.

    Raises:
        InputError: the store is damaged or lacks a label.
    """
    for kind in fields(Keys):
        if getattr(keys or Keys(), kind.name) is not None:
            raise InputError(
                f"{path}: --{kind.name}_key has no effect, as the labels of a store are chosen "
                "when it is built: leave it out, or build the store with it"
            )
    folder = ArrayFolder(Path(path), LAYOUT)
    _check(folder)
    facts = folder.manifest
    rows = [LabelRow(**row) for row in facts["labels"]]
    there = {row.label for row in rows}
    for label in require:
        if label not in there:
            has = ", ".join(sorted(there)) or "no labels"
            raise InputError(
                f"{path}: no frame has {label}, the store has {has}; "
                f"build it with --{label}_key, or do without by --{label}_weight 0"
            )
    report = LabelReport(str(path), facts["frames"], rows, facts["notes"], facts["unused"])
    isolated = {int(z): energy for z, energy in facts["isolated"].items()}
    return Dataset(StoredFrames(folder), isolated, report, fingerprint(facts))


def fingerprint(manifest: Mapping[str, Any]) -> str:
    """The same for stores of the same data, wherever they were made from."""
    same = {name: manifest[name] for name in ("arrays", "isolated", "config_types")}
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()


def identity(path: str | Path) -> str:
    """SHA-256 of a file, or of what a store holds, in hexadecimal; the same for the same data.

    Raises:
        InputError: the store is damaged.
        OSError: the file cannot be read.
    """
    return fingerprint(read_manifest(Path(path))) if is_store(path) else digest(path)


def _check(folder: ArrayFolder) -> None:
    """Refuse arrays that do not belong together."""
    needed = set(LAYOUT) - set(LABELS)
    for name in sorted(needed):
        if name not in folder:
            raise _damaged(folder.path, f"does not list the array {name}")
    frames, offsets = folder.length("cell"), folder.rows("offsets", 0, folder.length("offsets"))
    atoms = int(offsets[-1]) if len(offsets) else 0
    lengths = {**dict.fromkeys(PER_FRAME, frames), **dict.fromkeys(PER_ATOM, atoms)}
    for name, length in (lengths | {"offsets": frames + 1}).items():
        if name in folder and folder.length(name) != length:
            raise _damaged(folder.path, f"{folder.length(name)} rows of {name}, not {length}")
    if offsets[0] != 0 or (np.diff(offsets) < 1).any():
        raise _damaged(folder.path, "frames without atoms")


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path / MANIFEST}: {what}; build the store again with eqnet data build")


def _neighbors(frames: StoredFrames, cutoff: float) -> ArrayFolder:
    """Counts of neighbours and shortest distances, from beside the store, or else made there."""
    path = frames.folder.path / f"neighbors-{float(cutoff)}"
    if not path.exists():
        print(
            f"{frames.folder.path}: counting neighbours within {cutoff:g} A in {len(frames):,} "
            "structures, once for this cutoff",
            file=sys.stderr,
            flush=True,
        )
        try:
            _count(frames, cutoff, path)
        except OSError as error:
            if error.errno in READ_ONLY:
                return _count_apart(frames, cutoff)
            if not path.exists():  # else another process was faster
                raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    found = ArrayFolder(path, NEIGHBORS)
    if found.manifest.get("store") != fingerprint(frames.folder.manifest):
        raise InputError(f"{path} is of another store: delete this folder")
    return found


def _count_apart(frames: StoredFrames, cutoff: float) -> ArrayFolder:
    """Counts for this process alone: mapped files outlive their names."""
    try:
        with TemporaryDirectory() as apart:
            _count(frames, cutoff, Path(apart) / "neighbors")
            return ArrayFolder(Path(apart) / "neighbors", NEIGHBORS)
    except OSError as error:
        raise InputError(
            f"{frames.folder.path}: numbers of neighbours can be written neither beside this store "
            f"nor in a temporary folder ({error.strerror}); set TMPDIR to a folder with room"
        ) from None


def _count(frames: StoredFrames, cutoff: float, path: Path) -> None:
    with writing(path, NEIGHBORS) as (columns, facts):
        for frame in frames:
            item = make_item(frame, range(1, 119), cutoff)
            columns["counts"].append(item.counts)
            columns["shortest"].append(item.shortest)
        facts["store"] = fingerprint(frames.folder.manifest)
