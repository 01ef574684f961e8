"""`eqnet bench`: mistakes, tables, files; small tasks only."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write
from flax import nnx

from eqnet import model_file
from eqnet.bench_cases import of_models
from eqnet.data.demo import demo_path
from eqnet.data.read import read
from eqnet.errors import InputError
from eqnet.model_options import ModelOptions
from eqnet.models import MACE, MODELS, MACEConfig
from eqnet.ops import choose
from eqnet.potential import Potential
from eqnet.scripts import run

TINY = ["--l_max", "1", "--channels", "2", "--batch", "12", "--seconds", "0.01"]
SMALL = "--num_channels 2 --max_L 0 --max_ell 1 --num_interactions 1 --radial_MLP 4".split()


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command sets for its process goes when the test goes."""
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["opps"], "eqnet bench measures ops, model, train, geometry or symmetry, not"),
        (["ops", "--lmax", "2"], "unknown option --lmax; did you mean --l_max?"),
        (["ops", "--l_max", "12"], "--l_max must be degrees from 0 to 11, not (12,)"),
        (["ops", "--l_out", "-1"], "--l_out must be a degree from 0 to 22"),
        (["ops", "--batch", "5"], "--batch must be at least 6 edges, not 5"),
        (["ops", "--channels", "0"], "--channels must be greater than 0, not 0"),
        (["ops", "--correlation", "2"], "--correlation has no effect without --use power"),
        (["ops", "--use", "power", "--correlation", "9"], "--correlation must be from 1 to 5"),
        (["ops", "--use", "power", "--rivals", "e3x"], "--rivals has no effect with --use power"),
        (["ops", "--products", "gant"], "--products: there is no 'gant'; there is clebsch"),
        (["ops", "--products", "gaunt", "--methods", "so2"], "--methods: there is no 'so2'; there"),
        (["ops", "--products", ","], "--products names nothing"),
        (["ops", "--rivals", "pytorch"], "--rivals: there is no 'pytorch'; there is e3nn-jax"),
        (["ops", "--csv", "table.txt"], "--csv table.txt: the name must end with .csv"),
        (["ops", "--plot", "none/x.png"], "--plot none/x.png: there is no such folder"),
        (["ops", "--threads", "1"], "--threads has no effect once JAX runs"),
        (["ops", "--threads", "1000"], "--threads must be from 1 to"),
        (["ops", "--use", "node", "--products", "so2", "--rivals", "none"], "the notes say why"),
        (["symmetry", "--cases", "inertia"], "--cases: there is no 'inertia'; there is inertia-z"),
        (["symmetry", "--steps", "10"], "--steps must be a multiple of 4, not 10"),
        (["symmetry", "--levels", "-1"], "--levels must be numbers from 0"),
        (["symmetry", "--samples", "50"], "--samples must be at least 125, not 50"),
        (["model", "none.eqnet"], "none.eqnet: no such model file"),
        (["model", "x.eqnet", "--r_max", "4"], "--r_max has no effect on a model file"),
        (["model", "x.eqnet", "--products", "gaunt"], "--products has no effect on a model file"),
        (["model", "--structures", "none.xyz"], "none.xyz: there is no such file"),
        (["model", "--batch_size", "-1"], "--batch_size must not be negative"),
        (["model", "--index", "100000"], "there is no frame 100000; it has"),
        (
            ["model", "--repeat", "0", "1", "1"],
            "--repeat must be positive numbers of copies",
        ),
        (["model", "--repeat", "1", "2", "1"], "has no cell vector 2: number 2 of"),
        (["model", "--products", "gant"], "there is no product 'gant'; there is clebsch_gordan"),
        (["model", "--methods", "quick"], "no product here has a method 'quick'; there is"),
        (["model", "--product", "gaunt", "--products", "gaunt"], "say the same thing twice"),
        (["model", "--method", "rows", "--methods", "rows"], "say the same thing twice"),
        (["model", "--models", "mace,mase"], "there is no --model mase; did you mean mace?"),
        (["model", "--models", "mace:tiny"], "there is no --preset tiny; there are small, medium"),
        (["model", "--models", "mace", "--preset", "small", "--presets", "all"], "the same thing"),
        (["model", "--models", "mace", "--model", "nequip"], "--model and --models say the same"),
        (["model", "--models", "mace:small", "--presets", "all"], "--presets has no effect where"),
        (["model", "--models", "mace:small", "--preset", "large"], "--preset has no effect where"),
        (["model", "--presets", "all"], "--presets has no effect without --models"),
        (["model", "x.eqnet", "--models", "mace"], "--models has no effect on a model file"),
        (["model", "--rivals", "nequip=python"], "--rivals: there is no 'nequip'; there is mace-"),
        (["model", "--rivals", "mlip=none/python"], "there is no such interpreter; write mlip=PY"),
        (["model", "--rivals", "mlip"], "--rivals mlip=: there is no such interpreter"),
        (["model", "--max_ell", "-1"], "max_ell must not be negative"),
        (["model", "--model", "nequip", "--correlation", "3"], "--correlation has no effect on"),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", words) == 2
    error = capsys.readouterr().err
    assert error.startswith("eqnet: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", []) == 0
    assert "usage: eqnet bench {ops,model,train,geometry,symmetry}" in capsys.readouterr().out


