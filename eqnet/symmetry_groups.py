"""Groups of rotations, mirrors and scalings, and the linear maps that commute with them.

A map W between two representations is equivariant if it commutes with the generators of the group,

    X_out W = W X_in  for a basis of its Lie algebra,   D_out W = W D_in  for its finite generators,

so that equivariant maps are a null space, and with an orthonormal basis Q of it P = Q Q^T projects
on them (Finzi, Welling & Wilson, ICML 2021, arXiv:2104.09459, section 5). Irreps are those of
e3nn-jax: P acts on one pair of irreps at a time, and channels do not enter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from eqnet.irreps import Irreps
from eqnet.so3 import clebsch_gordan, generators

Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]

SMALL = 1e-9  # singular values and differences below this are zero
MAX_ELEMENTS = 240  # of the finite part; twice those of the largest point group
LARGEST_SCALE = 2.0  # scalings are drawn from 1 / this to this, uniform in the logarithm


@dataclass(frozen=True)
class Group:
    """A group of 3x3 matrices: rotations about axes, times a finite group, times scalings.

    Attributes:
        name: for people.
        axes: unit vectors; the group has all rotations about each. Two of them make all of SO(3).
        elements: orthogonal matrices that generate the finite part.
        scaling: whether lengths may be multiplied by any positive number.

    Raises:
        ValueError: axes are parallel or no unit vectors, or the finite part has too many elements
            or turns the only axis.
    """

    name: str
    axes: tuple[Vector, ...] = ()
    elements: tuple[Matrix, ...] = ()
    scaling: bool = False

    def __post_init__(self) -> None:
        gram = np.abs(np.array(self.axes).reshape(-1, 3) @ np.array(self.axes).reshape(-1, 3).T)
        off = gram - np.diag(np.diag(gram))
        if (abs(np.diag(gram) - 1) > SMALL).any() or (off > 1 - SMALL).any():
            raise ValueError(f"{self.name}: axes must be unit vectors, no two of them parallel")
        axis = np.array(self.axes[0]) if len(self.axes) == 1 else np.zeros(3)
        if any(abs(axis @ np.array(e) @ axis) < axis @ axis - SMALL for e in self.elements):
            raise ValueError(
                f"{self.name}: an element turns the only axis, which makes rotations about others; "
                "give two axes, which is SO(3)"
            )
        self.finite()

    def __mul__(self, other: Group) -> Group:
        """The group that both generate."""
        axes = list(self.axes)
        axes += [b for b in other.axes if all(abs(np.dot(a, b)) < 1 - SMALL for a in axes)]
        return Group(
            f"{self.name} x {other.name}",
            tuple(axes),
            self.elements + other.elements,
            self.scaling or other.scaling,
        )

    def finite(self) -> np.ndarray:
        """All elements of the finite part, [n, 3, 3]."""
        return _closure(self.elements)

    def sample(self, rng: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Elements drawn uniformly (by Haar measure): orthogonal [number, 3, 3], scales [number].

        Scalings have no uniform distribution, see `LARGEST_SCALE`.
        """
        if len(self.axes) > 1:
            q, r = np.linalg.qr(rng.normal(size=(number, 3, 3)))
            q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]
            rotations = q * np.linalg.det(q)[:, None, None]
        else:
            axis = np.array(self.axes[0] if self.axes else (0.0, 0.0, 0.0))
            rotations = np.stack([_turn(a * axis) for a in rng.uniform(0, 2 * np.pi, number)])
        finite = self.finite()
        log = np.log(LARGEST_SCALE) * rng.uniform(-1, 1, number) * self.scaling
        return rotations @ finite[rng.integers(len(finite), size=number)], np.exp(log)


@cache
def _closure(elements: tuple[Matrix, ...]) -> np.ndarray:
    found = [np.eye(3)]
    for known in found:  # which grows
        for element in elements:
            new = np.array(element) @ known
            if not any(np.allclose(new, old, atol=SMALL) for old in found):
                found.append(new)
            if len(found) > MAX_ELEMENTS:
                raise ValueError(f"the elements make more than {MAX_ELEMENTS} matrices: no group")
    return np.stack(found)


def _turn(vector: np.ndarray) -> np.ndarray:
    """Rotation about a vector by its length, Rodrigues' formula, [3, 3]."""
    angle = float(np.linalg.norm(vector))
    k = np.cross(np.eye(3), -vector / max(angle, SMALL))
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def _unit(vector: Sequence[float]) -> np.ndarray:
    length = np.linalg.norm(vector)
    if np.shape(vector) != (3,) or not length > 0:
        raise ValueError(f"an axis is three numbers that are not all zero, not {vector}")
    return np.asarray(vector, float) / length


def _tuple(matrix: np.ndarray) -> Matrix:
    a, b, c = (tuple(map(float, row)) for row in matrix)
    return a, b, c  # type: ignore[return-value]


def _axis(vector: np.ndarray) -> Vector:
    x, y, z = map(float, vector)
    return x, y, z


