"""Checkpoints that are whole, proven, or passed over.

`checkpoints/` holds one folder per saved step:

    000001200/arrays/...      the arrays, written by orbax
    000001200/position.json   what the host knows: epoch, batch, best loss, ...
    000001200/manifest.json   SHA-256 and size of every other file, written last

A checkpoint is written under another name, its manifest last, and then renamed: a folder with a
step's name is complete. Orbax itself keeps no digest of the data, restores a folder without its
commit marker, and does not go back to an older step; `Checkpoints.restore` checks every digest and
takes the newest step that is intact. Arrays pass as numpy, so that their precision does not depend
on the threads of orbax.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from eqnet.errors import InputError, reason
from eqnet.files import digest

FORMAT = 1
_TEMPORARY = ".partial-"
_REPLACED = "-replaced"
_DAMAGED = ".damaged"

Tree = TypeVar("Tree")


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: made when the first one is saved.
        keep: how many of the newest to keep.
        tell: takes one sentence when something is wrong but mended.
    """

    def __init__(
        self, folder: Path, *, keep: int = 3, tell: Callable[[str], None] = lambda text: None
    ):
        self.folder = folder
        self._keep = keep
        self._tell = tell

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending; whether they are intact is not looked at."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit() and p.is_dir())

    def remove_leftovers(self) -> None:
        """Delete what a killed process was writing; call only while holding the lock of the run.

        A checkpoint that was about to be replaced by one of the same step is put back.
        """
        if self.folder.is_dir():
            for path in self.folder.glob(f"{_TEMPORARY}*{_REPLACED}"):
                self._put_back(path)
            for path in self.folder.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(path, ignore_errors=True)

    def save(self, step: int, tree: Any, position: dict[str, Any]) -> None:
        """Write a checkpoint; when this returns it is on the disk.

        Args:
            step: its name.
            tree: pytree of arrays.
            position: plain values.

        Raises:
            InputError: the disk is full or cannot be written; older checkpoints are untouched.
        """
        arrays = _to_numpy(tree)
        partial = self.folder / f"{_TEMPORARY}{step:09d}-{os.getpid()}"
        replaced = self.folder / f"{_TEMPORARY}{step:09d}{_REPLACED}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _write_arrays(partial / "arrays", arrays)
            text = json.dumps({"format": FORMAT, **position}, indent=1)
            (partial / "position.json").write_text(text + "\n")
            _write_manifest(partial)
            target = self._path(step)
            if target.exists():
                target.rename(replaced)
            partial.rename(target)
            _sync(self.folder)
            shutil.rmtree(replaced, ignore_errors=True)
        except Exception as error:
            self._put_back(replaced)
            shutil.rmtree(partial, ignore_errors=True)
            if not _is_disk_error(error):
                raise
            needed = sum(a.nbytes for a in arrays.values())
            raise InputError(_disk_sentence(self.folder, needed, error)) from None
        for old in self.steps()[: -self._keep]:
            shutil.rmtree(self._path(old), ignore_errors=True)

    def restore(self, like: Tree) -> tuple[int, Tree, dict[str, Any]] | None:
        """The newest intact checkpoint as (step, tree, position), or None if there is none at all.

        A damaged one is told, renamed and passed over.

        Args:
            like: pytree of the arrays that are expected.

        Raises:
            InputError: all are damaged, or they belong to another program version or model.
        """
        steps = self.steps()
        for step in reversed(steps):
            path = self._path(step)
            fault = _fault(path)
            if fault is None:
                position = json.loads((path / "position.json").read_text())
                if position.pop("format", None) != FORMAT:
                    raise InputError(
                        f"{path} was written by another version of eqnet; go on with that version, "
                        "or train under another --name"
                    )
                return step, _restore_arrays(path, like), position
            moved = path.with_name(path.name + _DAMAGED)
            shutil.rmtree(moved, ignore_errors=True)
            path.rename(moved)
            self._tell(
                f"checkpoint of step {step} is damaged ({fault}); it is now {moved}, "
                "the one before it is taken"
            )
        if steps:
            raise InputError(
                f"{self.folder}: none of the {len(steps)} checkpoints is intact; train under "
                "another --name or delete the folder to start again"
            )
        return None

    def _put_back(self, replaced: Path) -> None:
        """Give a checkpoint its name again if no other one has taken it."""
        target = self.folder / replaced.name.removeprefix(_TEMPORARY).removesuffix(_REPLACED)
        if replaced.exists() and not target.exists():
            replaced.rename(target)

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:09d}"


