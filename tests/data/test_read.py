"""Reading: what is right is read right, what is wrong is refused in one sentence."""

from __future__ import annotations

import bz2
import gzip
import lzma

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from eqnet.data.read import Keys, from_atoms, read, to_atoms
from eqnet.errors import InputError

COMMENT = 'Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy=-1.5 pbc="F F F"'
WATER = """3
{comment}
O 0.0 0.0 0.0 0.1 0.2 0.3
H 0.0 0.0 1.0 0.0 0.0 -0.3
H 0.0 1.0 0.0 -0.1 -0.2 0.0
"""
GOOD = WATER.format(comment=COMMENT)


def save(tmp_path, text, name="a.xyz"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def with_comment(extra: str) -> str:
    return WATER.format(comment=f"{COMMENT} {extra}")


CELL = 'Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy=-1.5 Lattice="{}"'


def with_cell(lattice: str, extra: str = "") -> str:
    return WATER.format(comment=f"{CELL.format(lattice)} {extra}")


def test_structure_and_labels(tmp_path):
    frame = read(save(tmp_path, GOOD)).frames[0]
    np.testing.assert_array_equal(frame.numbers, [8, 1, 1])
    np.testing.assert_array_equal(frame.positions[1], [0, 0, 1])
    assert frame.energy == -1.5 and frame.stress is None and not frame.pbc.any()
    assert frame.forces is not None
    np.testing.assert_array_equal(frame.forces[0], [0.1, 0.2, 0.3])
    assert frame.config_type == "Default" and frame.energy_weight == 1.0


BAD = {
    "empty": ("", ["0 frames"]),
    "blank": ("\n \n\n", ["0 frames"]),
    "not xyz": ("hello\nworld\n", ["frame 0", "line 1", "number of atoms", "'hello'"]),
    "no atoms": ("0\n\n", ["frame 0", "0 atoms"]),
    "second frame without atoms": (GOOD + "0\n\n", ["frame 1", "0 atoms"]),
    "negative count": ("-3\n\n", ["frame 0", "-3 atoms"]),
    "count too large": (GOOD.replace("3\n", "4\n", 1) + GOOD, ["frame 0", "line 6", "1 columns"]),
    "count too small": (GOOD.replace("3\n", "2\n", 1), ["frame 1", "line 5", "too few atoms"]),
    "cut in a row": (GOOD[:-12], ["frame 0", "line 5", "columns"]),
    "cut in a frame": ("\n".join(GOOD.split("\n")[:4]), ["frame 0", "2 of them"]),
    "cut after the count": (GOOD + "3\n", ["frame 1", "0 of them"]),
    "missing column": (GOOD.replace(" -0.3", ""), ["line 4", "6 columns, 7"]),
    "extra column": (GOOD.replace(" -0.3", " -0.3 9"), ["line 4", "8 columns, 7"]),
    "fortran number": (GOOD.replace("1.0", "1.0D0", 1), ["line 4", "'1.0D0'", "not a number"]),
    "decimal comma": (GOOD.replace("0.1", "0,1", 1), ["line 3", "'0,1'"]),
    "unknown symbol": (GOOD.replace("O ", "Qq "), ["line 3", "'Qq'", "symbol"]),
    "number as symbol": (GOOD.replace("O ", "8 "), ["line 3", "'8'"]),
    "dummy atom": (GOOD.replace("O ", "X "), ["frame 0 of 1", "atom 0", "X"]),
    "nan force": (GOOD.replace("-0.3", "nan"), ["frame 0 of 1", "REF_forces", "atom 1, column 2,"]),
    "inf energy": (GOOD.replace("-1.5", "inf"), ["frame 0 of 1", "REF_energy", "inf"]),
    "text energy": (GOOD.replace("-1.5", "abc"), ["frame 0 of 1", "REF_energy", "'abc'"]),
    "true energy": (GOOD.replace("-1.5", "T"), ["REF_energy", "'True'", "not a number"]),
    "two energies": (GOOD.replace("-1.5", '"1 2"'), ["REF_energy", "(2,)", "one number"]),
    "nan position": (GOOD.replace("H 0.0 0.0 1.0", "H 0.0 nan 1.0"), ["position of atom 1"]),
    "two force columns": (
        GOOD.replace("forces:R:3", "forces:R:2").replace(" 0.3\n", "\n")
        .replace(" -0.3\n", "\n").replace("-0.2 0.0\n", "-0.2\n"),
        ["REF_forces", "(3, 2)", "(3, 3)"],
    ),
    "doubled key": (with_comment("REF_energy=-99"), ["line 2", "REF_energy", "twice"]),
    "open quotation": (with_comment('note="a b'), ["line 2", "quotation mark"]),
    "open lattice": (with_cell('9 0 0 0 9 0 0 0 9').replace(' 0 9"', " 0 9"), ["quotation mark"]),
    "bad properties": (GOOD.replace("pos:R:3", "pos:R"), ["line 2", "Properties"]),
    "endless properties": (GOOD.replace("pos:R:3", "pos:R:99999999999"), ["line 2", "Properties"]),
    "odd pbc": (GOOD.replace('"F F F"', '"Y N M"'), ["pbc", "T and F"]),
    "eight cell numbers": (with_cell("1 0 0 0 1 0 0 0"), ["frame 0 of 1", "Lattice"]),
    "nan in the cell": (with_cell("9 0 0 0 nan 0 0 0 9"), ["cell vector 1"]),
    "flat cell": (with_cell("9 0 0 0 9 0 9 9 0"), ["frame 0 of 1", "linearly dependent"]),
    "zero vector": (with_cell("9 0 0 0 9 0 0 0 0"), ["axis 2", "zero"]),
    "periodic without a cell": (GOOD.replace('"F F F"', '"T T T"'), ["axis 0", "zero"]),
    "asymmetric stress": (with_cell("9 0 0 0 9 0 0 0 9", 'REF_stress="1 2 3 4 5 6 7 8 9"'),
                          ["REF_stress", "symmetric"]),
    "short stress": (with_cell("9 0 0 0 9 0 0 0 9", 'REF_stress="1 2 3"'), ["REF_stress", "(3,)"]),
    "negative weight": (with_comment("config_weight=-1"), ["config_weight", "-1"]),
    "text weight": (with_comment("config_weight=big"), ["config_weight", "'big'"]),
    "big isolated atom": (with_comment("config_type=IsolatedAtom"), ["IsolatedAtom", "3 atoms"]),
    "latin-1": (GOOD.encode() + "3\n\xe9\n".encode("latin-1"), ["line 7", "UTF-8"]),
    "binary": (b"\x00\x01\xff\xfe", ["UTF-8"]),
    "utf-16": (GOOD.encode("utf-16"), ["line 1", "byte 0", "UTF-8"]),
    "bomb": (gzip.compress(b"\0" * 50_000_000), ["refused", "1000 times its size"]),
    "cut gzip": (gzip.compress(GOOD.encode())[:-9], ["compressed file", "cut short"]),
    "cut bzip2": (bz2.compress(GOOD.encode())[:-9], ["compressed file", "cut short"]),
    "cut xz": (lzma.compress(GOOD.encode())[:-9], ["compressed file", "cut short"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_refused_in_one_sentence(tmp_path, case):
    text, words = BAD[case]
    path = save(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("\n", "\r"),
        "\ufeff" + GOOD,
        GOOD.replace(" ", "\t").replace(COMMENT.replace(" ", "\t"), COMMENT),
        GOOD + "\n\n",
        GOOD.replace("0.0\n", "0.0   \n"),
        gzip.compress(GOOD.encode(), mtime=0),  # the workers of pytest must agree on its name
        bz2.compress(GOOD.encode()),
        lzma.compress(GOOD.encode()),
        GOOD.replace("O ", "o "),
    ],
)
def test_harmless_differences_of_files_are_read(tmp_path, text):
    frame = read(save(tmp_path, text)).frames[0]
    np.testing.assert_array_equal(
        frame.forces, read(save(tmp_path, GOOD, "b.xyz")).frames[0].forces
    )


def test_blank_lines_between_frames_do_not_end_the_file(tmp_path):
    assert len(read(save(tmp_path, GOOD + "\n" + GOOD)).frames) == 2


def test_the_content_tells_whether_a_file_is_compressed(tmp_path):
    path = save(tmp_path, GOOD, "plain.xyz.gz")
    assert len(read(path).frames) == len(read(save(tmp_path, gzip.compress(GOOD.encode()))).frames)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "none.xyz")
    with pytest.raises(InputError, match="folder"):
        read(tmp_path)
    with pytest.raises(InputError, match="ASE cannot read"):
        read(save(tmp_path, "nonsense", "a.cif"))


def rename(energy="energy", forces="forces"):
    return GOOD.replace("REF_energy", energy).replace("REF_forces", forces)


@pytest.mark.parametrize(
    ("text", "keys", "found"),
    [
        (GOOD, Keys(), [("REF_energy", "structure"), ("REF_forces", "atoms")]),
        (rename(), Keys(), [("energy", "ASE calculator"), ("forces", "ASE calculator")]),
        (
            rename("dft_energy", "DFT_forces"),
            Keys(),
            [("dft_energy", "structure"), ("DFT_forces", "atoms")],
        ),
        (
            rename("energy_xtb", "forces_xtb"),
            Keys(energy="energy_xtb", forces="forces_xtb"),
            [("energy_xtb", "structure"), ("forces_xtb", "atoms")],
        ),
        (
            with_comment("energy=-7 other=-8"),
            Keys(energy="energy"),
            [("energy", "ASE calculator"), ("REF_forces", "atoms")],
        ),
        (
            with_comment("energy=-7 dft_energy=-8"),
            Keys(),
            [("REF_energy", "structure"), ("REF_forces", "atoms")],
        ),
    ],
)
def test_keys_are_chosen_in_order(tmp_path, text, keys, found):
    report = read(save(tmp_path, text), keys).report
    assert [(row.key, row.source) for row in report.rows] == found
    energy = report.rows[0]
    assert energy.count == 1 and energy.unit == "eV"
    assert energy.minimum == energy.maximum == (-7 if keys.energy == "energy" else -1.5)


def test_an_absent_key_is_refused_with_the_nearest_one(tmp_path):
    path = save(tmp_path, rename("energy_xtb", "forces_xtb"))
    with pytest.raises(InputError, match=r"energy_xt; did you mean energy_xtb\?.*forces_xtb"):
        read(path, Keys(energy="energy_xt", forces="forces_xtb"))
    with pytest.raises(InputError, match=r"no frame has energy.*--energy_key.*energy_xtb"):
        read(path)
    with pytest.raises(InputError, match=r"no frame has stress"):
        read(save(tmp_path, GOOD, "b.xyz"), require=("energy", "forces", "stress"))
    assert read(path, require=()).frames[0].energy is None


def test_two_keys_for_one_label_are_refused_unless_one_is_named(tmp_path):
    other = GOOD.replace("REF_energy=-1.5", "energy=-2.5")
    path = save(tmp_path, GOOD + other + GOOD)
    with pytest.raises(InputError, match=r"frame 1 of 3 has its energy as energy .*as REF_energy"):
        read(path)
    energies = [frame.energy for frame in read(path, Keys(energy="REF_energy")).frames]
    assert energies == [-1.5, None, -1.5]
    both = save(tmp_path, GOOD.replace("REF_energy=-1.5", "REF_energy=-1.5 energy=-2.5"), "b.xyz")
    assert read(both).frames[0].energy == -1.5
    virial = with_cell(LATTICE, 'virial="1 0 0 0 1 0 0 0 1"')
    mixed = save(tmp_path, with_cell(LATTICE, 'REF_stress="1 1 1 0 0 0"') + virial, "c.xyz")
    with pytest.raises(InputError, match=r"frame 1 of 2 has its stress as virial .*as REF_stress"):
        read(mixed)


def test_singular_names_are_those_of_forces_and_virials(tmp_path):
    assert read(save(tmp_path, rename("REF_energy", "REF_force"))).report.rows[1].key == "REF_force"
    dataset = read(save(tmp_path, with_cell(LATTICE, 'REF_stres="1 1 1 0 0 0"')))
    assert dataset.frames[0].stress is None


def test_missing_labels_of_some_frames_are_none_and_told(tmp_path):
    bare = "1\nProperties=species:S:1:pos:R:3 REF_energy=-2.0 config_type=x\nH 0 0 0\n"
    dataset = read(save(tmp_path, GOOD + bare + GOOD))
    assert [f.forces is None for f in dataset.frames] == [False, True, False]
    assert any(
        "forces is missing in 1 of 3 frames (first: frame 1)" in n for n in dataset.report.notes
    )


def test_isolated_atoms_give_reference_energies(tmp_path):
    atom = "1\nProperties=species:S:1:pos:R:3 REF_energy={} {}\n{} 0 0 0\n"
    marked = atom.format(-13.5, "config_type=IsolatedAtom", "H")
    plain = atom.format(-430.25, 'pbc="F F F"', "O")
    dataset = read(save(tmp_path, marked + GOOD + plain))
    assert dataset.isolated == {1: -13.5, 8: -430.25}
    assert len(dataset.frames) == 1 and dataset.report.rows[0].minimum == -1.5
    dataset = read(tmp_path / "a.xyz", isolated=False)
    assert dataset.isolated == {1: -13.5} and [f.index for f in dataset.frames] == [1, 2]
    other = atom.format(-99, "config_type=isolated_atom", "H")
    with pytest.raises(InputError, match="frame 2 of 3: a second isolated atom"):
        read(save(tmp_path, marked + GOOD + other))
    with pytest.raises(InputError, match="all 2 frames are isolated atoms"):
        read(save(tmp_path, marked + plain), require=("energy",))
    assert len(read(save(tmp_path, "1\n\nH 0 0 0\n"), require=()).frames) == 1


def test_marked_atom_without_an_energy_is_refused(tmp_path):
    bare = "1\nProperties=species:S:1:pos:R:3 config_type=IsolatedAtom\nH 0 0 0\n"
    with pytest.raises(InputError, match=r"a.xyz, frame 1 of 2: .*IsolatedAtom, but .* no energy"):
        read(save(tmp_path, GOOD + bare))


LATTICE = "2 0 0 0 2 0 0 0 5"
TENSOR = np.array([[1, 6, 5], [6, 2, 4], [5, 4, 3]]) / 10


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('REF_stress="0.1 0.2 0.3 0.4 0.5 0.6"', TENSOR),
        ('REF_stress="0.1 0.6 0.5 0.6 0.2 0.4 0.5 0.4 0.3"', TENSOR),
        ('stress="0.1 0.6 0.5 0.6 0.2 0.4 0.5 0.4 0.3"', TENSOR),
        ('REF_virials="0.1 0.6 0.5 0.6 0.2 0.4 0.5 0.4 0.3"', -TENSOR / 20),
        ('virial="0.1 0.6 0.5 0.6 0.2 0.4 0.5 0.4 0.3"', -TENSOR / 20),
    ],
)
def test_stress_and_virials_in_every_shape(tmp_path, text, expected):
    frame = read(save(tmp_path, with_cell(LATTICE, text))).frames[0]
    assert frame.pbc.all() and frame.volume == pytest.approx(20)
    assert frame.stress is not None
    np.testing.assert_allclose(frame.stress, expected)


