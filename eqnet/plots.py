"""Figures of a training run: learning curves and parity plots, in one style, light and dark.

Figures are made without pyplot: no window, no global state, safe in any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eqnet import metrics
from eqnet.data.elements import symbol
from eqnet.metrics import MILLI, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from eqnet.data.read import Frame
    from eqnet.evaluation import Answer

#: Paul Tol's bright scheme: told apart on white, on black, and by colour-blind readers.
COLORS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#999999")
INK = {"light": "#24292f", "dark": "#d6dbe1"}
FAINT = {"light": "#d8dce1", "dark": "#3a414a"}
PAPER = {"light": "#ffffff", "dark": "#161a1f"}
MAX_POINTS = 4000  # per colour in a parity plot; the worst are always among them
MANY = 2000  # numbers from which a histogram has a logarithmic axis


@contextmanager
def style(theme: str = "light") -> Iterator[None]:
    """The look of every figure, in force inside the block: theme "light" or "dark"."""
    ink, faint, paper = INK[theme], FAINT[theme], PAPER[theme]
    settings: dict[Any, Any] = {
        "figure.facecolor": paper,
        "figure.dpi": 100,
        "savefig.dpi": 150,
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": ink,
        "axes.facecolor": paper,
        "axes.edgecolor": ink,
        "axes.labelcolor": ink,
        "axes.linewidth": 0.8,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": faint,
        "grid.linewidth": 0.6,
        "xtick.color": ink,
        "ytick.color": ink,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.6,
    }
    with matplotlib.rc_context(settings):
        yield


def learning_curves(history: Sequence[dict[str, Any]]) -> Figure:
    """Loss, validation errors and learning rate against epochs, on logarithmic axes.

    Args:
        history: rows of metrics.jsonl; a curve is drawn for every known key that occurs.
    """
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    loss, errors, rate = figure.subplots(1, 3, width_ratios=(1, 1, 0.7))
    _curve(loss, history, "train_loss", "training", COLORS[0])
    _curve(loss, history, "valid_loss", "validation", COLORS[1])
    for i, quantity in enumerate(("forces", "energy_per_atom", "stress")):
        words, unit = metrics.QUANTITIES[quantity]
        _curve(errors, history, f"{quantity}_mae", f"{words}, {unit}", COLORS[i], last=True)
    _curve(rate, history, "lr", "", COLORS[2])
    for axes, title in ((loss, "Loss"), (errors, "Validation MAE"), (rate, "Learning rate")):
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if axes.get_lines():
            axes.set_yscale("log")
        if axes is not rate and axes.get_lines():
            axes.legend()
        _mark_stages(axes, history)
    return figure


def _curve(
    axes: Axes,
    history: Sequence[dict[str, Any]],
    key: str,
    label: str,
    color: str,
    last: bool = False,
) -> None:
    """One curve where its key is present and positive; the last value in its label if wanted."""
    points = [(row["epoch"], row[key]) for row in history if isinstance(row.get(key), (int, float))]
    points = [point for point in points if np.isfinite(point[1]) and point[1] > 0]
    if not points:
        return
    if last:
        label = f"{label}: {number(points[-1][1])}"
    epochs, values = zip(*points, strict=True)
    marker = "o" if len(points) <= 20 else None
    axes.plot(epochs, values, label=label, color=color, marker=marker, markersize=3.5)


def _mark_stages(axes: Axes, history: Sequence[dict[str, Any]]) -> None:
    """A dotted line where another stage of the training begins."""
    for before, after in zip(history, history[1:], strict=False):
        if before.get("stage") != after.get("stage"):
            axes.axvline(after["epoch"], color=COLORS[-1], linestyle=":", linewidth=1.0)


def energy_parity(frames: Sequence[Frame], answers: Sequence[Answer]) -> Figure | None:
    """Energies per atom, predicted against labels, and their errors; None without labels.

    What the composition alone explains (the least-squares fit of the labels) is taken off both
    axes, so that the eye sees what the model had to learn.
    """
    chosen = [i for i, frame in enumerate(frames) if frame.energy is not None]
    if not chosen:
        return None
    labelled = [frames[i] for i in chosen]
    predicted, labels = metrics.paired("energy_per_atom", labelled, [answers[i] for i in chosen])
    base = composition_energies(labelled) / [len(frame.numbers) for frame in labelled]
    names = [frame.config_type for frame in labelled]
    groups = {
        name: (MILLI * (predicted - base)[members], MILLI * (labels - base)[members])
        for name in dict.fromkeys(names)
        for members in [np.array([other == name for other in names])]
    }
    words = "energy beyond composition, meV per atom"
    return _parity(groups, "Energy per atom", words, "error, meV")


def composition_energies(frames: Sequence[Frame]) -> np.ndarray:
    """Energy of each labelled frame as its composition alone predicts it, [n] eV.

    Least squares over one energy per element; for fewer than three frames per element, where such a
    fit would explain anything, the mean energy per atom.
    """
    elements = sorted({int(z) for frame in frames for z in np.unique(frame.numbers)})
    counts = np.array([[np.sum(frame.numbers == z) for z in elements] for frame in frames], float)
    energies = np.array([frame.energy for frame in frames], float)
    if len(frames) < 3 * len(elements):
        counts = counts.sum(1, keepdims=True)
    return counts @ np.linalg.lstsq(counts, energies, rcond=None)[0]


def force_parity(frames: Sequence[Frame], answers: Sequence[Answer]) -> Figure | None:
    """Force components by element, predicted against labels, with errors; None without labels."""
    groups = {
        symbol(z): (predicted.ravel(), labels.ravel())
        for z, (predicted, labels) in metrics.forces_by_element(frames, answers).items()
    }
    if not groups:
        return None
    return _parity(groups, "Forces", "force component, eV/Å", "error, meV/Å", MILLI)


def stress_parity(frames: Sequence[Frame], answers: Sequence[Answer]) -> Figure | None:
    """Stress components, predicted against labels, and their errors; None without labels."""
    predicted, labels = metrics.paired("stress", frames, answers)
    if not labels.size:
        return None
    predicted, labels = MILLI * predicted.reshape(-1, 9), MILLI * labels.reshape(-1, 9)
    parts = {"xx, yy, zz": [0, 4, 8], "yz, xz, xy": [5, 2, 1]}
    groups = {name: (predicted[:, i].ravel(), labels[:, i].ravel()) for name, i in parts.items()}
    return _parity(groups, "Stress", "stress component, meV/Å³", "error, meV/Å³")


def _parity(
    groups: dict[str, tuple[np.ndarray, np.ndarray]],
    title: str,
    words: str,
    error_words: str,
    factor: float = 1.0,
) -> Figure:
    """Two panels: predicted against labels with the diagonal, and the distribution of the errors.

    Args:
        groups: legend -> (predicted [n], labels [n]).
        title: what is compared.
        words: the quantity with its unit.
        error_words: label of the axis of errors.
        factor: unit of the quantity in units of the errors.
    """
    groups = _largest(groups)
    figure = Figure(figsize=(9.5, 4.3), layout="constrained")
    parity, histogram = figure.subplots(1, 2)
    ends = np.concatenate([part for pair in groups.values() for part in pair])
    low, high = float(ends.min()), float(ends.max())
    margin = 0.04 * (high - low) or 0.5 * abs(high) or 1.0
    line = (low - margin, high + margin)
    parity.plot(line, line, color=COLORS[-1], linewidth=0.9, zorder=1)
    everything = {name: factor * (pair[0] - pair[1]) for name, pair in groups.items()}
    bins = _bins(np.concatenate(list(everything.values())))
    for color, (name, (predicted, labels)) in zip(COLORS, groups.items(), strict=False):
        shown = _points(everything[name])
        alpha = float(np.clip(60 / np.sqrt(len(shown) + 1), 0.25, 0.9))
        parity.scatter(
            labels[shown], predicted[shown], s=9, color=color, alpha=alpha, linewidths=0, label=name
        )
        _histogram(histogram, everything[name], bins, color, name)
    parity.set(xlim=line, ylim=line, aspect="equal", xlabel=f"label: {words}", ylabel="predicted")
    parity.set_title(title)
    histogram.set(xlabel=error_words, ylabel="count")
    histogram.set_title("Distribution of errors")
    if ends.size > MANY:
        histogram.set_yscale("log")
    histogram.set_ymargin(0.15)  # room for the legend
    if len(groups) > 1:
        parity.legend(markerscale=2, handletextpad=0.1)
    histogram.legend(loc="upper right")
    return figure


def _histogram(axes: Axes, deviations: np.ndarray, bins: np.ndarray, color: str, name: str) -> None:
    """The distribution of one group; what lies beyond the outermost bins is counted in them."""
    mae = number(float(np.abs(deviations).mean()))
    inside, edges = np.clip(deviations, bins[0], bins[-1]), list(bins)
    axes.hist(inside, edges, histtype="stepfilled", color=color, alpha=0.2)
    axes.hist(
        inside, edges, histtype="step", color=color, linewidth=1.4, label=f"{name}, MAE {mae}"
    )


def _largest(groups: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict:
    """At most as many groups as there are colours: the smallest are shown together as "others"."""
    if len(groups) <= len(COLORS):
        return groups
    order = sorted(groups, key=lambda name: -len(groups[name][0]))
    kept = set(order[: len(COLORS) - 1])
    rest = [groups[name] for name in order[len(COLORS) - 1 :]]
    others = tuple(np.concatenate(parts) for parts in zip(*rest, strict=True))
    return {name: pair for name, pair in groups.items() if name in kept} | {"others": others}


def _points(deviations: np.ndarray) -> np.ndarray:
    """Indices of the points to draw: all, or the worst hundred and an even choice of the rest."""
    if len(deviations) <= MAX_POINTS:
        return np.arange(len(deviations))
    order = np.argsort(-np.abs(deviations), kind="stable")
    rest = np.sort(order[100:])
    even = np.linspace(0, len(rest) - 1, MAX_POINTS - 100).astype(int)
    return np.concatenate([order[:100], rest[even]])


def _bins(deviations: np.ndarray) -> np.ndarray:
    """Edges of bins around zero that hold 99.9 % of the errors; more bins for more errors."""
    reach = float(np.quantile(np.abs(deviations), 0.999)) or 1.0
    count = int(np.clip(2 * len(deviations) ** (1 / 3), 10, 60)) | 1
    return np.linspace(-reach, reach, count + 1)
