"""What users see of warnings."""

from __future__ import annotations

import types
import warnings

import pytest

from eqnet.errors import OutOfDomain
from eqnet.scripts import run


def test_a_strange_structure_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: list[str]) -> None:
        warnings.warn("atom 0 is strange", OutOfDomain, stacklevel=1)

    module = types.SimpleNamespace(main=main)
    monkeypatch.setattr("eqnet.scripts.import_module", lambda name: module)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("relax", []) == 0
    assert capsys.readouterr().err == "eqnet: warning: atom 0 is strange\n"
