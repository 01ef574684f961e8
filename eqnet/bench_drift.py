"""How well a trained model keeps the energy, in a process that does nothing else.

python -m eqnet.bench_drift config.yaml answer.json PS TIME_STEP
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from eqnet import model_file
from eqnet.bench_model import peak_rss
from eqnet.bench_probe import read_options
from eqnet.data.frame import Frame, to_atoms
from eqnet.device import computing, find_device
from eqnet.errors import InputError
from eqnet.experiment import prepare
from eqnet.options import RunOptions
from eqnet.potential import Potential
from eqnet.run_folder import RunFolder, write
from eqnet.simulate import MAX_BLOCK, Simulation, Unstable
from eqnet.trajectory import LOUD, drift
from eqnet.velocities import draw_velocities

TEMPERATURE = 300.0  # K, of the velocities at the start
SEED = 0  # of these velocities


def main(config: str, answer: str, ps: str, time_step: str) -> int:
    """Simulate with the best model of a run; returns the exit code."""
    options = read_options(config)
    device, dtype = find_device(options.run.device), options.run.default_dtype
    try:
        frame = prepare(options, Path(options.data.train_file or "")).frames["test"][0]
        path = RunFolder(options.run.work_dir, str(options.run.name)).best_model
        with computing(device, double=dtype == "float64", what=f"loading {path}"):
            potential = model_file.load(
                path, dtype=dtype, method=options.model.method, verify=False
            )
        found = measure(potential, frame, options.run, float(ps), float(time_step))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    write(Path(answer), json.dumps(found, indent=1) + "\n")
    return 0


def asked(ps: float, time_step: float) -> dict[str, float]:
    """The part of an answer that says what was asked."""
    return {"asked_ps": ps, "time_step_fs": time_step}


def measure(
    potential: Potential, frame: Frame, run: RunOptions, ps: float, time_step: float
) -> dict[str, Any]:
    """Velocity Verlet at constant energy from one structure, with velocities of 300 K.

    Args:
        potential: the model.
        frame: structure at the start.
        run: precision and device.
        ps: length of the simulation in picoseconds.
        time_step: fs.

    Returns:
        drift_mev_per_atom_ps: slope of the straight line through the total energy, None where the
        simulation is unstable; unstable: why (it could not go on, or the energy is not conserved),
        or None; fluctuation_mev_per_atom: standard deviation from the line; steps, the last one;
        temperature_k, its mean; structure; peak_rss_mb: most memory of this process; and `asked`.
    """
    atoms, device = to_atoms(frame), find_device(run.device)
    draw_velocities(atoms, TEMPERATURE, SEED, conserving=True)
    simulation = Simulation(
        potential, atoms, time_step=time_step, dtype=run.default_dtype, device=device
    )
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
        **asked(ps, time_step),
        "structure": frame.name,
        "steps": int(steps[-1]) if len(steps) else 0,
        "unstable": unstable,
        "drift_mev_per_atom_ps": None if unstable else slope,
        "fluctuation_mev_per_atom": noise,
        "temperature_k": float(simulation.temperature(kinetic).mean()) if len(steps) else 0.0,
        "peak_rss_mb": peak_rss() / 1e6,
    }


def columns(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a table says of the simulations with the models of all seeds of a variant.

    Returns:
        nve_drift: mean magnitude of the drifts, None if a simulation is unstable; nve_drifts: each
        with its sign; nve_unstable: how many are; the means of the others of `measure`; the most
        memory, md_rss_mb.
    """
    if not answers:
        return {}
    drifts = [answer["drift_mev_per_atom_ps"] for answer in answers]
    unstable = sum(value is None for value in drifts)
    return {
        "nve_drift": None if unstable else mean(abs(value) for value in drifts),
        "nve_drifts": drifts,
        "nve_simulations": len(answers),
        "nve_unstable": unstable,
        "nve_fluctuation": mean(answer["fluctuation_mev_per_atom"] for answer in answers),
        "nve_temperature_k": mean(answer["temperature_k"] for answer in answers),
        "nve_ps": answers[0]["asked_ps"],
        "time_step_fs": answers[0]["time_step_fs"],
        "md_rss_mb": max(answer["peak_rss_mb"] for answer in answers),
    }


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
