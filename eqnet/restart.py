"""A file from which a simulation goes on as if it had never stopped.

A sealed archive (`eqnet.archive`) of the options of the run and the arrays of its state, float64:
whole or not there, checked by digest, without pickle.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eqnet import archive
from eqnet.errors import InputError

FORMAT = 1
CAPS = {"restart.json": 2**20, "state.npz": 2**36}


class Restart(NamedTuple):
    """What a restart file holds."""

    options: dict[str, Any]  # of the run
    marks: dict[str, list[int]]  # where its other files ended, by name
    state: dict[str, np.ndarray]  # see `Simulation.saved`


def write_restart(path: Path, restart: Restart) -> None:
    """Write the file; `path` holds the old one or the whole new one.

    Raises:
        InputError: it cannot be written.
    """
    description = {"format": FORMAT, "options": restart.options, "marks": restart.marks}
    arrays = io.BytesIO()
    np.savez(arrays, allow_pickle=False, **restart.state)
    members = {"restart.json": json.dumps(description).encode(), "state.npz": arrays.getvalue()}
    try:
        archive.write(path, members)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def read_restart(path: Path) -> Restart:
    """Read the file.

    Raises:
        InputError: there is none, it is damaged, or of another version.
    """

    def check(data: bytes) -> None:
        found = archive.from_json(path, "restart.json", data)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise InputError(f"{path} was written by another version of eqnet; go on with that one")

    words = {"kind": "restart file", "cure": "start the simulation again without --restart"}
    members = archive.read(path, CAPS, ("restart.json", check), **words)
    description = archive.from_json(path, "restart.json", members["restart.json"])
    with np.load(io.BytesIO(members["state.npz"]), allow_pickle=False) as file:
        state = {name: file[name] for name in file.files}
    return Restart(description["options"], description["marks"], state)
