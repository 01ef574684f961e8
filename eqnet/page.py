"""Pieces of an HTML page that needs nothing but itself: style, sections, tables, values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

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


def section(heading: str, body: str) -> str:
    """A part of the page under a heading; nothing if its body is empty."""
    return f"<section><h2>{escape(heading)}</h2>{body}</section>" if body else ""


def folded(heading: str, body: str) -> str:
    """A part that opens on a click."""
    return f"<details><summary>{escape(heading)}</summary>{body}</details>" if body else ""


def values(content: Any) -> str:
    """Plain values: a mapping or a list of mappings as a table, anything else as a paragraph."""
    if isinstance(content, Mapping):
        css = ("key", "")
        return table((), css, [row([words(k), text(v)], css) for k, v in content.items()])
    if isinstance(content, Sequence) and content and isinstance(content[0], Mapping):
        head = list(dict.fromkeys(key for entry in content for key in entry))
        numeric = {key: all(_numeric(entry.get(key)) for entry in content) for key in head}
        css = ["n" if numeric[key] else "text" for key in head]
        return table(head, css, [row([text(e.get(key)) for key in head], css) for e in content])
    return f"<p>{escape(text(content))}</p>" if content not in (None, "", [], ()) else ""


def _numeric(value: Any) -> bool:
    """Whether a cell belongs on the right: a number, or one that is formatted already."""
    if isinstance(value, str):
        return value.replace(",", "").replace("–", "0").removeprefix("-").replace(".", "").isdigit()
    return value is None or isinstance(value, (int, float))


def table(head: Sequence[str], css: Sequence[str], rows: Sequence[str]) -> str:
    """A table of rows made by `row`, with a class per column; nothing without rows."""
    if not rows:
        return ""
    cells = (
        f'<th class="{style}">{escape(str(title))}</th>'
        for title, style in zip(head, css, strict=False)
    )
    top = f"<thead><tr>{''.join(cells)}</tr></thead>" if head else ""
    return f'<div class="scroll"><table>{top}<tbody>{"".join(rows)}</tbody></table></div>'


def row(cells: Sequence[str], css: Sequence[str], *, block: bool = False) -> str:
    """A row of a table; `block` draws a line above it."""
    inside = (f'<td class="{style}">{escape(v)}</td>' for v, style in zip(cells, css, strict=True))
    return f"<tr{' class=block' if block else ''}>{''.join(inside)}</tr>"


def text(value: Any) -> str:
    """A value for people; numbers keep the digits that mean something."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple, set)):
        return ", ".join(text(item) for item in value)
    return str(value)


def heading(key: str) -> str:
    """A key as a heading: 'atomic_energies' is 'Atomic energies'."""
    spelt = words(key)
    return spelt[:1].upper() + spelt[1:]


def words(key: Any) -> str:
    """A key in words."""
    return str(key).replace("_", " ")


def page(title: str, body: str) -> str:
    """The whole page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} – eqnet</title><style>{CSS}</style></head><body><main>\n"
        f"{body}\n<footer>Written by eqnet. Energies in eV, lengths in Å.</footer>"
        "</main></body></html>\n"
    )
