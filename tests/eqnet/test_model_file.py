"""Model files: what is saved comes back, what is damaged or foreign is refused in a sentence."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from ase import Atoms
from flax import nnx
from jax.core import Tracer
from morse import MODELS, by_hand, model_of, morse_potential

import eqnet.models
from eqnet import EqnetCalculator, archive, load
from eqnet.data.frame import Frame
from eqnet.errors import InputError
from eqnet.evaluation import evaluate
from eqnet.model_file import open_model, read_info, save
from eqnet.model_parts import weights_of
from eqnet.models import MACE
from eqnet.potential import Potential
from eqnet.uncertainty import Uncertainty


@pytest.fixture(autouse=True)
def known_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(eqnet.models.MODELS, "morse", MODELS["morse"])


def frames() -> list[Frame]:
    rng = np.random.default_rng(1)
    water = np.array([[0.0, 0.0, 0.0], [0.9, 0.1, 0.0], [-0.3, 0.9, 0.2]])
    bulk = np.diag([3.0, 3.2, 3.4]) + rng.normal(scale=0.1, size=(3, 3))
    return [
        Frame(np.array([8, 1, 1]), water, np.zeros((3, 3)), np.zeros(3, bool)),
        Frame(np.array([6]), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, bool)),
        Frame(np.array([6, 8]), np.array([[0, 0, 0], [1.5, 1.6, 1.7]]), bulk, np.ones(3, bool)),
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "runs" / "morse.eqnet"
    potential = morse_potential(dtype="float32")
    examples = list(zip(frames(), evaluate(potential, frames(), dtype="float64"), strict=True))
    training = {"forces_mae": np.float32(3.5), "counts": np.arange(2), "best": float("nan")}
    config = model_of(potential).config
    save(path, potential, model_name="morse", config=config, training=training, examples=examples)
    return path


def rewrite(source: Path, target: Path, **changes: object) -> Path:
    """A copy with members changed (None: left out) and digests that fit."""
    with zipfile.ZipFile(source) as file:
        members = {name: file.read(name) for name in file.namelist() if name != archive.MANIFEST}
    for name, value in changes.items():
        name = name.replace("_json", ".json").replace("_safetensors", ".safetensors")
        if value is None:
            members.pop(name)
        else:
            members[name] = value if isinstance(value, bytes) else json.dumps(value).encode()
    archive.write(target, members)
    return target


def config_of(path: Path) -> dict:
    with zipfile.ZipFile(path) as file:
        return json.loads(file.read("config.json"))


def test_round_trip(model: Path) -> None:
    original, loaded = morse_potential(dtype="float32"), load(model)
    assert model_of(loaded).config == model_of(original).config
    for name in ("elements", "cutoff", "atomic_energies", "scale", "shift", "pair_repulsion"):
        assert getattr(loaded, name) == getattr(original, name), name
    weights, expected = weights_of(loaded), weights_of(original)
    assert set(weights) == {"model.depth", "model.radius", "model.nested.0"}
    for name, array in expected.items():
        assert array.dtype == weights[name].dtype == np.float32
        np.testing.assert_array_equal(weights[name], array)


def test_precision_is_chosen_when_opened(model: Path) -> None:
    double = load(model, dtype="float64")
    assert {w.dtype for w in weights_of(double).values()} == {np.dtype(np.float64)}
    assert jnp.zeros(()).dtype == np.float32  # no process-wide switch
    answers = evaluate(double, frames(), dtype="float64")
    for frame, answer in zip(frames(), answers, strict=True):
        expected = by_hand(frame.numbers, frame.positions, frame.cell, frame.pbc, double)
        assert answer.energy == pytest.approx(expected, rel=1e-12)
    with pytest.raises(InputError, match="float16"):
        load(model, dtype="float16")


def test_opening_runs_no_initialiser(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, morse = MODELS["morse"]

    def concrete(*args, **kwargs):
        built = morse(*args, **kwargs)
        assert isinstance(built.depth[...], Tracer)
        return built

    monkeypatch.setitem(eqnet.models.MODELS, "morse", (config, concrete))
    assert load(model, verify=False).cutoff == 4.0


def test_same_model_same_bytes_and_nothing_left_behind(model: Path, tmp_path: Path) -> None:
    copy = rewrite(model, tmp_path / "copy.eqnet")
    assert copy.read_bytes() == model.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["copy.eqnet"]


def test_failed_save_keeps_the_old_file(model: Path, tmp_path: Path) -> None:
    path = rewrite(model, tmp_path / "model.eqnet")
    before = path.read_bytes()
    potential = load(path)
    model_of(potential).depth[...] = np.array([0.1, np.nan, 0.1], np.float32)
    with pytest.raises(ValueError, match="model.depth"):
        save(
            path,
            potential,
            model_name="morse",
            config=model_of(potential).config,
            training={},
            examples=[],
        )
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_info(model: Path) -> None:
    info = read_info(model)
    assert info["model"] == "morse" and info["format"] == 2
    assert info["config"]["r_max"] == 4.0
    assert info["training"] == {"forces_mae": 3.5, "counts": [0, 1], "best": None}
    assert info["weights"]["model.depth"] == [3]
    assert info["num_examples"] == 3 and info["num_parameters"] == 7
    assert info["bytes"] == model.stat().st_size
    assert info["units"]["stress"] == "eV/angstrom^3"


def test_any_flipped_byte_is_noticed_or_harmless(model: Path, tmp_path: Path) -> None:
    good = model.read_bytes()
    with zipfile.ZipFile(model) as file:
        members = {name: file.read(name) for name in file.namelist()}
    path = tmp_path / "model.eqnet"
    rng = np.random.default_rng(0)
    noticed = 0
    for place in rng.integers(0, len(good), 150):
        damaged = bytearray(good)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        try:
            read_info(path)
        except InputError as error:
            assert str(path) in str(error)
            noticed += 1
            continue
        with zipfile.ZipFile(path) as file:  # a flip in the zip's own dates and attributes
            assert {name: file.read(name) for name in members} == members
    assert noticed > 130


def test_a_damaged_name_is_not_quoted_at_length(model: Path, tmp_path: Path) -> None:
    """The local header's length of a name, which the zip's directory does not repeat."""
    path = tmp_path / "long.eqnet"
    damaged = bytearray(model.read_bytes())
    damaged[26:28] = (20000).to_bytes(2, "little")
    path.write_bytes(bytes(damaged))
    with pytest.raises(InputError, match="not an eqnet model file, or a damaged one") as refused:
        read_info(path)
    assert len(str(refused.value)) < 500 + len(str(path))


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_truncated(model: Path, tmp_path: Path, part: float) -> None:
    path = tmp_path / "cut.eqnet"
    good = model.read_bytes()
    path.write_bytes(good[: int(part * len(good))])
    with pytest.raises(InputError, match="cut.eqnet: not an eqnet model file, or a damaged one"):
        load(path)


def test_not_there_or_something_else(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such model file"):
        load(tmp_path / "none.eqnet")
    with pytest.raises(InputError, match="no such model file"):
        load(tmp_path)
    with zipfile.ZipFile(tmp_path / "torch.pt", "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    with pytest.raises(InputError, match="config.json is missing"):
        load(tmp_path / "torch.pt")


@pytest.mark.parametrize("name", ["weights_safetensors", "examples_json", "config_json"])
def test_missing_member(model: Path, tmp_path: Path, name: str) -> None:
    path = rewrite(model, tmp_path / "model.eqnet", **{name: None})
    with pytest.raises(InputError, match=f"{name.replace('_', '.')} is missing"):
        load(path)


@pytest.mark.parametrize("name", ["code.py", "../../etc/passwd", "/etc/passwd", "weights.pkl"])
def test_foreign_member(model: Path, tmp_path: Path, name: str) -> None:
    path = rewrite(model, tmp_path / "model.eqnet", **{name: b"x"})
    with pytest.raises(InputError, match="unexpected member"):
        load(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.eqnet"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_doubled_and_compressed_members(model: Path, tmp_path: Path) -> None:
    path = rewrite(model, tmp_path / "model.eqnet")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("weights.safetensors", b"other weights")
    with pytest.raises(InputError, match="unexpected member 'weights.safetensors'"):
        load(path)
    bomb = tmp_path / "bomb.eqnet"
    with zipfile.ZipFile(model) as file, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as out:
        for name in file.namelist():
            out.writestr(name, bytes(10_000_000) if "weights" in name else file.read(name))
    with pytest.raises(InputError, match="is compressed"):
        load(bomb)


def test_sizes_are_looked_at_before_they_are_believed(model: Path, tmp_path: Path) -> None:
    long = json.dumps(config_of(model)).encode() + b" " * 2**24
    with pytest.raises(InputError, match=r"refused, config.json claims 16\d{6} bytes"):
        load(rewrite(model, tmp_path / "long.eqnet", config_json=long))
    for shape in ([-3], [2**40], [2**62, 4]):
        entry = {"model.depth": {"dtype": "F32", "shape": shape, "data_offsets": [0, 12]}}
        header = json.dumps(entry).encode()
        data = len(header).to_bytes(8, "little") + header + bytes(12)
        with pytest.raises(InputError, match="shape.eqnet: weights.safetensors is damaged"):
            load(rewrite(model, tmp_path / "shape.eqnet", weights_safetensors=data))


def test_other_version(model: Path, tmp_path: Path) -> None:
    config = config_of(model) | {"format": 9, "eqnet": "9.9"}
    path = rewrite(model, tmp_path / "new.eqnet", config_json=config, new_member=b"x")
    with pytest.raises(
        InputError, match=r"new.eqnet: format 9 .* eqnet 9.9, .*reads formats 1 and 2"
    ):
        load(path)


def swapped(model: Path, **changes: np.ndarray) -> bytes:
    import safetensors.numpy

    with zipfile.ZipFile(model) as file:
        weights = safetensors.numpy.load(file.read("weights.safetensors"))
    for name, array in changes.items():
        weights[name.replace("__", ".")] = array
    return safetensors.numpy.save(weights)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("model__depth", np.array([0.1, np.nan, 0.1], np.float32), "model.depth is not finite"),
        ("model__depth", np.array([0.1, np.inf, 0.1], np.float32), "model.depth is not finite"),
        ("model__depth", np.ones(4, np.float32), r"shape \(4,\), the model wants \(3,\)"),
        ("model__depth", np.ones(3, np.int32), "type int32"),
        ("model__other", np.ones(3, np.float32), "model.other, which the model does not know"),
    ],
)
def test_wrong_weights(model: Path, tmp_path: Path, name: str, array, message: str) -> None:
    data = swapped(model, **{name: array})
    path = rewrite(model, tmp_path / "model.eqnet", weights_safetensors=data)
    with pytest.raises(InputError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("where", "change", "message"),
    [
        ("config", {"r_max": "5"}, "option 'r_max' is '5', wanted float"),
        ("config", {"r_max": True}, "option 'r_max' is True, wanted float"),
        ("config", {"new_option": 1}, "'new_option', unknown"),
        ("config", {"elements": None}, "option 'elements' is None, wanted tuple"),
        ("potential", {"elements": [1, 6, 150]}, "from 1 to 118"),
        ("potential", {"elements": [6, 1, 8]}, "ascending"),
        ("potential", {"scale": [1.0]}, "scale must be 3 numbers"),
        ("potential", {"cutoff": -1.0}, "cutoff must be a positive number"),
        ("potential", {"cutoff": 3.9}, "r_max of the model is 4.0 but cutoff .* is 3.9"),
        ("config", {"elements": [1, 6, 9]}, "contradicts itself, elements of the model"),
        ("potential", {"elements": [1, 7, 8]}, "contradicts itself, elements of the model"),
        ("potential", {"pair_repulsion": 1}, "pair_repulsion must be true or false"),
    ],
)
def test_wrong_description(
    model: Path, tmp_path: Path, where: str, change: dict, message: str
) -> None:
    config = config_of(model)
    config[where] |= change
    path = rewrite(model, tmp_path / "model.eqnet", config_json=config)
    with pytest.raises(InputError, match=message):
        load(path)


def test_unknown_model_and_broken_text(model: Path, tmp_path: Path) -> None:
    config = config_of(model) | {"model": "os.system"}
    with pytest.raises(InputError, match="model 'os.system' is unknown"):
        load(rewrite(model, tmp_path / "a.eqnet", config_json=config))
    with pytest.raises(InputError, match="config.json is damaged"):
        load(rewrite(model, tmp_path / "b.eqnet", config_json=b'{"format": NaN}'))
    with pytest.raises(InputError, match="no format number"):
        load(rewrite(model, tmp_path / "c.eqnet", config_json=b"[]"))
    with pytest.raises(InputError, match="weights.safetensors is damaged"):
        load(rewrite(model, tmp_path / "d.eqnet", weights_safetensors=b"x" * 100))
    for entries in ([1], {"a": 1}, [{"numbers": []}], [{"numbers": [1], "positions": [[0, 0]]}]):
        with pytest.raises(InputError, match="examples.json is damaged"):
            load(rewrite(model, tmp_path / "e.eqnet", examples_json=entries))


def test_replay_refuses_other_numbers(model: Path, tmp_path: Path) -> None:
    weights = swapped(model, model__depth=np.array([0.45, 0.4, 0.47], np.float32))
    path = rewrite(model, tmp_path / "model.eqnet", weights_safetensors=weights)
    with pytest.raises(InputError, match="example 0 of 3 gives other numbers"):
        load(path)
    assert isinstance(load(path, verify=False).model, nnx.Module)


def test_a_calculator_replays_before_its_first_answer(model: Path, tmp_path: Path) -> None:
    """With stress and without, in one program with the structure if that is large enough."""
    small, *_ = frames()
    atoms = Atoms(small.numbers, positions=small.positions)
    large = Atoms("C40", positions=2.0 * np.argwhere(np.ones((4, 5, 2))))
    for structure in (large, atoms):
        structure.calc = EqnetCalculator(model)
        structure.get_forces()
        assert structure.calc.compilations == 1  # the other program is that of `load`
    weights = swapped(model, model__depth=np.array([0.45, 0.4, 0.47], np.float32))
    path = rewrite(model, tmp_path / "model.eqnet", weights_safetensors=weights)
    atoms.calc = EqnetCalculator(path)
    for _ in range(2):  # not only the first time
        with pytest.raises(InputError, match="example 0 of 3 gives other numbers"):
            atoms.get_forces()
        with pytest.raises(InputError, match="example 0 of 3 gives other numbers"):
            pickle.loads(pickle.dumps(atoms.calc)).get_forces(atoms)
        large.calc = atoms.calc
        with pytest.raises(InputError, match="example 0 of 3 gives other numbers"):
            large.get_forces()
    atoms.calc = EqnetCalculator(path, verify=False)
    assert np.isfinite(atoms.get_forces()).all()
    assert np.isfinite(pickle.loads(pickle.dumps(atoms.calc)).get_forces(atoms)).all()

    with zipfile.ZipFile(model) as file:
        entries = json.loads(file.read("examples.json"))
    entries[2]["stress"][0][1] += 1e-3
    path = rewrite(model, tmp_path / "stress.eqnet", examples_json=entries)
    crystal = Atoms(
        entries[2]["numbers"], positions=entries[2]["positions"], cell=entries[2]["cell"], pbc=True
    )
    crystal.calc = EqnetCalculator(path)
    with pytest.raises(InputError, match="example 2 of 3 gives other numbers"):
        crystal.get_stress()


def test_stress_of_periodic_examples_is_replayed(model: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(model) as file:
        entries = json.loads(file.read("examples.json"))
    assert ["stress" in entry for entry in entries] == [False, False, True]
    # Independent: the energy by loops over pairs, differentiated by strain.
    potential, frame, step = load(model, dtype="float64"), frames()[2], 1e-4
    volume, stress = abs(np.linalg.det(frame.cell)), np.array(entries[2]["stress"])
    for a, b in ((0, 0), (1, 2)):
        bend = np.zeros((3, 3))
        bend[a, b] += 0.5 * step
        bend[b, a] += 0.5 * step
        energies = [
            by_hand(frame.numbers, frame.positions @ m, frame.cell @ m, frame.pbc, potential)
            for m in (np.eye(3) + bend, np.eye(3) - bend)
        ]
        slope = (energies[0] - energies[1]) / (2 * step * volume)
        assert slope == pytest.approx(stress[a, b], abs=1e-6)
    entries[2]["stress"][0][1] += 1e-3
    path = rewrite(model, tmp_path / "model.eqnet", examples_json=entries)
    with pytest.raises(InputError, match="example 2 of 3 gives other numbers"):
        load(path)
    del entries[2]["stress"]  # as files have it whose writer knew no stress
    load(rewrite(model, path, examples_json=entries))
    entries[0]["stress"] = np.eye(3).tolist()
    with pytest.raises(InputError, match="a stress without three periodic axes"):
        load(rewrite(model, path, examples_json=entries))


@pytest.mark.parametrize("name", ["mace", "nequip"])
def test_models_of_the_library(tmp_path: Path, name: str) -> None:
    config_class, model_class = eqnet.models.MODELS[name]
    config = config_class(elements=(1, 8), num_channels=4, r_max=4.5)
    potential = Potential(
        model_class(config, rngs=nnx.Rngs(1)),
        elements=(1, 8),
        cutoff=4.5,
        atomic_energies=[-13.0, -2041.0],
        scale=[0.5, 0.7],
        shift=[0.0, 0.1],
        pair_repulsion=True,
    )
    path = tmp_path / "model.eqnet"
    save(path, potential, model_name=name, config=config, training={}, examples=[])
    loaded = load(path, dtype="float64")
    weights, expected = weights_of(loaded), weights_of(potential)
    assert set(weights) == set(expected) and loaded.pair_repulsion
    for key, array in expected.items():
        np.testing.assert_array_equal(weights[key], array.astype(np.float64))


def test_format_1_is_read() -> None:
    """A file written by version 0.1's first format: its examples replay in float64, to 1e-9."""
    path = Path(__file__).parents[1] / "references" / "model_format_1.eqnet"
    assert read_info(path)["format"] == 1
    calc = EqnetCalculator(path, dtype="float64")
    water = Atoms("OH2", [[0.0, 0.0, 0.0], [0.9, 0.1, 0.0], [-0.3, 0.9, 0.2]], calculator=calc)
    assert water.get_potential_energy() == pytest.approx(-2071.0592308911237, abs=1e-9)
    assert "novelty" not in calc.results


