"""Checks of what a file says, before anything is computed from it.

ASE's reader accepts much that is wrong: extra columns, doubled keys, unfinished files. The text of
an extended XYZ file is therefore looked through once, line by line, before ASE interprets it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eqnet.data.elements import symbol
from eqnet.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

_PAIR = re.compile(
    r"""([^\s=]+)\s*=\s*("(?:[^"\\]|\\.)*"|'[^']*'|\{[^}]*\}|\[[^\]]*\]|\S*)""", re.VERBOSE
)
_DELIMITED = re.compile(r"""\\.|"(?:[^"\\]|\\.)*"|'[^']*'|\{[^}]*\}|\[[^\]]*\]""")
_TRUTH = {"T", "F", "True", "False", "true", "false", "TRUE", "FALSE", "1", "0"}
_DEFAULT = ["species", "S", "1", "pos", "R", "3"]


@dataclass(frozen=True)
class Block:
    """The text of one frame of an extended XYZ file."""

    line: int  # number of its first line, from 1
    lines: list[str]
    columns: list[str]  # "name:type" of every column


def scan(lines: Iterable[str], file: str) -> Iterator[Block]:
    """Cut the lines of an XYZ file into frames, one at a time, refusing what is not well formed.

    Raises:
        InputError: naming file, frame and line.
    """
    source, last, index = _Lines(lines), None, 0
    while source.ahead is not None:
        if not source.ahead.strip():
            source.take()
            continue
        last = _block(source, index, last, file)
        yield last
        index += 1
    if last is None:
        raise InputError(f"{file}: 0 frames, the file is empty; give a file with structures")


