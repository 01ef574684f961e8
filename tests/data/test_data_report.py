"""What a report says of files, against answers known by construction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eqnet.data import data_report as look
from eqnet.data.frame import Frame
from eqnet.data.items import make_items
from eqnet.data.labels import LabelReport, LabelRow
from eqnet.data.read import Dataset

R_MAX = 3.0
SKEWED = 16 * np.array([[1, 0, 0], [3, 1, 0], [0, 0, 1]])


def dimer(index: int = 0, **changes) -> Frame:
    """Carbon monoxide, forces along the bond."""
    frame = Frame(
        np.array([6, 8]), np.array([[0.0, 0, 0], [1.1 + 0.001 * index, 0, 0]]), np.zeros((3, 3)),
        np.zeros(3, bool), energy=-10.0 + 0.01 * (index % 5),
        forces=(1 + 0.1 * (index % 5)) * np.array([[1.0, 0, 0], [-1, 0, 0]]), file="a.xyz",
        index=index,
    )  # fmt: skip
    return replace(frame, **changes)


def crystal(cell, positions=((0.0, 0, 0), (1.5, 1.5, 1.5)), pbc=(1, 1, 1)) -> Frame:
    return Frame(
        np.full(len(positions), 29), np.array(positions, float), np.array(cell, float),
        np.array(pbc, bool), file="a.xyz",
    )  # fmt: skip


def words(findings) -> str:
    return "; ".join(f"{finding.level} {finding.text}" for finding in findings)


def test_statistics_of_labels() -> None:
    frames = [dimer(0, energy=1.0), dimer(1, energy=4.0), dimer(2, energy=None)]
    row = LabelRow("energy", "E", "structure", 2, 1.0, 4.0, "eV")
    data = Dataset(frames, {}, LabelReport("a.xyz", 3, [row]))
    (found,) = look.label_statistics({"train": data})
    assert (found["frames"], found["of"], found["key"]) == (2, 3, "E")
    assert found["mean"] == 2.5 and found["std"] == 1.5


def test_robust_z_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(3.0, 0.5, size=20001)
    np.testing.assert_allclose(look.robust_z(values), (values - 3.0) / 0.5, atol=0.2)
    assert not look.robust_z(np.array([1.0, 1, 1, 5])).any()


def test_outliers_are_named_with_their_frames() -> None:
    frames = [dimer(i) for i in range(40)]
    fitted = look.element_energies(frames, (6, 8))
    assert fitted is not None and "one composition" in fitted["notes"][0]
    assert sum(fitted["energies"]) == pytest.approx(-9.98)
    sound = look.outliers({"train": frames}, (6, 8), fitted["energies"])
    assert sound == {"energy_per_atom": [], "largest_force": []}
    frames[17] = dimer(17, energy=-5.0)
    frames[23] = dimer(23, forces=500 * np.array([[1.0, 0, 0], [-1, 0, 0]]))
    found = look.outliers({"train": frames}, (6, 8), fitted["energies"])
    assert [(r["file"], r["frame"]) for r in found["energy_per_atom"]] == [("a.xyz", 17)]
    assert found["energy_per_atom"][0]["value"] == pytest.approx((-5 + 9.98) / 2)
    assert [(r["frame"], r["value"]) for r in found["largest_force"]] == [(23, 500.0)]
    assert "a.xyz, frame 17" in words(look.outlier_findings(found))


def test_net_force_and_torque() -> None:
    assert not list(look.net_forces({"train": [dimer(i) for i in range(5)]}))
    pushed = dimer(3, forces=np.array([[1.05, 0, 0], [-1, 0, 0]]))
    assert look.net_force(pushed) == pytest.approx(0.025)
    assert "1 of 2 frames have a net force above 0.01" in words(
        look.net_forces({"train": [dimer(0), pushed]})
    )
    turned = dimer(0, forces=np.array([[0, 0.3, 0], [0, -0.3, 0]]))  # torque 0.33, gyration 0.55
    assert look.net_torque(turned) == pytest.approx(0.3 * 1.1 / (2 * 0.55))
    text = words(look.net_forces({"test": [turned]}))
    assert "net torque / radius" in text and "net force" not in text
    crystal_frame = replace(turned, cell=9 * np.eye(3), pbc=np.ones(3, bool))
    assert not list(look.net_forces({"train": [crystal_frame]}))


def test_duplicates_within_and_between_files() -> None:
    train, test = [dimer(i) for i in range(4)], [dimer(i, file="b.xyz") for i in range(7, 9)]
    assert not list(look.duplicates({"train": train, "test": test}))
    again = replace(dimer(3), index=9)
    assert "1 train structures are there before (first: a.xyz, frame 9 is frame 3 again)" in words(
        look.duplicates({"train": [*train, again]})
    )
    both = words(look.duplicates({"train": train, "test": [*test, again]}))
    assert both.startswith("note 1 test structures are also among the training structures")


def test_neighbours_are_counted() -> None:
    chain = Frame(
        np.full(4, 6), np.array([[0.0, 0, 0], [1.5, 0, 0], [3.2, 0, 0], [9, 0, 0]]),
        np.zeros((3, 3)), np.zeros(3, bool), file="c.xyz", index=2,
    )  # fmt: skip
    found = look.neighbour_counts({"train": make_items([chain], (6,), 2.0)})
    assert (found["lowest"], found["highest"], found["mean"], found["alone"]) == (0, 2, 1.0, 1)
    near = found["shortest"]
    assert near["distance"] == pytest.approx(1.5) and near["frame"] == 2
    assert sorted(near["atoms"]) == [0, 1]


def test_crowded_cells_warn() -> None:
    """Points of the cubic lattice within 8: 2109 with the centre (OEIS A000605)."""
    frame = crystal(np.eye(3), ((0.0, 0, 0),))
    assert not list(look.crowded({"train": make_items([frame], (29,), 7.0)}, 7.0))
    items = {"train": make_items([frame], (29,), 8.05)}
    assert items["train"][0].counts.tolist() == [2108]
    (finding,) = look.crowded(items, 8.05)
    assert finding.level == "warning" and finding.text.startswith(
        "a.xyz, frame 0: an atom has 2108 neighb"
    )


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (crystal(4 * np.eye(3), pbc=(0, 0, 0)), "have a lattice, but are not periodic"),
        (crystal(np.diag([4, 4, -4])), "left-handed"),
        (crystal(SKEWED, np.outer([0, 1 / 3, 2 / 3], SKEWED.sum(0))), "very skewed"),
        (crystal(np.diag([4, 4, 2.9])), "a cell lower than r_max = 3 A"),
        (crystal(4 * np.eye(3), ((0.0, 0, 0), (13.0, 1, 1))), "atoms more than a cell outside"),
        (crystal(np.diag([4, 4, 15])), "more than 8 A of vacuum"),
        (crystal([[4, 0, 0], [0, 4, 0], [0, 0, 0]], pbc=(1, 1, 0)), ""),
        (crystal(4 * np.eye(3)), ""),
        (dimer(), ""),
    ],
)
def test_odd_cells_are_told(frame, text) -> None:
    found = list(look.cells({"train": [frame]}, R_MAX))
    assert len(found) == bool(text) and text in words(found)
    assert all(finding.level == "note" for finding in found)