def test_stress_without_a_volume_is_ignored_and_told(tmp_path):
    text = with_cell(LATTICE, 'pbc="T T F" REF_stress="1 1 1 0 0 0"')
    dataset = read(save(tmp_path, text))
    assert dataset.frames[0].stress is None
    assert "stress is ignored in 1 frames" in dataset.report.notes[0]


def test_stress_and_virials_together_are_refused(tmp_path):
    with pytest.raises(InputError, match="give one of them"):
        read(save(tmp_path, GOOD), Keys(stress="a", virials="b"))


def test_free_energy_is_taken_where_it_differs(tmp_path):
    text = rename().replace("energy=-1.5", "energy=-1.5 free_energy=-1.7")
    dataset = read(save(tmp_path, text))
    assert dataset.frames[0].energy == -1.7 and "free_energy" in dataset.report.notes[0]
    assert read(save(tmp_path, text), Keys(energy="energy")).frames[0].energy == -1.5


def test_weights_multiply(tmp_path):
    text = with_comment("config_weight=2 config_forces_weight=0.5 config_type=warm")
    frame = read(save(tmp_path, text)).frames[0]
    assert (frame.energy_weight, frame.forces_weight, frame.stress_weight) == (2, 1, 2)
    assert frame.config_type == "warm"


@pytest.mark.parametrize("name", ["a.traj", "a.db", "a.aselmdb", "a.json", "a.xyz"])
def test_other_formats_of_ase(tmp_path, name):
    images = []
    for k in range(3):
        atoms = Atoms("CO", [[0, 0, 0], [0, 0, 1.1 + 0.1 * k]], cell=[5, 6, 7], pbc=True)
        atoms.calc = SinglePointCalculator(
            atoms, energy=-k, forces=np.full((2, 3), k), stress=0.1 * np.arange(6)
        )
        images.append(atoms)
    write(tmp_path / name, images)
    frames = read(tmp_path / name, require=("energy", "forces", "stress")).frames
    assert [f.energy for f in frames] == [0, -1, -2]
    assert frames[2].forces is not None and frames[1].stress is not None
    np.testing.assert_allclose(frames[2].forces, 2)
    np.testing.assert_allclose(frames[1].stress[0], [0, 0.5, 0.4])
    np.testing.assert_allclose(frames[1].cell, np.diag([5, 6, 7]))


def test_frames_survive_writing_and_reading(tmp_path):
    text = with_cell(LATTICE, 'REF_stress="1 1 1 0 0 0" config_weight=2 note=hello config_type=b')
    first = read(save(tmp_path, text)).frames[0]
    write(tmp_path / "b.xyz", to_atoms(first))
    second = read(tmp_path / "b.xyz").frames[0]
    for name in ("numbers", "positions", "cell", "pbc", "energy", "forces", "stress"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    for name in ("config_type", "energy_weight", "forces_weight", "stress_weight", "info"):
        assert getattr(first, name) == getattr(second, name)
    assert from_atoms(to_atoms(first)).energy is None


def test_a_package_that_a_format_needs_is_named(tmp_path, monkeypatch):
    def iread(*_, **__):
        raise ModuleNotFoundError("No module named 'ase_db_backends'")

    monkeypatch.setattr(ase.io, "iread", iread)
    (tmp_path / "a.aselmdb").write_bytes(b"\x00")
    with pytest.raises(InputError, match=r"a\.aselmdb: .*pip install 'eqnet\[lmdb\]'"):
        read(tmp_path / "a.aselmdb")
