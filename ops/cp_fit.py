"""Canonical polyadic (CP) decomposition of small tensors, T[i,j,k] ~ sum_r A[i,r] B[j,r] Q[k,r].

Two stages in float64. Alternating least squares, held back by a proximal ridge that fades away,
finds the basin of a good solution but crawls near it; damped Gauss-Newton steps on all factors at
once (Levenberg-Marquardt, normal equations by preconditioned conjugate gradients, J^T J never
formed) then converge to rounding. Many starts end in worse local minima: several are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

EXACT = 1e-12  # relative error below which a fit is exact to rounding
STARTS = 16
SWEEPS = 1000
# Proximal ridge of the first and the last sweep, for a tensor of unit norm.
RIDGE = (1.0, 1e-10)
STEPS = 400
CG_STEPS = 100
# Bound on the sum of the norms of the terms / |T|. Beyond it terms grow and cancel each other
# without end, for a few per cent of the error and all the digits of float32.
LARGEST_SUM = 80.0

_OTHERS = ((1, 2), (0, 2), (0, 1))
Triple = list[np.ndarray]


class Factors(NamedTuple):
    """The three factors of a decomposition of rank R: [d1, R], [d2, R], [d3, R]."""

    left: np.ndarray
    right: np.ndarray
    out: np.ndarray

    @property
    def rank(self) -> int:
        """Number of rank-one terms."""
        return self.left.shape[1]

    def tensor(self) -> np.ndarray:
        """[d1, d2, d3]: the sum of the rank-one terms."""
        pairs = _khatri_rao(self.right, self.out)
        return (self.left @ pairs.T).reshape([f.shape[0] for f in self])

    def error(self, tensor: np.ndarray) -> float:
        """|sum of terms - T| / |T|, Frobenius norms."""
        return float(np.linalg.norm(self.tensor() - tensor) / np.linalg.norm(tensor))

    def cancellation(self, tensor: np.ndarray) -> float:
        """Sum of the norms of the terms / |T|: 4 to 20 where healthy; rounding grows with it."""
        norms = np.prod([np.linalg.norm(f, axis=0) for f in self], axis=0)
        return float(norms.sum() / np.linalg.norm(tensor))


def fit(tensor: np.ndarray, rank: int, target: float = EXACT, starts: int = STARTS) -> Factors:
    """The best decomposition of several starts; the same for the same arguments.

    The norms of its terms add up to at most `LARGEST_SUM` times that of the tensor.

    Args:
        tensor: [d1, d2, d3], not zero.
        rank: number of rank-one terms.
        target: relative error that ends the search.
        starts: how many random starts are made at most.
    """
    found = []
    for factors in attempts(tensor, rank, starts):
        found.append((factors.error(tensor), factors))
        if found[-1][0] <= target:
            return factors
    best = min(error for error, _ in found)
    # rotated fits are equally good: the first start decides, not the last digit
    return next(factors for error, factors in found if error <= 1.001 * best)


def attempts(tensor: np.ndarray, rank: int, starts: int) -> Iterator[Factors]:
    """The fit of each start, seeded by its number."""
    norm = np.linalg.norm(tensor)
    for seed in range(starts):
        factors = gauss_newton(
            tensor / norm, alternating(tensor / norm, rank, np.random.default_rng(seed))
        )
        yield Factors(*_balanced([f * norm ** (1 / 3) for f in factors]))


def alternating(
    tensor: np.ndarray, rank: int, rng: np.random.Generator, sweeps: int = SWEEPS
) -> Triple:
    """Alternating least squares from random factors, for a tensor of unit norm.

    A <- argmin |T - A (B * Q)^T|^2 + ridge |A - A_old|^2, then B, then Q. Ends before a sweep to
    terms that cancel.
    """
    factors = [rng.normal(size=(d, rank)) / (d**0.5 * rank ** (1 / 6)) for d in tensor.shape]
    identity = np.eye(rank)
    for ridge in np.geomspace(*RIDGE, sweeps):
        trial = list(factors)
        for n in range(3):
            gram = _gram(trial, n) + ridge * identity
            right_side = _contracted(tensor, trial, n) + ridge * trial[n]
            trial[n] = np.linalg.solve(gram, right_side.T).T
        if Factors(*trial).cancellation(tensor) > LARGEST_SUM:
            break
        factors = _balanced(trial)
    return factors


def gauss_newton(tensor: np.ndarray, factors: Triple, steps: int = STEPS) -> Triple:
    """Levenberg-Marquardt steps on all three factors, for a tensor of unit norm.

    Ends at an error of 1e-14, when 30 steps have gained less than two per cent, when no step makes
    the error smaller, or before a step to terms that cancel.
    """
    residual = Factors(*factors).tensor() - tensor
    loss, history = _dot([residual], [residual]), []
    damping, growth = min(0.1, 10 * loss), 2.0
    for _ in range(steps):
        factors = _balanced(factors)
        step, promised = _step(residual, factors, damping, accuracy=min(0.1, loss**0.5))
        trial = [f + s for f, s in zip(factors, step, strict=True)]
        trial_residual = Factors(*trial).tensor() - tensor
        trial_loss = _dot([trial_residual], [trial_residual])
        if trial_loss >= loss:
            damping, growth = damping * growth, growth * 2
            if damping > 1e6:
                break
            continue
        if Factors(*trial).cancellation(tensor) > LARGEST_SUM:
            break
        ratio = (loss - trial_loss) / promised
        damping = max(damping * max(1 / 3, 1 - (2 * ratio - 1) ** 3), 1e-15)
        factors, residual, loss, growth = trial, trial_residual, trial_loss, 2.0
        history.append(loss)
        if loss**0.5 < 1e-14 or (len(history) > 30 and history[-31] < 1.04 * loss):
            break
    return factors


def _step(
    residual: np.ndarray, factors: Triple, damping: float, accuracy: float
) -> tuple[Triple, float]:
    """The damped Gauss-Newton step and the decrease of |residual|^2 that the linear model promises.

    (J^T J + damping) step = -gradient, by conjugate gradients with the blocks of J^T J on the
    diagonal, which are gram x identity, as preconditioner.
    """
    squares = [f.T @ f for f in factors]
    grams = [squares[a] * squares[b] for a, b in _OTHERS]
    inverses = [np.linalg.inv(g + damping * np.eye(len(g))) for g in grams]

    def normal_matrix(p: Triple) -> Triple:
        mixed = [f.T @ v for f, v in zip(factors, p, strict=True)]
        return [
            p[n] @ grams[n]
            + factors[n] @ (squares[b] * mixed[a] + squares[a] * mixed[b]).T
            + damping * p[n]
            for n, (a, b) in enumerate(_OTHERS)
        ]

    def preconditioned(r: Triple) -> Triple:
        return [v @ inverse for v, inverse in zip(r, inverses, strict=True)]

    gradient = [_contracted(residual, factors, n) for n in range(3)]
    step = [np.zeros_like(f) for f in factors]
    rest = [-g for g in gradient]
    direction = preconditioned(rest)
    size = first = _dot(rest, direction)
    for _ in range(CG_STEPS):
        if size == 0.0:  # no slope to the last digit
            break
        curved = normal_matrix(direction)
        length = size / _dot(direction, curved)
        step = [s + length * d for s, d in zip(step, direction, strict=True)]
        rest = [r - length * c for r, c in zip(rest, curved, strict=True)]
        steepest = preconditioned(rest)
        size, previous = _dot(rest, steepest), size
        if size <= (0.1 * accuracy) ** 2 * first:
            break
        direction = [s + size / previous * d for s, d in zip(steepest, direction, strict=True)]
    # |residual + J step|^2 = |residual|^2 + 2 gradient.step + step.J^T J step
    curvature = _dot(step, normal_matrix(step)) - damping * _dot(step, step)
    return step, -2 * _dot(gradient, step) - curvature


def _khatri_rao(b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """[d2, R], [d3, R] -> [d2 * d3, R]."""
    return (b[:, None, :] * c[None, :, :]).reshape(-1, b.shape[1])


def _contracted(tensor: np.ndarray, factors: Triple, n: int) -> np.ndarray:
    """T contracted with the two factors other than n, term by term, [d_n, R]."""
    a, b = _OTHERS[n]
    unfolded = np.moveaxis(tensor, n, 0).reshape(tensor.shape[n], -1)
    return unfolded @ _khatri_rao(factors[a], factors[b])


def _gram(factors: Triple, n: int) -> np.ndarray:
    """Inner products of the terms without factor n, [R, R]."""
    a, b = _OTHERS[n]
    return (factors[a].T @ factors[a]) * (factors[b].T @ factors[b])


def _balanced(factors: Triple) -> Triple:
    """The same terms with equal norms of the three columns of each."""
    norms = [np.maximum(np.linalg.norm(f, axis=0), 1e-300) for f in factors]
    mean = np.prod(norms, axis=0) ** (1 / 3)
    return [f * (mean / norm) for f, norm in zip(factors, norms, strict=True)]


def _dot(a: Triple, b: Triple) -> float:
    return float(sum(np.vdot(x, y) for x, y in zip(a, b, strict=True)))
