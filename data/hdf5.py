"""Structures from HDF5 files in the layouts of MACE (`mace_prepare_data`) and of mlip.

MACE: groups config_batch_I/config_J with atomic_numbers, positions, cell, pbc, weight, config_type,
properties/NAME and property_weights/NAME. mlip: a group for each structure with elements and
positions; numbers of the structure are its attributes, arrays are datasets; never periodic.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eqnet.errors import InputError, reason

if TYPE_CHECKING:
    from ase import Atoms

SUFFIXES = {".h5", ".hdf5"}


def read_hdf5(path: Path) -> Iterator[Atoms]:
    """The structures in their order; labels stand where `labels` finds them.

    Raises:
        InputError: h5py is missing, or the file is damaged or has another layout.
    """
    try:
        import h5py
    except ImportError:
        raise InputError(
            f"{path}: HDF5 needs the package h5py: pip install 'eqnet[hdf5]'"
        ) from None
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: no whole HDF5 file ({reason(error)})") from None
    with file:
        first = next((group for group in file.values() if isinstance(group, h5py.Group)), {})
        if "config_batch_0" in file:
            groups, convert = _in_batches(file), _of_mace
        elif "elements" in first and "positions" in first:
            groups = (group for group in file.values() if isinstance(group, h5py.Group))
            convert = _of_mlip
        else:
            raise InputError(
                f"{path}: HDF5 in neither the layout of MACE nor that of mlip; convert it to extxyz"
            )
        for index, group in enumerate(groups):
            try:
                atoms = convert(group)
            except (KeyError, OSError, TypeError, ValueError) as error:
                raise InputError(
                    f"{path}, frame {index} cannot be read ({reason(error)})"
                ) from None
            yield atoms


def _in_batches(file: Any) -> Iterator[Any]:
    """By number, not by name: 10 comes after 9."""
    for i in range(len(file)):
        batch = file.get(f"config_batch_{i}", {})
        yield from (batch[f"config_{j}"] for j in range(len(batch)))


def _of_mace(group: Any) -> Atoms:
    from ase import Atoms

    cell, pbc = _value(group["cell"]), _value(group["pbc"])
    atoms = Atoms(group["atomic_numbers"][()], positions=group["positions"][()])
    if cell is not None:
        atoms.set_cell(cell)
    if pbc is not None:
        atoms.set_pbc(pbc)
    atoms.info["config_weight"] = float(_value(group["weight"]))
    atoms.info["config_type"] = str(_value(group["config_type"]) or "Default")
    for name, dataset in group["properties"].items():
        value = _value(dataset)
        if value is None:
            continue
        if name in ("energy", "forces", "stress"):
            weight = _value(group["property_weights"][name])
            atoms.info[f"config_{name}_weight"] = 1.0 if weight is None else float(weight)
        if name == "forces":
            atoms.set_array("REF_forces", value)
        else:
            atoms.info[f"REF_{name}"] = value
    return atoms


def _value(dataset: Any) -> Any:
    """What a dataset holds; MACE writes None as text."""
    value = dataset[()]
    text = value.decode() if isinstance(value, bytes) else value
    return None if isinstance(text, str) and text == "None" else text


def _of_mlip(group: Any) -> Atoms:
    from ase import Atoms

    atoms = Atoms(group["elements"][()], positions=group["positions"][()])
    values = {name: np.asarray(value)[()] for name, value in group.attrs.items()}
    values |= {k: v[()] for k, v in group.items() if k not in ("elements", "positions")}
    for name, value in values.items():
        # ASE's writers refuse what a calculator has a name for
        key = f"REF_{name}" if name in ("energy", "forces", "stress") else name
        if np.ndim(value) and len(value) == len(atoms) and name != "stress":
            atoms.set_array(key, value)
        else:
            atoms.info[key] = value
    return atoms
