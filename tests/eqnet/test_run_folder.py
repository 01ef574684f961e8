"""The run folder: one configuration per folder, a history without gaps."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from eqnet.errors import InputError, naming
from eqnet.options import TrainOptions, resolve_choices
from eqnet.run_folder import History, RunFolder, read_yaml

DATA = {"files": {"train": "abc"}, "structures": {"train": 3}}


def started(tmp_path: Path, **values) -> tuple[RunFolder, TrainOptions]:
    folder = RunFolder(tmp_path, "water")
    options = resolve_choices(TrainOptions().replace({"radial_MLP": (8, 8), **values}))
    folder.check_free()
    folder.path.mkdir(parents=True)
    folder.write_config(options, DATA)
    return folder, options


def test_same_options_go_on(tmp_path: Path) -> None:
    folder, options = started(tmp_path)
    assert folder.exists
    folder.check_free()
    folder.check_same(options, DATA)
    folder.check_same(options.replace({"max_minutes": 3.0, "train_file": "x/y.xyz"}), DATA)
    assert read_yaml(folder.config)["radial_MLP"] == [8, 8]


def test_other_options_or_data_are_refused_and_listed(tmp_path: Path) -> None:
    folder, options = started(tmp_path)
    with pytest.raises(InputError, match=r"lr was 0.01, is 0.02; .*seed was 0, is 4.*other --name"):
        folder.check_same(options.replace({"lr": 0.02, "seed": 4}), DATA)
    with pytest.raises(InputError, match="the train file is not the one"):
        folder.check_same(options, {"files": {"train": "def"}})
    with pytest.raises(InputError, match="the test file is not the one"):
        folder.check_same(options, {"files": {"train": "abc", "test": "def"}})


def test_other_versions_are_told(tmp_path: Path) -> None:
    folder, options = started(tmp_path)
    now = {**DATA, "versions": {"eqnet": "1", "jax": "0.10.0", "jaxlib": "0.10.0"}}
    assert folder.other_versions(now) is None  # written by a version that did not record them
    folder.write_config(options, now)
    assert folder.other_versions(now) is None
    later = {**now, "versions": {"eqnet": "1", "jax": "0.11.0", "jaxlib": "0.11.0"}}
    folder.check_same(options, later)
    told = folder.other_versions(later)
    assert told is not None and "jax 0.10.0, now 0.11.0; jaxlib 0.10.0, now 0.11.0" in told


def test_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "water").mkdir()
    folder = RunFolder(tmp_path, "water")
    folder.check_free()
    for name in ("lock", "log.txt", "data.json", ".config.yaml.71.tmp"):  # a start that was killed
        (tmp_path / "water" / name).write_text("")
    folder.check_free()
    (tmp_path / "water" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="is no run of eqnet train"):
        folder.check_free()


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not writable: use --work_dir"):
        RunFolder(tmp_path / "file", "water").check_free()


def test_history(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.restart(0)
    for epoch in range(1, 6):
        history.append({"epoch": epoch, "valid_loss": 0.1 * epoch, "lr": float("nan")})
    again = History(tmp_path)
    again.restart(3)
    again.append({"epoch": 4, "valid_loss": 7.0, "lr": 0.1})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["epoch"] for row in found] == [1, 2, 3, 4] == [r["epoch"] for r in again.rows]
    assert found[1] == {"epoch": 2, "valid_loss": 0.2, "lr": None}
    with (tmp_path / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["epoch"], row["valid_loss"]) for row in table][-1] == ("4", "7.0")
    assert len(table) == 4


def test_full_disk_is_an_error_with_the_name_of_the_file() -> None:
    """Writing fails without a name: /dev/full takes a file's opening, not its content."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match=r"No space left on device: 'metrics.csv'"):
        with naming(Path("metrics.csv")), Path("/dev/full").open("w") as file:
            file.write("1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "no valid YAML in line"),
        ("- 1\n", "must hold lines of"),
        ("1: 2", "must hold"),
        ("a: !!python/object/apply:os.system [exit]", "no valid YAML in line 1"),
        ("a: !!python/name:os.system", "no valid YAML in line 1"),
    ],
)
def test_broken_yaml(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_yaml(tmp_path / "c.yaml")
