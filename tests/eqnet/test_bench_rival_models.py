"""Rivals of `eqnet bench model`: the protocol, what is refused, and the real libraries."""

from __future__ import annotations

import ast
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from eqnet.bench_model import Case, Work
from eqnet.bench_rival_models import FOLDER, Rival, interpreters, started, task
from eqnet.data.frame import Frame
from eqnet.errors import InputError
from eqnet.models import ESENConfig, MACEConfig
from eqnet.ops.timing import Clock, take_turns
from eqnet.scripts import run

CONFIG = MACEConfig(
    (1, 8), num_channels=4, max_L=1, max_ell=2, correlation=2, radial_MLP=(8,), r_max=4.0
)
ESEN = ESENConfig((1, 8), num_channels=8, hidden_channels=16, edge_channels=4, group="SO3")
SMALL = "--num_channels 4 --max_L 1 --max_ell 2 --correlation 2 --radial_MLP 8".split()
WATER = Frame(
    numbers=np.array([8, 1, 1]),
    positions=np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]),
    cell=np.zeros((3, 3)),
    pbc=np.zeros(3, bool),
)
WORK = Work(WATER, (), "float32", 0.1)
FACTS = {"versions": {"fake": "1.2"}, "atoms": 3, "edges": 6, "parameters": 7}
FACTS |= {"import_cpu_s": 1.0, "first_force_cpu_s": 2.0, "train_compile_cpu_s": 3.0}
HONEST = f"""
import json, sys
answers = {{"forces": dict(wall=0.2, cpu=0.1), "train": dict(wall=0.4, cpu=0.3)}}
answers["end"] = dict(peak_rss_bytes=5e6)
print(json.dumps({FACTS!r} | dict(atoms=len(json.loads(input())["structure"]["numbers"]))))
for line in sys.stdin:
    print(json.dumps(answers[line.strip()]))
    sys.stdout.flush()
"""


def case(
    config: MACEConfig | ESENConfig = CONFIG, model: str = "mace", pair_repulsion: bool = False
) -> Case:
    def make():
        raise AssertionError("nothing here needs the model")

    settings = (model, asdict(config), pair_repulsion)
    return Case(config.product, getattr(config, "node_product", ""), "default", make, *settings)


def esen(**changes: Any) -> Case:
    return case(replace(ESEN, **changes), "esen")


@pytest.fixture
def interpreter(tmp_path: Path) -> Callable[[str], str]:
    """A program that takes the place of the python of a rival's environment."""

    def write(text: str) -> str:
        path = tmp_path / "python"
        path.write_text(f"#!{sys.executable} -u\n{text}")
        path.chmod(0o755)
        return str(path)

    return write


def test_a_rival_answers(interpreter: Callable[[str], str]) -> None:
    found = interpreters(f"mace-torch={interpreter(HONEST)}", case())
    with started(found, case(), WORK) as (rival,):
        assert rival.versions == "fake 1.2"
        assert rival.facts["atoms"] == 3
        assert rival.compile_cpu == 3.0
        assert rival.train() == Clock(wall=0.4, cpu=0.3)
        timing = take_turns({"rival": rival.forces, "ours": lambda: time.sleep(0.01)})
        assert (timing["rival"].cpu, timing["rival"].wall) == (0.1, 0.2)
        assert 0.01 < timing["ours"].wall < 0.2
        assert rival.peak_rss() == 5e6
        process = rival.process
        assert process.poll() is None
    assert process.returncode is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_library", "has no package no_such_library: install mace-torch there"),
        ("input(); raise ValueError('too big')", "it ended with code 1: ValueError: too big"),
        ("print('Welcome!'); input()", "wrote 'Welcome!' where an answer should be"),
        ("print(5); input()", "wrote '5' where an answer should be"),
        ("pass", "it ended with code 0: it named no error"),
        ("import os; os.kill(os.getpid(), 9)", "it was killed by signal 9"),
    ],
)
def test_a_rival_that_fails(text: str, message: str, interpreter: Callable[[str], str]) -> None:
    with pytest.raises(InputError, match="--rivals mace-torch: ") as caught:
        Rival("mace-torch", interpreter(text), task(case(), WORK))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_rival_that_fails_later(interpreter: Callable[[str], str]) -> None:
    text = f"import json\ninput(); print(json.dumps({FACTS!r}))\ninput(); raise MemoryError('all')"
    with started({"mlip": interpreter(text)}, case(), WORK) as (rival,):
        with pytest.raises(InputError, match="--rivals mlip: .* code 1: MemoryError: all"):
            rival.forces()


