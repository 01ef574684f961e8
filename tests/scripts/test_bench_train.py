"""`eqnet bench train`: a tiny comparison, and the same command again; mistakes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import mean, stdev

import pytest
import small_run
from ase.io import write

from eqnet.bench_jobs import Job, share_cores, work_off
from eqnet.bench_train import Variant, read_variants
from eqnet.data.frame import to_atoms
from eqnet.errors import InputError
from eqnet.scripts import run

TINY = (
    "--num_channels 2 --max_L 0 --max_ell 1 --num_interactions 1 --radial_MLP 4 "
    "--num_train 6 --num_valid 3 --num_test 4 --batch_size 3"
).split()


def test_variants() -> None:
    found = read_variants("clebsch_gordan:3, gaunt+matrix ,cp", 2)
    assert found == [
        Variant("clebsch_gordan", None, 3),
        Variant("gaunt", "matrix", 2),
        Variant("cp", None, 2),
    ]
    assert [variant.name for variant in found] == ["clebsch_gordan", "gaunt+matrix", "cp"]
    assert {"clebsch_gordan", "so2"} < {variant.product for variant in read_variants(None, 1)}


def test_same_time_same_structures_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", *TINY, "--products", "clebsch_gordan:2,gaunt_bracket", "--minutes", "0.005"]
    words += ["--csv", "table.csv", "--seed", "5", "--checkpoint_interval", "1000"]
    assert run("bench", words) == 0
    out = capsys.readouterr().out
    assert "note: gaunt_bracket: the model cannot be made" in out
    assert "0 runs left" in out and "±" in out
    with open("table.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    folders = [Path("bench_train") / f"clebsch_gordan-{seed}" for seed in (5, 6)]
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    forces = [result["forces_mae"] for result in results]
    assert forces[0] != forces[1]
    assert float(row["forces_mae"]) == pytest.approx(mean(forces), rel=1e-4)
    assert float(row["forces_mae_std"]) == pytest.approx(stdev(forces), rel=1e-4)
    assert [result["epochs"] for result in results] == [int(row["epochs"])] * 2
    for result in results:  # 0.3 s, but for what the checkpoints of so short a run take
        assert 0.1 < result["loop_cpu_seconds"] < 3
        assert result["loop_wall_seconds"] < result["seconds"]
    splits = [json.loads((folder / "data.json").read_text())["split"] for folder in folders]
    assert splits[0] == splits[1]
    assert len(splits[0]["test"]["frames"]) == 4
    for name in ("force_ms", "md_step_ms", "parameters", "s_per_epoch"):
        assert float(row[name]) > 0

    before = [(folder / "log.txt").read_text() for folder in folders]
    assert run("bench", words) == 0
    assert "runs left" not in capsys.readouterr().out
    assert [(folder / "log.txt").read_text() for folder in folders] == before
    with open("table.csv", newline="") as file:
        (again,) = csv.DictReader(file)
    measured = ("force_ms", "md_step_ms")
    assert {k: v for k, v in again.items() if k not in measured} == {
        k: v for k, v in row.items() if k not in measured
    }
    for change, message in (
        (["--lr", "0.02"], "bench_train holds another comparison (lr was 0.01, is 0.02)"),
        (["--num_train", "7"], "the structures of the training were others"),
        (["--minutes", "0.01"], "max_num_epochs was"),
    ):
        assert run("bench", [*words, *change]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--product", "cp"], "--product has no effect here, --products decides it"),
        (["--max_num_epochs", "9"], "--max_num_epochs has no effect here, --minutes decides it"),
        (["--products", "gant"], "--products: no product 'gant'; there is: clebsch_gordan"),
        (["--products", "gaunt+so2"], "--products: no node product 'so2'; there is"),
        (["--products", "gaunt:0"], "'gaunt:0' cannot be read: write PRODUCT[+POWERS][:SEEDS]"),
        (["--products", "gaunt,gaunt:2"], "--products names gaunt twice"),
        (["--products", ","], "--products names nothing"),
        (["--products", "gaunt", "--rank", "4"], "--rank has no effect without cp"),
        (["--minutes", "0"], "--minutes must be greater than 0"),
        (["--seeds", "0"], "--seeds must be greater than 0"),
        (["--jobs", "1000"], "--jobs 1000 on 1 cores each need 1000 cores"),
        (["--threads", "1"], "--threads has no effect once JAX runs"),
        (["--csv", "table.txt"], "--csv table.txt: the name must end with .csv"),
        (["--out", "file"], "--out file is no folder"),
        (["none.xyz"], "none.xyz: there is no such file"),
        (["small.xyz"], "there are no test structures: --test_file, --num_test or"),
        (["small.xyz", "--num_test", "4", "--r_max", "0.1"], "has a neighbour within r_max = 0.1"),
        (["--config", "recipe.yaml", "--epochs", "3"], "unknown option --epochs"),
        (["--minuts", "3"], "unknown option --minuts; did you mean --minutes?"),
    ],
)
def test_mistakes(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("recipe.yaml").write_text("lr: 0.02\n")
    write("small.xyz", [to_atoms(frame) for frame in small_run.frames(8)], format="extxyz")
    assert run("bench", ["train", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("eqnet: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not Path("bench_train").exists()


def test_a_recipe_may_name_what_is_decided_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("lr: 0.02\nmax_num_epochs: 9\nproduct: gaunt\n")
    assert run("bench", ["train", "--config", "recipe.yaml", "--minutes", "-1"]) == 2
    decided = "decided here, not by recipe.yaml: product (--products), max_num_epochs (--minutes)"
    assert decided in capsys.readouterr().out


def test_jobs() -> None:
    ended: list[tuple[str, int, str]] = []
    jobs = [Job("fine", "json.tool", ["--help"]), Job("wrong", "eqnet.no_such_module", [])]
    places = share_cores(1, None)
    assert work_off(jobs, places, lambda *what: ended.append((what[0].name, *what[1:]))) is None
    assert ended[0][:2] == ("fine", 0)
    assert ended[1][:2] == ("wrong", 1) and "No module named" in ended[1][2]
    with pytest.raises(InputError, match="lower --jobs"):
        share_cores(1000, 1)
