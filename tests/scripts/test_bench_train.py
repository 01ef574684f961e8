"""`eqnet bench train`: tiny comparisons, and the same command again; mistakes."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import small_run
from ase.io import write

from eqnet import bench_jobs
from eqnet import bench_train as comparison
from eqnet.bench_jobs import Job, Running, share_cores, work_off
from eqnet.bench_train import Work, fix_split, rows, train_all
from eqnet.bench_variants import ModelVariant, ProductVariant, read_models, read_products
from eqnet.data.frame import to_atoms
from eqnet.errors import InputError
from eqnet.experiment import prepare
from eqnet.model_options import ModelOptions
from eqnet.models import MODELS
from eqnet.options import TrainOptions, check, resolve_choices
from eqnet.run_folder import read_yaml
from eqnet.scripts import bench_train, run
from eqnet.scripts.command_line import from_file

TINY = (
    "--num_channels 2 --max_L 0 --max_ell 1 --num_interactions 1 --radial_MLP 4 "
    "--num_train 6 --num_valid 3 --num_test 4 --batch_size 3"
).split()


def test_products() -> None:
    found = read_products("clebsch_gordan:3, gaunt+matrix ,cp", 2)
    assert found == [
        ProductVariant("clebsch_gordan", None, 3),
        ProductVariant("gaunt", "matrix", 2),
        ProductVariant("cp", None, 2),
    ]
    assert [variant.name for variant in found] == ["clebsch_gordan", "gaunt+matrix", "cp"]
    assert {"clebsch_gordan", "so2"} < {variant.product for variant in read_products(None, 1)}


def test_models() -> None:
    options = TrainOptions().replace({"preset": "medium"})
    found = read_models("mace:small:3, nequip:large ,nequip:4,mace", 2, options)
    assert found == [
        ModelVariant("mace", "small", 3),
        ModelVariant("nequip", "large", 2),
        ModelVariant("nequip", "medium", 4),
        ModelVariant("mace", "medium", 2),
    ]
    assert found[0].name == "mace-small"
    assert found[0].columns(options) == {
        "model": "mace",
        "preset": "small",
        "product": "clebsch_gordan",
    }
    assert {v.model for v in read_models("all", 1, TrainOptions())} == set(MODELS)


@pytest.mark.parametrize("name", ["models_ethanol.yaml", "models_acac.yaml"])
def test_recipes_suit_all_models(name: str) -> None:
    """Every model has all options that are set, and no preset loses a value to them but r_max."""
    recipe = from_file(TrainOptions, Path(bench_train.__file__).parent / "recipes" / name)
    options = TrainOptions().replace(recipe)
    check(options)
    assert read_models("all", 1, options)
    assert {field.name for field in dataclasses.fields(ModelOptions)} & set(recipe) == {"r_max"}


def test_models_train_with_their_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans, options and rows, with answers in the place of the processes."""
    done: list[str] = []

    def answer(jobs: Sequence[Job], places: Any, ended: Any) -> None:
        for job in jobs:
            done.append(f"{job.name} {job.module}")
            number = 1 + len(done)
            if job.module == "eqnet.bench_probe":
                times = {"train_cpu": number / 4, "valid_cpu": 0.0, "platform": "cpu"}
                Path(job.words[1]).write_text(json.dumps({**times, "peak_rss_mb": 100.0 * number}))
            elif job.module == "eqnet.scripts.train":
                limits = {"max_num_epochs": read_yaml(Path(job.words[1]))["max_num_epochs"]}
                run = {"complete": True, "limits": limits, "epochs": 4, "loop_cpu_seconds": 8.0}
                folder = tmp_path / job.name
                folder.mkdir()
                (folder / "results.json").write_text(json.dumps({**run, "forces_rmse": number}))
            else:
                length = {"asked_ps": float(job.words[2]), "time_step_fs": float(job.words[3])}
                drift = None if job.name == "nequip-1" else -0.5 * number
                simulation = {
                    "drift_mev_per_atom_ps": drift,
                    "unstable": "hot" if not drift else None,
                }
                simulation |= {"fluctuation_mev_per_atom": 0.1, "temperature_k": 300.0}
                Path(job.words[1]).write_text(
                    json.dumps({**length, **simulation, "peak_rss_mb": 9})
                )
            ended(job, 0, "")

    monkeypatch.setattr(comparison, "work_off", answer)
    variants, options = read_models("mace:large,nequip:2", 1, TrainOptions()), TrainOptions()
    work = Work(options, {}, 0.1, tmp_path, [None], lambda text: None, nve_ps=1.0, time_step=0.25)
    found = train_all(variants, work)
    assert done == [
        *("mace-large eqnet.bench_probe", "nequip eqnet.bench_probe"),
        *(f"{name} eqnet.scripts.train" for name in ("mace-large-0", "nequip-0", "nequip-1")),
        *(f"{name} eqnet.bench_drift" for name in ("mace-large-0", "nequip-0", "nequip-1")),
    ]
    config = read_yaml(tmp_path / "mace-large-0.yaml")
    assert (config["model"], config["preset"], config["max_num_epochs"]) == ("mace", "large", 12)
    config = read_yaml(tmp_path / "nequip-1.yaml")
    assert (config["model"], config["preset"], config["seed"]) == ("nequip", None, 1)
    assert config["max_num_epochs"] == 8
    speeds = {variant.name: {"force_ms": 2.0} for variant in variants}
    mace, nequip = rows(found, speeds, work)
    assert (mace["model"], mace["preset"], mace["seeds"]) == ("mace", "large", 1)
    assert (mace["nve_drift"], mace["nve_drifts"], mace["nve_unstable"]) == (3.5, [-3.5], 0)
    assert (nequip["nve_drift"], nequip["nve_drifts"]) == (None, [-4.0, None])
    assert (nequip["nve_unstable"], nequip["nve_simulations"]) == (1, 2)
    assert (nequip["forces_rmse"], nequip["peak_rss_mb"]) == (5.5, 300.0)

    done.clear()
    train_all(variants, work)
    assert done == []
    train_all(variants, dataclasses.replace(work, nve_ps=2.0))  # another length, the same trainings
    assert [name.split(".")[-1] for name in done] == ["bench_drift"] * 3

    done.clear()
    shutil.rmtree(tmp_path / "nequip-0")  # other weights drift otherwise
    train_all(variants, dataclasses.replace(work, nve_ps=2.0))
    assert done == ["nequip-0 eqnet.scripts.train", "nequip-0 eqnet.bench_drift"]


