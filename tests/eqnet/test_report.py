"""The report: there whatever is missing, self-contained, with the numbers it was given."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

from eqnet import metrics, plots
from eqnet.data.frame import Frame
from eqnet.evaluation import Answer
from eqnet.report import write_report


def labelled(count, *, stress=False, seed=0, numbers=(1, 6, 8)):
    """Random structures with labels, and answers a little off."""
    rng = np.random.default_rng(seed)
    frames, answers = [], []
    for index in range(count):
        n = len(numbers)
        forces, tensor, energy = rng.normal(size=(n, 3)), rng.normal(size=(3, 3)), rng.normal()
        frames.append(
            Frame(
                np.array(numbers),
                rng.normal(size=(n, 3)),
                np.eye(3),
                np.ones(3, bool),
                energy,
                forces,
                tensor if stress else None,
                config_type=("gas", "<bulk>")[index % 2],
                file="tests/set.xyz",
                index=index,
            )
        )
        answers.append(
            Answer(energy + 0.001, forces + 0.01 * rng.normal(size=(n, 3)), tensor, np.zeros(n))
        )
    return frames, answers


def history(epochs):
    return [
        {
            "epoch": epoch + 1,
            "step": 10 * (epoch + 1),
            "wall_s": 3.5 * (epoch + 1),
            "train_loss": 1.0 / (epoch + 1),
            "valid_loss": 2.0 / (epoch + 1),
            "lr": 0.01,
            "energy_per_atom_mae": 5.0 / (epoch + 1),
            "forces_mae": 100.0 / (epoch + 1),
            "stage": 1 if epoch < 3 else 2,
        }
        for epoch in range(epochs)
    ]


def written(folder, frames=(), answers=(), rows=(), validation=None, config=None, summary=None):
    path = write_report(
        folder,
        history=rows,
        frames=frames,
        answers=answers,
        errors=metrics.errors(frames, answers),
        validation=validation or {},
        config=config or {},
        summary=summary or {},
    )
    assert path == folder / "report.html"
    text = path.read_text(encoding="utf-8")
    Balanced().feed(text)
    return text


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order, and on anything fetched from elsewhere."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "srcset", "href"):
                assert value and value.startswith("data:image/png;base64,")
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def close(self):
        assert not self.open


def pictures(folder):
    return sorted(path.name for path in (folder / "plots").iterdir())


def test_whole_report(tmp_path):
    frames, answers = labelled(12, stress=True)
    text = written(
        tmp_path / "water",
        frames,
        answers,
        history(6),
        config={"model": {"name": "mace", "r_max": 5.0}, "hidden": (1, 2), "ema": True},
        summary={
            "labels": [{"label": "energy", "key": "REF_energy", "structures": 12}],
            "atomic_energies": {"H": -13.6056931, "O": -2041.8},
            "notes": "No stress in <two> frames.",
            "empty": {},
        },
    )
    assert pictures(tmp_path / "water") == [
        "energy.png",
        "forces.png",
        "learning_curves.png",
        "stress.png",
    ]
    for name in pictures(tmp_path / "water"):
        assert imread(tmp_path / "water" / "plots" / name).std() > 0.01  # something is drawn
    assert text.count("<img") == 4 and text.count('prefers-color-scheme: dark)" srcset') == 4
    for expected in (
        "<title>water – eqnet</title>",
        "&lt;bulk&gt;",
        "REF_energy",
        "Atomic energies",
        "-13.6057",
        "model.r_max",
        "No stress in &lt;two&gt; frames.",
        metrics.number(metrics.errors(frames, answers)["forces_mae"]),
        "tests/set.xyz",
        "Errors by element",
    ):
        assert expected in text, expected
    assert "<bulk>" not in text and "Empty" not in text
    assert len(text) < 3_000_000


def test_no_test_structures(tmp_path):
    rows = history(3)
    text = written(tmp_path, rows=rows, validation=rows[1])
    assert "no test structures" in text
    assert "<b>50.0 meV/Å</b>" in text  # those of the weights that are kept stand in
    assert pictures(tmp_path) == ["learning_curves.png"]


def test_one_epoch_without_stress(tmp_path):
    frames, answers = labelled(3)
    written(tmp_path, frames, answers, history(1))
    assert pictures(tmp_path) == ["energy.png", "forces.png", "learning_curves.png"]


def test_nothing_at_all(tmp_path):
    assert "no test structures" in written(tmp_path)
    assert pictures(tmp_path) == []


def test_without_forces_or_without_energy(tmp_path):
    frames, answers = labelled(4)
    written(tmp_path / "e", [replace(frame, forces=None) for frame in frames], answers)
    assert pictures(tmp_path / "e") == ["energy.png"]
    written(tmp_path / "f", [replace(frame, energy=None) for frame in frames], answers)
    assert pictures(tmp_path / "f") == ["forces.png"]


def test_one_structure_with_perfect_answers(tmp_path):
    """Ranges of zero width and errors of zero are drawn without warnings."""
    frames, _ = labelled(1, stress=True)
    exact = [Answer(f.energy, f.forces, f.stress, np.zeros(3)) for f in frames]
    written(tmp_path, frames, exact, history(1))


def test_history_with_gaps(tmp_path):
    rows = history(4)
    rows[1]["train_loss"] = None
    rows[2]["train_loss"] = float("nan")
    rows[3]["forces_mae"] = 0.0
    written(tmp_path, rows=rows)


def test_worst_structures_come_first(tmp_path):
    frames, answers = labelled(30)
    answers[17] = answers[17]._replace(forces=answers[17].forces + 1.0)
    text = written(tmp_path, frames, answers)
    table = text[text.index("Structures with the largest errors") :].split("</table>")[0]
    rows = re.findall(r"<tr><td.*?</tr>", table)
    assert len(rows) == 10
    assert ">17<" in rows[0]


def test_a_second_report_replaces_the_first(tmp_path):
    written(tmp_path, rows=history(1))
    assert "no test structures" not in written(tmp_path, *labelled(2), history(2))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def drawn_forces(frames, answers):
    """The panel, its number of points and the names in its legend."""
    figure = plots.force_parity(frames, answers)
    assert figure is not None
    panel = figure.axes[0]
    drawn = sum(len(np.asarray(points.get_offsets())) for points in panel.collections)
    legend = panel.get_legend()
    assert legend is not None
    return panel, drawn, [text.get_text() for text in legend.get_texts()]


def test_parity_plot_draws_the_diagonal_and_every_point():
    frames, answers = labelled(5)
    parity, drawn, names = drawn_forces(frames, answers)
    assert drawn == 5 * 3 * 3
    assert parity.get_xlim() == parity.get_ylim()
    assert names == ["H", "C", "O"]


def test_many_points_are_thinned_but_never_the_worst():
    deviations = np.random.default_rng(0).normal(size=50_000)
    deviations[31_234] = 99.0
    shown = plots._points(deviations)
    assert len(shown) == len(set(shown)) <= plots.MAX_POINTS
    assert 31_234 in shown


def test_many_elements_share_the_last_colour():
    numbers = tuple(range(1, 13))
    _, drawn, names = drawn_forces(*labelled(2, numbers=numbers))
    assert len(names) == len(plots.COLORS) and names[-1] == "others"
    assert drawn == 2 * 12 * 3


def test_composition_is_taken_off_energies():
    """Energies linear in the composition leave nothing; few structures lose only their mean."""
    rng = np.random.default_rng(3)
    frames = []
    for _ in range(20):
        numbers = rng.choice([1, 8], int(rng.integers(2, 9)))
        zeros = np.zeros((len(numbers), 3))
        energy = -13.0 * np.sum(numbers == 1) - 2000.0 * np.sum(numbers == 8)
        frames.append(Frame(numbers, zeros, np.eye(3), np.ones(3, bool), float(energy)))
    base = plots.composition_energies(frames)
    np.testing.assert_allclose(base, [frame.energy for frame in frames], rtol=1e-9)
    two = [replace(frames[0], energy=1.0), replace(frames[0], energy=3.0)]
    assert plots.composition_energies(two) == pytest.approx([2.0, 2.0])