def _to_numpy(tree: Any) -> dict[str, np.ndarray]:
    """Arrays by the path of their leaf, copied from the device."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    fetched = jax.device_get([leaf for _, leaf in leaves])
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    if len(set(names)) != len(names):
        raise ValueError("two leaves of the state have the same name")
    return {n: np.array(a, copy=True) for n, a in zip(names, fetched, strict=True)}


def _checkpointer() -> Any:
    """Orbax for this process alone: with several, it would wait for the others."""
    import orbax.checkpoint as ocp

    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process{here}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with _checkpointer() as checkpointer:
        checkpointer.save(path.absolute(), arrays)


def _restore_arrays(path: Path, like: Tree) -> Tree:
    """The arrays in the structure of `like`, each of the shape and type expected."""
    import orbax.checkpoint as ocp

    wanted = _to_numpy(like)
    with _checkpointer() as checkpointer:
        there = checkpointer.metadata((path / "arrays").absolute()).item_metadata.tree
        _compare(path, wanted, there)
        how = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in wanted}
        found = checkpointer.restore(
            (path / "arrays").absolute(),
            args=ocp.args.PyTreeRestore(item=wanted, restore_args=how),
        )
    leaves = [jax.numpy.array(found[name]) for name in wanted]
    for name, leaf in zip(wanted, leaves, strict=True):
        if leaf.dtype != wanted[name].dtype:
            raise ValueError(f"{name} has type {leaf.dtype}, {wanted[name].dtype} is expected")
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _compare(path: Path, wanted: dict[str, np.ndarray], there: dict[str, Any]) -> None:
    """Refuse the checkpoint of another model, with the first weights that differ."""

    def text(array: Any) -> str:
        return "absent" if array is None else f"{np.dtype(array.dtype)}{list(array.shape)}"

    names = [*wanted, *(name for name in there if name not in wanted)]
    rows = [(name, text(there.get(name)), text(wanted.get(name))) for name in names]
    rows = [row for row in rows if row[1] != row[2]]
    if rows:
        shown = "; ".join(f"{name}: {old} there, {new} here" for name, old, new in rows[:5])
        raise InputError(
            f"{path} belongs to another model or optimiser, {len(rows)} arrays differ ({shown}); "
            "train under another --name"
        )


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file() and p.name != "manifest.json")


def _write_manifest(path: Path) -> None:
    """List every file with its digest; all of it is on the disk before this returns."""
    entries = {}
    for file in _files(path):
        _sync(file)
        name = file.relative_to(path).as_posix()
        entries[name] = {"sha256": digest(file), "size": file.stat().st_size}
    manifest = path / "manifest.json"
    manifest.write_text(_manifest_text(entries, FORMAT))
    _sync(manifest)
    for folder in [path, *(p for p in path.rglob("*") if p.is_dir())]:
        _sync(folder)


def _manifest_text(entries: dict[str, Any], version: int) -> str:
    return json.dumps({"format": version, "files": entries}, indent=1)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None if every file is as it was written."""
    try:
        text = (path / "manifest.json").read_text()
        entries = json.loads(text)["files"]
        for name, entry in entries.items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != entry["size"]:
                return f"{name} has {file.stat().st_size} bytes, not {entry['size']}"
            if digest(file) != entry["sha256"]:
                return f"{name} does not match its SHA-256"
        if extra := {p.relative_to(path).as_posix() for p in _files(path)} - set(entries):
            return f"{min(extra)} does not belong to it"
        version = json.loads((path / "position.json").read_text())["format"]
        if text != _manifest_text(entries, version):  # a bit that means nothing is damage too
            return "manifest.json is not as it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json is missing or unreadable"
    return None


def _is_disk_error(error: Exception) -> bool:
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
    if isinstance(error, OSError) and error.errno in codes:
        return True
    words = ("No space left", "Disk quota", "Read-only file system", "Permission denied")
    return any(word in str(error) for word in words)  # tensorstore has exceptions of its own


def _disk_sentence(folder: Path, needed: int, error: Exception) -> str:
    try:
        free = f"{shutil.disk_usage(folder if folder.exists() else folder.parent).free:,}"
    except OSError:
        free = "an unknown number of"
    why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else reason(error)
    return (
        f"{folder}: no checkpoint can be written ({why}): about "
        f"{needed:,} bytes are needed and {free} are free; make room and run the same command again"
    )
