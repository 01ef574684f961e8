"""Reading labelled structures from extended XYZ and every other format that ASE knows."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eqnet.data import check
from eqnet.data.frame import Frame, from_atoms, to_atoms
from eqnet.data.hdf5 import SUFFIXES, read_hdf5
from eqnet.data.label_choice import Keys, Seen, choose, unused_labels
from eqnet.data.labels import LabelReport, LabelRow, Tally, label_frames
from eqnet.errors import InputError, reason
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

    frames: Sequence[Frame]
    isolated: dict[int, float]  # atomic number -> eV
    report: LabelReport
    sha256: str = ""  # of the file that was read

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur in the frames, ascending."""
        return tuple(sorted({int(z) for f in self.frames for z in np.unique(f.numbers)}))


def read(
    path: str | Path,
    keys: Keys | None = None,
    *,
    require: Sequence[str] = ("energy", "forces"),
    isolated: bool = True,
) -> Dataset:
    """Read a file of structures with labels.

    Args:
        path: extended XYZ (also compressed), any file that ASE reads, or a store.
        keys: names of the labels in the file, where they are not the usual ones.
        require: labels that at least one frame must have; () reads bare structures.
        isolated: whether single atoms without a config_type count as isolated atoms, too.

    Returns:
        The frames, without isolated atoms; energies of isolated atoms; a report of the labels.

    Raises:
        InputError: the file is missing, malformed or lacks what was asked for.
    """
    from eqnet.data.store import is_store, read_store

    if is_store(path):
        return read_store(path, keys, require)
    images, sha256 = _read_unchanged(Path(path))
    places = [(atoms, str(path), index) for index, atoms in enumerate(images)]
    reader = Reader(lambda: places, keys or Keys(), require, str(path), isolated=isolated)
    return Dataset(list(reader), reader.isolated, reader.report(), sha256)


class Reader:
    """Frames of structures that come one at a time, without isolated atoms.

    All structures are looked at once to choose where the labels are, and once more for the frames.
    """

    def __init__(
        self,
        images: Callable[[], Iterable[tuple[Atoms, str, int]]],
        keys: Keys,
        require: Sequence[str],
        file: str,
        *,
        isolated: bool = True,
    ) -> None:
        """Choose the labels.

        Args:
            images: begins to read; gives each structure with its file and its index in that.
            keys: names of the labels, where they are not the usual ones.
            require: labels that at least one frame must have.
            file: name in errors about all structures.
            isolated: whether single atoms without a config_type count as isolated atoms, too.

        Raises:
            InputError: the files are malformed or lack what was asked for.
        """
        self.images, self.require, self.file, self.unmarked = images, require, file, isolated
        self.seen = Seen()
        for atoms, name, index in images():
            self.seen.add(atoms, name, index)
        self.sources, self.notes = choose(self.seen, keys, require, file)
        self.isolated: dict[int, float] = {}
        self._tally = Tally()

    def __iter__(self) -> Iterator[Frame]:
        """The frames; a value that is not what it should be raises an InputError."""
        total = alone = 0
        for frame in label_frames(self.images(), self.seen, self.sources, self.notes):
            total += 1
            if self._is_isolated(frame):
                alone += 1
            else:
                self._tally.add(frame)
                yield frame
        if alone == total:
            raise InputError(
                f"{self.file}: all {total} frames are isolated atoms; give a file with structures "
                "too"
            )
        if alone:
            self.notes.append(
                f"{alone} frames of isolated atoms give reference energies and are "
                "not among the structures"
            )

    def report(self) -> LabelReport:
        """Of the labels of all frames, which have been taken before."""
        report = self._tally.report(self.file, self.sources, self.notes)
        report.unused.extend(unused_labels(self.seen, self.sources))
        absent = sorted(set(self.require) - {row.label for row in report.rows})
        if absent:
            raise InputError(
                f"{self.file}: only isolated atoms have {absent[0]}; structures need it too"
            )
        return report

    def _is_isolated(self, frame: Frame) -> bool:
        """Whether this is an isolated atom: marked by config_type, or single and not periodic."""
        marked = frame.config_type.lower() in _ISOLATED
        single = len(frame) == 1 and not frame.pbc.any() and frame.config_type == "Default"
        if not marked and not (self.unmarked and single and frame.energy is not None):
            return False
        where = self.seen.where(frame.file, frame.index)
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
        if abs(self.isolated.get(number, frame.energy) - frame.energy) > 1e-6:
            raise InputError(
                f"{where}: a second isolated atom of atomic number {number} with another energy "
                f"({frame.energy} after {self.isolated[number]} eV); keep one, or give the other "
                "another config_type"
            )
        self.isolated[number] = frame.energy
        return True


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
    return list(stream_images(path))


