"""Our MACE against mace-torch: same weights, same energies, forces and stress."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from graphs import Structure, make_graph
from mace_torch_weights import convert

from eqnet.models.mace import MACE, MACEConfig
from eqnet.potential import Potential

FOLDER = Path(__file__).resolve().parents[1] / "references"
STRUCTURES = ("ethanol", "distorted", "crystal")


def potential_of(reference: Mapping[str, np.ndarray]) -> Potential:
    """Our potential with the weights of a reference file."""
    settings = json.loads(str(reference["config"]))
    names = {f.name for f in fields(MACEConfig)}
    given: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in settings.items() if k in names
    }
    config = MACEConfig(**given)
    model = MACE(config, rngs=nnx.Rngs(0))
    weights = {k[8:]: v for k, v in reference.items() if k.startswith("weights/")}
    convert(config, weights, float(reference["silu_constant"]), model)
    number = len(config.elements)
    return Potential(
        model,
        elements=config.elements,
        cutoff=config.r_max,
        atomic_energies=settings["atomic_energies"],
        scale=[settings["scale"]] * number,
        shift=[settings["shift"]] * number,
    )


def compare(reference: Mapping[str, np.ndarray], tolerance: float) -> dict[str, float]:
    """Largest deviation of energies, forces and stress relative to their largest value."""
    potential = potential_of(reference)
    structures = [
        Structure(*(reference[f"{name}/{key}"] for key in ("numbers", "positions", "cell")))
        for name in STRUCTURES
    ]
    graph = make_graph(structures, potential.elements, potential.cutoff, extra_atoms=2)
    graphdef, state = nnx.split(potential)
    predict = jax.jit(lambda s, g: nnx.merge(graphdef, s).predict(g, stress=True))
    out = jax.tree.map(np.asarray, predict(state, graph))
    worst: dict[str, float] = {"energy": 0.0, "node_energy": 0.0, "forces": 0.0, "stress": 0.0}
    start = 0
    for g, (name, structure) in enumerate(zip(STRUCTURES, structures, strict=True)):
        atoms = slice(start, start + len(structure.numbers))
        start = atoms.stop
        species = np.asarray(graph.species)[atoms]
        shift = np.asarray(potential.shift)[species]
        constants = np.asarray(potential.atomic_energies)[species] + shift
        energy = out.node_energy[atoms].sum() + potential.reference_energy(species)
        pairs = {
            "energy": (energy, reference[f"{name}/energy"]),
            "node_energy": (out.node_energy[atoms] + constants, reference[f"{name}/node_energy"]),
            "forces": (out.forces[atoms], reference[f"{name}/forces"]),
        }
        if f"{name}/stress" in reference:
            pairs["stress"] = (out.stress[g], reference[f"{name}/stress"])
        # without the constants: the part that the network makes
        inter = float(reference[f"{name}/interaction_energy"]) - shift.sum()
        assert out.energy[g] == pytest.approx(inter, rel=tolerance, abs=1e-13)
        for key, (ours, theirs) in pairs.items():
            error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
            worst[key] = max(worst[key], error)
    assert max(worst.values()) <= tolerance, worst
    return worst


@pytest.mark.parametrize("name", ["a", "b", "c", "d", "e", "f"])
def test_agrees_with_mace_torch(name: str, x64: None) -> None:
    with np.load(FOLDER / f"mace_{name}.npz", allow_pickle=False) as reference:
        print(name, compare(dict(reference), 1e-10))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_agrees_with_new_random_models(seed: int, tmp_path: Path, x64: None) -> None:
    """Set EQNET_MACE_PYTHON to the interpreter of an environment with torch and mace-torch."""
    interpreter = os.environ.get("EQNET_MACE_PYTHON")
    if not interpreter:
        pytest.skip("EQNET_MACE_PYTHON is not set")
    script = FOLDER / "make_mace_reference.py"
    command = [interpreter, "-W", "ignore", str(script), str(tmp_path), "--seed", str(seed)]
    subprocess.run(command, check=True, capture_output=True)
    for file in sorted(tmp_path.glob("mace_*.npz")):
        with np.load(file, allow_pickle=False) as reference:
            print(file.name, compare(dict(reference), 1e-10))
