"""What `md` and `relax` share: the structure to begin with and the files to write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqnet.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

XYZ = (".xyz", ".extxyz")


def read_structures(file: str, index: str) -> list[Atoms]:
    """Some structures of a file, to be moved: without labels, which belong to where they were.

    Args:
        file: any file that ASE reads, or a store, of which only these are read.
        index: one frame, '0' or '-1', or a slice as in Python, ':', '0:10', '::2'.

    Raises:
        InputError: the file cannot be read, or has no such structures; index is neither.
    """
    from eqnet.data.label_choice import without_labels
    from eqnet.data.read import read_images, to_atoms
    from eqnet.data.store import is_store, read_store

    chosen = _chosen(index)
    if is_store(file):
        images = [to_atoms(frame) for frame in _take(read_store(file).frames, chosen, file, index)]
    else:
        images = _take(read_images(file), chosen, file, index)
    return [without_labels(atoms) for atoms in images]


def _take(images: Sequence[Any], chosen: int | slice, file: str, index: str) -> Sequence[Any]:
    """Those that --index names, at least one."""
    total = len(images)
    if isinstance(chosen, slice):
        if not len(images[chosen]):
            raise InputError(f"{file}: --index {index} takes none of its {total} frames")
        return images[chosen]
    if not -total <= chosen < total:
        raise InputError(
            f"{file}: there is no frame {chosen}; it has {total} (--index counts from 0)"
        )
    return [images[chosen]]


def _chosen(index: str) -> int | slice:
    """What --index names."""
    parts = index.split(":")
    try:
        if len(parts) == 1:
            return int(index)
        frames = slice(*(int(part) if part else None for part in parts))
        frames.indices(0)  # refuses a step of 0
    except (TypeError, ValueError):
        raise InputError(
            f"--index must be one frame, such as 0 or -1, or a slice, such as : for all, 0:10 or "
            f"::2, not {index!r}"
        ) from None
    return frames


def check_outputs(outputs: Sequence[Path], inputs: Sequence[str], *, overwrite: bool) -> None:
    """Refuse, before any work, to write over what is there.

    Raises:
        InputError: an output is an input, exists (without `overwrite`), or has no folder.
    """
    for path in outputs:
        if path.resolve() in {Path(file).resolve() for file in inputs}:
            raise InputError(f"{path} would overwrite an input; name another file with --output")
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a file with --output")
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists; name another file with --output or add --overwrite")
        if not path.resolve().parent.is_dir():
            raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise InputError(f"two outputs have the same name: {', '.join(map(str, outputs))}")


def open_trajectory(
    path: Path, *, append: bool = False
) -> tuple[Callable[[Atoms], None], Callable[[], None]]:
    """Functions that write a frame and that close the file: extended XYZ or ASE's .traj by suffix.

    Args:
        path: the file.
        append: whether frames follow those that are there.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        if path.suffix.lower() in XYZ:
            from ase.io.extxyz import write_extxyz

            file = path.open("a" if append else "w", encoding="utf-8")

            def write(atoms: Atoms) -> None:
                write_extxyz(file, [atoms])
                file.flush()

            return write, file.close
        from ase.io.trajectory import TrajectoryWriter

        writer = TrajectoryWriter(str(path), "a" if append else "w")
        return writer.write, writer.close
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def check_writable(path: Path, *, several: bool = False) -> None:
    """Refuse a suffix for which ASE has no writer of single, or of several, structures.

    Raises:
        InputError: naming the suffix.
    """
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    try:
        name = filetype(str(path), read=False)
    except UnknownFileTypeError:
        name = ""
    if name not in ioformats or not ioformats[name].can_write:
        raise InputError(f"{path}: ASE cannot write such a file; end the name with .xyz")
    if several and ioformats[name].single:
        raise InputError(
            f"{path}: such a file holds one structure; end the name with .xyz or .traj"
        )


def write_structure(path: Path, atoms: Atoms | list[Atoms]) -> None:
    """One structure, or several, in the format of the suffix; .xyz is extended XYZ.

    Raises:
        InputError: the file cannot be written.
    """
    from ase.io import write

    try:
        write(path, atoms, format="extxyz" if path.suffix.lower() in XYZ else None)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