def test_no_program(tmp_path: Path) -> None:
    path = tmp_path / "python"
    path.write_text("#!/no/such/program\n")
    path.chmod(0o755)
    with pytest.raises(InputError, match="cannot be run"):
        Rival("mlip", str(path), task(case(), WORK))


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("mace-torch", case(model="nequip"), "with --model mace only, this is nequip"),
        ("mace-torch", esen(), "with --model mace only, this is esen"),
        ("fairchem-core", case(), "with --model esen only, this is mace"),
        ("mlip", esen(group="O3"), "it has the weights of --group SO3 alone"),
        ("fairchem-core", esen(group="O3"), "it has the weights of --group SO3 alone"),
        ("mlip", esen(num_cutoff_basis=6), "no --num_cutoff_basis 6, only 5"),
        ("fairchem-core", esen(num_cutoff_basis=4), "no --num_cutoff_basis 4, only 5"),
        ("fairchem-core", esen(radial_basis="bessel"), "no --radial_basis bessel, only gaussian"),
        ("mlip", esen(max_L=0, m_max=0), "no --max_L 0, which leaves nothing to turn"),
        ("mlip", case(replace(CONFIG, product="gaunt")), "it has no product gaunt: let clebsch"),
        ("mlip", case(replace(CONFIG, node_product="gaunt")), "it has no product gaunt: let"),
        ("mace-torch", case(pair_repulsion=True), "without --pair_repulsion: leave it out"),
        ("mlip", case(replace(CONFIG, num_cutoff_basis=6)), "no --num_cutoff_basis 6, only 5"),
        ("mlip", case(replace(CONFIG, correlation=5)), "no --correlation 5, at most 4"),
        ("mlip", case(replace(CONFIG, max_L=3)), "lower --max_L 3"),
        ("mlip", case(replace(CONFIG, hidden_irreps="4x0e+4x1e")), "no --hidden_irreps 4x0e+4x1e"),
    ],
)
def test_what_a_rival_does_not_have(name: str, wrong: Case, message: str) -> None:
    with pytest.raises(InputError) as caught:
        interpreters(f"{name}={sys.executable}", wrong)
    assert message in str(caught.value)


def test_twice() -> None:
    with pytest.raises(InputError, match="names mlip twice"):
        interpreters(f"mlip={sys.executable},mlip={sys.executable}", case())


def test_the_task_is_the_same() -> None:
    labelled = replace(WATER, energy=-1.5, forces=np.ones((3, 3)))
    plain = json.loads(json.dumps(task(case(), replace(WORK, batch=[labelled]))))
    assert plain["config"]["irreps"] == "4x0e+4x1o"
    assert (plain["config"]["num_channels"], plain["config"]["max_L"]) == (4, 1)
    assert plain["structure"]["positions"] == WATER.positions.tolist()
    assert plain["structure"]["energy"] == 0
    assert plain["batch"][0]["energy"] == -1.5
    assert plain["platform"] == jax.default_backend()


def test_the_task_of_another_model_is_its_configuration() -> None:
    plain = task(esen(m_max=1), WORK)
    assert plain["model"] == "esen"
    assert plain["config"] == asdict(ESEN) | {"m_max": 1}


