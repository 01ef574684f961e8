"""Several processes train what one trains."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small_run
from ase.io import write

from eqnet.data.frame import to_atoms
from eqnet.data.packing import pack
from eqnet.scripts import main

OPTIONS = (
    "--num_channels 4 --max_L 0 --max_ell 1 --correlation 1 --num_interactions 1 --r_max 3 "
    "--radial_MLP 8 --batch_size 5 --num_test 4 --num_valid 4 --default_dtype float64"
).split()


@pytest.fixture
def water(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a file of 20 water molecules."""
    monkeypatch.chdir(tmp_path)
    frames = small_run.frames(20)
    write(tmp_path / "water.xyz", [to_atoms(frame) for frame in frames], format="extxyz")
    return tmp_path


def start(
    folder: Path, name: str, number: int, epochs: int, file: str = "water.xyz"
) -> list[subprocess.Popen]:
    """The processes of a run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = ["train", file, *OPTIONS, "--name", name, "--max_num_epochs", str(epochs)]
    processes = []
    for i in range(number):
        words = [*command, "--coordinator", f"localhost:{port}"]
        words += ["--num_processes", str(number), "--process_id", str(i)]
        code = f"import sys; from eqnet.scripts import main; sys.exit(main({words!r}))"
        with (folder / f"{name}.{i}.out").open("w") as out:
            processes.append(
                subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=out, stderr=out)
            )
    return processes


def history(folder: Path, name: str) -> list[dict]:
    path = folder / "runs" / name / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def check_same(folder: Path, name: str, other: str, rows: int) -> None:
    one, two = history(folder, name), history(folder, other)
    assert len(one) == len(two) == rows
    for row, twin in zip(one, two, strict=True):
        for key in ("epoch", "step", "train_loss", "valid_loss", "forces_mae", "lr"):
            assert twin[key] == pytest.approx(row[key], rel=1e-12), (key, row["epoch"])


def test_two_processes_are_one(water: Path) -> None:
    """51 steps; 12 structures in batches of 5, so that the last one is smaller."""
    assert main(["train", "water.xyz", *OPTIONS, "--name", "one", "--max_num_epochs", "17"]) == 0
    for process in start(water, "two", 2, 17):
        assert process.wait() == 0, (water / "two.0.out").read_text()
    assert history(water, "two")[-1]["step"] == 51
    check_same(water, "one", "two", 17)
    assert (water / "runs" / "two" / "two.eqnet").is_file()


def test_two_processes_share_a_store(water: Path) -> None:
    """Each reads its part of it; both count the neighbours of a cutoff that is new to the store."""
    assert main(["train", "water.xyz", *OPTIONS, "--name", "one", "--max_num_epochs", "4"]) == 0
    assert main(["data", "build", "water.xyz", "--output", "water.store"]) == 0
    for process in start(water, "two", 2, 4, "water.store"):
        assert process.wait() == 0, (water / "two.0.out").read_text()
    check_same(water, "one", "two", 4)
    (counted,) = [path for path in (water / "water.store").iterdir() if path.is_dir()]
    assert "3" in counted.name  # the cutoff


@pytest.mark.slow
def test_lost_processes(water: Path) -> None:
    """The rest ends with a sentence, and the run goes on with more processes, and with one."""
    epochs = 300
    assert (
        main(["train", "water.xyz", *OPTIONS, "--name", "one", "--max_num_epochs", str(epochs)])
        == 0
    )
    for number in (2, 3):
        processes = start(water, "broken", number, epochs)
        before = len(history(water, "broken"))
        while len(history(water, "broken")) < before + 20:
            assert processes[0].poll() is None, (water / "broken.0.out").read_text()
            time.sleep(0.1)
        processes[-1].kill()
        for process in processes[:-1]:
            assert process.wait(120) in (2, -6)  # or JAX has noticed first, and aborts
        for process in processes:
            process.wait()
    words = ["--name", "broken", "--max_num_epochs", str(epochs)]
    assert main(["train", "water.xyz", *OPTIONS, *words]) == 0
    check_same(water, "one", "broken", epochs)


def test_what_does_not_go_together(water: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--process_id", "1"], "--process_id has no effect without --coordinator"),
        (["--coordinator", "localhost:1"], "needs --num_processes and --process_id too"),
        (["--coordinator", "auto", "--num_processes", "2"], "no effect with --coordinator auto"),
        (
            ["--coordinator", "a:1", "--num_processes", "2", "--process_id", "2"],
            "--process_id 2 is none of 0 to 1",
        ),
    ):
        assert main(["train", "water.xyz", *OPTIONS, *words]) == 2
        assert message in capsys.readouterr().err
    assert not (water / "runs").exists()


def test_no_structures_make_padding_of_a_given_shape() -> None:
    """The part of a process when a batch has fewer structures than there are processes."""
    from eqnet.data.packing import Shape

    graph = pack([], Shape(4, 2, 4, 3, 1))
    assert not graph.atom_mask.any() and not graph.neighbor_mask.any()
    np.testing.assert_array_equal(graph.reverse.ravel(), np.arange(12))
