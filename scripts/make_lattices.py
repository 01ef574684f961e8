"""Make periodic lattices of struts with their elasticity tensors, by homogenisation of beams.

    python scripts/make_lattices.py train.xyz --number 300
    python scripts/make_lattices.py test.xyz --number 60 --seed 1

Lattices are simple, body-centred and face-centred cubic and diamond, strained and turned at random,
with displaced joints, some struts removed, and struts of one random radius. Each strut is a round
Euler-Bernoulli beam that is welded to its joints. `elasticity` is Voigt's matrix in units of
Young's modulus of the material; beams need Poisson's ratio for the torsion.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

POISSON = 0.3
VOIGT_FACTOR = np.where(np.arange(6) < 3, 1.0, np.sqrt(2.0))
PAIRS = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
FCC = [(0.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (0.5, 0.5, 0.0)]
#: Joints in a cubic cell, and the length of the struts.
NETS = {
    "simple cubic": ([(0.0, 0.0, 0.0)], 1.0),
    "body-centred": ([(0.0, 0.0, 0.0), (0.5, 0.5, 0.5)], np.sqrt(3) / 2),
    "octet truss": (FCC, np.sqrt(0.5)),
    "diamond": (FCC + [tuple(x + 0.25 for x in joint) for joint in FCC], np.sqrt(3) / 4),
}


@dataclass(frozen=True)
class Lattice:
    """Periodic struts; n joints, S struts."""

    positions: np.ndarray  # [n, 3]
    cell: np.ndarray  # [3, 3] rows are lattice vectors
    struts: np.ndarray  # [S, 5] rows (i, j, n1, n2, n3), each strut once
    radius: float  # of the struts

    def vectors(self) -> np.ndarray:
        """Of the struts, [S, 3]."""
        i, j, shift = self.struts[:, 0], self.struts[:, 1], self.struts[:, 2:]
        return self.positions[j] + shift @ self.cell - self.positions[i]

    def density(self) -> float:
        """Volume of the struts in a unit of volume, joints counted more than once."""
        lengths = np.linalg.norm(self.vectors(), axis=1)
        return float(np.pi * self.radius**2 * lengths.sum() / abs(np.linalg.det(self.cell)))


def net(name: str, radius: float) -> Lattice:
    """A cubic lattice of unit cell length."""
    joints, length = NETS[name]
    positions, struts = np.array(joints), []
    for shift in np.ndindex(3, 3, 3):
        moved = np.array(shift) - 1
        gaps = positions[None] + moved - positions[:, None]
        for i, j in np.argwhere(np.abs(np.linalg.norm(gaps, axis=-1) - length) < 1e-6):
            if (j, *moved) > (i, 0, 0, 0):  # of the two directions of a strut
                struts.append((i, j, *moved))
    return Lattice(positions, np.eye(3), np.array(struts), radius)


def beam(vector: np.ndarray, radius: float, poisson: float = POISSON) -> np.ndarray:
    """Stiffness of a round beam for the motion (u, theta) of one end and the other, [12, 12].

    Young's modulus is 1.
    """
    length = np.linalg.norm(vector)
    area, inertia = np.pi * radius**2, np.pi * radius**4 / 4
    along = np.outer(vector, vector) / length**2
    across = np.eye(3) - along
    x, y, z = vector / length
    turn = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])  # e x
    stretch = area / length * along + 12 * inertia / length**3 * across
    torsion = inertia / (1 + poisson) / length * along  # G J, J = 2 I
    lever = -6 * inertia / length**2 * turn
    near, far = 4 * inertia / length * across, 2 * inertia / length * across
    return np.block(
        [
            [stretch, lever, -stretch, lever],
            [lever.T, near + torsion, -lever.T, far - torsion],
            [-stretch, -lever, stretch, -lever],
            [lever.T, far - torsion, -lever.T, near + torsion],
        ]
    )


def homogenise(lattice: Lattice) -> np.ndarray:
    """Elasticity tensor as Mandel's matrix [6, 6], in units of Young's modulus of the material.

    A strain moves the far end of a strut by eps dx beyond the periodic motion of its joint; the
    joints then relax. C = (K_ee - K_eu K_uu^+ K_ue) / V.
    """
    strains = np.zeros((6, 3, 3))
    for q, (a, b) in enumerate(PAIRS):
        strains[q, a, b] = strains[q, b, a] = 1.0 if a == b else np.sqrt(0.5)
    size = 6 * len(lattice.positions)
    joints, mixed, rigid = np.zeros((size, size)), np.zeros((size, 6)), np.zeros((6, 6))
    for (i, j, *_), vector in zip(lattice.struts, lattice.vectors(), strict=True):
        motion, strained = np.zeros((12, size)), np.zeros((12, 6))
        motion[:6, 6 * i : 6 * i + 6] += np.eye(6)
        motion[6:, 6 * j : 6 * j + 6] += np.eye(6)
        strained[6:9] = (strains @ vector).T
        stiffness = beam(vector, lattice.radius)
        joints += motion.T @ stiffness @ motion
        mixed += motion.T @ stiffness @ strained
        rigid += strained.T @ stiffness @ strained
    relaxed = rigid - mixed.T @ np.linalg.pinv(joints, rcond=1e-12, hermitian=True) @ mixed
    return 0.5 * (relaxed + relaxed.T) / abs(np.linalg.det(lattice.cell))


def random_lattice(rng: np.random.Generator) -> Lattice:
    """One of the nets, strained and turned, with displaced joints and up to a tenth less struts."""
    ideal = net(str(rng.choice(list(NETS))), 1.0)
    length = np.linalg.norm(ideal.vectors()[0])
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    bend = (np.eye(3) + rng.normal(scale=0.07, size=(3, 3))) @ turn
    positions = ideal.positions + rng.normal(scale=0.06 * length, size=ideal.positions.shape)
    kept = rng.permutation(len(ideal.struts))[int(rng.uniform(0, 0.1) * len(ideal.struts)) :]
    radius = float(length * rng.uniform(0.05, 0.08))
    return Lattice(positions @ bend, ideal.cell @ bend, ideal.struts[np.sort(kept)], radius)


def main(argv: list[str] | None = None) -> None:
    """Write a file."""
    from ase import Atoms
    from ase.io import write

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path, help="extended XYZ to write")
    parser.add_argument("--number", type=int, default=300, help="of lattices")
    parser.add_argument("--seed", type=int, default=0, help="of what is random")
    options = parser.parse_args(argv)
    rng, images = np.random.default_rng(options.seed), []
    for _ in range(options.number):
        lattice = random_lattice(rng)
        joints = Atoms("C" * len(lattice.positions), lattice.positions, cell=lattice.cell, pbc=True)
        voigt = homogenise(lattice) / np.outer(VOIGT_FACTOR, VOIGT_FACTOR)
        joints.info |= {
            "struts": lattice.struts,
            "strut_radius": lattice.radius,
            "density": lattice.density(),
            "elasticity": voigt,
        }
        images.append(joints)
    write(options.file, images, format="extxyz")


if __name__ == "__main__":
    main()
