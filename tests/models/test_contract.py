"""The physics that every model must obey, whatever it computes. A new model joins with one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from graphs import Structure, make_graph

from eqnet.data.neighbors import neighbor_list
from eqnet.errors import InputError
from eqnet.graph import AtomGraph
from eqnet.models.egennet import EGenNet, EGenNetConfig
from eqnet.models.equiformer_v2 import EquiformerV2, EquiformerV2Config
from eqnet.models.escn import ESCN, ESCNConfig
from eqnet.models.esen import ESEN, ESENConfig
from eqnet.models.local_frames import LocalFrames, LocalFramesConfig
from eqnet.models.mace import MACE, MACEConfig
from eqnet.models.nequip import NequIP, NequIPConfig
from eqnet.models.tdn import TDN, TDNConfig
from eqnet.models.tensornet import TensorNet, TensorNetConfig
from eqnet.ops import kernels, power_class
from eqnet.potential import Potential

ELEMENTS, CUTOFF = (1, 6, 8), 3.2
ATOMS, SLOTS, GROUPS = 14, 28, 4  # one shape for nearly all tests: one compilation per model
QUICK = {"xla_backend_optimization_level": 0}  # compiling is what these tests cost


def mace(method: str = "default", product: str = "clebsch_gordan") -> nnx.Module:
    config = MACEConfig(
        ELEMENTS, r_max=CUTOFF, hidden_irreps="3x0e+3x1o", max_ell=2, num_interactions=2,
        radial_MLP=(8,), MLP_channels=4, avg_num_neighbors=4.0, product=product,
    )  # fmt: skip
    return MACE(config, rngs=nnx.Rngs(1), method=method)


def nequip(method: str = "default") -> nnx.Module:
    config = NequIPConfig(
        ELEMENTS, r_max=CUTOFF, hidden_irreps="4x0e+1x0o+2x1o+1x1e", num_interactions=3,
        radial_MLP=(8,), MLP_channels=4, avg_num_neighbors=4.0, layer_norm=True, residual=True,
    )  # fmt: skip
    return NequIP(config, rngs=nnx.Rngs(1), method=method)


def tdn(method: str = "default", product: str = "cp", layers: int = 2) -> nnx.Module:
    config = TDNConfig(
        ELEMENTS, r_max=CUTOFF, num_channels=4, max_L=1, num_interactions=layers, num_heads=2,
        num_radial_basis=6, radial_MLP=(8,), avg_num_neighbors=4.0, product=product,
    )  # fmt: skip
    return TDN(config, rngs=nnx.Rngs(1), method=method)


def esen(method: str = "default") -> nnx.Module:
    config = ESENConfig(
        ELEMENTS, r_max=CUTOFF, num_channels=3, hidden_channels=3, edge_channels=4,
        num_radial_basis=6, m_max=1,
    )  # fmt: skip
    return ESEN(config, rngs=nnx.Rngs(1), method=method)


def tensornet(method: str = "default") -> nnx.Module:
    config = TensorNetConfig(ELEMENTS, r_max=CUTOFF, num_channels=3, num_radial_basis=6)
    return TensorNet(config, rngs=nnx.Rngs(1), method=method)


def equiformer_v2(method: str = "default") -> nnx.Module:
    config = EquiformerV2Config(
        ELEMENTS, r_max=CUTOFF, num_channels=3, m_max=1, num_interactions=1, num_heads=2,
        alpha_channels=4, value_channels=2, hidden_channels=3, ffn_channels=3, edge_channels=4,
        num_radial_basis=6, avg_num_neighbors=4.0,
    )  # fmt: skip
    return EquiformerV2(config, rngs=nnx.Rngs(1), method=method)


def escn(method: str = "default") -> nnx.Module:
    config = ESCNConfig(
        ELEMENTS, r_max=CUTOFF, num_channels=3, hidden_channels=3, edge_channels=4,
        num_radial_basis=6, m_max=1,
    )  # fmt: skip
    return ESCN(config, rngs=nnx.Rngs(1), method=method)


def egennet(method: str = "default") -> nnx.Module:
    config = EGenNetConfig(
        ELEMENTS, r_max=CUTOFF, num_channels=4, hidden_channels=3, num_interactions=2,
        num_radial_basis=6, avg_num_neighbors=4.0,
    )  # fmt: skip
    return EGenNet(config, rngs=nnx.Rngs(1), method=method)


def local_frames(method: str = "default") -> nnx.Module:
    config = LocalFramesConfig(
        ELEMENTS, r_max=CUTOFF, num_channels=4, hidden_channels=3, num_interactions=2,
        num_radial_basis=6, avg_num_neighbors=4.0,
    )  # fmt: skip
    return LocalFrames(config, rngs=nnx.Rngs(1), method=method)


def nothing(graph: AtomGraph) -> jax.Array:
    return jnp.zeros_like(graph.positions[:, 0])


# Networks in the frames of edges: they have one method and refuse another.
FRAMES = ("esen", "equiformer_v2", "escn")
ONE_METHOD = (*FRAMES, "egennet", "local_frames")
# name -> model, and whether the potential adds the repulsion of the nuclei
CASES: dict[str, tuple[Callable, bool]] = {
    "mace": (mace, False),
    "nequip": (nequip, False),
    "mace, gaunt": (partial(mace, product="gaunt"), False),
    "tdn": (tdn, False),
    "tdn, clebsch_gordan": (partial(tdn, product="clebsch_gordan", layers=1), False),
    "esen": (esen, False),
    "escn": (escn, False),
    "equiformer_v2": (equiformer_v2, False),
    "tensornet": (tensornet, False),
    "egennet": (egennet, False),
    "local_frames": (local_frames, False),
    "repulsion": (lambda method="default": nothing, True),
}


class Answer(NamedTuple):
    """A prediction on the host."""

    energy: np.ndarray
    node_energy: np.ndarray
    forces: np.ndarray
    stress: np.ndarray


class Case:
    """A small potential in float64 with one compiled prediction."""

    def __init__(self, name: str):
        make, repulsion = CASES[name]
        self.name = name
        with jax.enable_x64(True):
            self.potential = Potential(
                make(),
                elements=ELEMENTS,
                cutoff=CUTOFF,
                atomic_energies=(-13.0, -1030.0, -2040.0),
                scale=(0.7, 1.1, 0.9),
                shift=(0.1, -0.2, 0.3),
                pair_repulsion=repulsion,
            )
            self.graphdef, self.state = nnx.split(self.potential)
        self.compiled = jax.jit(
            lambda s, g: nnx.merge(self.graphdef, s).predict(g, stress=True), compiler_options=QUICK
        )

    def __call__(self, graph: AtomGraph) -> Answer:
        with jax.enable_x64(True):
            return Answer(*map(np.asarray, self.compiled(self.state, graph)[:4]))

    def curvature(self, graph: AtomGraph, direction: np.ndarray) -> np.ndarray:
        """Change of the forces where the atoms move, [N, 3]."""

        def forces(positions: jax.Array, state: nnx.State) -> jax.Array:
            potential = nnx.merge(self.graphdef, state)
            return potential.predict(replace(graph, positions=positions)).forces

        with jax.enable_x64(True):
            change = jax.jit(
                lambda p, v, s: jax.vjp(lambda p: forces(p, s), p)[1](v)[0],  # it is symmetric
                compiler_options=QUICK,
            )
            return np.asarray(change(graph.positions, direction, self.state))

    def single(self, graph: AtomGraph) -> Answer:
        """In float32."""
        state = jax.tree.map(lambda p: np.asarray(p, np.float32), self.state)
        graph = replace(
            graph, positions=np.float32(graph.positions), cell=np.float32(graph.cell)
        )  # fmt: skip
        return Answer(*map(np.asarray, self.compiled(state, graph)[:4]))


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def molecule() -> Structure:
    positions = [[0.0, 0.0, 0.0], [1.4, 0.1, -0.2], [2.0, 1.2, 0.4], [-0.4, 0.6, 0.2]]
    return Structure(np.array([6, 8, 1, 1]), np.array(positions), np.zeros((3, 3)))


def crystal() -> Structure:
    positions = [[0.2, 0.1, 0.0], [1.5, 1.6, 1.3], [0.5, 0.8, 0.2]]
    cell = [[2.9, 0.1, 0.0], [0.7, 3.1, 0.2], [-0.4, 0.6, 2.7]]
    return Structure(np.array([8, 6, 1]), np.array(positions), np.array(cell))


def packed(*structures: Structure, cutoff: float = CUTOFF) -> AtomGraph:
    """In the one shape."""
    extra = ATOMS - sum(len(s.numbers) for s in structures)
    return make_graph(
        structures, ELEMENTS, cutoff, extra_atoms=extra, width=SLOTS, groups=GROUPS
    )  # fmt: skip


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-10) -> None:
    """Largest deviation relative to the largest value."""
    assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-3)


ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["rotation", "reflection"])
def test_rotation_and_reflection(case: Case, sign: float) -> None:
    turn = ROTATION * np.linalg.det(ROTATION) * sign
    assert np.linalg.det(turn) == pytest.approx(sign)
    before = case(packed(molecule(), crystal()))
    turned = [
        Structure(s.numbers, s.positions @ turn.T, s.cell @ turn.T) for s in (molecule(), crystal())
    ]
    after = case(packed(*turned))
    close(after.node_energy, before.node_energy)
    close(after.forces, before.forces @ turn.T)
    close(after.stress[1], turn @ before.stress[1] @ turn.T)
    close(after.stress[1], after.stress[1].T)


def along_the_axes() -> tuple[AtomGraph, AtomGraph, np.ndarray]:
    """Planar molecules at the poles of harmonics and frames, the same ones turned, and the turn."""
    arms = np.array([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0], [-1.3, 0.0, 0.0], [0.0, 1.2, 0.0]])
    flat = [
        Structure(np.array([6, 1, 8, 1]), np.roll(arms, n, axis=1), np.zeros((3, 3)))
        for n in range(3)
    ]
    turn = ROTATION * np.linalg.det(ROTATION)
    graphs = [
        packed(*(s._replace(positions=s.positions @ r.T) for s in flat)) for r in (np.eye(3), turn)
    ]
    return graphs[0], graphs[1], turn


def test_bonds_along_the_axes(case: Case) -> None:
    *graphs, turn = along_the_axes()
    along, turned = (case(graph) for graph in graphs)
    close(along.node_energy, turned.node_energy)
    close(along.forces @ turn.T, turned.forces)
    for n in range(3):
        # a mirror: no force out of the plane
        assert np.abs(along.forces[4 * n : 4 * n + 4, (n + 2) % 3]).max() <= 1e-10
    if case.name.startswith(FRAMES):
        check_curvature(case)


@pytest.mark.slow
def test_curvature_along_the_axes(case: Case) -> None:
    check_curvature(case)


def check_curvature(case: Case) -> None:
    """Products of the second derivatives with a vector turn with the molecules."""
    along, turned, turn = along_the_axes()
    v = np.random.default_rng(3).normal(size=(ATOMS, 3))
    close(case.curvature(along, v) @ turn.T, case.curvature(turned, v @ turn.T), 1e-9)


def test_translation_and_periodic_images(case: Case) -> None:
    before = case(packed(molecule(), crystal()))
    m, c = molecule(), crystal()
    c.positions[1] += np.array([2, -1, 3]) @ c.cell
    offset = np.array([11.0, -7.0, 3.0])
    after = case(
        packed(m._replace(positions=m.positions + offset), c._replace(positions=c.positions - 0.3))
    )
    close(after.node_energy, before.node_energy)
    close(after.forces, before.forces)


def test_permutation(case: Case) -> None:
    m = molecule()
    order = np.array([2, 0, 3, 1])
    shuffled = Structure(m.numbers[order], m.positions[order], m.cell)
    before, after = case(packed(m, crystal())), case(packed(crystal(), shuffled))
    close(after.node_energy[3:7], before.node_energy[:4][order])
    close(after.forces[3:7], before.forces[:4][order])


def test_supercell(case: Case) -> None:
    c = crystal()
    double = Structure(
        np.tile(c.numbers, 2),
        np.concatenate([c.positions, c.positions + c.cell[0]]),
        c.cell * np.array([[2.0], [1.0], [1.0]]),
    )
    one, two = case(packed(c)), case(packed(double))
    close(two.node_energy[:6], np.tile(one.node_energy[:3], 2))
    close(two.stress[0], one.stress[0])


def test_separated_fragments_are_additive(case: Case) -> None:
    m, n = molecule(), crystal()._replace(cell=np.zeros((3, 3)))
    far = Structure(
        np.concatenate([m.numbers, n.numbers]),
        np.concatenate([m.positions, n.positions + 40.0]),
        m.cell,
    )
    together, apart = case(packed(far)), case(packed(m, n))
    close(together.node_energy[:7], apart.node_energy[:7])
    close(together.forces[:7], apart.forces[:7])
    close(together.energy[:1], apart.energy[:2].sum(keepdims=True))


def test_batch_and_padding_change_nothing(case: Case) -> None:
    both = case(packed(molecule(), crystal()))
    alone = case(packed(crystal()))
    close(both.node_energy[4:7], alone.node_energy[:3], 1e-12)
    close(both.forces[4:7], alone.forces[:3], 1e-12)
    assert not both.node_energy[7:].any() and not both.forces[7:].any()
    # long rows split into several
    split = make_graph(
        [molecule(), crystal()], ELEMENTS, CUTOFF, slots=5, width=7, extra_atoms=2
    )  # fmt: skip
    assert not split.one_row_per_atom
    other = case(split)
    close(other.node_energy[:7], both.node_energy[:7], 1e-12)
    close(other.forces[:7], both.forces[:7], 1e-12)
    close(other.stress[1], both.stress[1], 1e-12)


def derivative(f: Callable[[float], float], step: float) -> float:
    """Central difference of fourth order at 0."""
    return (8 * (f(step) - f(-step)) - (f(2 * step) - f(-2 * step))) / (12 * step)


def test_forces_are_the_gradient(case: Case) -> None:
    graph = packed(molecule(), crystal(), cutoff=CUTOFF + 0.1)
    rng = np.random.default_rng(1)
    forces = case(graph).forces
    for _ in range(4):
        direction = rng.normal(size=(ATOMS, 3)) * graph.atom_mask[:, None]

        def energy(h: float, direction: np.ndarray = direction) -> float:
            moved = replace(graph, positions=graph.positions + h * direction)
            return float(case(moved).energy.sum())

        slope = derivative(energy, 4e-5)
        scale = np.linalg.norm(forces) * np.linalg.norm(direction)
        assert abs(slope + (forces * direction).sum()) <= 1e-7 * scale


def test_stress_is_the_derivative_by_strain(case: Case) -> None:
    graph = packed(molecule(), crystal(), cutoff=CUTOFF + 0.1)
    stress = case(graph).stress
    assert not stress[[0, 2, 3]].any()
    volume = abs(np.linalg.det(crystal().cell))
    for a in range(3):
        for b in range(a, 3):

            def energy(h: float, a: int = a, b: int = b) -> float:
                strain = np.zeros((3, 3))
                strain[a, b] += 0.5 * h
                strain[b, a] += 0.5 * h
                moved = replace(
                    graph,
                    positions=graph.positions @ (np.eye(3) + strain),
                    cell=graph.cell @ (np.eye(3) + strain),
                )
                return float(case(moved).energy[1])

            slope = derivative(energy, 4e-5) / volume
            assert abs(slope - stress[1][a, b]) <= 1e-7 * np.abs(stress[1]).max()


def test_smooth_at_the_cutoff(case: Case) -> None:
    inside, outside = CUTOFF - 1e-6, CUTOFF + 1e-6
    for distance in (inside, outside):
        positions = np.array([[0.0, 0.0, 0.0], [distance, 0.0, 0.0], [0.9, 0.8, 0.0]])
        chain = Structure(np.array([6, 8, 1]), positions, np.zeros((3, 3)))
        with_edge = case(packed(chain, cutoff=CUTOFF + 0.1))
        without = case(packed(chain, cutoff=CUTOFF - 1e-5))
        assert packed(chain, cutoff=CUTOFF + 0.1).neighbor_mask.sum() == 6
        assert packed(chain, cutoff=CUTOFF - 1e-5).neighbor_mask.sum() == 4
        assert np.abs(with_edge.node_energy - without.node_energy).max() < 1e-10
        assert np.abs(with_edge.forces - without.forces).max() < 1e-10


def test_isolated_atom(case: Case) -> None:
    atoms = [
        Structure(np.array([z]), np.array([[x, 0.0, 1.0]]), np.zeros((3, 3)))
        for z, x in ((8, 0.0), (8, 5.0), (1, 0.0))
    ]
    out = case(packed(*atoms))
    assert np.isfinite(out.energy).all() and not out.forces.any()
    assert out.node_energy[0] == out.node_energy[1]
    pair = Structure(np.array([8, 8]), np.array([[0.0, 0, 0], [1000.0, 0, 0]]), np.zeros((3, 3)))
    far = case(packed(pair, atoms[2]))
    assert far.energy[0] == 2 * out.energy[0] and far.energy[1] == out.energy[2]
    assert not far.forces.any()
    # E = E0 + shift + scale * model(alone): the model itself, asked without the potential.
    potential, index = case.potential, np.array([2, 2, 0])
    with jax.enable_x64(True):
        alone = np.asarray(jax.jit(potential.model, compiler_options=QUICK)(packed(*atoms)))[:3]
    learned = np.array([0.9, 0.9, 0.7]) * alone
    np.testing.assert_allclose(out.node_energy[:3], learned, rtol=1e-12)
    assert case.name == "repulsion" or np.abs(alone).min() > 1e-6  # E0 is not the answer
    constants = potential.reference_energy(index)
    assert constants == pytest.approx(2 * (-2040.0 + 0.3) + (-13.0 + 0.1), abs=1e-9)


def test_coincident_atoms_raise() -> None:
    positions = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1e-9]])
    with pytest.raises(InputError, match="atoms 0 and 2 coincide"):
        neighbor_list(positions, np.zeros((3, 3)), np.zeros(3, bool), CUTOFF)


def test_single_precision(case: Case) -> None:
    graph = packed(molecule(), crystal())
    double, single = case(graph), case.single(graph)
    assert single.forces.dtype == np.float32
    close(single.node_energy, double.node_energy, 1e-5)
    close(single.forces, double.forces, 1e-5)


# compiling the gradient of a gradient takes ten seconds and more for each of the others
GRADIENTS_EVERY_TIME = ("mace", "nequip", "esen", "tensornet", "repulsion")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(name, marks=[] if name in GRADIENTS_EVERY_TIME else pytest.mark.slow)
        for name in CASES
    ],
    indirect=True,
)
def test_derivatives_of_a_loss_with_forces(case: Case) -> None:
    """The gradient that training uses, second derivatives of the model, against differences."""
    if not jax.tree.leaves(case.state):
        pytest.skip("no weights")
    graph = packed(molecule(), crystal())

    def loss(state: nnx.State) -> jax.Array:
        out = nnx.merge(case.graphdef, state).predict(graph, stress=True)
        stress = jnp.asarray(out.stress)
        return (out.energy**2).sum() + (out.forces**2).sum() + (stress**2).sum()

    with jax.enable_x64(True):
        value_and_grad = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)
        gradient = value_and_grad(case.state)[1]
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
        rng = np.random.default_rng(2)
        direction = jax.tree.map(lambda p: rng.normal(size=p.shape), case.state)

        def along(h: float) -> float:
            moved = jax.tree.map(lambda p, d: p + h * d, case.state, direction)
            return float(value_and_grad(moved)[0])

        product = jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction)
        slope = float(sum(jax.tree.leaves(product)))
        # the error of the difference is of fourth order: 2e-8 at this step, 80 times more at 1e-4
        assert derivative(along, 3e-5) == pytest.approx(slope, rel=1e-7)


@pytest.mark.slow  # compiles every model by every method; tests/ops has each product by each
def test_methods_agree(case: Case) -> None:
    """A method is how, not what: all of them from the same weights."""
    make, _ = CASES[case.name]
    graph = packed(molecule(), crystal())
    default = case(graph)
    model: Any = case.potential.model
    methods = list(kernels(model.config.product))[1:] if hasattr(model, "config") else []
    if case.name.startswith(ONE_METHOD):
        with pytest.raises(ValueError, match="no method 'dense'"):
            make("dense")
        return
    if isinstance(model, MACE):
        methods += [m for m in power_class(model.config.product).methods[1:] if m not in methods]
    for method in methods:
        with jax.enable_x64(True):
            case.potential.model, kept = make(method), case.potential.model
            graphdef, _ = nnx.split(case.potential)
            case.potential.model = kept
            predict = jax.jit(
                lambda s, d=graphdef: nnx.merge(d, s).predict(graph), compiler_options=QUICK
            )
            other = predict(case.state)
        close(np.asarray(other.node_energy), default.node_energy)
        close(np.asarray(other.forces), default.forces)
