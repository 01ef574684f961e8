"""Splits: sizes, no overlap, reproducible, written down and read back."""

from __future__ import annotations

import numpy as np
import pytest

from eqnet.data.split import Split, read_split, split
from eqnet.errors import InputError

FRAMES = list(range(100))


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"valid_fraction": 0.1}, (90, 10, 0)),
        ({"num_train": 50, "num_valid": 20, "num_test": 30}, (50, 20, 30)),
        ({"num_train": 5, "valid_fraction": 0.05, "test_fraction": 0.5}, (5, 5, 50)),
        ({}, (100, 0, 0)),
    ],
)
def test_sizes_without_overlap(options, sizes):
    parts = split(FRAMES, **options, seed=3)
    assert tuple(map(len, parts.parts())) == sizes
    together = sum(parts.parts(), [])
    assert len(set(together)) == len(together) and set(together) <= set(FRAMES)
    assert parts == split(FRAMES, **options, seed=3)
    assert len(set(together)) == 100 or parts != split(FRAMES, **options, seed=4)


def test_validation_does_not_change_with_the_other_parts():
    one = split(FRAMES, num_valid=10, seed=1)
    other = split(FRAMES, num_valid=10, num_train=7, num_test=20, seed=1)
    assert one.valid == other.valid and set(other.train) <= set(one.train)


def test_written_and_read_back(tmp_path):
    parts = split(FRAMES, num_valid=7, num_test=9)
    parts.save(tmp_path / "split.json")
    assert read_split(tmp_path / "split.json") == parts
    assert split(FRAMES, indices=parts) == parts
    assert parts.select(FRAMES)[1] == parts.valid


def test_indices_may_be_given():
    given = {"train": np.array([3, 1]), "valid": [0]}
    assert split(FRAMES, indices=given) == Split([1, 3], [0], [])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_train": 95, "num_valid": 10}, "100 frames cannot be split"),
        ({"num_valid": 100}, "at least 1 training"),
        ({"num_train": 0}, "cannot be split"),
        ({"valid_fraction": 0.001}, "0 frames"),
        ({"valid_fraction": 1.5}, "between 0 and 1"),
        ({"num_test": -1}, "0 or more"),
        ({"num_valid": 3, "valid_fraction": 0.1}, "twice"),
        ({"indices": {"train": [0, 100]}}, "100 frames"),
        ({"indices": {"train": [0], "valid": [0]}}, "frame 0 in train and in valid"),
        ({"indices": {"train": [0, 0]}}, "once"),
        ({"indices": {"valid": [0]}}, "no training frames"),
        ({"indices": {"train": [0], "validation": [1]}}, "'validation'"),
        ({"indices": {"train": [0.5]}}, "0.5"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        split(FRAMES, **options)


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"train": 5}', '{"train": ["a"]}'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(InputError, match="split.json"):
        read_split(path)
    with pytest.raises(InputError, match="none.json"):
        read_split(tmp_path / "none.json")
