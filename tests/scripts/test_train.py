"""`eqnet train` from the command line: small, but whole."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import small_run
from ase.io import write
from rich.console import Console

from eqnet.data.frame import to_atoms
from eqnet.model_file import read_info
from eqnet.options import TrainOptions, check
from eqnet.progress import Progress
from eqnet.scripts import main
from eqnet.scripts.train import _sending
from eqnet.scripts.train_command import read_command

TINY = (
    "--num_channels 4 --max_L 0 --max_ell 1 --correlation 1 --num_interactions 1 --r_max 3 "
    "--radial_MLP 8 --batch_size 3 --num_test 4 --num_valid 4"
).split()


@pytest.fixture
def water(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of 20 water molecules in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "water.xyz"
    write(path, [to_atoms(frame) for frame in small_run.frames(20)], format="extxyz")
    return path


def test_from_a_file_to_a_model_and_back(water: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "water.xyz", *TINY, "--max_num_epochs", "3", "--drift_ps", "0.01"]
    assert main(command) == 0
    out = capsys.readouterr().out
    run = Path("runs/water")
    for text in ("REF_energy", "least_squares", "12 to train on", "weights in float32", "epoch 3/3",
                 "eqnet md runs/water/water.eqnet", "naive"):  # fmt: skip
        assert text in out
    names = {p.name for p in run.iterdir()}
    assert names == {
        "config.yaml", "data.json", "metrics.jsonl", "metrics.csv", "log.txt", "checkpoints",
        "water.eqnet", "water-last.eqnet", "results.json", "plots", "report.html",
    }  # fmt: skip
    results = json.loads((run / "results.json").read_text())
    assert results["num_structures"] == 4 and results["complete"]
    assert results["equivariance"]["declared"] == 0
    assert "Equivariant to rounding" in (run / "report.html").read_text(encoding="utf-8")
    assert results["nve"]["steps"] == 20 and not results["nve"]["unstable"]
    assert read_info(run / "water.eqnet")["training"]["nve"] == results["nve"]
    check_results(results, run)
    valid = json.loads((run / "data.json").read_text())["split"]["valid"]["frames"]
    assert f"water.eqnet water.xyz --index {valid[0]} --temp" in out.replace("\n", " ")

    assert main(command) == 0  # again: there is nothing to do
    assert "is finished" in capsys.readouterr().out
    assert main(["train", "--config", "runs/water/config.yaml"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert main([*command, "--lr", "0.02"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("eqnet: error: runs/water holds a run with other options (lr was 0.01")
    assert json.loads((run / "results.json").read_text()) == results


def test_auto_says_what_it_chose(
    water: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from eqnet.ops import choose

    def times(energies: Any, *_: Any) -> dict[str, float]:
        return {name: 1.0 if name in ("so2", "trees") else 2.0 for name in energies}

    monkeypatch.setenv("XDG_CACHE_HOME", str(water.parent / "cache"))
    monkeypatch.setattr(choose, "_times", times)
    options = ["--method", "auto", "--max_num_epochs", "1", "--num_interactions", "2"]
    assert main(["train", "water.xyz", *TINY, *options]) == 0
    line = "method auto, layer by layer: so2, so2 for the messages; trees, trees for the powers"
    assert line in " ".join(capsys.readouterr().out.split())
    results = json.loads(Path("runs/water/results.json").read_text())
    assert results["methods"] == {"messages": ["so2", "so2"], "powers": ["trees", "trees"]}


def check_results(results: dict, run: Path) -> None:
    """The test errors are those of the best model file on the recorded test structures."""
    from eqnet.data.read import read
    from eqnet.evaluation import evaluate
    from eqnet.model_file import load

    split = json.loads((run / "data.json").read_text())["split"]["test"]
    frames = [read("water.xyz").frames[i] for i in split["frames"]]
    answers = evaluate(load(run / "water.eqnet"), frames)
    components, energies = [], []
    for frame, answer in zip(frames, answers, strict=True):
        assert frame.energy is not None
        components.append(answer.forces - frame.forces)
        energies.append(1000 * abs(answer.energy - frame.energy))
    expected = 1000 * np.mean(np.abs(components))
    assert results["forces_mae"] == pytest.approx(expected, rel=1e-4)
    assert results["energy_mae"] == pytest.approx(np.mean(energies), rel=1e-3, abs=1e-2)
    assert results["energy_per_atom_mae"] == pytest.approx(results["energy_mae"] / 3)


def test_answers_that_are_not_finite_are_told_and_the_rest_is_written(
    water: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from eqnet import results

    whole, poisoned = results.evaluate, []

    def evaluate(potential, frames, **values):
        answers = whole(potential, frames, **values)
        if not poisoned:  # the first call is that of the test structures
            poisoned.append(frames[1])
            answers[1] = answers[1]._replace(energy=float("nan"))
        return answers

    monkeypatch.setattr(results, "evaluate", evaluate)
    assert main(["train", "water.xyz", *TINY, "--max_num_epochs", "1"]) == 0
    name = f"water.xyz, frame {poisoned[0].index}"
    assert f"1 of 4 test structures are not finite numbers, the first is {name};" in (
        capsys.readouterr().out
    )
    found = json.loads(Path("runs/water/results.json").read_text())
    assert found["num_structures"] == 3 and found["not_finite"] == [name]
    assert np.isfinite(found["energy_mae"]) and Path("runs/water/water.eqnet").is_file()


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt", "results.json", "water.eqnet"])
def test_what_the_disk_refuses_costs_one_sentence(
    water: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Nothing can be written to a folder, whoever asks."""
    from eqnet import training

    first_state = training.first_state

    def meanwhile(*args):
        (Path("runs/water") / name).unlink(missing_ok=True)
        (Path("runs/water") / name).mkdir()
        return first_state(*args)

    monkeypatch.setattr(training, "first_state", meanwhile)
    assert main(["train", "water.xyz", *TINY, "--max_num_epochs", "1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("eqnet: error: runs/water/") and error.count("\n") == 1
    assert f"{name}" in error and "s a directory; mend that" in error


def test_yaml_and_flags(water: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{a.strip('-')}: {b}" for a, b in zip(TINY[::2], TINY[1::2], strict=True)]
    Path("c.yaml").write_text(
        "\n".join(lines).replace("radial_MLP: 8", "radial_MLP: [8]")
        + "\nmax_num_epochs: 50\nlr: 1e-3\ntrain_file: water.xyz\nname: from-yaml\n"
    )
    assert main(["train", "--config", "c.yaml", "--max_num_epochs=1", "--no-ema"]) == 0
    config = Path("runs/from-yaml/config.yaml").read_text()
    assert "max_num_epochs: 1\n" in config and "lr: 0.001\n" in config
    assert "ema: false\n" in config and "ema_decay: null\n" in config
    Path("c.yaml").write_text("learning_rate: 1\n")
    assert main(["train", "--config", "c.yaml"]) == 2
    assert "c.yaml: unknown option learning_rate" in capsys.readouterr().err


def test_example_gives_way_to_what_is_asked_for() -> None:
    plain = read_command([]).options.flat()
    assert (plain["num_train"], plain["num_valid"], plain["num_test"]) == (450, 50, 100)
    chosen = read_command(
        ["--test_fraction", "0.2", "--hidden_irreps", "8x0e", "--lr", "0.5"]
    ).options
    check(chosen)
    found = chosen.flat()
    assert (found["num_test"], found["num_channels"], found["name"]) == (None, None, "ethanol")
    assert (found["num_train"], found["lr"]) == (450, 0.5)
    assert read_command(["water.xyz"]).options.flat()["num_train"] is None


def nan_force() -> list:
    frames = small_run.frames(8)
    forces = np.array(frames[5].forces)
    forces[2, 0] = np.nan
    return [*frames[:5], replace(frames[5], forces=forces), *frames[6:]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nowhere.xyz", "nowhere.xyz: there is no such file"),
        ("empty.xyz", "empty.xyz: 0 frames"),
        ("one.xyz", "1 frames"),
        ("nan.xyz", "nan.xyz, frame 5 of 8: REF_forces"),
        ("element.xyz", "element.xyz, frame 0"),
        ("shape.xyz", "shape.xyz, frame 0"),
        ("water.xyz --energy_key energie", "no frame has the energy key energie"),
        ("water.xyz --r_max 0", "r_max must be greater than 0"),
        ("water.xyz --rmax 4", "unknown option --rmax; did you mean --r_max?"),
        ("water.xyz --ema_decay 0.9 --no-ema", "--ema_decay has no effect without --ema"),
        ("water.xyz --start_stage_two 4", "--start_stage_two has no effect without --stage_two"),
        ("water.xyz --stress_weight 2", "no frame has stress"),
        ("water.xyz --parity", "--parity has no effect on --model mace"),
        ("water.xyz --device abacus", "device 'abacus' is not available here"),
        ("water.xyz --work_dir water.xyz", "cannot be made"),
        ("water.xyz --default_dtype float16", "invalid choice 'float16'"),
        ("water.xyz --hidden_irreps 8x0e+4x1o", "the model cannot be made"),
        ("--train_file", "--train_file needs the name of a file"),
        ("water.xyz --config nowhere.yaml", "nowhere.yaml cannot be read"),
        ("water.xyz --wandb_project x", "needs the package wandb"),
    ],
)
def test_mistakes_cost_one_sentence_and_leave_nothing(
    water: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    Path("empty.xyz").write_text("")
    write("one.xyz", to_atoms(small_run.frames(1)[0]), format="extxyz")
    write("nan.xyz", [to_atoms(frame) for frame in nan_force()], format="extxyz")
    Path("element.xyz").write_text("1\nProperties=species:S:1:pos:R:3 energy=1\nQq 0 0 0\n")
    Path("shape.xyz").write_text(
        "1\nProperties=species:S:1:pos:R:3:forces:R:2 energy=1\nH 0 0 0 0 0\n"
    )
    before = set(os.listdir())
    tiny = [] if "wandb" not in words else [*TINY, "--max_num_epochs", "1"]
    assert main(["train", *words.split(), *tiny]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("eqnet: error: ") and error.count("\n") == 1
    assert set(os.listdir()) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_refusal_leaves_a_run_as_it_was(water: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "water.xyz", *TINY, "--scheduler", "constant", "--max_num_epochs"]
    assert main([*command, "1"]) == 0
    run, kept, data = Path("runs/water"), Path("kept"), water.read_bytes()
    whole = contents(run)

    def refused(message: str, *more: str) -> None:
        capsys.readouterr()
        before = contents(run)
        assert main([*command, "2", *more]) == 2
        error = capsys.readouterr().err
        assert error.startswith("eqnet: error: ") and error.count("\n") == 1
        assert message in error and contents(run) == before

    refused("lr was 0.01, is 0.02", "--lr", "0.02")
    refused("num_channels was 4, is 5", "--num_channels", "5")
    refused("no frame has the forces key frc", "--forces_key", "frc")
    water.write_bytes(data + data[: data.index(b"\n3\n") + 1])
    refused("the train file is not the one that the run in runs/water began with")
    water.write_bytes(data[:-60])
    refused("water.xyz, frame 19")
    water.write_bytes(data)
    (run / "checkpoints").rename(kept)
    refused("runs/water/checkpoints has no sound checkpoint")
    (run / "checkpoints").mkdir()
    for path in kept.iterdir():  # as a start leaves them that found none to be intact
        shutil.copytree(path, run / "checkpoints" / f"{path.name}.damaged")
    refused("runs/water/checkpoints has no sound checkpoint")
    shutil.rmtree(run / "checkpoints")
    kept.rename(run / "checkpoints")
    assert contents(run) == whole
    assert main([*command, "2"]) == 0 and "going on from step" in capsys.readouterr().out


def test_rows_go_to_weights_and_biases(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list = []

    class Run:
        def log(self, row: dict, step: int) -> None:
            sent.append((step, row["epoch"]))

        def finish(self) -> None:
            sent.append("finished")

    def init(**settings) -> Run:
        sent.append((settings["project"], settings["name"], settings["config"]["lr"]))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))  # type: ignore
    progress = Progress(Console(file=io.StringIO()))
    chosen = TrainOptions().replace({"wandb_project": "water", "name": "first"})
    row = {"epoch": 2, "step": 8, "lr": 0.1, "structures_per_s": 1.0, "compilations": 1}
    with _sending(chosen, progress):
        progress.validated(row, best=True, left=None)
    assert sent == [("water", "first", 0.01), (8, 2), "finished"]


# ------------------------------------------------------------------------- killed, as processes

LONG = [
    *TINY,
    "--checkpoint_interval",
    "0.3",
    "--scheduler",
    "plateau",
    "--scheduler_patience",
    "3",
]


def start(folder: Path, epochs: int) -> subprocess.Popen:
    command = ["train", "water.xyz", *LONG, "--max_num_epochs", str(epochs)]
    code = f"import sys; from eqnet.scripts import main; sys.exit(main({command!r}))"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def wait_for_rows(folder: Path, process: subprocess.Popen, rows: int) -> None:
    while process.poll() is None and rows_of(folder) < rows:
        time.sleep(0.02)


def rows_of(folder: Path) -> int:
    path = folder / "runs" / "water" / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def history(folder: Path) -> list[dict]:
    lines = (folder / "runs" / "water" / "metrics.jsonl").read_text().splitlines()
    clocks = ("wall_s", "structures_per_s", "compilations")
    return [{k: v for k, v in json.loads(line).items() if k not in clocks} for line in lines]


def weights(folder: Path) -> list[bytes]:
    found = []
    for name in ("water.eqnet", "water-last.eqnet"):
        with zipfile.ZipFile(folder / "runs" / "water" / name) as archive:
            found.append(archive.read("weights.safetensors"))
    return found


def test_sigterm_saves_and_says_so(water: Path) -> None:
    process = start(water.parent, 100_000)
    wait_for_rows(water.parent, process, 3)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143, out
    step = int(out.split("stopped by signal 15 after step ")[1].split(",")[0])
    assert (water.parent / "runs" / "water" / "checkpoints" / f"{step:09d}").is_dir()
    assert not (water.parent / "runs" / "water" / "lock").exists()


def test_killed_once_is_bit_identical(water: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL in the training of another process, resumed here."""
    epochs = 60
    unbroken, broken = water.parent / "unbroken", water.parent / "broken"
    for folder in (unbroken, broken):
        folder.mkdir()
        shutil.copy(water, folder)
    process = start(broken, epochs)
    wait_for_rows(broken, process, 3)
    assert process.poll() is None
    process.kill()
    process.communicate()
    assert 3 <= len(history(broken)) < epochs
    for folder in (unbroken, broken):
        monkeypatch.chdir(folder)
        assert main(["train", "water.xyz", *LONG, "--max_num_epochs", str(epochs)]) == 0
    assert weights(broken) == weights(unbroken)
    assert history(broken) == history(unbroken)


@pytest.mark.slow
def test_killed_at_random_is_bit_identical(water: Path) -> None:
    """SIGKILL at random moments, half of them while a checkpoint is written.

    `EQNET_KILLS` says how often, 10 by default.
    """
    kills, rng = int(os.environ.get("EQNET_KILLS", "10")), random.Random(time.time_ns())
    epochs = 300 * kills
    unbroken, broken = water.parent / "unbroken", water.parent / "broken"
    for folder in (unbroken, broken):
        folder.mkdir()
        shutil.copy(water, folder)
    process = start(unbroken, epochs)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    hit = within_a_save = 0
    for kill in range(kills):
        process = start(broken, epochs)
        if kill % 2:
            within_a_save += wait_for_a_save(broken, process)
        elif kill % 10:  # within the training
            wait_for_rows(broken, process, rows_of(broken) + 1)
            time.sleep(rng.uniform(0, 0.3))
        else:  # in the start-up
            time.sleep(rng.uniform(0, 3.0))
        hit += process.poll() is None
        process.kill()
        process.communicate()
    process = start(broken, epochs)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    print(f"{hit} of {kills} killed, {within_a_save} of them in a save")
    assert hit >= 0.8 * kills and within_a_save >= 0.4 * kills  # the run was long enough to be hit
    assert weights(broken) == weights(unbroken)
    assert history(broken) == history(unbroken)
    assert [row["epoch"] for row in history(broken)] == list(range(1, epochs + 1))
    assert arrays(broken) == arrays(unbroken)


def wait_for_a_save(folder: Path, process: subprocess.Popen) -> bool:
    """Until a checkpoint is being written, and then a moment; whether it still is."""
    path = folder / "runs" / "water" / "checkpoints"
    while process.poll() is None:
        if any(path.glob(".partial-*")):
            time.sleep(random.uniform(0, 0.02))
            return any(path.glob(".partial-*"))
        time.sleep(0.0005)
    return False


def arrays(folder: Path) -> list[bytes]:
    """All arrays of the last checkpoint: weights, averages, optimiser state, random key."""
    checkpoints = folder / "runs" / "water" / "checkpoints"
    newest = max(path for path in checkpoints.iterdir() if path.name.isdigit())
    tree = ocp.PyTreeCheckpointer().restore(newest / "arrays")
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
