"""`eqnet train_tensors` and `eqnet tensors` on dipoles that are known in closed form."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import iread, write
from emt import emt_potential

from eqnet import EqnetCalculator
from eqnet.errors import InputError
from eqnet.scripts import tensors, train_tensors
from eqnet.so3 import random_rotation

CHARGES = {8: -0.8, 1: 0.4}
MODEL = "--model nequip --num_channels 4 --max_L 1 --max_ell 1 --num_interactions 1 --r_max 3"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Water that is turned and shaken; point charges and their dipole, charges by bond lengths."""
    rng, images = np.random.default_rng(0), []
    for _ in range(40):
        positions = np.array([[0.0, 0.0, 0.0], [0.76, 0.59, 0.0], [-0.76, 0.59, 0.0]])
        positions = (positions + rng.normal(0, 0.05, (3, 3))) @ random_rotation(rng).T
        atoms = Atoms("OHH", positions)
        atoms.info["dipole"] = [CHARGES[z] for z in atoms.numbers] @ positions
        bonds = atoms.get_distances(0, [1, 2])
        atoms.arrays["charges"] = np.array([-bonds.sum(), *bonds])
        arms = (positions[1:] - positions[0]) / bonds[:, None]
        pulls = 30 * (bonds - 0.96)[:, None] * arms  # springs
        atoms.arrays["REF_forces"] = np.array([pulls.sum(0), *-pulls])
        images.append(atoms)
    path = tmp_path_factory.mktemp("water") / "water.xyz"
    write(path, images)
    return path


def test_trained_dipoles(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A tenth of the mean label's error on other orientations, and the file says the same."""
    out = tmp_path / "fit"
    words = f"{data} {data} --target dipole --out {out} {MODEL} --max_num_epochs 30"
    assert train_tensors.main(words.split()) == 0
    printed = capsys.readouterr().out
    model, naive = (float(x) for x in re.findall(r"relative ([\d.]+) %", printed))
    assert model < 10 and naive > 50
    answers = tmp_path / "answers.xyz"
    assert tensors.main(f"{out}/fit.eqnet {data} --output {answers}".split()) == 0
    assert "of 40 labelled structures" in capsys.readouterr().out
    images: list[Atoms] = list(iread(answers))
    gaps = [a.info["eqnet_dipole"] - a.info["REF_dipole"] for a in images]
    sizes = [np.linalg.norm(a.info["REF_dipole"]) for a in images]
    assert 100 * np.mean(np.linalg.norm(gaps, axis=1) / sizes) == pytest.approx(model, abs=0.02)
    check_calculator(out / "fit.eqnet", images)
    with pytest.raises(InputError, match="fit holds a training with another relative, lr: name"):
        train_tensors.main(f"{words} --lr 0.02 --relative".split())
    with pytest.raises(InputError, match="exists; name another file"):
        tensors.main(f"{out}/fit.eqnet {data} --output {answers}".split())


def test_trained_charges(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Charges that are the lengths of the bonds, in ASE."""
    words = f"{data} {data} --target charges --out {tmp_path}/q {MODEL} --max_num_epochs 30"
    assert train_tensors.main(words.split()) == 0
    model, naive = (float(x) for x in re.findall(r"relative ([\d.]+) %", capsys.readouterr().out))
    assert model < 1 and naive > 2
    water = next(iread(data))
    labels = water.get_charges()  # ASE takes the columns for a calculator's
    path = tmp_path / "q" / "q.eqnet"
    water.calc = EqnetCalculator(emt_potential(), dtype="float64", tensors=path)
    charges = water.get_charges()
    assert charges.shape == (3,) and abs(charges.sum()) < 1e-5
    np.testing.assert_allclose(charges, labels, atol=0.02)


def test_direct_forces(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Those of springs, beside a calculator's own, which are gradients."""
    words = f"{data} {data} --target direct_forces --out {tmp_path}/f {MODEL} --max_num_epochs 60"
    assert train_tensors.main(words.split()) == 0
    printed = capsys.readouterr().out
    assert "water.xyz: direct_forces from REF_forces, of 40 of 40 structures" in printed
    model, naive = (float(x) for x in re.findall(r"relative ([\d.]+) %", printed))
    assert model < 15 and naive > 90
    path, answers = tmp_path / "f" / "f.eqnet", tmp_path / "answers.xyz"
    assert tensors.main([str(path), str(data), "--output", str(answers)]) == 0
    for atoms in iread(answers):
        assert np.abs(atoms.arrays["eqnet_direct_forces"].sum(0)).max() < 1e-5
    capsys.readouterr()
    assert tensors.main([str(path), str(answers)]) == 0  # the labels are there again
    assert "of 40 labelled structures" in capsys.readouterr().out
    atoms = next(iread(answers))
    atoms.calc = calculator = EqnetCalculator(emt_potential(), dtype="float64", tensors=path)
    own, direct = atoms.get_forces(), calculator.get_property("direct_forces")
    assert direct is not None
    np.testing.assert_allclose(direct, atoms.arrays["eqnet_direct_forces"], atol=1e-5)
    assert np.abs(own - direct).max() > 0.01


def check_calculator(path: Path, images: list[Atoms]) -> None:
    """The dipole as a property in ASE, after a pickle too, beside a potential for the energy."""
    calculator = EqnetCalculator(emt_potential(), dtype="float64", tensors=path)
    for calc in (calculator, pickle.loads(pickle.dumps(calculator)), copy.deepcopy(calculator)):
        for answered in images[:2]:
            atoms = answered.copy()
            atoms.calc = calc
            assert atoms.get_potential_energy() and "dipole" not in calc.results
            np.testing.assert_allclose(
                atoms.get_dipole_moment(), answered.info["eqnet_dipole"], atol=1e-5
            )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--target dipoles", "there is no target dipoles; there are charges, dip"),
        ("--target polarizability", "no structure has REF_polarizability or polarizability"),
        ("--target dipole --model tensornet --group SO3", "needs features 1o; the model has 64x0e"),
        ("--target dipole --pair_repulsion", "--pair_repulsion is of an energy and has no effect"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    data: Path, tmp_path: Path, words: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train_tensors.main([str(data), str(data), *words.split(), "--out", str(tmp_path / "x")])
