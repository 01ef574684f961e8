"""Tensors of models: they turn with the structure, and obey their sum rules and signs exactly."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from graphs import Structure, make_graph

from eqnet.data.batches import Loader, make_items
from eqnet.data.frame import Frame
from eqnet.data.tensor_labels import TENSORS, TensorKind
from eqnet.models import MODELS
from eqnet.models.mace import MACE, MACEConfig
from eqnet.models.nequip import NequIP, NequIPConfig
from eqnet.options import TrainOptions, resolve_choices
from eqnet.so3 import random_rotation
from eqnet.tensor_evaluation import errors, mean_label
from eqnet.tensor_model import TensorModel, fit_scale_and_shift, needed_irreps
from eqnet.tensor_training import TensorProblem
from eqnet.training import validation_step

pytestmark = pytest.mark.usefixtures("x64")
ELEMENTS, CUTOFF = (1, 8), 3.0
VECTORS = ("egennet", "local_frames")  # whose features end at degree 1
ONE = {"r_max": CUTOFF, "num_interactions": 2, "radial_MLP": (4,)}


def nequip(needed: str) -> NequIP:
    config = NequIPConfig(ELEMENTS, num_channels=2, max_L=1, max_ell=4, **ONE)
    return NequIP(config, rngs=nnx.Rngs(0), needed=needed)


def mace(needed: str) -> MACE:
    config = MACEConfig(ELEMENTS, num_channels=2, max_L=1, max_ell=2, correlation=2, **ONE)
    return MACE(config, rngs=nnx.Rngs(0), needed=needed)


SMALL = {"r_max": CUTOFF, "num_channels": 2, "num_interactions": 1}


def others(name: str) -> Callable:
    """Makes a model whose features have the parity of the harmonics."""
    config_class, model_class = MODELS[name]
    values = {"max_L": 2} if hasattr(config_class, "max_L") else {}
    values |= {"num_heads": 2} if name == "tdn" else {}
    config = config_class(ELEMENTS, **SMALL, **values)
    return lambda needed: model_class(config, rngs=nnx.Rngs(0), needed=needed)


def tensor_model(make: Callable, names: list[str]) -> TensorModel:
    kinds = {name: TENSORS[name] for name in names}
    zeros = {name: np.zeros((2, *kind.shape)) for name, kind in kinds.items()}
    if "born_effective_charges" in zeros:
        zeros["born_effective_charges"] += np.array([1.0, -2.0])[:, None, None] * np.eye(3)
    shift = {name: jax.tree.map(float, array.tolist()) for name, array in zeros.items()}
    return TensorModel(
        make(needed_irreps(kinds)), kinds, elements=ELEMENTS, cutoff=CUTOFF, rngs=nnx.Rngs(1),
        scale=dict.fromkeys(kinds, 0.7), channels=3,
        shift={name: to_tuple(values) for name, values in shift.items()},
    )  # fmt: skip


def to_tuple(values):
    return tuple(map(to_tuple, values)) if isinstance(values, list) else values


def molecule() -> Structure:
    positions = [[0.0, 0.0, 0.0], [0.9, 0.2, -0.2], [-0.3, 0.8, 0.4], [1.8, -0.9, 0.3]]
    return Structure(np.array([8, 1, 1, 8]), np.array(positions), np.zeros((3, 3)))


def crystal() -> Structure:
    positions = np.array([[0.2, 0.1, 0.0], [1.5, 1.6, 1.3], [0.5, 0.8, 0.2]])
    cell = np.array([[2.9, 0.1, 0.0], [0.7, 3.1, 0.2], [-0.4, 0.6, 2.7]])
    return Structure(np.array([8, 8, 1]), positions, cell)


def answers(model: TensorModel, *structures: Structure) -> dict[str, np.ndarray]:
    graph = make_graph(structures, ELEMENTS, CUTOFF, extra_atoms=2, width=40)
    graphdef, state = nnx.split(model)
    found = jax.jit(lambda s, g: nnx.merge(graphdef, s)(g))(state, graph)
    return {name: np.asarray(values) for name, values in found.items()}


def turned(structure: Structure, turn: np.ndarray) -> Structure:
    return Structure(structure.numbers, structure.positions @ turn.T, structure.cell @ turn.T)


def apply(turn: np.ndarray, tensor: np.ndarray, rank: int) -> np.ndarray:
    for axis in range(tensor.ndim - rank, tensor.ndim):
        tensor = np.moveaxis(np.tensordot(turn, tensor, (1, axis)), 0, axis)
    return tensor


@pytest.mark.parametrize(
    "make",
    [
        nequip,
        mace,
        *(pytest.param(others(name), id=name) for name in ("esen", "tensornet", *VECTORS)),
        *(
            pytest.param(others(name), id=name, marks=pytest.mark.slow)
            for name in ("escn", "equiformer_v2", "tdn")
        ),
    ],
)
def test_tensors_turn_with_the_structure(make: Callable, request: pytest.FixtureRequest) -> None:
    """Rotation and reflection, 1e-10; symmetric, positive; padding is zero."""
    names = ["dipole", "charges", "direct_forces"]
    if request.node.callspec.id not in VECTORS:
        names += ["polarizability"]
    if make is nequip:
        names += ["born_effective_charges", "elasticity"]
    model = tensor_model(make, names)
    both = molecule(), crystal()
    before = answers(model, *both)
    for sign in (1, -1):
        turn = sign * random_rotation(np.random.default_rng(5))
        after = answers(model, *(turned(s, turn) for s in both))
        for name in names:
            rank = len(TENSORS[name].shape)
            at = slice(1, 2) if name == "elasticity" else slice(None)
            size = np.abs(before[name][at]).max()
            assert size > 1e-6
            gap = after[name][at] - apply(turn, before[name][at], rank)
            assert np.abs(gap).max() < 1e-10 * size
    assert all(not before[name][2:].any() for name in {"dipole", "polarizability"} & {*names})
    if "elasticity" not in names:
        return
    c = before["elasticity"]
    assert not c[0].any() and not c[2].any()  # no volume
    for order in ("jikl", "ijlk", "klij"):
        assert (c == np.einsum(f"gijkl->g{order}", c)).all()
    strains = np.random.default_rng(6).normal(size=(50, 3, 3))
    strains = strains + strains.swapaxes(1, 2)
    energies = np.einsum("sij,ijkl,skl->s", strains, c[1], strains)
    assert energies.min() > -1e-12 * energies.max()


def test_dipole_does_not_depend_on_the_origin_and_has_charges() -> None:
    model = tensor_model(nequip, ["dipole"])
    here = answers(model, molecule())["dipole"][0]
    m = molecule()
    away = m._replace(positions=m.positions + np.array([70.0, -30.0, 20.0]))
    np.testing.assert_allclose(answers(model, away)["dipole"][0], here, atol=1e-11)
    weights = model.charges["dipole"].weights[-1]
    weights[...] = jnp.zeros_like(weights[...])
    assert np.abs(answers(model, molecule())["dipole"][0] - here).max() > 1e-3


def test_born_charges_obey_the_sum_rule() -> None:
    model = tensor_model(nequip, ["born_effective_charges"])
    found = answers(model, molecule(), crystal())["born_effective_charges"]
    assert np.abs(found[:4].sum(0)).max() < 1e-13 and np.abs(found[4:7].sum(0)).max() < 1e-13
    assert np.abs(found[:7]).max() > 0.1 and not found[7:].any()


def test_charges_add_up_to_zero() -> None:
    model = tensor_model(mace, ["charges"])
    found = answers(model, molecule(), crystal())["charges"]
    assert found.shape == (9,) and np.abs(found[:7]).min() > 1e-3 and not found[7:].any()
    assert abs(found[:4].sum()) < 1e-14 and abs(found[4:7].sum()) < 1e-14


def test_supercell_has_the_same_density_and_twice_the_sum() -> None:
    model = tensor_model(nequip, ["polarizability", "elasticity"])
    c = crystal()
    double = Structure(
        np.tile(c.numbers, 2), np.concatenate([c.positions, c.positions + c.cell[0]]),
        c.cell * np.array([[2.0], [1.0], [1.0]]),
    )  # fmt: skip
    found = answers(model, c, double)
    alpha, elastic = found["polarizability"], found["elasticity"]
    np.testing.assert_allclose(alpha[1], 2 * alpha[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(elastic[1], elastic[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["esen", "escn", "equiformer_v2", "tdn"])
def test_features_without_the_needed_irreps_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="needs features 1e; the model has 2x0e"):
        nnx.eval_shape(lambda: others(name)("1x0e+1x1e"))


def test_a_model_without_the_irreps_is_refused() -> None:
    kinds = {"polarizability": TENSORS["polarizability"]}
    with pytest.raises(ValueError, match="needs features 2e"):
        TensorModel(
            nequip(""), kinds, elements=ELEMENTS, cutoff=CUTOFF, rngs=nnx.Rngs(0),
            scale={"polarizability": 1.0}, shift={"polarizability": ()},
        )  # fmt: skip


def frames(labels: list[np.ndarray]) -> list[Frame]:
    """H2O, H2O2, H2 ... with these labels."""
    numbers = [[8, 1, 1], [8, 8, 1, 1], [1, 1], [8, 1]]
    cell, pbc = np.zeros((3, 3)), np.zeros(3, bool)
    return [
        Frame(np.array(z), np.zeros((len(z), 3)), cell, pbc, tensors={"t": t})
        for z, t in zip(numbers, labels, strict=True)
    ]


def test_scale_and_shift_of_a_sum() -> None:
    """Atoms with a share of their own: the isotropic part is theirs, the rest is the scale."""
    share, number = np.array([0.3, 1.1]), np.array([[2, 1], [2, 2], [2, 0], [1, 1]])
    rest = np.diag([1.0, -1.0, 0.0])
    labels = [n @ share * np.eye(3) + np.sqrt(n.sum()) * rest for n in number]
    scale, shift = fit_scale_and_shift(TensorKind("ij=ji", "sum"), "t", frames(labels), ELEMENTS)
    np.testing.assert_allclose(shift, share[:, None, None] * np.eye(3), atol=1e-12)
    assert scale == pytest.approx(np.sqrt(2 / 9))


def test_errors_beside_the_mean_label() -> None:
    kind = TensorKind("i", "sum")
    data = frames([np.array(t) for t in ([0.0, 0, 3], [0.0, 4, 0], [1.0, 0, 0], [1.0, 0, 1])])
    naive = mean_label("t", kind, data, data[:1])
    np.testing.assert_allclose(naive[0]["t"], [0.5, 1, 1])
    found = errors("t", data[:1], naive)
    assert found["mae"] == pytest.approx((0.5 + 1 + 2) / 3)
    assert found["rmse"] == pytest.approx(np.sqrt((0.25 + 1 + 4) / 3))
    assert found["relative"] == pytest.approx(np.sqrt(5.25) / 3)


def test_sums_of_a_batch_in_pieces() -> None:
    """Those of single structures; labels of atoms and of structures, some of them absent."""
    rng, chosen = np.random.default_rng(0), resolve_choices(TrainOptions())
    model = tensor_model(nequip, ["dipole", "born_effective_charges"])
    frames = []
    for i in range(5):
        one = molecule()
        place = one.positions + rng.normal(scale=0.05, size=one.positions.shape)
        labels = {"dipole": rng.normal(size=3)} if i % 2 else {}
        labels |= {"born_effective_charges": rng.normal(size=(4, 3, 3))} if i else {}
        frames.append(Frame(one.numbers, place, one.cell, np.zeros(3, bool), tensors=labels))
    loader = Loader(
        make_items(frames, ELEMENTS, CUTOFF), 5, reference_energy=lambda s: 0.0, shuffle=False,
        tensors=dict(model.kinds), dtype=np.float64,
    )  # fmt: skip
    problem = TensorProblem(model, chosen.loss, chosen.optimizer, 1, (0.5, 2.0))
    for pieces in (1, 3):
        (batch,) = loader.in_pieces(pieces).batches(0)
        step = jax.jit(validation_step(problem, pieces=pieces))
        sums = step(problem.weights(), *jax.tree.map(jnp.asarray, batch))
        np.testing.assert_array_equal(sums.labels, [2, 16])
        for at, (name, size) in enumerate(zip(dict(model.kinds), (0.5, 2.0), strict=True)):
            gaps = [
                answers(model, Structure(f.numbers, f.positions, f.cell))[name].ravel()[: v.size]
                - v.ravel()
                for f in frames
                if (v := f.tensors.get(name)) is not None
            ]
            squares = sum((gap**2).sum() for gap in gaps)
            assert sums.squared[at] == pytest.approx(squares, rel=1e-10)
            components = 3 if name == "dipole" else 9
            expected = _loss(gaps, components, size, chosen.loss.loss)
            assert sums.loss[at] == pytest.approx(expected, rel=1e-10)


def _loss(gaps: list[np.ndarray], components: int, size: float, measure: str) -> float:
    assert measure == "l1"
    rows = np.concatenate([gap.reshape(-1, components) for gap in gaps]) / size
    return float(np.linalg.norm(rows, axis=1).sum())
