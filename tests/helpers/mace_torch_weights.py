"""Parameters of a mace-torch model as parameters of ours.

mace-torch multiplies redundant coupling paths by weights; ours have weights on independent trees.
The polynomials are the same, so a fixed linear map, found by least squares in float64 on the
symmetrised coefficient tensors, takes the weights of one to those of the other. mace-torch's
coefficient tensors are rebuilt here from its recursion (mace/tools/cg.py, e3nn 0.4.4).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import permutations

import jax.numpy as jnp
import numpy as np

from eqnet.irreps import Irrep, Irreps
from eqnet.layers import SILU_NORM
from eqnet.models.mace import MACE, MACEConfig
from eqnet.so3 import clebsch_gordan

# Degrees whose Clebsch-Gordan block in e3nn 0.4.4 has the opposite sign (l <= 6, all of odd sum).
FLIPPED = set(
    "122 133 144 155 166 212 221 313 331 346 364 414 436 441 445 454 456 463 465 515 544 546 "
    "551 555 564 566 616 634 643 645 654 656 661 665".split()
)
Weights = Mapping[str, np.ndarray]


def sign(l1: int, l2: int, l3: int) -> float:
    """Of e3nn's Clebsch-Gordan block relative to ours."""
    assert (l1 + l2 + l3) % 2 == 0 or max(l1, l2, l3) <= 6
    return -1.0 if f"{l1}{l2}{l3}" in FLIPPED else 1.0


def e3nn_order(ir: Irrep) -> tuple[int, int]:
    """e3nn sorts odd parity before even at equal degree."""
    return (ir.l, ir.p)


@cache
def coupling_tensors(irreps: tuple[Irrep, ...], out: Irrep, order: int) -> np.ndarray:
    """mace-torch's U of a correlation order, symmetrised, [d, ..., d, 2 L + 1, paths]."""
    natural = order == 4  # mace-torch drops unnatural intermediates at fourth order only
    dims = [ir.dim for ir in irreps]
    starts = np.concatenate([[0], np.cumsum(dims)])
    eye = np.eye(starts[-1])
    leaves = [eye[:, starts[i] : starts[i] + d] for i, d in enumerate(dims)]  # [d, 2 l + 1]
    level = sorted(zip(irreps, leaves, strict=True), key=lambda t: e3nn_order(t[0]))
    for factor in range(1, order):
        grown = []
        for left, tensor in level:
            for ir, leaf in zip(irreps, leaves, strict=True):
                for result in sorted(left * ir, key=e3nn_order):
                    if factor == order - 1 and result != out:
                        continue
                    if natural and result.p != (-1) ** result.l:
                        continue
                    table = np.sqrt(result.dim) * clebsch_gordan(result.l, left.l, ir.l)
                    table = sign(result.l, left.l, ir.l) * table
                    grown.append((result, np.einsum("...a,jb,cab->...jc", tensor, leaf, table)))
        level = sorted(grown, key=lambda t: e3nn_order(t[0]))
    paths = [tensor for ir, tensor in level if ir == out]
    if not paths:
        return np.zeros([starts[-1]] * order + [out.dim, 1])
    stacked = np.stack(paths, axis=-1)
    orders = list(permutations(range(order)))
    copies = [stacked.transpose(*p, order, order + 1) for p in orders]
    return np.mean(copies, axis=0)


def contraction_weights(weights: Weights, product: str, model: MACE, layer: int) -> np.ndarray:
    """Weights [Z, trees, C] of the powers of a layer."""
    power = model.products[layer].power
    parts = []
    for _, out in power.irreps_out:
        index = [ir for _, ir in power.irreps_out].index(out)
        name = f"{product}.symmetric_contractions.contractions.{index}."
        for order in range(1, power.correlation + 1):
            place = power.correlation - 1 - order
            key = "weights_max" if place < 0 else f"weights.{place}"
            theirs = coupling_tensors(power.inputs, out, order)
            source = np.asarray(weights[name + key], np.float64)
            trees = [
                tree for ir, tree in power.trees if ir == out and (len(tree) + 1) // 2 == order
            ]
            if not trees:
                assert np.abs(theirs).max() < 1e-12
                continue
            ours = np.stack([power.tensor(tree).ravel() for tree in trees], axis=-1)
            theirs = theirs.reshape(-1, theirs.shape[-1])
            map_, *_ = np.linalg.lstsq(ours, theirs, rcond=None)
            assert np.abs(ours @ map_ - theirs).max() < 1e-10, "our trees do not span theirs"
            parts.append(np.einsum("ab,zbc->zac", map_, source))
    return np.concatenate(parts, axis=1)


