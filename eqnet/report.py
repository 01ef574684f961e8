"""The report of a run: plots as PNG files and one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
import platform
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from eqnet import metrics, page, plots
from eqnet.data.elements import symbol
from eqnet.evaluation import naive
from eqnet.files import replacing
from eqnet.metrics import number

if TYPE_CHECKING:
    from eqnet.data.read import Frame, LabelReport
    from eqnet.evaluation import Answer

WORST = 10  # structures in the table of the largest errors


def write_report(
    run_dir: str | Path,
    *,
    history: Sequence[dict[str, Any]],
    frames: Sequence[Frame],
    answers: Sequence[Answer],
    errors: dict[str, Any],
    validation: Mapping[str, Any],
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
) -> Path:
    """Write `plots/*.png` and `report.html` into the folder of a run.

    Any part may be empty: no test frames, no stress, no history. The page shows what there is.

    Args:
        run_dir: folder of the run; its name is the title.
        history: rows of metrics.jsonl.
        frames: test structures with labels.
        answers: the potential's answers to them, in the same order.
        errors: `metrics.errors(frames, answers)`.
        validation: the row of the history whose weights are kept.
        config: the resolved options, shown as they are.
        summary: further sections, title -> content, in order. A mapping becomes a table of two
            columns, a list of mappings a table with their keys as columns, text a paragraph.

    Returns:
        The path of report.html.
    """
    folder = Path(run_dir)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    figures = _Figures(folder / "plots")
    tiles = _tiles(errors, validation, history)
    body = [
        f"<header><h1>{escape(folder.resolve().name)}</h1>{tiles}</header>",
        _test_section(figures, frames, answers, errors),
        _history_section(figures, history),
        *(
            page.section(page.heading(title), page.values(content))
            for title, content in summary.items()
        ),
        page.section("Versions", page.values(_versions())),
        page.section("Configuration", page.folded("All options", _options(config))),
    ]
    path = folder / "report.html"
    with replacing(path) as partial:
        partial.write_text(page.page(folder.resolve().name, "\n".join(body)), encoding="utf-8")
    return path


class _Figures:
    """Draws each figure twice: light into a PNG file, light and dark into the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, caption: str, draw: Callable[[], Figure | None]) -> str:
        """HTML of one figure, also written to `<folder>/<name>.png`; empty if there is none."""
        images = {}
        for theme in ("light", "dark"):
            with plots.style(theme):
                figure = draw()
                if figure is None:
                    return ""
                buffer = io.BytesIO()
                figure.savefig(buffer, format="png")
            images[theme] = buffer.getvalue()
        (self.folder / f"{name}.png").write_bytes(images["light"])
        width, height = (round(100 * inches) for inches in figure.get_size_inches())
        return (
            "<figure><picture>"
            f'<source media="(prefers-color-scheme: dark)" srcset="{_inline(images["dark"])}">'
            f'<img src="{_inline(images["light"])}" width="{width}" height="{height}" '
            f'alt="{escape(caption)}"></picture><figcaption>{escape(caption)}</figcaption></figure>'
        )


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _tiles(
    errors: dict[str, Any], validation: Mapping[str, Any], history: Sequence[dict[str, Any]]
) -> str:
    """The few numbers one looks for first."""
    tiles = []
    where = "test"
    if not errors["num_structures"]:
        errors, where = {**errors, **validation}, "validation"
    for quantity in ("forces", "energy_per_atom", "stress"):
        if f"{quantity}_mae" in errors:
            words, unit = metrics.QUANTITIES[quantity]
            value = number(errors[f"{quantity}_mae"])
            tiles.append((f"{value} {unit}", f"{words}, {where} MAE"))
    if errors["num_structures"]:
        tiles.append((f"{errors['num_structures']:,}", "test structures"))
    if history:
        tiles.append((f"{history[-1]['epoch']:,}", "epochs"))
        if isinstance(history[-1].get("wall_s"), (int, float)):
            tiles.append((_duration(history[-1]["wall_s"]), "training time"))
    cells = (
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(words)}</span></div>'
        for value, words in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _test_section(
    figures: _Figures, frames: Sequence[Frame], answers: Sequence[Answer], errors: dict[str, Any]
) -> str:
    """Everything about the test set: errors, parity, elements, worst structures."""
    if not frames:
        return page.section("Test errors", "<p>This run had no test structures.</p>")
    parts = [
        page.section("Test errors", _error_table(errors, metrics.errors(frames, naive(frames)))),
        page.section(
            "Predicted against label",
            figures(
                "energy",
                "Energy per atom of the test structures, without what their composition explains. "
                "The outermost bins also count the errors beyond them.",
                lambda: plots.energy_parity(frames, answers),
            )
            + figures(
                "forces",
                "Force components of the test structures by element.",
                lambda: plots.force_parity(frames, answers),
            )
            + figures(
                "stress",
                "Stress components of the periodic test structures.",
                lambda: plots.stress_parity(frames, answers),
            ),
        ),
    ]
    by_element = metrics.force_errors_by_element(frames, answers)
    if by_element:
        rows = [
            {
                "element": symbol(z),
                "atoms": f"{found['num_atoms']:,}",
                "forces MAE, meV/Å": number(found["forces_mae"]),
                "forces RMSE, meV/Å": number(found["forces_rmse"]),
            }
            for z, found in by_element.items()
        ]
        parts.append(page.section("Errors by element", page.values(rows)))
    parts.append(page.section("Structures with the largest errors", _worst(frames, answers)))
    return "\n".join(part for part in parts if part)


