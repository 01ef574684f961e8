"""Structures with velocities, and whole runs as one block."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule

from eqnet.simulate import Simulation
from eqnet.trajectory import Block
from eqnet.velocities import draw_velocities


def hot(atoms: Atoms, temperature: float = 300, seed: int = 0) -> Atoms:
    """A copy with velocities of this temperature."""
    atoms = atoms.copy()
    draw_velocities(atoms, temperature, seed)
    return atoms


def ethanol() -> Atoms:
    """A molecule out of balance."""
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.03, seed=1)
    return atoms


def crystal() -> Atoms:
    """Eight atoms in a cell smaller than the cutoff, out of balance."""
    atoms = bulk("C", "diamond", 3.2, cubic=True)
    atoms.rattle(0.03, seed=1)
    return atoms


def joined(simulation: Simulation, steps: int, interval: int = 10) -> Block:
    """All steps to this one."""
    blocks = list(simulation.run(steps, frame_interval=interval))
    names = ["step", "potential", "kinetic", "heat"]
    names += ["volume", "pressure"] if blocks[0].volume is not None else []
    parts = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in names}
    frames = [frame for block in blocks for frame in block.frames]
    return Block(**parts, frames=frames, seconds=0.0)
