"""The report of a run: plots as PNG files and one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from eqnet import metrics, plots
from eqnet.data.elements import symbol
from eqnet.evaluation import naive
from eqnet.metrics import number

if TYPE_CHECKING:
    from eqnet.data.read import Frame, LabelReport
    from eqnet.evaluation import Answer

WORST = 10  # structures in the table of the largest errors

CSS = """
:root { color-scheme: light dark; --ink: #24292f; --soft: #59636e; --line: #d8dce1;
  --paper: #ffffff; --card: #f5f7f9; --accent: #4477aa; }
@media (prefers-color-scheme: dark) { :root { --ink: #d6dbe1; --soft: #98a1ab; --line: #3a414a;
  --paper: #161a1f; --card: #1f252c; --accent: #7fb0e0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .7rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
p { margin: .4rem 0; } .soft, figcaption { color: var(--soft); font-size: .88rem; }
.tiles { display: grid; gap: .7rem; margin: 1.4rem 0 0;
  grid-template-columns: repeat(auto-fit, minmax(8.2rem, 1fr)); }
.tile { background: var(--card); border-radius: 8px; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.2rem; line-height: 1.3; white-space: nowrap; }
.tile span { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .28rem .9rem .28rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; border-bottom: 1px solid var(--line); vertical-align: bottom; }
tr.block td { border-top: 1px solid var(--line); }
td.n, th.n { text-align: right; } td.n { white-space: nowrap; }
td.faint, th.faint { color: var(--soft); }
td.key { color: var(--soft); white-space: nowrap; } td.text { min-width: 6rem; }
td.text, td:not([class]) { overflow-wrap: anywhere; }
figure { margin: 0 0 1.2rem; } figure img { max-width: 100%; height: auto; display: block; }
details summary { cursor: pointer; color: var(--accent); margin: .6rem 0; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
"""


def write_report(
    run_dir: str | Path,
    *,
    history: Sequence[dict[str, Any]],
    frames: Sequence[Frame],
    answers: Sequence[Answer],
    errors: dict[str, Any],
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
        config: the resolved options, shown as they are.
        summary: further sections, title -> content, in order. A mapping becomes a table of two
            columns, a list of mappings a table with their keys as columns, text a paragraph.

    Returns:
        The path of report.html.
    """
    folder = Path(run_dir)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    figures = _Figures(folder / "plots")
    body = [
        f"<header><h1>{escape(folder.resolve().name)}</h1>{_tiles(errors, history)}</header>",
        _test_section(figures, frames, answers, errors),
        _history_section(figures, history),
        *(_section(_title(title), _content(content)) for title, content in summary.items()),
        _section("Configuration", _folded("All options", _content(_flat(config)))),
    ]
    path = folder / "report.html"
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(_page(folder.resolve().name, "\n".join(body)), encoding="utf-8")
    partial.replace(path)
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


def _tiles(errors: dict[str, Any], history: Sequence[dict[str, Any]]) -> str:
    """The few numbers one looks for first."""
    tiles = []
    where = "test"
    if not errors["num_structures"] and history:
        errors, where = {**errors, **history[-1]}, "validation"
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
        return _section("Test errors", "<p>This run had no test structures.</p>")
    parts = [
        _section("Test errors", _error_table(errors, metrics.errors(frames, naive(frames)))),
        _section(
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
        parts.append(_section("Errors by element", _content(rows)))
    parts.append(_section("Structures with the largest errors", _worst(frames, answers)))
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
            lines.append(_row([*first, words, *values, unit], css, block=bool(first[0])))
            first = ["", ""]
    note = (
        '<p class="soft">The naive predictor gives every structure the energy that its composition '
        "explains (least squares on these structures), no forces and the mean stress: the level "
        "to compare with.</p>"
    )
    return _table(head, css, lines) + note


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
    return _content([{title: row[name] for name, title in words.items()} for row in rows]) + note


def _history_section(figures: _Figures, history: Sequence[dict[str, Any]]) -> str:
    if not history:
        return ""
    caption = "Errors are those of the validation set; a dotted line marks a new stage."
    drawn = figures("learning_curves", caption, lambda: plots.learning_curves(history))
    last = _folded("Last epoch in numbers", _content(dict(history[-1])))
    return _section("Training", drawn + last)


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


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>" if content else ""


def _content(content: Any) -> str:
    """A value of the summary as HTML: mapping, list of mappings, list, or text."""
    if isinstance(content, Mapping):
        css = ("key", "")
        return _table(
            (), css, [_row([str(key), _text(value)], css) for key, value in content.items()]
        )
    if isinstance(content, Sequence) and content and isinstance(content[0], Mapping):
        head = list(dict.fromkeys(key for row in content for key in row))
        css = ["n" if all(_numeric(row.get(key)) for row in content) else "text" for key in head]
        lines = [_row([_text(row.get(key)) for key in head], css) for row in content]
        return _table(head, css, lines)
    return f"<p>{escape(_text(content))}</p>" if content not in (None, "", [], ()) else ""


def _numeric(value: Any) -> bool:
    """Whether a cell belongs on the right: a number, or one that is formatted already."""
    if isinstance(value, str):
        return value.replace(",", "").replace("–", "0").removeprefix("-").replace(".", "").isdigit()
    return value is None or isinstance(value, (int, float))


def _table(head: Sequence[str], css: Sequence[str], lines: Sequence[str]) -> str:
    """An HTML table; empty if it has no lines."""
    if not lines:
        return ""
    titles = "".join(
        f'<th class="{style}">{escape(str(title))}</th>'
        for title, style in zip(head, css, strict=False)
    )
    top = f"<thead><tr>{titles}</tr></thead>" if head else ""
    return f'<div class="scroll"><table>{top}<tbody>{"".join(lines)}</tbody></table></div>'


def _row(values: Sequence[str], css: Sequence[str], block: bool = False) -> str:
    cells = (f'<td class="{style}">{escape(v)}</td>' for v, style in zip(values, css, strict=True))
    return f"<tr{' class=block' if block else ''}>{''.join(cells)}</tr>"


def _text(value: Any) -> str:
    """A value for people; numbers keep the digits that mean something."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple, set)):
        return ", ".join(_text(item) for item in value)
    return str(value)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options under dotted names."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            result.update(_flat(value, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = value
    return result


def _title(key: str) -> str:
    words = str(key).replace("_", " ")
    return words[:1].upper() + words[1:]


def _duration(seconds: float) -> str:
    """Seconds as people say them: 48 s, 5 min 12 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} – eqnet</title><style>{CSS}</style></head><body><main>\n"
        f"{body}\n<footer>Written by eqnet. Energies in eV, lengths in Å.</footer>"
        "</main></body></html>\n"
    )
