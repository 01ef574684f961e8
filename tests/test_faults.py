"""`faults.md` says what happens when something is wrong; every line of it names its proof."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
ROW = re.compile(r"\| (\d+) \|(.*)\|(.*)\|(.*)\|")
NAME = re.compile(r"`([\w/]+\.py)::(\w+)`")


def rows() -> list[tuple[int, str]]:
    """Number and last column of every line of the tables."""
    lines = (TESTS / "faults.md").read_text(encoding="utf-8").splitlines()
    found = [ROW.fullmatch(line.strip()) for line in lines]
    return [(int(row[1]), row[4]) for row in found if row is not None]


def test_every_fault_is_there_once() -> None:
    assert [number for number, _ in rows()] == list(range(1, 79))


def test_the_tests_exist() -> None:
    for number, proof in rows():
        names = NAME.findall(proof)
        assert names or "no test yet" in proof, f"fault {number} names no test"
        assert proof.count("::") == len(names), f"fault {number}: {proof}"
        for file, name in names:
            text = (TESTS / file).read_text(encoding="utf-8")
            assert re.search(rf"^ *def {name}\(", text, re.MULTILINE), f"{number}: {file}::{name}"
