"""TensorNet against torchmd-net (same weights, same energies and forces) and against matrices."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from graphs import Structure, make_graph
from tensornet_torch_weights import convert

from eqnet.models.tensornet import TensorNet, TensorNetConfig
from eqnet.potential import Potential

FOLDER = Path(__file__).resolve().parents[1] / "references"
STRUCTURES = ("ethanol", "chiral", "alone", "crystal")


def compare(reference: Mapping[str, np.ndarray], tolerance: float) -> dict[str, float]:
    """Largest deviation of energies and forces relative to their largest value."""
    settings = json.loads(str(reference["config"]))
    config = TensorNetConfig(**settings | {"elements": tuple(settings["elements"])})
    model = TensorNet(config, rngs=nnx.Rngs(0))
    convert({k[8:]: v for k, v in reference.items() if k.startswith("weights/")}, model)
    zeros, ones = [0.0] * len(config.elements), [1.0] * len(config.elements)
    potential = Potential(
        model, elements=config.elements, cutoff=config.r_max,
        atomic_energies=zeros, scale=ones, shift=zeros,
    )  # fmt: skip
    structures = [
        Structure(*(reference[f"{name}/{key}"] for key in ("numbers", "positions", "cell")))
        for name in STRUCTURES
    ]
    graph = make_graph(structures, config.elements, config.r_max, extra_atoms=2)
    graphdef, state = nnx.split(potential)
    out = jax.jit(lambda s, g: nnx.merge(graphdef, s).predict(g))(state, graph)
    energies = np.array([reference[f"{name}/energy"] for name in STRUCTURES])
    forces = np.concatenate([reference[f"{name}/forces"] for name in STRUCTURES])
    pairs = {
        "energy": (np.asarray(out.energy)[: len(energies)], energies),
        "forces": (np.asarray(out.forces)[: len(forces)], forces),
    }
    errors = {
        key: float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        for key, (ours, theirs) in pairs.items()
    }
    assert max(errors.values()) <= tolerance, errors
    return errors


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_agrees_with_torchmd_net(name: str, x64: None) -> None:
    with np.load(FOLDER / f"tensornet_{name}.npz", allow_pickle=False) as reference:
        print(name, compare(dict(reference), 1e-10))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_agrees_with_new_random_models(seed: int, tmp_path: Path, x64: None) -> None:
    """Set EQNET_TENSORNET_PYTHON to the interpreter of an environment with torchmd-net."""
    interpreter = os.environ.get("EQNET_TENSORNET_PYTHON")
    if not interpreter:
        pytest.skip("EQNET_TENSORNET_PYTHON is not set")
    script = FOLDER / "make_tensornet_reference.py"
    command = [interpreter, "-W", "ignore", str(script), str(tmp_path), "--seed", str(seed)]
    subprocess.run(command, check=True, capture_output=True)
    for file in sorted(tmp_path.glob("tensornet_*.npz")):
        with np.load(file, allow_pickle=False) as reference:
            print(file.name, compare(dict(reference), 1e-10))


@pytest.mark.parametrize(("layers", "published"), [(1, 535_681), (2, 769_921)])
def test_published_number_of_parameters(layers: int, published: int) -> None:
    """535k and 770k: 128 channels, 32 radial functions and embeddings for 128 elements.

    Digits are those of torchmd-net 3.1 with max_z = 128; the paper rounds to thousands.
    """
    config = TensorNetConfig(tuple(range(1, 129)), num_channels=128, num_interactions=layers)
    shapes = nnx.state(nnx.eval_shape(lambda: TensorNet(config, rngs=nnx.Rngs(0))), nnx.Param)
    assert sum(p.size for p in jax.tree.leaves(shapes)) == published


def test_rotations_only_tells_mirror_images_apart(x64: None) -> None:
    config = TensorNetConfig((1, 6, 8), num_channels=4, num_radial_basis=6, group="SO3")
    model = TensorNet(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    places, turn = rng.normal(scale=0.8, size=(5, 3)), np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    numbers, cell = np.array([1, 6, 8, 1, 6]), np.zeros((3, 3))
    energy = jax.jit(model)
    same, turned, mirrored = (
        np.asarray(energy(make_graph([Structure(numbers, places @ r, cell)], (1, 6, 8), 5.0)))
        for r in (np.eye(3), turn, -np.eye(3))
    )
    np.testing.assert_allclose(turned, same, rtol=1e-11)
    assert np.abs(mirrored - same).max() > 1e-3 * np.abs(same).max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"product": "clebsch_gordan"}, "products that do: gaunt, .*matrix, cartesian"),
        ({"product": "gaunt", "group": "SO3"}, "group SO3 has no effect: gaunt has no path of odd"),
        ({"group": "E3"}, "group 'E3': there are O3 and SO3"),
        ({"envelope": "bump"}, "envelope 'bump': there are polynomial and cosine"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorNet(TensorNetConfig((1, 6), num_channels=2, **settings), rngs=nnx.Rngs(0))
