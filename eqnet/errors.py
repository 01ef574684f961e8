"""The one exception meant for a person who uses eqnet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """A mistake in a file, an option or a call; the message is a sentence that says what to do."""


class Forked(InputError):
    """The process is a fork of one that had computed, whose threads it lacks."""


def reason(error: BaseException) -> str:
    """What a library says is wrong, in at most 200 characters: it may quote a whole file."""
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the system inside carry the name of a file, which those of writing lack."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


class OutOfDomain(UserWarning):
    """A structure is unlike those that a model was trained on."""