def test_a_comparison_and_the_same_command_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_train, "SECONDS", 0.05)
    words = ["train", *TINY, "--products", "clebsch_gordan,gaunt_bracket", "--minutes", "0.005"]
    words += ["--csv", "table.csv", "--markdown", "table.md", "--seed", "5", "--nve_ps", "0.02"]
    assert run("bench", words) == 0
    out = capsys.readouterr().out
    assert "note: gaunt_bracket: the model cannot be made" in out
    assert "runs left: 0" in out and "clebsch_gordan  clebsch_gordan" in out
    row, folder = the_row("table.csv"), Path("bench_train/clebsch_gordan-5")
    result = json.loads((folder / "results.json").read_text())
    for key in ("forces_mae", "energy_mae", "energy_per_atom_mae", "forces_rmse"):
        assert float(row[key]) == pytest.approx(result[key], rel=1e-4)
    assert (
        result["epochs"]
        == int(row["epochs"])
        == read_yaml(folder / "config.yaml")["max_num_epochs"]
    )
    # 0.3 s, but for what the checkpoints of so short a run take
    assert 0.1 < result["loop_cpu_seconds"] < 3
    assert result["loop_wall_seconds"] < result["seconds"]
    assert float(row["train_minutes"]) == pytest.approx(result["loop_cpu_seconds"] / 60, rel=1e-4)
    for name in ("force_ms", "md_step_ms", "parameters", "s_per_epoch"):
        assert float(row[name]) > 0
    assert float(row["peak_rss_mb"]) > 50
    assert float(row["md_rss_mb"]) > 50
    simulation = json.loads(Path("bench_train/clebsch_gordan-5.nve.json").read_text())
    assert simulation["steps"] == 40
    slope = abs(simulation["drift_mev_per_atom_ps"])
    assert float(row["nve_drift"]) == pytest.approx(slope, rel=1e-4)
    header, line, values = Path("table.md").read_text().splitlines()
    assert header.startswith("| product | powers | seeds | weights | epochs | training minutes |")
    assert line.startswith("| --- | --- | ---: | ---: |")
    assert values.endswith(f" | {slope:.2g} |")

    before = (folder / "log.txt").read_text()
    assert run("bench", words) == 0
    assert "runs left" not in capsys.readouterr().out
    assert (folder / "log.txt").read_text() == before
    again, measured = the_row("table.csv"), {"force_ms", "md_step_ms"}
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