def stream_images(path: str | Path) -> Iterator[Atoms]:
    """`read_images` one at a time, so that a file of any length can be read."""
    from eqnet.data.store import is_store, read_store

    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: there is no such file")
    if is_store(path):
        yield from (to_atoms(frame) for frame in read_store(path).frames)
        return
    if path.is_dir():
        raise InputError(f"{path}: this is a folder, and no store; give a file with structures")
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in _COMPRESSED]
    if suffixes and suffixes[-1] in _XYZ:
        yield from _read_xyz(path)
        return
    index = -1
    images = read_hdf5(path) if path.suffix.lower() in SUFFIXES else _read_other(path)
    for index, atoms in enumerate(images):
        check.check_structure(atoms, f"{path}, frame {index}")
        yield atoms
    if index < 0:
        raise InputError(f"{path}: 0 frames; give a file with structures")


def _read_xyz(path: Path) -> Iterator[Atoms]:
    from ase.io.extxyz import read_xyz

    total = sum(1 for _ in check.scan(_lines(path), str(path)))
    for index, block in enumerate(check.scan(_lines(path), str(path))):
        where = f"{path}, frame {index} of {total}"
        try:
            text = io.StringIO("\n".join(block.lines))
            images = list(read_xyz(text, slice(None)))  # pyright: ignore[reportArgumentType]
        except Exception as error:  # ASE raises whatever float(), numpy and its tables raise
            why = check.explain(block) or f"ASE cannot read it ({reason(error)})"
            raise InputError(f"{where}, {why}") from None
        if len(images) != 1:
            raise InputError(f"{where}: ASE does not read it")
        check.check_structure(images[0], where)
        yield images[0]


def _lines(path: Path) -> Iterator[str]:
    """Lines of a file, decompressed by its content, whatever its name says."""
    place = 0
    for number, raw in enumerate(_raw_lines(path)):
        try:
            line = raw.decode("utf-8-sig" if number == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}, line {number + 1}: byte {place + error.start} is not UTF-8 text; convert "
                "the file to UTF-8"
            ) from None
        place += len(raw)
        line = line.removesuffix("\n").removesuffix("\r")
        yield from line.split("\r") if "\r" in line else (line,)


def _raw_lines(path: Path) -> Iterator[bytes]:
    try:
        file = path.open("rb")
        start = file.peek(8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    with file:
        opener = next((o for magic, o in _OPENERS.items() if start.startswith(magic)), None)
        if opener is None:
            yield from file
            return
        most, done = max(MOST_COMPRESSED * path.stat().st_size, SMALL), 0
        stream = opener(fileobj=file) if opener is gzip.GzipFile else opener(file)
        while raw := _unpacked_line(stream, most + 1 - done, path):
            done += len(raw)
            if done > most:
                raise InputError(
                    f"{path}: refused, it unpacks to more than {MOST_COMPRESSED} times its size, "
                    "which no text of atoms does"
                )
            yield raw


def _unpacked_line(stream: Any, most: int, path: Path) -> bytes:
    try:
        return stream.readline(most)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise InputError(
            f"{path}: the compressed file is damaged or cut short ({reason(error)})"
        ) from None


def _read_other(path: Path) -> Iterator[Atoms]:
    import ase.io

    try:
        yield from ase.io.iread(path, index=":")
    except Exception as error:  # every reader of ASE has its own exceptions
        if path.suffix == ".aselmdb" and isinstance(error, ImportError):
            raise InputError(
                f"{path}: reading .aselmdb needs a package: pip install 'eqnet[lmdb]'"
            ) from None
        why = f"{type(error).__name__}: {reason(error)}"
        raise InputError(f"{path}: ASE cannot read this file ({why})") from None
