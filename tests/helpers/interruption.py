"""A model that fails in the middle of a relaxation or a band."""

from __future__ import annotations

import pytest

from eqnet.answers import Answers


def interrupt(monkeypatch: pytest.MonkeyPatch, error: BaseException, call: int) -> None:
    """Let a call of the model, counted from 1, end with an error."""
    calculate, calls = Answers._run, []

    def stop(self, graph, sizes):
        calls.append(sizes)
        if len(calls) == call:
            raise error
        return calculate(self, graph, sizes)

    monkeypatch.setattr(Answers, "_run", stop)
