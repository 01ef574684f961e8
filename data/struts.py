"""Lattices of struts as graphs: joints are atoms, struts are edges, the strut radius is the unit.

The struts themselves are the edges, not the neighbours within a cutoff: which joints are connected
decides whether a lattice stretches or bends, and positions do not tell. The stiffness of a lattice
relative to its material depends on the ratio of lengths to the radius of the struts alone, so that
lengths in units of the radius are all that a model needs to know of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from eqnet.data.frame import Frame
from eqnet.data.items import Item, species_of
from eqnet.data.neighbors import from_pairs
from eqnet.errors import InputError


def strut_item(frame: Frame, elements: Sequence[int], longest: float) -> Item:
    """A lattice as a model sees it, all lengths divided by the strut radius.

    Args:
        frame: periodic in three directions; `info` has `struts` [S, 5], rows (i, j, n1, n2, n3) for
            a strut from joint i to the image of joint j by n cells, each strut once, and
            `strut_radius` in angstrom.
        elements: atomic numbers that the model knows.
        longest: cutoff of the model, in radii.

    Raises:
        InputError: no struts or radius, a joint that is not there, or a strut of the cutoff or
            longer, which the model could not see.
    """
    try:
        struts = np.asarray(frame.info["struts"], np.int64).reshape(-1, 5)
        radius = float(frame.info["strut_radius"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{frame.name}: a lattice needs struts [S, 5] and strut_radius") from None
    i, j, shifts = struts[:, 0], struts[:, 1], struts[:, 2:]
    if not radius > 0 or struts[:, :2].min(initial=0) < 0 or struts[:, :2].max() >= len(frame):
        raise InputError(f"{frame.name}: a strut radius of {radius}, or a strut without a joint")
    positions, cell = frame.positions / radius, frame.cell / radius
    lengths = np.linalg.norm(positions[j] + shifts @ cell - positions[i], axis=1)
    if not lengths.max() < longest:
        raise InputError(
            f"{frame.name}: a strut of {lengths.max():.3g} radii, the model sees {longest:g}; "
            "raise --r_max"
        )
    edges = from_pairs(i, j, shifts, lengths, positions)
    counts = np.bincount(edges.centers, minlength=len(frame)).astype(np.int32)
    centered = positions - positions.mean(axis=0)
    scaled = replace(frame, positions=positions, cell=cell)
    return Item(
        scaled, centered, positions - centered, cell, species_of(frame, elements), edges, counts
    )
