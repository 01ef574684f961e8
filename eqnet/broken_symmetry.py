"""Functions whose symmetries are broken to a known level, and networks that should find it.

The synthetic cases of Kim et al., ICML 2023, arXiv:2306.00356: tensors of inertia times a matrix
that singles out axes, and cosines between vectors plus terms that break scaling or rotations. The
level of breaking is that of `soft_equivariance.breaking`, here in closed form. Published strengths
are of the groups around axes only; here every candidate has one, the largest too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from eqnet.irreps import Irreps
from eqnet.so3 import clebsch_gordan
from eqnet.soft_equivariance import (
    SoftNetwork,
    breaking,
    distances,
    regulariser,
    relative_distances,
    strengths,
)
from eqnet.symmetry_groups import LARGEST_SCALE, O3, SCALING, Features, Group, around

AXES = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}
AROUND = {name: around(axis, f"O(2) {name}") for name, axis in AXES.items()}
MASSES, VECTORS = 5, 3
FREEDOM = 0.01  # of the initial weights: what is not equivariant under all groups together
PARTS = 4  # of a training: the strengths are set after the first

Kind = Literal["soft", "free", "exact"]


class Case(NamedTuple):
    """A function to learn.

    Attributes:
        groups: candidates, and the level to which the function breaks each.
        whole: the group that all of them make.
        into: features of the input.
        hidden: irreps and degrees of the features inside the network.
        out: features of the output.
        draw: rng, n -> inputs [n, into.dim, into.channels] and outputs [n, out.dim, 1], float64.
    """

    groups: dict[Group, float]
    whole: Group
    into: Features
    hidden: tuple[str, tuple[int, ...]]
    out: Features
    draw: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Settings:
    """How networks are made and trained.

    Attributes:
        channels: of the hidden features.
        layers: blocks of the network.
        steps: of Adam, with a cosine schedule.
        learning_rate: at the beginning.
        batch: inputs per step.
        samples: inputs to train on.
        tests: inputs to test on.
        strength: of every regulariser at first, lambda_0.
        power: of the rule that changes them.
    """

    channels: int = 16
    layers: int = 2
    steps: int = 2000
    learning_rate: float = 0.01
    batch: int = 125
    samples: int = 1000
    tests: int = 2000
    strength: float = 1.0
    power: float = 2.0


def inertia(matrix: np.ndarray) -> Case:
    """Functions y = T A of the tensor of inertia T = sum_i m_i (|r_i|^2 1 - r_i r_i^T).

    Five masses are softplus(normal), positions normal, as published; A is symmetric. Turned back,
    T(g x) A is T(x) g^-1 A g, so that P_G puts the mean of A over the group in the place of A; and
    because positions are isotropic, E |T M|^2 is proportional to |M|^2 for every M: the level is
    |A - mean_G A| / |A|, whatever the masses.
    """

    def broken(mean: np.ndarray) -> float:
        return float(np.linalg.norm(matrix - mean) / np.linalg.norm(matrix))

    def mean_around(axis: str) -> np.ndarray:
        along = np.outer(AXES[axis], AXES[axis])
        inside = (along * matrix).sum()
        return inside * along + (np.trace(matrix) - inside) / 2 * (np.eye(3) - along)

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        m = np.logaddexp(0, rng.normal(size=(n, MASSES)))
        r = rng.normal(size=(n, 3, MASSES))
        trace = np.einsum("ni,nai->n", m, r**2)[:, None, None] * np.eye(3)
        tensor = (trace - np.einsum("ni,nai,nbi->nab", m, r, r)) @ matrix
        irreps = np.einsum("nab,abk->nk", tensor, CARTESIAN)
        return np.concatenate([m[:, None], r], axis=1), irreps[..., None]

    groups = {O3: broken(np.trace(matrix) / 3 * np.eye(3))}
    groups |= {group: broken(mean_around(axis)) for axis, group in AROUND.items()}
    into, out = Features(Irreps("0e+1o"), MASSES), Features(Irreps("0e+1e+2e"), 1)
    return Case(groups, O3, into, ("0e+1o+2e", (0, 0, 0)), out, draw)


# Orthonormal: a 3x3 matrix as 0e + 1e + 2e, [3, 3, 9]
CARTESIAN = np.concatenate(
    [np.sqrt(2 * l + 1) * clebsch_gordan(1, 1, l) for l in range(3)], axis=-1
)


def cosine(scale: float, turn: float) -> Case:
    """Means of cos(r_i, r_{i+1}) - scale |r_i| + turn (z_i / |r_i|)^2 over three vectors.

    The first term has every symmetry, the second breaks scaling and the third rotations, except
    those about z. Published are the first two; the third stands for a quotient of sums of absolute
    coordinates that has no closed form. The input is |r_i| (degree 1) and r_i / |r_i| (degree 0):
    linear maps of r_i itself that do not change with its length are zero.

    Levels from the moments of normal vectors: directions are uniform and independent of lengths,
    E z^4 = 1/5 and E y^2 z^2 = 1/15 on the unit sphere, E |r| = sqrt(8 / pi), E |r|^2 = 3.
    """
    mean_square = (VECTORS * 3 + VECTORS * (VECTORS - 1) * 8 / np.pi) / VECTORS**2
    log = np.log(LARGEST_SCALE)
    s, s2 = (np.sinh(k * log) / (k * log) for k in (1, 2))  # means of s and s^2
    all_z = (1 / 5 + (VECTORS - 1) / 9) / VECTORS
    total = (
        1 / 9 + scale**2 * mean_square + turn**2 * all_z - 2 * scale * turn * np.sqrt(8 / np.pi) / 3
    )
    parts = {
        O3: turn**2 * 4 / 45 / VECTORS,
        AROUND["x"]: turn**2 / 15 / VECTORS,
        AROUND["z"]: 0.0,
        SCALING: scale**2 * (s2 - 2 * s + 1) / 2 * mean_square,
    }

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        r = rng.normal(size=(n, 3, VECTORS))
        length = np.linalg.norm(r, axis=1, keepdims=True)
        unit = r / length
        y = (unit * np.roll(unit, 1, axis=2)).sum(1, keepdims=True)
        y = (y - scale * length + turn * unit[:, 2:] ** 2).mean(2, keepdims=True)
        return np.concatenate([length, unit], axis=1), y

    groups = {group: float(np.sqrt(part / total)) for group, part in parts.items()}
    into, out = Features(Irreps("0e+1o"), VECTORS, (1, 0)), Features(Irreps("0e"), 1)
    return Case(groups, O3 * SCALING, into, ("0e+0e+1o+2e", (0, 1, 0, 0)), out, draw)


CASES: dict[str, Callable[[float], Case]] = {
    "inertia-z": lambda a: inertia(np.diag([1, 1, 1 + a])),
    "inertia-xy": lambda a: inertia(np.diag([1 - a, 1 + a, 1])),
    "cosine-scale": lambda a: cosine(a, 0.0),
    "cosine-z": lambda a: cosine(0.0, a),
    "cosine-both": lambda a: cosine(a, a),
}


@partial(jax.jit, static_argnames=("graphdef", "groups", "settings"))
def _steps(
    carry: tuple[Any, Any],
    keys: jax.Array,
    strength: jax.Array,
    data: tuple[jax.Array, jax.Array],
    graphdef: nnx.GraphDef,
    groups: tuple[Group, ...],
    settings: Settings,
) -> tuple[Any, Any]:
    """Weights and moments after one step for each key; no groups, no regulariser."""
    (x, y), rule = data, optimizer(settings)

    def loss(state: nnx.State, key: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, state)
        some = jax.random.choice(key, len(x), (settings.batch,), replace=False)
        error = ((model(x[some]) - y[some]) ** 2).mean()
        return error + regulariser(model, groups, strength) if groups else error

    def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], None]:
        state, moments = carry
        change, moments = rule.update(jax.grad(loss)(state, key), moments)
        return (optax.apply_updates(state, change), moments), None

    return jax.lax.scan(step, carry, keys)[0]


def measured(
    measure: Callable[[nnx.Module, Sequence[Group]], jax.Array],
    model: nnx.Module,
    groups: Sequence[Group],
) -> jax.Array:
    """A measure of a model and groups as one program, which takes less time to compile."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state: measure(nnx.merge(graphdef, state), groups))(state)


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """Adam with a cosine schedule."""
    return optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.steps))


