"""Published data sets: each is read whole, has symmetric neighbours, and wastes little padding."""

from __future__ import annotations

import numpy as np
import pytest

from eqnet.data.batches import Loader, make_items, pack
from eqnet.data.read import Keys, read

# file, frames without isolated atoms, labels in the file
SETS = [
    ("3bpa/train_300K.xyz", 500, "EF"),
    ("acac/train_300K.xyz", 500, "EF"),
    ("ecemc_liquid/train.xyz", 134, "EFS"),
    ("ethanol_botnet/train_eth_meth.xyz", 1300, "EF"),
    ("lips/train.xyz", 100, "EF"),
    ("mptrj_1k/train.xyz", 901, "EFS"),
    ("nbmotaw/train.xyz", 666, "EFS"),
    ("qm9_100/qm9_reduced_100.xyz", 100, ""),
    ("random_methane/train.xyz", 800, "EF"),
    ("rmd17/aspirin_train_01.xyz", 1000, "EF"),
    ("rmd17/ethanol_train_01.xyz", 1000, "EF"),
    ("rmd17/toluene_train_01.xyz", 1000, "EF"),
    ("si_qe/sitraj.xyz", 110, "EFS"),
    ("sio2_response/train.xyz", 140, "EFS"),
    ("solvent_xtb/train_200.xyz", 200, "EF"),
    ("spice_dipeptides/train.xyz", 495, "EF"),
    ("water_pbe0ts/train.xyz", 160, "EF"),
    ("x23_structures/structures.xyz", 46, ""),
    ("zuo2020/Li_train.xyz", 241, "EFS"),
    ("zuo2020/Si_train.xyz", 214, "EFS"),
]
LABELS = {"E": "energy", "F": "forces", "S": "stress"}


@pytest.mark.parametrize(("file", "count", "labels"), SETS)
def test_set(data_folder, file, count, labels):
    xtb = file.startswith("solvent_xtb")
    keys = Keys(energy="energy_xtb", forces="forces_xtb") if xtb else Keys()
    dataset = read(data_folder / file, keys, require=[LABELS[x] for x in labels])
    assert len(dataset.frames) == count
    assert [r.label for r in dataset.report.rows] == [LABELS[x] for x in labels]
    if xtb:
        assert sorted(dataset.isolated) == [1, 6, 8]
    frames = dataset.frames[:: max(1, count // 60)]
    items = make_items(frames, dataset.elements, 5.0)
    for item in items:
        edges = item.neighbors
        np.testing.assert_array_equal(edges.centers[edges.reverse], edges.neighbors)
        np.testing.assert_array_equal(edges.shifts[edges.reverse], -edges.shifts)
    loader = Loader(items, 5, reference_energy=lambda species: 0.0)
    assert loader.waste < 0.25, f"{loader.waste:.1%} of the slots are padding"
    assert len(loader.shapes) <= 6
    graph = pack(items[:3])
    assert graph.neighbor_mask.sum() == sum(item.num_edges for item in items[:3])
