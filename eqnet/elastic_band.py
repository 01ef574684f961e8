"""Nudged elastic bands whose images are computed side by side, with ASE's `NEB`.

    band = relax_band(calculator, interpolate(start, end, 7), climb=True)
    print(band.forward, band.backward)  # eV

The improved tangent is that of Henkelman and Jonsson, J. Chem. Phys. 113, 9978 (2000), the climbing
image that of Henkelman, Uberuaga and Jonsson, J. Chem. Phys. 113, 9901 (2000).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from ase import Atoms
from ase.build import minimize_rotation_and_translation
from ase.geometry import find_mic
from ase.io.jsonio import encode
from ase.mep import NEB, NEBTools
from ase.utils.forcecurve import fit_images
from scipy.optimize import linear_sum_assignment

from eqnet.calculator import EqnetCalculator
from eqnet.data.elements import symbol
from eqnet.errors import InputError
from eqnet.relaxation import OPTIMIZERS, Place, place_of, put_back
from eqnet.side_by_side import SideBySide

CLIMB_BELOW = 0.5  # eV/angstrom: before, the highest image has not found the path yet
SAME = 0.01  # angstrom; ends nearer than that are one structure


class Band(NamedTuple):
    """A band of I images, both ends among them."""

    images: list[Atoms]  # with energies and forces
    converged: bool
    steps: int
    distance: np.ndarray  # [I] angstrom along the path
    energy: np.ndarray  # [I] eV, from the first image on
    largest: np.ndarray  # [I] largest force, eV/angstrom: of the band, of the model at the ends
    forward: float  # barrier, eV: the climbing image, or the largest value of a spline
    backward: float


def check_ends(start: Atoms, end: Atoms) -> None:
    """Refuse two structures between which there is no band.

    Raises:
        InputError: they differ in atoms, in their order, in cell or boundary conditions; the end
            has constraints, and others than the start.
    """
    if len(start) != len(end):
        raise InputError(f"the ends have {len(start)} and {len(end)} atoms; they must be the same")
    differ = np.flatnonzero(start.numbers != end.numbers)
    if len(differ):
        first = int(differ[0])
        names = [symbol(int(atoms.numbers[first])) for atoms in (start, end)]
        raise InputError(
            f"atom {first} is {names[0]} at the start and {names[1]} at the end; both need the "
            "same atoms in the same order"
        )
    if (start.pbc != end.pbc).any():
        raise InputError(
            f"the ends have pbc = {start.pbc.tolist()} and {end.pbc.tolist()}; they must be equal"
        )
    if np.abs(start.cell.array - end.cell.array)[start.pbc].max(initial=0.0) > 1e-8:
        raise InputError("the cells of the ends differ; a band of images has one cell")
    rules = [sorted(encode(rule.todict()) for rule in atoms.constraints) for atoms in (start, end)]
    if end.constraints and rules[0] != rules[1]:
        raise InputError(
            "the constraints of the ends differ, and a band has one set of them: give the end "
            "those of the start, or none"
        )


def exchanged(start: Atoms, end: Atoms) -> list[int]:
    """Atoms that would go less than half as far if those of one element were in another order.

    Either they change places, as where a methyl group turns or ammonia inverts, or the two ends
    have them in different orders by mistake.
    """
    found: list[int] = []
    pbc: Any = start.pbc
    for element in np.unique(start.numbers):
        own = np.flatnonzero(start.numbers == element)
        ways = end.positions[own] - start.positions[own, None]
        lengths = find_mic(ways.reshape(-1, 3), start.cell, pbc)[1]
        squares = lengths.reshape(len(own), len(own)) ** 2
        order = linear_sum_assignment(squares)[1]
        other = np.flatnonzero(order != np.arange(len(own)))
        if squares[other, order[other]].sum() < squares[other, other].sum() / 4:
            found += own[other].tolist()
    return sorted(found)


def interpolate(
    start: Atoms, end: Atoms, number: int, method: Literal["idpp", "linear"] = "idpp"
) -> list[Atoms]:
    """Both ends with `number` images between them, without calculators.

    Atoms go to the nearest image of where they end. Molecules without constraints are first laid
    upon each other. The constraints are those of the start.

    Args:
        start: first structure; not changed.
        end: last structure; not changed.
        number: images between them.
        method: 'linear', or 'idpp' for distances between atoms that change evenly (Smidstrup et
            al., J. Chem. Phys. 140, 214106, 2014).

    Raises:
        InputError: see `check_ends`; the ends are one structure; held atoms are not where they are
            at the start.
    """
    check_ends(start, end)
    if number < 1:
        raise InputError(f"a band has at least 1 image between its ends, not {number}")
    first, last = start.copy(), end.copy()
    last.set_constraint(first.constraints)
    if not first.pbc.any() and not first.constraints:
        minimize_rotation_and_translation(first, last)
    pbc: Any = first.pbc
    way, lengths = find_mic(last.positions - first.positions, first.cell, pbc)
    if lengths.max() < SAME:
        raise InputError(f"start and end are one structure: no atom is {SAME} A away")
    last.set_positions(first.positions + way, apply_constraint=False)
    images = [first, *(first.copy() for _ in range(number)), last]
    try:
        NEB(images, method="improvedtangent").interpolate(method, mic=bool(pbc.any()))
    except RuntimeError:
        raise InputError(
            "atoms that the constraints of the start hold are elsewhere at the end; hold others, "
            "or put them where they are at the start"
        ) from None
    return images


def relax_band(
    calculator: EqnetCalculator,
    images: list[Atoms],
    *,
    climb: bool = False,
    optimizer: Literal["bfgs", "lbfgs", "fire"] = "fire",
    fmax: float = 0.05,
    steps: int = 1000,
    show: Callable[[int, np.ndarray, float], None] | None = None,
) -> Band:
    """Relax a band; its images are moved in place, but for the ends.

    Args:
        calculator: the model; with a skin, neighbours are seldom searched.
        images: both ends and at least one between them, see `interpolate`.
        climb: whether the highest image climbs, once forces are below 0.5 eV/angstrom.
        optimizer: the name of ASE's optimiser.
        fmax: largest force left on an atom of the band, eV/angstrom.
        steps: most steps.
        show: called with step, energies [I] in eV and the largest force after each step.

    Raises:
        InputError: an image, named by its number, has no answer.

    After an error or an interruption the images are those of the last step that had all answers,
    with energies and forces; without calculators if there was none.
    """
    SideBySide(calculator, images, name="band")
    neb = NEB(images, method="improvedtangent")
    steered = OPTIMIZERS[optimizer](neb, logfile=None)

    good: list[Place] = []

    def watch() -> None:
        nonlocal good
        good = [place_of(image) for image in images]
        if show is not None and neb.energies is not None:
            show(steered.nsteps, neb.energies, float(_largest(neb).max()))

    steered.attach(watch)
    try:
        converged = steered.run(fmax=max(fmax, CLIMB_BELOW) if climb else fmax, steps=steps)
        if climb and converged:
            neb.climb = True
            converged = steered.run(fmax=fmax, steps=steps - steered.nsteps)
    except BaseException:  # an interruption among them
        for i, image in enumerate(images):
            image.calc = None
            if good:
                put_back(image, good[i])
        raise
    barrier, difference = NEBTools(images).get_barrier(fit=not climb)
    fit = fit_images(images)
    ends = [float(np.linalg.norm(a.get_forces(), axis=1).max()) for a in (images[0], images[-1])]
    return Band(
        images=images,
        converged=bool(converged),
        steps=steered.nsteps,
        distance=np.array(fit.path),
        energy=np.array(fit.energies),
        largest=np.array([ends[0], *_largest(neb), ends[1]]),
        forward=float(barrier),
        backward=float(barrier - difference),
    )


def _largest(neb: Any) -> np.ndarray:
    """Largest force on an atom of each image between the ends."""
    forces = neb.get_forces().reshape(neb.nimages - 2, neb.natoms, 3)
    return np.linalg.norm(forces, axis=2).max(axis=1)
