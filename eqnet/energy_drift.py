"""How well a potential keeps the energy of a structure that moves by it."""

from __future__ import annotations

from typing import Any

import numpy as np

from eqnet.data.frame import Frame, to_atoms
from eqnet.device import Device
from eqnet.potential import Potential
from eqnet.simulate import MAX_BLOCK, Simulation, Unstable
from eqnet.trajectory import LOUD, drift
from eqnet.velocities import draw_velocities

TEMPERATURE = 300.0  # K, of the velocities at the start
SEED = 0  # of these velocities


def measure(
    potential: Potential,
    frame: Frame,
    ps: float,
    *,
    time_step: float = 0.5,
    dtype: str = "float32",
    device: str | Device | None = None,
) -> dict[str, Any]:
    """Velocity Verlet at constant energy from one structure, with velocities of 300 K.

    A structure far from its minimum heats up: the temperature on the way is told.

    Args:
        potential: the model.
        frame: structure at the start.
        ps: length of the simulation in picoseconds.
        time_step: fs.
        dtype: precision of the model.
        device: where to simulate.

    Returns:
        drift_mev_per_atom_ps: slope of the straight line through the total energy, None where the
        simulation is unstable; unstable: why (it could not go on, or the energy is not conserved),
        or None; fluctuation_mev_per_atom: standard deviation from the line; steps, the last one;
        temperature_k, its mean; and structure.
    """
    atoms = to_atoms(frame)
    draw_velocities(atoms, TEMPERATURE, SEED, conserving=True)
    simulation = Simulation(potential, atoms, time_step=time_step, dtype=dtype, device=device)
    blocks, unstable = [], None
    try:
        for block in simulation.run(round(1000 * ps / time_step), frame_interval=MAX_BLOCK):
            blocks.append(block)
    except Unstable as error:
        unstable = str(error)
    steps, energy, kinetic = (
        np.concatenate([getattr(block, name) for block in blocks] or [np.zeros(0)])
        for name in ("step", "conserved", "kinetic")
    )
    slope, noise = drift(steps * time_step, energy, len(atoms)) if len(steps) else (0.0, 0.0)
    if unstable is None and noise > LOUD:
        unstable = f"the energy fluctuates by {noise:.0f} meV/atom"
    return {
        "structure": frame.name,
        "steps": int(steps[-1]) if len(steps) else 0,
        "unstable": unstable,
        "drift_mev_per_atom_ps": None if unstable else slope,
        "fluctuation_mev_per_atom": noise,
        "temperature_k": float(simulation.temperature(kinetic).mean()) if len(steps) else 0.0,
    }


def sentence(found: dict[str, Any]) -> str:
    """What `measure` has found, in words."""
    where = f"{found['structure']}, {found['steps']} steps at {found['temperature_k']:.0f} K"
    if found["unstable"]:
        return f"dynamics at constant energy are unstable ({where}): {found['unstable']}"
    return (
        f"dynamics at constant energy: drift {found['drift_mev_per_atom_ps']:.2g} meV/atom/ps, "
        f"fluctuation {found['fluctuation_mev_per_atom']:.2g} meV/atom ({where})"
    )