SO3 = Group("SO(3)", axes=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
INVERSION = Group("inversion", elements=(_tuple(-np.eye(3)),))
O3 = Group("O(3)", SO3.axes, INVERSION.elements)
SCALING = Group("scaling", scaling=True)


def rotations(axis: Sequence[float], name: str) -> Group:
    """SO(2): all rotations about an axis."""
    return Group(name, axes=(_axis(_unit(axis)),))


def mirror(normal: Sequence[float], name: str) -> Group:
    """The reflection that turns a normal round, and the identity."""
    n = _unit(normal)
    return Group(name, elements=(_tuple(np.eye(3) - 2 * np.outer(n, n)),))


def cyclic(axis: Sequence[float], fold: int, name: str) -> Group:
    """Rotations about an axis by multiples of 2 pi / fold."""
    return Group(name, elements=(_tuple(_turn(2 * np.pi / fold * _unit(axis))),))


def around(axis: Sequence[float], name: str) -> Group:
    """O(2): rotations about an axis and mirrors that hold it."""
    n = _unit(axis)
    normal = np.cross(n, np.eye(3)[np.abs(n).argmin()])
    return Group(name, (_axis(n),), mirror(_axis(normal), name).elements)


@dataclass(frozen=True)
class Features:
    """What arrays [..., dim, channels] of features transform as.

    Attributes:
        irreps: in the order in which they are stored, each once ('0e + 0e + 1o').
        channels: copies of all of them.
        degrees: irrep i is multiplied by s^degree if lengths are by s; empty where none is.

    Raises:
        ValueError: multiplicities, or degrees that are not as many as the irreps.
    """

    irreps: Irreps
    channels: int
    degrees: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "irreps", Irreps(self.irreps))
        if any(mul != 1 for mul, _ in self.irreps):
            raise ValueError(f"write each irrep once in {self.irreps}: channels are the copies")
        if self.degrees and len(self.degrees) != len(self.irreps):
            raise ValueError(f"{self.irreps} need {len(self.irreps)} degrees, not {self.degrees}")
        object.__setattr__(self, "degrees", self.degrees or (0,) * len(self.irreps))

    @property
    def dim(self) -> int:
        """Components of one channel."""
        return self.irreps.dim

    @property
    def slices(self) -> list[slice]:
        """Where the components of each irrep are."""
        return self.irreps.slices()

    def matrices(self, elements: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """Orthogonal [n, 3, 3] and scales [n] -> what they do to features, [n, dim, dim]."""
        sign = np.sign(np.linalg.det(elements))
        table = _wigner_d(max(self.irreps.ls), sign[:, None, None] * elements)
        result = np.zeros((len(elements), self.dim, self.dim))
        for (_, ir), degree, at in zip(self.irreps, self.degrees, self.slices, strict=True):
            factor = np.where(sign < 0, ir.p, 1) * scales**degree
            result[:, at, at] = factor[:, None, None] * table[ir.l]
        return result

    def algebra(self, group: Group) -> list[np.ndarray]:
        """Infinitesimal elements, [dim, dim] each: rotations about the axes, and the scaling."""
        made = []
        for axis in group.axes:
            made.append(np.zeros((self.dim, self.dim)))
            for (_, ir), at in zip(self.irreps, self.slices, strict=True):
                made[-1][at, at] = np.einsum("iaj,a->ij", generators(ir.l), axis)
        if group.scaling:
            made.append(np.diag(np.repeat(self.degrees, [ir.dim for _, ir in self.irreps])))
        return made


def _wigner_d(l_max: int, rotations: np.ndarray) -> list[np.ndarray]:
    """[n, 2 l + 1, 2 l + 1] for l = 0 .. l_max, as `eqnet.so3.wigner_d`, in float64 numpy."""
    matrices = [np.ones((len(rotations), 1, 1)), rotations]
    for l in range(2, l_max + 1):
        c = clebsch_gordan(1, l - 1, l)
        half = np.einsum("abk,nap->nkbp", c, rotations)
        half = np.einsum("nkbp,nbq->nkpq", half, matrices[-1])
        matrices.append((2 * l + 1) * np.einsum("nkpq,pqj->nkj", half, c))
    return matrices


def projector(commuting: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Orthogonal projection on the maps W with A W = W B for all pairs (A, B).

    Args:
        commuting: matrices on the output [m, m] and on the input [n, n], generators of a Lie
            algebra or elements of a group.

    Returns:
        [m, n, m, n], float64; symmetric and idempotent as a matrix [m n, m n].
    """
    m, n = (len(matrix) for matrix in commuting[0])
    rows = [np.kron(a, np.eye(n)) - np.kron(np.eye(m), b.T) for a, b in commuting]
    _, values, right = np.linalg.svd(np.concatenate(rows), full_matrices=True)
    q = right[int((values > SMALL).sum()) :]
    return (q.T @ q).reshape(m, n, m, n)


@cache
def equivariant_projector(group: Group, out: Features, into: Features) -> np.ndarray:
    """Projection on the maps of one channel of `into` to one of `out` that commute with a group.

    Returns:
        P of [out.dim, into.dim, out.dim, into.dim], float64.
    """
    result = np.zeros((out.dim, into.dim, out.dim, into.dim))
    for i, j in product(range(len(out.irreps)), range(len(into.irreps))):
        a, b = (
            Features(Irreps([f.irreps[k]]), 1, (f.degrees[k],)) for f, k in ((out, i), (into, j))
        )
        s, t = out.slices[i], into.slices[j]
        result[s, t, s, t] = _of_irreps(group, a, b)
    result.flags.writeable = False
    return result


@cache
def _of_irreps(group: Group, out: Features, into: Features) -> np.ndarray:
    elements = np.array(group.elements).reshape(-1, 3, 3)
    ones = np.ones(len(elements))
    pairs = [*zip(out.algebra(group), into.algebra(group), strict=True)]
    pairs += zip(out.matrices(elements, ones), into.matrices(elements, ones), strict=True)
    return projector([*pairs, (np.eye(out.dim), np.eye(into.dim))])
