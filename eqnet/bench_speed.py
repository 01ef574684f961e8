"""How fast trained models are on one structure: energy and forces, and steps of dynamics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from eqnet import model_file
from eqnet.bench_model import Case, Inference, Work
from eqnet.data.frame import Frame, to_atoms
from eqnet.device import computing, find_device
from eqnet.energy_drift import TEMPERATURE
from eqnet.ops.timing import take_turns
from eqnet.options import RunOptions
from eqnet.potential import Potential
from eqnet.simulate import Simulation, Unstable
from eqnet.velocities import draw_velocities

MD_STEPS = 50  # of a call


@dataclass
class Dynamics:
    """Velocity Verlet from one structure; `unstable` once it could not go on."""

    potential: Potential
    frame: Frame
    dtype: str
    device: Any
    time_step: float  # fs
    unstable: bool = False
    simulation: Simulation = field(init=False)

    def __post_init__(self) -> None:
        atoms = to_atoms(self.frame)
        draw_velocities(atoms, TEMPERATURE, 0, conserving=True)
        self.simulation = Simulation(
            self.potential,
            atoms,
            time_step=self.time_step,
            dtype=self.dtype,
            device=self.device,
        )

    def __call__(self) -> None:
        """The next steps; nothing once it is unstable."""
        if self.unstable:
            return
        last = self.simulation.step + MD_STEPS - 1
        try:
            for _ in self.simulation.run(last, frame_interval=MD_STEPS):
                pass
        except Unstable:
            self.unstable = True


def measure(
    models: Mapping[str, Path],
    frame: Frame,
    run: RunOptions,
    method: str,
    seconds: float,
    time_step: float = 0.5,
) -> dict[str, dict[str, Any]]:
    """Time model files in turn.

    Args:
        models: files by name.
        frame: structure to compute.
        run: precision and device.
        method: of the products.
        seconds: of calls, for each model and kind of call.
        time_step: of the dynamics, fs.

    Returns:
        By name: atoms, parameters, force_ms of one call, md_step_ms of one step (None where the
        dynamics became unstable), each by the clock to trust.
    """
    place, dtype = find_device(run.device), run.default_dtype
    with computing(place, double=dtype == "float64", what=frame.name):
        work = Work(frame, (), dtype, seconds)
        forces = {
            name: Inference(_case(path, dtype, method), work) for name, path in models.items()
        }
        called = take_turns(forces, seconds)
        sizes = {
            name: sum(int(x.size) for x in jax.tree.leaves(program.weights))
            for name, program in forces.items()
        }
    dynamics = {
        name: Dynamics(program.potential, frame, dtype, place, time_step)
        for name, program in forces.items()
    }
    walked = take_turns(dynamics, seconds)
    return {
        name: {
            "atoms": len(frame),
            "parameters": sizes[name],
            "force_ms": 1e3 * called[name].best(place.platform),
            "md_step_ms": None
            if dynamics[name].unstable
            else 1e3 * walked[name].best(place.platform) / MD_STEPS,
        }
        for name in models
    }


def _case(path: Path, dtype: str, method: str) -> Case:
    make = lambda: model_file.load(path, dtype=dtype, method=method, verify=False)  # noqa: E731
    return Case("", "", method, make)
