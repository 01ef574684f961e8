"""Stores: the frames of the files they were made from, refused when damaged, in little memory."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import ase.io
import numpy as np
import pytest
import small_run
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.neighborlist import neighbor_list

from eqnet.data.build import build
from eqnet.data.frame import Frame, to_atoms
from eqnet.data.items import sizes_of
from eqnet.data.label_choice import Keys
from eqnet.data.part import Part
from eqnet.data.read import read, read_images
from eqnet.data.store import items_of
from eqnet.errors import InputError
from eqnet.experiment import prepare
from eqnet.options import TrainOptions, resolve_choices
from eqnet.scripts import main
from eqnet.training import Outcome

TIMES = ("wall_s", "structures_per_s", "compilations")
ARRAYS = {"numbers", "positions", "cell", "pbc", "offsets", "weights", "config_type", "energy"}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Crystals and molecules of several sizes; labels, weights and config_types are uneven."""
    monkeypatch.chdir(tmp_path)
    rng, images = np.random.default_rng(0), []
    for i in range(12):
        n, periodic = int(rng.integers(2, 7)), i % 3 == 0
        positions = 1.5 * np.arange(n)[:, None] + rng.normal(scale=0.1, size=(n, 3))
        cell = np.diag([9.0, 10.0, 11.0]) + rng.normal(scale=0.1, size=(3, 3))
        atoms = Atoms("HO" * (n // 2) + "C" * (n % 2), positions=positions, pbc=periodic)
        if periodic:
            atoms.set_cell(cell)
            atoms.info["my_stress"] = np.arange(6) * rng.normal()
        if i != 4:
            atoms.info["my_energy"] = rng.normal()
        if i != 5:
            atoms.set_array("my_forces", rng.normal(size=(n, 3)))
        if i % 2:
            atoms.info |= {"config_type": f"kind{i % 4}", "config_energy_weight": 0.5}
        images.append(atoms)
    images.insert(3, Atoms("H", info={"my_energy": -13.6, "config_type": "IsolatedAtom"}))
    write(tmp_path / "a.xyz", images, format="extxyz")
    return tmp_path / "a.xyz"


KEYS = Keys(energy="my_energy", forces="my_forces", stress="my_stress")


def test_arrays_are_what_ase_reads(file: Path) -> None:
    """Plain .npy arrays, against ASE's reader and the file's own rules written down here."""
    report = build([file], "a.store", KEYS)
    found = {path.stem: np.load(path, allow_pickle=False) for path in Path("a.store").glob("*.npy")}
    assert set(found) == ARRAYS | {"forces", "stress"}
    images = [a for a in ase.io.iread(file, ":") if a.info.get("config_type") != "IsolatedAtom"]
    ends = np.cumsum([len(atoms) for atoms in images])
    np.testing.assert_array_equal(found["offsets"], [0, *ends])
    for name in ("numbers", "positions"):
        together = np.concatenate([atoms.arrays[name] for atoms in images])
        np.testing.assert_array_equal(found[name], together)
    np.testing.assert_array_equal(found["cell"], [np.asarray(atoms.cell) for atoms in images])
    np.testing.assert_array_equal(found["pbc"], [atoms.pbc for atoms in images])
    energies = [atoms.info.get("my_energy", np.nan) for atoms in images]
    np.testing.assert_array_equal(found["energy"], energies)
    missing = [np.full((len(a), 3), np.nan) for a in images]
    forces = [a.arrays.get("my_forces", m) for a, m in zip(images, missing, strict=True)]
    np.testing.assert_array_equal(found["forces"], np.concatenate(forces))
    voigt = [atoms.info.get("my_stress", np.full(6, np.nan)) for atoms in images]
    order = np.array([0, 5, 4, 5, 1, 3, 4, 3, 2])
    np.testing.assert_array_equal(found["stress"].reshape(-1, 9), np.array(voigt)[:, order])
    weights = [[atoms.info.get("config_energy_weight", 1.0), 1.0, 1.0] for atoms in images]
    np.testing.assert_array_equal(found["weights"], weights)
    manifest = json.loads(Path("a.store/arrays.json").read_text())
    kinds = [manifest["config_types"][i] for i in found["config_type"]]
    assert kinds == [atoms.info.get("config_type", "Default") for atoms in images]
    assert manifest["isolated"] == {"1": -13.6}
    assert (manifest["frames"], manifest["atoms"]) == (12, int(ends[-1]))
    assert {row["label"]: row["key"] for row in manifest["labels"]} == {
        "energy": "my_energy", "forces": "my_forces", "stress": "my_stress",
    }  # fmt: skip
    assert report.num_frames == 12


def test_a_store_reads_as_its_file(file: Path) -> None:
    """The same frames, labels, notes and isolated atoms as without a store."""
    build([file], "a.store", KEYS)
    plain, stored = read(file, KEYS), read("a.store")
    assert (stored.report.rows, stored.report.notes, stored.report.unused) == (
        plain.report.rows, plain.report.notes, plain.report.unused,
    )  # fmt: skip
    assert stored.isolated == plain.isolated and stored.elements == plain.elements == (1, 6, 8)
    for one, other in zip(plain.frames, stored.frames, strict=True):
        assert_same_frame(one, other)
    assert stored.frames[-1].index == 11 and stored.frames[2:5][1].index == 3
    with pytest.raises(IndexError):
        stored.frames[12]
    for atoms, frame in zip(read_images("a.store"), stored.frames, strict=True):
        np.testing.assert_array_equal(atoms.positions, frame.positions)


def assert_same_frame(one: Frame, other: Frame) -> None:
    for name in ("numbers", "positions", "cell", "pbc", "forces", "stress"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None) and (
            a is None or (a.dtype, a.shape) == (b.dtype, b.shape)
        )
        np.testing.assert_array_equal(a, b)
    for name in ("energy", "config_type", "energy_weight", "forces_weight", "stress_weight"):
        assert getattr(one, name) == getattr(other, name)


@pytest.mark.parametrize("name", ["a.traj", "a.db", "a.aselmdb", "b.xyz.gz"])
def test_other_formats_and_several_files(file: Path, name: str) -> None:
    plain = small_run.frames(5)
    write("w.xyz", [to_atoms(frame) for frame in plain], format="extxyz")
    images = [to_atoms(frame) for frame in plain]
    for atoms in images:
        energy, forces = atoms.info.pop("REF_energy"), atoms.arrays.pop("REF_forces")
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    write(name, images)
    build([name, name], "two.store")
    frames = read("two.store").frames
    assert len(frames) == 10
    for i, frame in enumerate(frames):
        np.testing.assert_allclose(frame.positions, plain[i % 5].positions, atol=1e-7)
        assert frame.forces is not None
        np.testing.assert_allclose(frame.forces, plain[i % 5].forces, atol=1e-7)  # pyright: ignore
    with pytest.raises(InputError, match=r"frame 0 of 5 has its energy as .* other frames have it"):
        build([name, "w.xyz"], "mixed.store")
    assert not Path("mixed.store").exists()


# --------------------------------------------------------------------------------- refusals


def test_building_is_whole_or_not_at_all(file: Path) -> None:
    build([file], "a.store", KEYS)
    before = {path.name: path.read_bytes() for path in Path("a.store").iterdir()}
    with pytest.raises(InputError, match=r"a\.store exists; .*--overwrite"):
        build([file], "a.store", KEYS)
    Path("notes").mkdir()
    Path("notes/thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="notes is no store, and is not overwritten"):
        build([file], "notes", KEYS, overwrite=True)
    bad = file.read_text().replace("my_energy=", "my_energy=nan old=", 8)
    Path("bad.xyz").write_text(bad)
    with pytest.raises(InputError, match=r"bad.xyz, frame \d+ of 13: my_energy is nan"):
        build(["bad.xyz"], "a.store", KEYS, overwrite=True)
    after = {path.name: path.read_bytes() for path in Path("a.store").iterdir()}
    assert before == after
    with pytest.raises(InputError, match="say which keys hold them"):
        build([file], "b.store")
    with pytest.raises(InputError, match="the folder .* does not exist"):
        build([file], "no/b.store", KEYS)
    assert {path.name for path in Path().iterdir()} == {"a.xyz", "a.store", "notes", "bad.xyz"}
    write("w.xyz", [to_atoms(frame) for frame in small_run.frames(3)], format="extxyz")
    build(["w.xyz"], "a.store", overwrite=True)
    assert len(read("a.store").frames) == 3
    assert not (Path("a.store") / "stress.npy").exists() and not list(Path().glob(".a.store*"))


def test_a_store_is_no_input_and_errors_of_inputs_are_theirs(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build([file], "a.store", KEYS)
    (Path("a.store") / "cell.npy").unlink()  # a store is refused before it is opened
    command = ["data", "build", "a.xyz", "--output", "b.store", "--energy_key", "my_energy"]
    assert main([*command[:2], "a.store", *command[2:]]) == 2
    assert "a.store is a store already; give the files" in capsys.readouterr().err

    def broken(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    for name in ("stream_images", "digest", "writing"):
        with monkeypatch.context() as patch:
            patch.setattr(f"eqnet.data.build.{name}", lambda path, *_, **__: broken(path))
            assert main(command) == 2
        told = "b.store: cannot be written" if name == "writing" else "a.xyz: cannot be read"
        assert f"{told} (Input/output error)" in capsys.readouterr().err
    assert not list(Path().glob("*b.store*"))


def test_names_with_brackets_are_printed_as_they_are(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.rename("[red]a.xyz")
    target = "[bold]b.store"
    command = ["data", "build", "[red]a.xyz", "--output", target, "--energy_key", "my_energy"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "\n[bold]b.store: 12 structures" in out and "labels of [red]a.xyz, 12 frames" in out


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("name", sorted(ARRAYS | {"forces"}))
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink, pickled])
def test_damage_is_refused_by_the_name_of_the_file(file: Path, name: str, damage) -> None:
    build([file], "a.store", KEYS)
    damage(Path(f"a.store/{name}.npy"))
    with pytest.raises(
        InputError, match=rf"a\.store/{name}\.npy: (is missing|cut short or changed)"
    ):
        read("a.store")


def test_a_damaged_manifest_is_refused(file: Path) -> None:
    build([file], "a.store", KEYS)
    manifest = Path("a.store/arrays.json")
    text = manifest.read_text()
    for wrong in (text[:-30], "[]", text.replace("-13.6", "-13.7"), text.replace(" 12,", " 13,")):
        assert wrong != text
        manifest.write_text(wrong)
        with pytest.raises(InputError, match=r"a\.store/arrays\.json: (damaged|changed)"):
            read("a.store")
    manifest.write_text(text.replace('"format": 1', '"format": 99'))
    with pytest.raises(InputError, match="format 99"):
        read("a.store")
    manifest.unlink()
    with pytest.raises(InputError, match="a folder, and no store"):
        read("a.store")


def test_options_without_effect_and_absent_labels(file: Path) -> None:
    build([file], "a.store", Keys(energy="my_energy"))
    with pytest.raises(InputError, match="--forces_key has no effect"):
        read("a.store", Keys(forces="my_forces"))
    with pytest.raises(InputError, match="no frame has forces, the store has energy"):
        read("a.store", require=("energy", "forces"))


def assert_counts(frames: Sequence[Frame]) -> None:
    """Numbers of neighbours within 4 A, against distances of ASE."""
    items = items_of(frames, (1, 6, 8), 4.0)
    for frame, counts in zip(frames, sizes_of(items).counts, strict=True):
        centers = neighbor_list("i", to_atoms(frame), 4.0)
        np.testing.assert_array_equal(counts, np.bincount(centers, minlength=len(frame)))


def test_counts_of_neighbours_are_kept_and_checked(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second time from the disk; damaged ones and those of another store are refused."""
    build([file], "a.store", KEYS)
    counted, stamps = Path("a.store/neighbors-4.0/counts.npy"), set()
    for told in (1, 0):
        frames = read("a.store").frames
        assert_counts(frames)
        stamps.add(counted.stat().st_mtime_ns)
        assert capsys.readouterr().err.count("a.store: counting neighbours within 4 A") == told
    assert len(stamps) == 1
    part = items_of(Part(frames, [7, 2]), (1, 6, 8), 4.0)
    assert [len(item.frame) for item in part] == [len(frames[7]), len(frames[2])]
    np.testing.assert_array_equal(sizes_of(part).atoms(), [len(frames[7]), len(frames[2])])
    moved = [to_atoms(frame) for frame in frames]
    for atoms in moved:
        atoms.positions *= 2
    write("moved.xyz", moved, format="extxyz")
    build(["moved.xyz"], "b.store")
    shutil.copytree(counted.parent, "b.store/neighbors-4.0")
    with pytest.raises(InputError, match=r"b\.store/neighbors-4\.0 is of another store: delete"):
        items_of(read("b.store").frames, (1, 6, 8), 4.0)
    flip(counted)
    with pytest.raises(InputError, match=r"counts\.npy: cut short or changed"):
        items_of(read("a.store").frames, (1, 6, 8), 4.0)


def test_a_store_that_cannot_be_written_serves_as_well(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted once, whatever the roles; a full disk is told, and is no read-only store."""
    build([file], "a.store", KEYS)
    frames = read("a.store").frames
    make = Path.mkdir

    def refuse(number: int, folders: str) -> None:
        def mkdir(path: Path, *args, **options) -> None:
            if folders in str(path):
                raise OSError(number, os.strerror(number), str(path))
            make(path, *args, **options)

        monkeypatch.setattr(Path, "mkdir", mkdir)

    refuse(errno.EROFS, "a.store")
    for part in (frames, Part(frames, [1, 2]), Part(frames, [0, 3, 4])):
        assert_counts(part)
    assert not list(Path("a.store").glob("neighbors*"))
    assert capsys.readouterr().err.count("counting") == 1
    refuse(errno.EROFS, "neighbors")
    with pytest.raises(InputError, match=r"neither beside .* \(Read-only .*set TMPDIR"):
        items_of(read("a.store").frames, (1, 6, 8), 4.0)
    refuse(errno.ENOSPC, "a.store")
    with pytest.raises(InputError, match=r"neighbors-4\.0: cannot be written \(No space left"):
        items_of(read("a.store").frames, (1, 6, 8), 4.0)


# --------------------------------------------------------------------------------- training


@pytest.fixture
def water(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of 15 water molecules and a store of it."""
    monkeypatch.chdir(tmp_path)
    write("w.xyz", [to_atoms(frame) for frame in small_run.frames(15)], format="extxyz")
    assert main(["data", "build", "w.xyz", "--output", "w.store"]) == 0
    return tmp_path


def end_of(folder: str, frames: Sequence[Frame], kill: int | None = None) -> Outcome:
    """Train a Morse potential on 11 frames, or die after some steps, with a save at every one."""
    fit = small_run.fit(
        Path(folder), small_run.options(checkpoint_interval=0.0), train=11, data=frames
    )
    if kill is None:
        return fit.run()
    step, left = fit.step, [kill]

    def dying(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return step(*args)

    dying.compilations, dying.seconds, dying.cpu_seconds = 0, 0.0, 0.0  # type: ignore[attr-defined]
    fit.step = dying  # type: ignore[assignment]
    return fit.run()


def rows(folder: str) -> list[dict]:
    lines = Path(folder, "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def test_training_from_a_store_is_bit_identical(water: Path) -> None:
    """The same history and weights as from the file, also when killed between two steps."""
    plain, stored = read("w.xyz").frames, read("w.store").frames
    ends = [end_of("plain", plain), end_of("stored", stored)]
    with pytest.raises(KeyboardInterrupt):
        end_of("killed", stored, kill=8)
    ends.append(end_of("killed", stored))
    assert ends[0].position.step == 24
    for other, folder in zip(ends[1:], ("stored", "killed"), strict=True):
        for a, b in zip((*ends[0].last, *ends[0].best), (*other.last, *other.best), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        assert rows("plain") == rows(folder)


def test_what_is_derived_from_a_store_is_bit_identical(water: Path) -> None:
    chosen = resolve_choices(
        TrainOptions().replace({"r_max": 3.0, "valid_fraction": 0.2, "test_fraction": 0.2})
    )
    one, other = (prepare(chosen, Path(name)) for name in ("w.xyz", "w.store"))
    for name in ("options", "elements", "scale", "residual", "references", "config", "notes"):
        assert getattr(one, name) == getattr(other, name), name
    np.testing.assert_array_equal(one.atomic_energies, other.atomic_energies)
    np.testing.assert_array_equal(one.shift, other.shift)
    parts = [found.provenance()["split"] for found in (one, other)]
    assert {r: p["frames"] for r, p in parts[0].items()} == {
        r: p["frames"] for r, p in parts[1].items()
    }
    assert not isinstance(other.items["train"], list)


def test_check_takes_a_store(water: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for name in ("w.xyz", "w.store"):
        capsys.readouterr()
        code = main(["check", name, "--r_max", "3", "--valid_fraction", "0.2"])
        texts.append((code, capsys.readouterr().out.replace(name, "FILE")))
    assert texts[0] == texts[1]


# ------------------------------------------------------------------------------------ memory

PEAK = """
import sys
from pathlib import Path
peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1024
from eqnet.data.batches import Loader
from eqnet.data.read import read
from eqnet.data.store import items_of
before = peak()
frames = read(sys.argv[1]).frames
sum(frame.forces.sum() for frame in frames)
loader = Loader(items_of(frames, (29,), 3.0), 4, reference_energy=lambda species: 0.0)
for _, batch in zip(range(5), loader.batches(0)):
    pass
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_stays_far_below_the_size_of_a_store(tmp_path: Path) -> None:
    """200 MB of copper are read through, counted, shuffled and packed."""
    atoms = bulk("Cu", cubic=True).repeat(10)
    atoms.info["REF_energy"] = -1.0
    atoms.set_array("REF_forces", np.ones((len(atoms), 3)))
    write(tmp_path / "one.xyz", atoms, format="extxyz")
    build([tmp_path / "one.xyz"] * 1050, tmp_path / "cu.store")
    size = sum(path.stat().st_size for path in (tmp_path / "cu.store").iterdir()) / 2**20
    child = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "cu.store")], capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    assert size > 190 and float(child.stdout) < 130