def test_format_2_is_read() -> None:
    """Its answers and its uncertainty are those it had when it was written."""
    path = Path(__file__).parents[1] / "references" / "model_format_2.eqnet"
    assert read_info(path)["format"] == 2
    calc = EqnetCalculator(path, dtype="float64")
    water = Atoms("OH2", [[0.0, 0.0, 0.0], [0.9, 0.1, 0.0], [-0.3, 0.9, 0.2]], calculator=calc)
    assert water.get_potential_energy() == pytest.approx(-10000.016684769927, abs=1e-9)
    novelty = [0.3842330967293287, 0.26942528694677004, 0.2645890032227164]
    np.testing.assert_allclose(calc.results["novelty"], novelty, rtol=1e-7)
    assert calc.results["energy_uncertainty"] == pytest.approx(0.000447341462670502, rel=1e-7)


def test_uncertainty_travels(model: Path, tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "references" / "model_format_1.eqnet"
    potential, size = load(path, dtype="float64"), 4 + 16
    rng = np.random.default_rng(0)
    kept = Uncertainty(rng.normal(size=(size, size)), rng.normal(size=(3, size, size)))
    assert isinstance(potential.model, MACE)
    config = potential.model.config
    target = tmp_path / "sure.eqnet"
    save(
        target,
        potential,
        model_name="mace",
        config=config,
        training={},
        examples=[],
        uncertainty=kept,
    )
    found = open_model(target, dtype="float32", method="default", examples=False).uncertainty
    assert found is not None
    np.testing.assert_array_equal(found.energy_metric, kept.energy_metric)
    np.testing.assert_array_equal(found.atom_metric, kept.atom_metric)
    wrong = safetensors.numpy.save({**kept.arrays(), "atom_metric": np.zeros((2, size, size))})
    with pytest.raises(InputError, match=r"wrong.eqnet: .*atom_metric has shape \(2, 20, 20\)"):
        load(rewrite(target, tmp_path / "wrong.eqnet", uncertainty_safetensors=wrong))
    with zipfile.ZipFile(target) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(tmp_path / "robbed.eqnet", "w") as file:
        for name, data in members.items():
            if name != "uncertainty.safetensors":
                file.writestr(name, data)
    with pytest.raises(InputError, match="'uncertainty.safetensors' is missing"):
        load(tmp_path / "robbed.eqnet")
