"""The table of errors of the CP product: what is printed is what is written, and known values."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from eqnet.scripts import run


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table.csv"
    options = ["--l_max", "1", "--paths", "even", "--starts", "3", "--csv", str(path)]
    assert run("cp_table", options) == 0
    five, six = csv.DictReader(path.read_text().splitlines())
    assert [row["rank"] for row in (five, six)] == ["5", "6"]
    assert five["paths"] == "4"
    assert float(five["error"]) == pytest.approx(0.2587, rel=1e-3)
    assert float(five["measured"]) == pytest.approx(float(five["predicted"]), rel=0.05)
    assert all(float(six[name]) < 1e-13 for name in ("error", "predicted", "measured"))
    out = capsys.readouterr().out
    assert "2.6e-01" in out and "exact" in out


def test_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cp_table", ["--l_max", "5"]) == 2
    assert "--l_max must be degrees from 1 to 4, not 5" in capsys.readouterr().err
    assert run("cp_table", ["--starts", "0"]) == 2
    assert "--starts must be greater than 0, not 0" in capsys.readouterr().err