class _Lines:
    """Lines of which the next one can be looked at."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._rest = iter(lines)
        self.number = 1  # of the line ahead
        self.ahead = next(self._rest, None)  # None at the end

    def take(self) -> str:
        line, self.ahead = self.ahead or "", next(self._rest, None)
        self.number += 1
        return line


def _block(lines: _Lines, index: int, last: Block | None, file: str) -> Block:
    where, start = f"{file}, frame {index}", lines.number
    text = [lines.take()]
    count = _count(text[0], start, index, last, where)
    while len(text) < 2 + count and lines.ahead is not None:
        text.append(lines.take())
    rows = text[2:]
    while rows and lines.ahead is None and not rows[-1].strip():
        rows.pop()
    if len(rows) < count:
        raise InputError(
            f"{where}: {count} atoms are announced in line {start}, but the file ends after "
            f"{len(rows)} of them; it is cut short or the count is wrong"
        )
    columns, exact = _columns(text[1], start + 1, where)
    for offset, row in enumerate(rows):
        found = len(row.split())
        if found != len(columns) if exact else found < len(columns):
            raise InputError(
                f"{where}, line {start + 2 + offset}: {found} columns, {len(columns)} are wanted"
                + (" by Properties" if exact else "")
                + f"; the line is {row.strip()[:60]!r}"
            )
    while lines.ahead is not None and lines.ahead.startswith("VEC"):  # cell vectors of ADF
        text.append(lines.take())
    return Block(start, text, columns)


def _count(line: str, number: int, index: int, last: Block | None, where: str) -> int:
    try:
        count = int(line)
    except ValueError:
        hint = "is this an XYZ file?"
        if last is not None:
            hint = f"does frame {index - 1} announce too few atoms in line {last.line}?"
        raise InputError(
            f"{where}, line {number}: the number of atoms is wanted, found "
            f"{line.strip()[:60]!r}; {hint}"
        ) from None
    if count < 1:
        raise InputError(
            f"{where}, line {number}: {count} atoms, 1 or more are wanted; remove this frame"
        )
    return count


def _columns(comment: str, number: int, where: str) -> tuple[list[str], bool]:
    """The columns that the comment line announces, and whether a row must have exactly these."""
    where = f"{where}, line {number}"
    pairs = _PAIR.findall(comment)
    values = dict(pairs)
    extended = "Properties" in values or "Lattice" in values
    if extended:
        if '"' in _DELIMITED.sub("", comment):
            raise InputError(f"{where}: a quotation mark is not closed; correct the line")
        doubled = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
        if doubled:
            raise InputError(
                f"{where}: the key {doubled[0]} stands there twice; remove one of them"
            )
        _check_pbc(values.get("pbc"), where)
    fields = values.get("Properties", "").strip("\"'").split(":") if extended else []
    fields = fields if fields != [""] else []
    well_formed = len(fields) % 3 == 0 and all(
        kind in ("R", "I", "S", "L") and width.isdecimal() and 0 < int(width[:9]) < 10_000
        for kind, width in zip(fields[1::3], fields[2::3], strict=False)
    )
    if not well_formed:
        raise InputError(
            f"{where}: Properties={':'.join(fields)[:60]} is not a list of name:type:columns "
            "with types R, I, S, L"
        )
    exact = bool(fields)
    fields = fields or _DEFAULT
    triples = zip(fields[::3], fields[1::3], fields[2::3], strict=True)
    return [f"{name}:{kind}" for name, kind, width in triples for _ in range(int(width))], exact


def _check_pbc(value: str | None, where: str) -> None:
    if value is None:
        return
    words = value.strip("\"'{}[]").replace(",", " ").split()
    if len(words) not in (1, 3) or not set(words) <= _TRUTH:
        raise InputError(f"{where}: pbc={value} is not understood, three of T and F are wanted")


def explain(block: Block) -> str | None:
    """Find the entry of a frame that cannot be read, after ASE failed on it."""
    from ase.data import atomic_numbers

    rows = block.lines[2 : 2 + int(block.lines[0])]
    for offset, row in enumerate(rows):
        for column, (name, word) in enumerate(zip(block.columns, row.split(), strict=False)):
            here = f"line {block.line + 2 + offset}, column {column + 1}"
            if name == "species:S" and word.capitalize() not in atomic_numbers:
                return f"{here}: {word!r} is not the symbol of an element"
            try:
                {"R": float, "I": int}.get(name[-1], str)(word)
            except ValueError:
                return f"{here} ({name.split(':')[0]}): {word!r} is not a number"
    return None


def check_structure(atoms: Atoms, where: str) -> None:
    """Refuse atoms, positions and cells that no potential can be computed for.

    Raises:
        InputError: naming the frame (`where`) and what is wrong.
    """
    if len(atoms) == 0:
        raise InputError(f"{where}: the frame has no atoms; remove it")
    if not ((atoms.numbers >= 1) & (atoms.numbers <= 118)).all():
        bad = int(np.argmax((atoms.numbers < 1) | (atoms.numbers > 118)))
        name = "X" if atoms.numbers[bad] == 0 else symbol(int(atoms.numbers[bad]))
        raise InputError(f"{where}: atom {bad} is {name}, which is not an element; remove it")
    for name, array in (("the position of atom", atoms.positions), ("cell vector", atoms.cell)):
        bad = np.argwhere(~np.isfinite(np.asarray(array)))
        if len(bad):
            raise InputError(f"{where}: {name} {bad[0][0]} is not finite; correct or remove it")
    check_cell(np.asarray(atoms.cell), np.asarray(atoms.pbc), where)


def check_cell(cell: np.ndarray, pbc: np.ndarray, where: str) -> None:
    """Refuse periodic directions whose cell vectors are zero or linearly dependent."""
    vectors = cell[pbc]
    lengths = np.linalg.norm(vectors, axis=1)
    axes = np.flatnonzero(pbc)
    if (lengths < 1e-6).any():
        axis = int(axes[np.argmin(lengths)])
        raise InputError(
            f"{where}: periodic along axis {axis}, but cell vector {axis} is zero; "
            "give the cell or switch pbc off along it"
        )
    if len(vectors) and np.linalg.svd(vectors / lengths[:, None], compute_uv=False)[-1] < 1e-6:
        names = ", ".join(map(str, axes))
        raise InputError(
            f"{where}: the cell vectors of the periodic axes {names} are linearly dependent; "
            "correct the cell"
        )
