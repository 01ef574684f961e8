"""Cartesian tensors of structures and atoms from the features of any model.

The features x_i of an atom are mapped to the irreps of a tensor, linearly and through a gate, and
these to the tensor t_i by a fixed orthonormal basis:

    t_i = s U (W x_i + W'' gate(W' x_i)) + b[element_i]

with s and the isotropic b from the labels. A structure has the sum, mean or density of its atoms'
tensors. A dipole is sum_i (q_i x_i + t_i) with charges that add up to zero, so that the origin does
not matter. Tensors of atoms may be shifted by their mean, so that they add up to zero (acoustic sum
rule of Born charges). An elasticity tensor is made positive by a matrix function of the mean, see
`eqnet.ops.elasticity`, and is then s f(mean t_i) times the number of atoms in a unit of volume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eqnet.data.frame import Frame
from eqnet.data.tensor_labels import TensorKind
from eqnet.graph import AtomGraph, sum_structures
from eqnet.irreps import Irrep, Irreps, IrrepsArray, refuse_missing, regrouped
from eqnet.layers import MLP, Gate, Linear
from eqnet.ops.cartesian_tensors import cartesian_basis, from_irreps
from eqnet.ops.elasticity import positive

Nested = tuple[Any, ...]  # of floats
SCALAR = Irrep(0, 1)


def needed_irreps(kinds: Mapping[str, TensorKind]) -> Irreps:
    """Irreps that features must have for these tensors, each once.

    >>> needed_irreps({"polarizability": TensorKind("ij=ji", "sum")})
    1x0e+1x2e
    """
    found = {ir for kind in kinds.values() for _, ir in cartesian_basis(kind.symmetry)[0]}
    return regrouped(Irreps([(1, ir) for ir in found]))


class Readout(nnx.Module):
    """Features of an atom -> its tensor, of unit size: a linear map and a gated one, added up.

    Raises:
        ValueError: the features lack irreps of the tensor.
    """

    def __init__(self, kind: TensorKind, irreps_in: Irreps, channels: int, *, rngs: nnx.Rngs):
        self.symmetry = kind.symmetry
        irreps, _ = cartesian_basis(kind.symmetry)
        refuse_missing(irreps, irreps_in)
        hidden = regrouped(Irreps([(channels, ir) for _, ir in irreps]) + f"{channels}x0e")
        self.gate = Gate(hidden)
        self.linear = Linear(irreps_in, irreps, rngs=rngs)
        self.inner = Linear(irreps_in, self.gate.irreps_in, rngs=rngs, bias=True)
        scalar = irreps.count(SCALAR) > 0
        self.outer = Linear(self.gate.irreps_out, irreps, rngs=rngs, bias=scalar)

    @jax.named_scope("readout")
    def __call__(self, x: IrrepsArray) -> jax.Array:
        """[N, irreps_in] -> [N, 3, ...]."""
        y = self.outer(self.gate(self.inner(x)))
        # one order of the irreps, whatever the model's
        total = IrrepsArray(y.irreps, y.array + self.linear(x).array)
        return from_irreps(self.symmetry, total)


class TensorModel(nnx.Module):
    """AtomGraph -> tensors by name, [G, 3, ...] of structures or [N, 3, ...] of atoms.

    Args:
        model: with `features(graph)` and their irreps, `irreps_out`.
        kinds: of the tensors, by name.
        elements: atomic numbers, ascending.
        cutoff: of the model, in angstrom.
        scale: of each tensor, in its unit.
        shift: of each tensor without `positive`, [Z, 3, ...] as nested tuples: what every atom of
            an element adds.
        channels: of the hidden layer.
        struts: whether it is for lattices, whose edges are struts and whose unit is their radius.
        rngs: source of the first weights.

    Raises:
        ValueError: the features lack irreps of a tensor.
    """

    def __init__(
        self,
        model: Any,
        kinds: Mapping[str, TensorKind],
        *,
        elements: Sequence[int],
        cutoff: float,
        scale: Mapping[str, float],
        shift: Mapping[str, Nested],
        channels: int = 16,
        struts: bool = False,
        rngs: nnx.Rngs,
    ):
        self.model = model
        self.elements, self.cutoff = tuple(int(z) for z in elements), float(cutoff)
        # tuples: what is no array must be hashable
        self.kinds = tuple(kinds.items())
        self.scale = tuple(float(scale[name]) for name in kinds)
        self.shift = tuple(None if kind.positive else shift[name] for name, kind in self.kinds)
        self.channels, self.struts = channels, struts
        irreps = model.irreps_out
        scalars = irreps.count(SCALAR)
        self.readouts = nnx.Dict(
            {name: Readout(kind, irreps, channels, rngs=rngs) for name, kind in self.kinds}
        )
        self.charges = nnx.Dict(
            {
                name: MLP((scalars, channels, 1), rngs=rngs)
                for name, kind in self.kinds
                if kind.charges
            }
        )

    def __call__(self, graph: AtomGraph) -> dict[str, jax.Array]:
        """The tensors of a batch; those of padding are zero."""
        with jax.default_matmul_precision("highest"):
            x = self.model.features(graph)
            return {
                name: self._tensor(name, kind, scale, shift, x, graph)
                for (name, kind), scale, shift in zip(
                    self.kinds, self.scale, self.shift, strict=True
                )
            }

    def _tensor(
        self,
        name: str,
        kind: TensorKind,
        scale: float,
        shift: Nested | None,
        x: IrrepsArray,
        graph: AtomGraph,
    ) -> jax.Array:
        """One of the tensors, of all structures or atoms."""
        dtype = x.array.dtype
        tensor = self.readouts[name](x) * (1.0 if kind.positive else scale)
        if shift is not None:
            tensor = tensor + jnp.asarray(shift, dtype)[jnp.asarray(graph.species)]
        if kind.charges:
            charges = scale * self.charges[name](x.scalars)
            charges = without_mean(charges, graph)
            tensor = tensor + charges * jnp.asarray(graph.positions)
        if kind.zero_sum:
            tensor = without_mean(tensor, graph)
        if kind.per_atom:
            return masked(tensor, graph.atom_mask)
        if kind.per == "sum" and not kind.positive:
            return total(tensor, graph)
        mean, number = means(tensor, graph)
        if kind.positive:
            mean = scale * positive(mean, kind.positive)
        factor = {"mean": 1.0, "sum": number, "volume": density(number, graph)}[kind.per]
        return masked(mean * _like(jnp.asarray(factor, dtype), mean), graph.structure_mask)


def _like(values: jax.Array, tensor: jax.Array) -> jax.Array:
    """Axes added behind, so that [G] multiplies [G, 3, ...]."""
    return values.reshape(values.shape + (1,) * (tensor.ndim - values.ndim) * (values.ndim > 0))


def masked(values: jax.Array, mask: Any) -> jax.Array:
    """Zero where the mask [n] is not set; [n, ...]."""
    mask = jnp.asarray(mask)
    return jnp.where(mask.reshape(mask.shape + (1,) * (values.ndim - 1)), values, 0.0)


def total(values: jax.Array, graph: AtomGraph) -> jax.Array:
    """Sum over the atoms of each structure, [N, ...] -> [G, ...]."""
    return sum_structures(masked(values, graph.atom_mask), graph)


def means(values: jax.Array, graph: AtomGraph) -> tuple[jax.Array, jax.Array]:
    """Mean over the atoms of each structure, [N, ...] -> [G, ...], and how many there are, [G]."""
    number = sum_structures(jnp.asarray(graph.atom_mask, values.dtype), graph)
    added = total(values, graph)
    return added / _like(jnp.maximum(number, 1), added), number


def without_mean(values: jax.Array, graph: AtomGraph) -> jax.Array:
    """Values of atoms [N, ...] less their mean over the structure: they add up to zero."""
    return values - means(values, graph)[0][jnp.asarray(graph.structure)]


def density(number: jax.Array, graph: AtomGraph) -> jax.Array:
    """Atoms per volume of each structure [G], in 1/A^3; 0 where there is no volume."""
    volume = jnp.abs(jnp.linalg.det(jnp.asarray(graph.cell)))
    return jnp.where(volume > 0, number / jnp.where(volume > 0, volume, 1.0), 0.0)


def fit_scale_and_shift(
    kind: TensorKind, name: str, frames: Sequence[Frame], elements: Sequence[int]
) -> tuple[float, Nested]:
    """The isotropic part of the labels by element, and the size of the rest.

    Least squares of the isotropic parts (those that no rotation changes) by composition. The scale
    is the root mean square of a component that is left, for one atom.

    Args:
        kind: of the tensor.
        name: of its labels, which some of the frames have.
        frames: training structures.
        elements: atomic numbers of the model.

    Returns:
        scale, and shift [Z, 3, ...] as nested tuples; with `positive` the shift is zero.

    Raises:
        ValueError: no frame has the label, or all labels are zero.
    """
    labelled = [frame for frame in frames if name in frame.tensors]
    if not labelled:
        raise ValueError(f"no structure has a {name}")
    sizes = np.array([len(frame) for frame in labelled], float)
    counts = np.array([[np.sum(f.numbers == z) for z in elements] for f in labelled], float)
    labels = np.concatenate([f.tensors[name].reshape(-1, *kind.shape) for f in labelled])
    weight = {  # tensor of a structure / mean over its atoms
        "sum": sizes,
        "mean": np.ones_like(sizes),
        "volume": sizes / np.array([f.volume or 1.0 for f in labelled]),
    }
    if kind.per_atom:
        rows = np.concatenate([f.numbers[:, None] == np.asarray(elements) for f in labelled]) * 1.0
        factor = np.ones(len(rows))
    else:
        factor = weight[kind.per]
        rows = counts / sizes[:, None] * factor[:, None]
    irreps, basis = cartesian_basis(kind.symmetry)
    isotropic = basis[..., : irreps.count(SCALAR)]  # degree 0 comes first
    parts = np.tensordot(labels, isotropic, basis.ndim - 1)
    fitted = np.linalg.lstsq(rows, parts, rcond=None)[0] * (not kind.positive)
    shift = np.tensordot(fitted, isotropic, ([1], [basis.ndim - 1]))
    rest = labels - np.tensordot(rows, shift, 1)
    size = factor.reshape((-1,) + (1,) * (rest.ndim - 1))
    if kind.per == "sum" and not kind.positive:
        size = np.sqrt(size)  # of independent terms
    scale = float(np.sqrt(np.mean((rest / size) ** 2)))
    if not scale > 0:
        raise ValueError(f"every {name} of the training structures is the same: nothing to learn")
    return scale, _nested(shift)


def _nested(values: np.ndarray) -> Nested:
    return tuple(_nested(v) if v.ndim else float(v) for v in values)