def blocks(flat: np.ndarray, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Cut a flat weight vector into blocks."""
    flat = np.asarray(flat, np.float64)
    ends = np.cumsum([int(np.prod(s)) for s in shapes])
    assert ends[-1] == len(flat)
    parts = np.split(flat, ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def linear(flat: np.ndarray, irreps: Irreps) -> dict[str, np.ndarray]:
    """Of an o3.Linear between equal irreps without repetition."""
    parts = blocks(flat, [(mul, mul) for mul, _ in irreps])
    return {str(ir): part for (_, ir), part in zip(irreps, parts, strict=True)}


def skip(flat: np.ndarray, irreps_in: Irreps, irreps_out: Irreps, z: int) -> dict[str, np.ndarray]:
    """Of a fully connected product with the one-hot element: [Z, mul_in, mul_out] by irrep."""
    muls = {ir: mul for mul, ir in irreps_out}
    shared = [(mul, ir) for mul, ir in irreps_in if ir in muls]
    parts = blocks(flat, [(mul, z, muls[ir]) for mul, ir in shared])
    return {str(ir): p.transpose(1, 0, 2) for (_, ir), p in zip(shared, parts, strict=True)}


def path_order(model: MACE, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of our paths its place among mace-torch's, and the sign of its coefficients."""
    product = model.interactions[layer].product
    keys = [(e3nn_order(p.out), p.left, product.irreps_right[p.right].ir.l) for p in product.paths]
    theirs = sorted(keys)
    signs = [
        sign(product.irreps_left[p.left].ir.l, product.irreps_right[p.right].ir.l, p.out.l)
        for p in product.paths
    ]
    return np.array([theirs.index(key) for key in keys]), np.array(signs)


def load_interaction(weights: Weights, model: MACE, layer: int, silu_constant: float) -> None:
    """Overwrite the parameters of one interaction block."""
    name, block = f"interactions.{layer}.", model.interactions[layer]
    irreps_in, basis = block.up.irreps_in, block.down.irreps_out
    channels, z = irreps_in[0].mul, len(model.config.elements)
    for ir, value in linear(weights[name + "linear_up.weight"], irreps_in).items():
        block.up.weights[ir][...] = jnp.asarray(value)
    order, signs = path_order(model, layer)
    last = len(block.radial.weights) - 1
    for n, param in enumerate(block.radial.weights):
        value = np.asarray(weights[f"{name}conv_tp_weights.layer{n}.weight"], np.float64)
        if n > 0:
            value = value * silu_constant / SILU_NORM
        if n == last:
            value = value.reshape(len(value), len(order), channels)
            value = (value[:, order] * signs[:, None]).reshape(len(value), -1)
        param[...] = jnp.asarray(value)
    down = blocks(weights[name + "linear.weight"], [(channels, channels)] * len(order))
    for _, ir in basis:
        chosen = [
            down[place]
            for place, path in zip(order, block.product.paths, strict=True)
            if path.out == ir
        ]
        block.down.weights[str(ir)][...] = jnp.asarray(np.concatenate(chosen))
    source, target = block.skip.irreps_in, block.skip.irreps_out
    for ir, value in skip(weights[name + "skip_tp.weight"], source, target, z).items():
        block.skip.weights[ir][...] = jnp.asarray(value)


def convert(config: MACEConfig, weights: Weights, silu_constant: float, model: MACE) -> None:
    """Overwrite all parameters of `model` (float64 under x64) by those of mace-torch.

    Args:
        config: of both models; its hidden_irreps in e3nn-jax's order (0e, 0o, 1o, 1e, ...).
        weights: mace-torch's parameters by name.
        silu_constant: by which e3nn multiplies SiLU.
        model: ours.
    """
    z, channels = len(config.elements), config.irreps().count(Irrep(0, 1))
    embedding = np.asarray(weights["node_embedding.linear.weight"], np.float64)
    model.embedding[...] = jnp.asarray(embedding.reshape(z, channels))
    for layer in range(config.num_interactions):
        load_interaction(weights, model, layer, silu_constant)
        name, block = f"products.{layer}", model.products[layer]
        block.weights[...] = jnp.asarray(contraction_weights(weights, name, model, layer))
        irreps_out = block.linear.irreps_out
        for ir, value in linear(weights[name + ".linear.weight"], irreps_out).items():
            block.linear.weights[ir][...] = jnp.asarray(value)
        readout = model.readouts[layer].mlp.weights
        if len(readout) == 1:
            flat = np.asarray(weights[f"readouts.{layer}.linear.weight"], np.float64)
            # higher irreps do not reach a scalar, so only the scalars have weights
            readout[0][...] = jnp.asarray(flat.reshape(channels, 1))
            continue
        for n in range(2):
            value = np.asarray(weights[f"readouts.{layer}.linear_{n + 1}.weight"], np.float64)
            factor = 1.0 if n == 0 else silu_constant / SILU_NORM
            readout[n][...] = jnp.asarray(factor * value.reshape(readout[n].shape))