def train(
    case: Case, data: tuple[jax.Array, jax.Array], settings: Settings, kind: Kind, seed: int
) -> tuple[SoftNetwork, jax.Array]:
    """A network that has learned a function.

    Args:
        case: the function.
        data: inputs and outputs, of `case.draw`.
        settings: how.
        kind: with regularisers ('soft'), without any ('free'), or with every linear map projected
            on the whole group ('exact').
        seed: of weights and batches.

    Returns:
        The network, and the strengths of the regularisers, [groups].
    """
    irreps, degrees = case.hidden
    hidden = Features(Irreps(irreps), settings.channels, degrees)
    model = SoftNetwork(
        case.into, hidden, case.out, settings.layers,
        group=case.whole, freedom=0.0 if kind == "exact" else FREEDOM, rngs=nnx.Rngs(seed),
    )  # fmt: skip
    graphdef, state = nnx.split(model)
    groups = tuple(case.groups) if kind == "soft" else ()
    strength = jnp.full(len(groups), settings.strength)
    carry = state, optimizer(settings).init(state)
    parts = jax.random.split(jax.random.key(seed), (PARTS, settings.steps // PARTS))
    for part, keys in enumerate(parts):
        if groups and part == 1:
            left = measured(distances, nnx.merge(graphdef, carry[0]), groups)
            strength = strengths(settings.strength, left, settings.power)
        carry = _steps(carry, keys, strength, data, graphdef, groups, settings)
    return nnx.merge(graphdef, carry[0]), strength


def table(
    cases: Iterable[str], levels: Iterable[float], settings: Settings, seed: int
) -> Iterator[dict[str, Any]]:
    """One line for each case, level and candidate group, as soon as its networks are trained.

    Keys: case, breaking (the number of the case), group, true (closed form), soft and free
    (measured of the trained networks on inputs that they have not seen), distance (of the weights,
    `relative_distances`) and strength (of the regulariser, relative to the initial one) of the soft
    network; soft_error, free_error, exact_error: |f - y| / |y|, root mean square on these inputs.
    """
    levels = list(levels)
    for name in cases:
        for level in levels:
            yield from _lines(name, level, settings, seed)


def _lines(name: str, level: float, settings: Settings, seed: int) -> Iterator[dict[str, Any]]:
    case = CASES[name](level)
    rng = np.random.default_rng(seed)
    (x, y), (new, truth) = (case.draw(rng, n) for n in (settings.samples, settings.tests))
    unit = np.sqrt((y**2).mean())
    data = jnp.asarray(x, jnp.float32), jnp.asarray(y / unit, jnp.float32)
    inputs, truth = jnp.asarray(new, jnp.float32), truth / unit
    groups = list(case.groups)
    errors, found = {}, {}
    relative = strength = jnp.zeros(())
    for kind in ("exact", "free", "soft"):
        model, strength = train(case, data, settings, kind, seed)
        function = nnx.jit(model)
        miss = np.sqrt(((function(inputs) - truth) ** 2).mean() / (truth**2).mean())
        errors[f"{kind}_error"] = float(miss)
        if kind == "soft":
            relative = measured(relative_distances, model, groups)
        found[kind] = [
            breaking(function, inputs, group, (case.into, case.out), np.random.default_rng(seed))
            for group in groups
        ]
    for n, (group, true) in enumerate(case.groups.items()):
        yield {
            "case": name, "breaking": level, "group": group.name, "true": true,
            "soft": found["soft"][n], "free": found["free"][n], "distance": float(relative[n]),
            "strength": float(strength[n]) / settings.strength, **errors,
        }  # fmt: skip