def _error_table(errors: dict[str, Any], reference: dict[str, Any]) -> str:
    """The errors per config_type with those of the naive predictor beside them."""
    head = ("config_type", "structures", "", "MAE", "RMSE", "naive MAE", "naive RMSE", "unit")
    css = ("", "n", "", "n", "n", "n faint", "n faint", "")
    lines = []
    for (name, group), (_, base) in zip(metrics.rows(errors), metrics.rows(reference), strict=True):
        first = [name, f"{group['num_structures']:,}"]
        for quantity, (words, unit) in metrics.QUANTITIES.items():
            if f"{quantity}_mae" not in group:
                continue
            values = [
                number(source.get(f"{quantity}_{kind}"))
                for source in (group, base)
                for kind in ("mae", "rmse")
            ]
            lines.append(page.row([*first, words, *values, unit], css, block=bool(first[0])))
            first = ["", ""]
    note = (
        '<p class="soft">The naive predictor gives every structure the energy that its composition '
        "explains (least squares on these structures), no forces and the mean stress: the level "
        "to compare with.</p>"
    )
    return page.table(head, css, lines) + note


def _worst(frames: Sequence[Frame], answers: Sequence[Answer]) -> str:
    """The structures that deserve a look, by force error (by energy where there are no forces)."""
    rows = metrics.frame_errors(frames, answers)
    key = "forces_rmse" if any("forces_rmse" in row for row in rows) else "energy_per_atom"
    rows = sorted((row for row in rows if key in row), key=lambda row: -abs(row[key]))[:WORST]
    places = {
        "file": "file",
        "index": "frame",
        "config_type": "config_type",
        "num_atoms": "atoms",
    }
    words = {
        **places,
        "energy_per_atom": "energy error, meV per atom",
        "forces_rmse": "forces RMSE, meV/Å",
        "forces_max": "largest component, meV/Å",
    }
    if not rows:
        return ""
    files = {frame.file for frame in frames}
    where = f"Frames of {next(iter(files))} count" if len(files) == 1 else "Frames count"
    if len(files) == 1:
        del words["file"]
    note = f'<p class="soft">{escape(where)} from 0.</p>'
    for row in rows:
        row.update({name: number(row.get(name)) for name in words if name not in places})
    return page.values([{title: row[name] for name, title in words.items()} for row in rows]) + note


def _history_section(figures: _Figures, history: Sequence[dict[str, Any]]) -> str:
    if not history:
        return ""
    caption = "Errors are those of the validation set; a dotted line marks a new stage."
    drawn = figures("learning_curves", caption, lambda: plots.learning_curves(history))
    last = page.folded("Last epoch in numbers", page.values(dict(history[-1])))
    return page.section("Training", drawn + last)


def label_table(report: LabelReport) -> list[dict[str, Any]]:
    """Where the labels came from, as a section of the summary."""
    return [
        {
            "label": row.label,
            "key": row.key,
            "source": row.source,
            "structures": row.count,
            "lowest": row.minimum,
            "highest": row.maximum,
            "unit": row.unit,
        }
        for row in report.rows
    ]


def _versions() -> dict[str, str]:
    """What ran, and on what."""
    import jax

    names = ("eqnet", "jax", "jaxlib", "flax", "optax", "e3nn-jax", "numpy", "ase")
    device = jax.devices()[0]
    return {name: version(name) for name in names} | {
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": f"{device.platform} ({device.device_kind})",
    }


def _options(config: Mapping[str, Any]) -> str:
    """The options, spelt as on the command line."""
    css = ("key", "")
    return page.table((), css, [page.row([k, page.text(v)], css) for k, v in _flat(config).items()])


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options under dotted names."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            result.update(_flat(value, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = value
    return result


def _duration(seconds: float) -> str:
    """Seconds as people say them: 48 s, 5 min 12 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