def test_the_other_end(tmp_path: Path) -> None:
    """The program of the other environments with a library that prints and counts its calls."""
    (tmp_path / "rival_fake.py").write_text(
        "import os, sys, time\n"
        "print('noise of the import')\n"
        "PACKAGES = ('numpy',)\n"
        "class Rival:\n"
        "    edges, parameters = 6, 7\n"
        "    def __init__(self, task): self.hold = bytes(range(256)) * 2**20\n"
        "    def forces(self): os.system('echo noise'); time.sleep(0.05)\n"
        "    def begin_training(self): pass\n"
        "    def train(self): sum(range(10**5))\n"
    )
    words = json.dumps(task(case(), replace(WORK, batch=[WATER]))) + "\nforces\ntrain\nend\n"
    done = subprocess.run(
        [sys.executable, str(FOLDER / "turns.py"), "rival_fake"],
        input=words,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=dict(os.environ) | {"PYTHONPATH": str(tmp_path)},
    )
    facts, forces, train, end = map(json.loads, done.stdout.splitlines())
    assert "noise of the import" in done.stderr
    assert (facts["atoms"], facts["edges"], facts["parameters"]) == (3, 6, 7)
    assert facts["versions"] == {"numpy": np.__version__}
    assert forces["wall"] >= 0.05 > forces["cpu"]
    assert 0 < train["cpu"]
    assert 256e6 < end["peak_rss_bytes"] < 400e6


def test_programs_of_rivals_know_nothing_of_eqnet() -> None:
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not any(name.name.split(".")[0] == "eqnet" for name in node.names), path
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != "eqnet", path


def test_rows_beside_a_rival(
    tmp_path: Path,
    interpreter: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    files = {kind: tmp_path / f"model.{kind}" for kind in ("json", "csv")}
    words = ["--rivals", f"mace-torch={interpreter(HONEST)}", "--batch_size", "1"]
    words += ["--num_interactions", "1", "--seconds", "0.05"]
    words += [f"--{kind}={file}" for kind, file in files.items()]
    assert run("bench", ["model", *SMALL, *words]) == 0
    out = capsys.readouterr().out
    assert "note: mace-torch has 6 edges, eqnet 72: times do not compare" in out
    assert "mace-torch: fake 1.2" in out
    ours, theirs = json.loads(files["json"].read_text())["rows"]
    assert (ours["library"], theirs["library"]) == ("eqnet", "mace-torch")
    assert (ours["ratio"], ours["train_ratio"]) == (1, 1)
    if jax.default_backend() == "cpu":
        assert theirs["ratio"] == pytest.approx(100 / ours["cpu_ms_min"])
        assert theirs["train_ratio"] == pytest.approx(300 / ours["train_cpu_ms_min"])
    else:  # their wall-clock time, beside ours
        assert theirs["ratio"] == pytest.approx(200 / ours["wall_ms_min"])
        assert theirs["train_ratio"] == pytest.approx(400 / ours["train_wall_ms_min"])
    assert theirs["train_structures_per_s"] == pytest.approx(1 / 0.4)
    assert (theirs["atoms"], theirs["parameters"], theirs["peak_rss_mb"]) == (9, 7, 5)
    with files["csv"].open(newline="") as file:
        table = list(csv.DictReader(file))
    assert table[1]["versions"] == "fake 1.2"
    assert table[1]["operations"] == ""


MORE_WEIGHTS = {  # than ours, at most
    ("mace-torch", "mace"): 1.5,  # redundant couplings have weights there, independent ones here
    ("mlip", "mace"): 1.5,
    ("mlip", "esen"): 1.0,
    ("fairchem-core", "esen"): 1.1,  # embeddings of charge and spin, and of all lighter elements
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), MORE_WEIGHTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_real_rivals(
    name: str, model: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set the variable to the interpreter of an environment that has the library."""
    variable = f"EQNET_{name.split('-')[0].upper()}_PYTHON"
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} is not set")
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    file = tmp_path / "model.json"
    words = SMALL if model == "mace" else ["--model", "esen", "--group", "SO3", "--m_max", "1"]
    words = [*words, "--rivals", f"{name}={python}", "--batch_size", "2", "--seconds", "0.2"]
    assert run("bench", ["model", *words, "--dtype", dtype, "--json", str(file)]) == 0
    ours, theirs = json.loads(file.read_text())["rows"]
    assert name in theirs["versions"]
    assert theirs["edges"] == ours["edges"] == 72
    assert (
        ours["parameters"] <= theirs["parameters"] <= MORE_WEIGHTS[name, model] * ours["parameters"]
    )
    assert theirs["ratio"] == pytest.approx(theirs["cpu_ms_min"] / ours["cpu_ms_min"])
    assert theirs["train_cpu_ms_min"] > theirs["cpu_ms_min"]