def test_ops_on_edges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / name) for name in ("ops.csv", "ops.json", "ops.png")]
    outputs = [f"--{Path(file).suffix[1:]}={file}" for file in files[:2]] + [f"--plot={files[2]}"]
    chosen = ["--products", "clebsch_gordan,gaunt", "--methods", "rows", "--rivals", "e3nn-jax"]
    assert run("bench", ["ops", *TINY, *chosen, *outputs]) == 0
    out = capsys.readouterr().out
    for text in ("GFLOP/s", "forward, ms", "forward and gradients, ms", "gaunt rows", "L = 1"):
        assert text in out
    with open(files[0], newline="") as file:
        rows = list(csv.DictReader(file))
    names = {row["name"] for row in rows}
    assert {"clebsch_gordan rows", "gaunt rows", "e3nn-jax tensor_product"} <= names
    assert {row["what"] for row in rows} == {"value", "gradient"}
    for row in rows:
        assert 0 <= float(row["rotation_error"]) < 1e-5
        assert float(row["cpu_ms"]) > 0
        assert int(row["operations"]) > 0
        assert row["couplings"] == "4"
        assert int(row["rows"]) == 12
    written = json.loads(Path(files[1]).read_text())
    assert written["machine"]["matmul"] > 1e9
    assert len(written["rows"]) == len(rows)
    assert Path(files[2]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow  # compiles every node product and power
@pytest.mark.filterwarnings("ignore:jax.scipy.special.lpmn_values:DeprecationWarning")
def test_ops_on_nodes_and_powers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "ops.csv"
    for use, method in (("node", "e3nn-jax s2grid"), ("power", "gaunt grid")):
        words = ["--use", use, "--products", "gaunt", "--methods", "grid", "--dtype", "float64"]
        assert run("bench", ["ops", *TINY, *words, "--csv", str(table)]) == 0
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {"gaunt grid", method} <= {row["name"] for row in rows}
        assert all(float(row["rotation_error"]) < 1e-12 for row in rows if "gaunt" in row["name"])
        capsys.readouterr()


def test_configurations_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.json"
    words = ["--products", "clebsch_gordan,vector_gaunt,gaunt", "--methods", "default,grid"]
    words += ["--correlation", "2", "--batch_size", "0", "--seconds", "0.05", "--json", str(file)]
    assert run("bench", ["model", *SMALL, *words]) == 0
    assert "note: vector_gaunt" in capsys.readouterr().out
    rows = json.loads(file.read_text())["rows"]
    assert [(row["product"], row["method"]) for row in rows] == [
        ("clebsch_gordan", "default"),
        ("gaunt", "default"),
        ("gaunt", "grid"),
    ]
    for row in rows:
        assert row["atoms"] == 9
        assert row["edges"] == 72
        assert row["compilations"] >= 1
        assert 0 < row["cpu_ms_min"] <= row["cpu_ms_median"]
        assert 0 < row["compile_cpu_s"] < row["first_force_cpu_s"]
        assert 0 < row["matmul_peak_fraction"] < 1
        assert row["peak_rss_mb"] > 50


def test_presets_of_models() -> None:
    options, frame = ModelOptions(r_max=4.0, preset="large"), read(str(demo_path())).frames[0]
    every = {(m, p) for m, (config, _) in MODELS.items() for p in config.PRESETS}
    cases = of_models(ModelOptions(), "all", "all", None, "default", "float32", [frame])
    assert {(case.model, case.preset) for case in cases} == every
    cases = of_models(options, "mace:small,nequip", None, None, "default", "float32", [frame])
    assert [(case.model, case.preset) for case in cases] == [("mace", "small"), ("nequip", "large")]
    for case in cases:
        preset = MODELS[case.model][0].PRESETS[case.preset]
        assert {**case.config, **preset, "r_max": 4.0} == case.config


def test_models_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.json"
    words = [*SMALL, "--models", "mace,nequip:large", "--presets", "small"]
    words += ["--batch_size", "0", "--seconds", "0.05", "--json", str(file)]
    assert run("bench", ["model", *words]) == 0
    out = capsys.readouterr().out
    assert "2 of 2 compiled: nequip large" in out and "preset" in out
    rows = json.loads(file.read_text())["rows"]
    assert [(r["model"], r["preset"]) for r in rows] == [("mace", "small"), ("nequip", "large")]


def test_auto_says_what_it_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choose, "_times", lambda energies, *_: {list(energies)[-1]: 1.0})
    words = ["--methods", "auto", "--batch_size", "0", "--seconds", "0.05"]
    assert run("bench", ["model", *SMALL, *words]) == 0
    assert "auto (so2; trees)" in capsys.readouterr().out


