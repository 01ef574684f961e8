"""Make the shipped example: ethanol at 500 K with GFN2-xTB energies and forces.

Needs tblite (development extra). About ten minutes on one core:

    python scripts/make_demo_data.py

The file is the same on every run with the versions that its provenance names. Langevin dynamics in
ASE samples the molecule; every frame is then computed again with tight convergence at the very
positions that the file holds, and one frame is checked against finite differences of the energy.
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a molecule of nine atoms gains nothing from more

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

FOLDER = Path(__file__).resolve().parent.parent / "data" / "demo"
METHOD = "GFN2-xTB"
TEMPERATURE = 500.0  # K
TIMESTEP = 0.5  # fs
FRICTION = 0.01  # 1/fs
EQUILIBRATION = 10_000  # steps, 5 ps
STRIDE = 80  # steps between frames, 40 fs
NUM_FRAMES = 600
SEED = 20240
# Ground states. GFN2-xTB has no spin polarisation, so the multiplicity only sets the occupation.
MULTIPLICITIES = {"H": 2, "C": 3, "O": 3}
ACCURACY = 0.01  # of tblite for the labels; its default is 1, smaller is tighter
TOLERANCE = 1e-4  # eV/A, between forces and finite differences

README = """# The built-in example: ethanol at 500 K

`ethanol.xyz` holds {frames} frames of one ethanol molecule (C2H6O, 9 atoms, not periodic), drawn from
molecular dynamics, and one frame for each of the isolated atoms H, C and O (`config_type=IsolatedAtom`).

| what | value |
| --- | --- |
| keys | `REF_energy` (eV, total energy of {method}), `REF_forces` (eV/angstrom) |
| method | {method}, neutral, electronic temperature 300 K, accuracy {accuracy} |
| dynamics | Langevin, {temperature:.0f} K, time step {timestep} fs, friction {friction} / fs, {equilibration:.1f} ps thrown away, then a frame every {interval:.0f} fs, in order of time |
| isolated atoms | multiplicities {multiplicities}; {method} is not spin-polarised, so this sets the occupation only; energies include the electronic entropy term as for the molecule |
| check | forces of one frame against fourth-order finite differences of the energy: largest difference {gap:.1e} eV/angstrom |
| energies | {low:.4f} to {high:.4f} eV, standard deviation {spread:.1f} meV; forces: root mean square {force:.3f} eV/angstrom |
| made by | `python scripts/make_demo_data.py --seed {seed}` with tblite {tblite}, ASE {ase}, numpy {numpy}, Python {python} |
| licence | MIT, as the project |

Method: C. Bannwarth, S. Ehlert, S. Grimme, J. Chem. Theory Comput. 15, 1652 (2019),
doi:10.1021/acs.jctc.8b01176. Program: tblite, https://github.com/tblite/tblite.
"""  # noqa: E501


def main(argv: list[str] | None = None) -> None:
    """Make the file and its provenance."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder to write to")
    parser.add_argument("--seed", type=int, default=SEED, help="of velocities and thermostat")
    parser.add_argument("--frames", type=int, default=NUM_FRAMES, help="number of frames")
    options = parser.parse_args(argv)

    frames = [labelled(atoms) for atoms in sample(options.seed, options.frames)]
    gap = force_error(frames[len(frames) // 2])
    if gap > TOLERANCE:
        raise RuntimeError(f"forces differ from finite differences by {gap:.2e} eV/A")
    options.output.mkdir(parents=True, exist_ok=True)
    write(options.output / "ethanol.xyz", [isolated(s) for s in MULTIPLICITIES] + frames)
    (options.output / "README.md").write_text(provenance(frames, options.seed, gap))


def calculator(**options: Any) -> Calculator:
    """A GFN2-xTB calculator of ASE."""
    from tblite.ase import TBLite

    return TBLite(method=METHOD, verbosity=0, **options)


def sample(seed: int, count: int) -> list[Atoms]:
    """Structures of ethanol in thermal equilibrium, without labels."""
    from ase import units
    from ase.build import molecule
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary, ZeroRotation

    rng = np.random.default_rng(seed)
    atoms = molecule("CH3CH2OH")
    atoms.calc = calculator()
    MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE, rng=rng)
    Stationary(atoms)
    ZeroRotation(atoms)
    dynamics = Langevin(
        atoms,
        TIMESTEP * units.fs,
        temperature_K=TEMPERATURE,
        friction=FRICTION / units.fs,
        fixcm=False,  # exact sampling; the drift of the molecule is taken out below
        rng=rng,
    )
    dynamics.run(EQUILIBRATION)
    frames = []
    for _ in range(count):
        dynamics.run(STRIDE)
        frame = atoms.copy()
        frame.positions -= frame.get_center_of_mass()
        frames.append(frame)
    return frames


def labelled(atoms: Atoms, multiplicity: int | None = None) -> Atoms:
    """The same atoms, positions as the file holds them, with energy and forces for them."""
    from ase import Atoms

    atoms = Atoms(atoms.numbers, positions=np.round(atoms.positions, 8))
    atoms.calc = calculator(accuracy=ACCURACY, multiplicity=multiplicity)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = None
    atoms.info["REF_energy"] = round(float(energy), 8)
    atoms.arrays["REF_forces"] = np.round(forces, 8) + 0.0  # no negative zeros
    return atoms


def isolated(symbol: str) -> Atoms:
    """One atom alone, in its ground state."""
    from ase import Atoms

    atoms = labelled(Atoms(symbol, positions=[[0.0, 0.0, 0.0]]), MULTIPLICITIES[symbol])
    atoms.info["config_type"] = "IsolatedAtom"
    return atoms


def force_error(atoms: Atoms, step: float = 0.01) -> float:
    """Largest difference (eV/A) of forces from finite differences of order 4."""
    weights = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}
    worst = 0.0
    for atom in range(len(atoms)):
        for axis in range(3):
            slope = 0.0
            for steps, weight in weights.items():
                moved = atoms.copy()
                moved.positions[atom, axis] += steps * step
                moved.calc = calculator(accuracy=ACCURACY / 100)
                slope += weight * moved.get_potential_energy() / step
            worst = max(worst, abs(slope + atoms.arrays["REF_forces"][atom, axis]))
    return worst


def write(path: Path, frames: list[Atoms]) -> None:
    """Write an extended XYZ file with 8 decimals."""
    from ase.io import write as write_atoms

    temporary = path.with_suffix(".tmp")
    write_atoms(temporary, frames, format="extxyz")
    temporary.replace(path)


def provenance(frames: list[Atoms], seed: int, gap: float) -> str:
    """Text that says where the data come from."""
    from importlib.metadata import version

    energies = np.array([f.info["REF_energy"] for f in frames])
    forces = np.concatenate([f.arrays["REF_forces"] for f in frames])
    return README.format(
        frames=len(frames),
        method=METHOD,
        accuracy=ACCURACY,
        temperature=TEMPERATURE,
        timestep=TIMESTEP,
        friction=FRICTION,
        equilibration=EQUILIBRATION * TIMESTEP / 1000,
        interval=STRIDE * TIMESTEP,
        multiplicities=", ".join(f"{k} {v}" for k, v in MULTIPLICITIES.items()),
        gap=gap,
        low=energies.min(),
        high=energies.max(),
        spread=1000 * energies.std(),
        force=np.sqrt((forces**2).mean()),
        seed=seed,
        tblite=version("tblite"),
        ase=version("ase"),
        numpy=np.__version__,
        python=platform.python_version(),
    )


if __name__ == "__main__":
    main()
