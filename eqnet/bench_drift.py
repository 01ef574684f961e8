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

from eqnet import model_file
from eqnet.bench_model import peak_rss
from eqnet.bench_probe import read_options
from eqnet.device import computing, find_device
from eqnet.energy_drift import measure
from eqnet.errors import InputError
from eqnet.experiment import prepare
from eqnet.run_folder import RunFolder, write


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
        found = measure(
            potential, frame, float(ps), time_step=float(time_step), dtype=dtype, device=device
        )
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    found |= {**asked(float(ps), float(time_step)), "peak_rss_mb": peak_rss() / 1e6}
    write(Path(answer), json.dumps(found, indent=1) + "\n")
    return 0


def asked(ps: float, time_step: float) -> dict[str, float]:
    """The part of an answer that says what was asked."""
    return {"asked_ps": ps, "time_step_fs": time_step}


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