def test_a_larger_structure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "copper.xyz", bulk("Cu", cubic=True))
    words = ["--structures", str(tmp_path / "copper.xyz"), "--repeat", "1", "2", "3"]
    words += ["--r_max", "3", "--batch_size", "0", "--seconds", "0.05"]
    assert run("bench", ["model", *SMALL, *words]) == 0
    assert "copper.xyz, frame 0: 24 atoms, 288 edges" in capsys.readouterr().out


def test_training_of_a_model(tmp_path: Path) -> None:
    file = tmp_path / "model.json"
    words = ["--model", "nequip", "--no_parity", "--batch_size", "2", "--seconds", "0.05"]
    assert run("bench", ["model", *SMALL, *words, "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert row["train_batch_size"] == 2
    assert row["train_structures_per_s"] == pytest.approx(2e3 / row["train_wall_ms_min"])
    assert row["train_compile_cpu_s"] > 0


def test_profile_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All operations belong to a part, and so does the time."""
    file, table = tmp_path / "model.json", tmp_path / "model.csv"
    words = ["--batch_size", "0", "--profile", "--json", str(file), "--csv", str(table)]
    assert run("bench", ["model", *SMALL, *words]) == 0
    out = capsys.readouterr().out
    (row,) = json.loads(file.read_text())["rows"]
    parts = {part["part"]: part for part in row["profile"]}
    host = {"neighbors (host)", "packing (host)"}
    named = {"edges", "radial", "gather", "product", "power", "linear", "readout"}
    assert set(parts) == named | {"other"} | host
    assert all(name in out for name in parts)
    assert sum(part["operations"] for part in parts.values()) == row["operations"]
    program = [part for name, part in parts.items() if name not in host]
    assert all(part["forward_ms"] > 0 for part in program)
    assert sum(part["backward_ms"] for part in program) > 0
    assert "profile" not in table.read_text().splitlines()[0]


def test_methods_of_a_model_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elements = (1, 6, 8)
    config = MACEConfig(elements, num_channels=2, max_L=0, max_ell=1, correlation=1)
    potential = Potential(
        MACE(config, rngs=nnx.Rngs(0)),
        elements=elements,
        cutoff=config.r_max,
        atomic_energies=[1.0] * 3,
        scale=[1.0] * 3,
        shift=[1.0] * 3,
    )
    path, table = str(tmp_path / "model.eqnet"), tmp_path / "model.csv"
    saved = {"model_name": "mace", "config": config, "training": {}, "examples": []}
    model_file.save(path, potential, **saved)
    words = ["--methods", "rows,dense", "--batch_size", "0", "--seconds", "0.05"]
    assert run("bench", ["model", path, *words, "--csv", str(table)]) == 0
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["rows", "dense"]
    assert "train_structures_per_s" not in rows[0]
    for method in ("rows,fft", "nonsense"):
        assert run("bench", ["model", path, "--methods", method]) == 2
    with pytest.raises(InputError, match="model.eqnet: clebsch_gordan has no method 'fast'; it"):
        model_file.load(path, method="fast")
    assert "clebsch_gordan has default, auto, rows" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_one_core(tmp_path: Path) -> None:
    file = tmp_path / "ops.json"
    words = [*TINY, "--products", "cp", "--rivals", "none", "--threads", "1", "--json", str(file)]
    subprocess.run(
        [sys.executable, "-m", "eqnet.scripts.bench", "ops", *words], check=True, timeout=300
    )
    written = json.loads(file.read_text())
    assert written["machine"]["cores"] == 1
    assert all(row["threads"] == 1 for row in written["rows"])
    # one thread cannot use more time than passes
    times = np.array([[row["cpu_ms_median"], row["wall_ms_median"]] for row in written["rows"]])
    assert (times[:, 0] < 1.5 * times[:, 1] + 0.1).all()


def test_geometry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One layer of NequIP sees distances alone (Joshi et al. 2023), one of E-GenNet more."""
    file = tmp_path / "pairs.csv"
    words = "--models nequip,egennet --pairs 2-body --layers 1 --degrees 1 --seeds 1"
    assert run("bench", ["geometry", *words.split(), f"--csv={file}"]) == 0
    assert "2-body needs" in capsys.readouterr().out
    with file.open() as stream:
        found = {row["model"]: float(row["2-body"]) for row in csv.DictReader(stream)}
    assert found["nequip"] < 100 < 1e5 < found["egennet"]
    assert run("bench", ["geometry", "--pairs", "3-bod"]) == 2
    assert "there is no '3-bod'" in capsys.readouterr().err


@pytest.mark.slow
def test_symmetry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rotations about x are told from those about z, and scaling is held."""
    file = tmp_path / "levels.csv"
    words = "--cases cosine-z --levels 0.5 --channels 8 --steps 800"
    assert run("bench", ["symmetry", *words.split(), f"--csv={file}"]) == 0
    assert "cosine-z" in capsys.readouterr().out
    with file.open() as stream:
        rows = {row["group"]: row for row in csv.DictReader(stream)}
    assert float(rows["O(2) x"]["soft"]) == pytest.approx(float(rows["O(2) x"]["true"]), rel=0.1)
    for held in ("O(2) z", "scaling"):
        assert float(rows[held]["soft"]) < 0.02 < float(rows["O(2) x"]["soft"])
        assert float(rows[held]["strength"]) > 10 * float(rows["O(2) x"]["strength"])
    assert float(rows["O(3)"]["soft_error"]) < float(rows["O(3)"]["exact_error"])