def the_row(path: str) -> dict[str, str]:
    with open(path, newline="") as file:
        (row,) = csv.DictReader(file)
    return row


def test_all_seeds_have_the_same_structures(tmp_path: Path) -> None:
    file = tmp_path / "water.xyz"
    write(file, [to_atoms(frame) for frame in small_run.frames(12)], format="extxyz")
    drawn = {"num_train": 5, "num_valid": 3, "num_test": 2, "r_max": 3.0}
    options = resolve_choices(TrainOptions().replace(drawn))
    first = prepare(options, file)
    fixed = fix_split(first, options, tmp_path / "out")

    def frames(options: TrainOptions) -> dict[str, list[int]]:
        found = prepare(options, file).frames
        return {role: [frame.index for frame in found[role]] for role in found}

    assert frames(options.replace({"seed": 1})) != frames(options)
    for seed in (0, 1, 2):
        assert frames(fixed.replace({"seed": seed})) == frames(options)


def test_mean_and_deviation_over_seeds() -> None:
    errors = [{"forces_mae": 3.0}, {"forces_mae": 5.0}]
    times = [{"loop_cpu_seconds": 50.0, "epochs": 4}, {"loop_cpu_seconds": 70.0, "epochs": 8}]
    runs = {seed: errors[seed] | times[seed] for seed in (0, 1)}
    plan = {"platform": "cpu", "epochs": 12, "peak_rss_mb": 1.0, "runs": runs, "nve": []}
    work = Work(TrainOptions(), {}, 1.0, Path(), [None], print, nve_ps=0.0, time_step=0.5)
    (row,) = rows({ProductVariant("cp", "gaunt", 2): plan}, {"cp+gaunt": {"force_ms": 2.0}}, work)
    assert (row["product"], row["node_product"], row["seeds"]) == ("cp", "gaunt", 2)
    assert (row["epochs"], row["train_minutes"], row["s_per_epoch"]) == (6, 1.0, 10.0)  # done
    assert (row["forces_mae"], row["forces_mae_std"]) == (4.0, pytest.approx(2**0.5))
    assert row["energy_mae"] is None


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
        (["--models", "mace", "--products", "cp"], "--products and --models exclude each other"),
        (["--models", "mace", "--model", "nequip"], "--model has no effect here, --models decides"),
        (["--models", "mase"], "--models: there is no --model mase; did you mean mace?"),
        (["--models", "mace:tiny"], "--models: there is no --preset tiny; there are small"),
        (["--models", "mace:0"], "'mace:0' cannot be read: write MODEL[:PRESET][:SEEDS]"),
        (["--models", "mace,mace:2"], "--models names mace twice"),
        (["--models", "nequip", "--correlation", "2"], "--correlation has no effect on --model"),
        (["--models", "mace:small", "--preset", "large"], "--preset has no effect where all"),
        (["--nve_ps", "-1"], "--nve_ps must be 0 or at least a step long"),
        (["--time_step", "0"], "--time_step must be greater than 0"),
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


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Running]]:
    """What was started, killed in the end; modules of the tests: `long` and `killed`."""
    (tmp_path / "long.py").write_text("import time\ntime.sleep(100)\n")
    (tmp_path / "killed.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    running: list[Running] = []
    start = bench_jobs._start

    def record(*words: Any) -> Running:
        running.append(start(*words))
        return running[-1]

    monkeypatch.setattr(bench_jobs, "_start", record)
    yield running
    for one in running:
        one.process.kill()
        one.process.wait()


def test_a_killed_job_says_so(started: list[Running]) -> None:
    ended: list[tuple[str, int, str]] = []
    jobs = [Job("killed", "killed", [])]
    work_off(jobs, [None], lambda *what: ended.append((what[0].name, *what[1:])))
    assert ended == [("killed", -9, "it was killed by signal 9 (Killed)")]


def test_no_job_survives_an_error(started: list[Running]) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("of the one who asked")

    with pytest.raises(RuntimeError, match="who asked"):
        work_off([Job("long", "long", []), Job("killed", "killed", [])], [None] * 2, fail)
    assert [one.process.poll() for one in started] == [-15, -9]


def test_a_signal_ends_the_jobs_and_starts_no_other(started: list[Running]) -> None:
    jobs = [Job("long", "long", [])] * 2
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    assert work_off(jobs, [None], lambda *_: None) == signal.SIGINT
    assert [one.process.poll() for one in started] == [-15]
