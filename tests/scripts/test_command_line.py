"""The command line: every mistake is one sentence and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from eqnet.errors import InputError
from eqnet.scripts import main
from eqnet.scripts.command_line import from_file, parse


@dataclass(frozen=True)
class Inner:
    """A group."""

    r_max: float | None = None
    """Cutoff."""
    widths: tuple[int, ...] | None = None
    """Widths."""
    parity: bool | None = None
    """Parity."""


@dataclass(frozen=True)
class Outer:
    """A command."""

    inner: Inner = field(default_factory=Inner)
    ema: bool = True
    """Average."""
    seed: int = 0
    """Seed."""
    kind: Literal["adam", "muon"] = "adam"
    """Kind."""
    name: str = "x"
    """Name."""


def test_dashes_underscores_and_switches() -> None:
    found = parse(Outer, ["--r-max", "4", "--no-ema", "--widths", "8", "8"], command="test")
    assert found == Outer(Inner(4.0, (8, 8)), ema=False)
    found = parse(Outer, ["--r_max=4", "--ema", "--no_parity", "--seed", "-1"], command="test")
    assert found == Outer(Inner(4.0, None, False), seed=-1)
    default = Outer(Inner(3.0), seed=5)
    assert parse(Outer, ["--seed", "6"], command="test", default=default).inner.r_max == 3.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rmax", "4"], "unknown option --rmax; did you mean --r_max?"),
        (["--frobnicate"], "unknown option --frobnicate; see eqnet test --help"),
        (["--seed", "abc"], "error parsing --seed: .*'abc'"),
        (["--seed"], "missing value for argument '--seed'"),
        (["--ema", "False"], "--ema takes no value, not 'False': write --ema or --no_ema"),
        (["--ema=true"], "--ema takes no value"),
        (["--no_parity", "yes"], "write --parity or --no_parity"),
        (["--kind", "sgd"], "invalid choice 'sgd' for argument '--kind'"),
        (["stray"], "stray"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        parse(Outer, words, command="test")
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_mistakes_on_a_terminal(encoding: str) -> None:
    import pty

    ours, theirs = pty.openpty()
    code = "from eqnet.scripts import main; main(['md', 'm', 's', '--ensemble', 'nph'])"
    with os.fdopen(ours, "rb", buffering=0) as screen:
        environment = os.environ | {"PYTHONIOENCODING": encoding, "TERM": "xterm-256color"}
        command = [sys.executable, "-c", code]
        subprocess.run(command, stdout=theirs, stderr=theirs, env=environment, timeout=60)
        os.close(theirs)
        text = screen.read(4096).decode().strip()
    assert text == (
        "eqnet: error: invalid choice 'nph' for argument '--ensemble'. Expected one of ('nve', "
        "'langevin', 'bussi', 'nose_hoover', 'npt'). (see eqnet md --help)"
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_a_reader_that_has_seen_enough(words: list[str], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = f"import sys; from eqnet.scripts import main; sys.exit(main({words!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        timeout=60,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("r_max: 4", {"r_max": 4.0}),
        ("r_max: 1e-3", {"r_max": 1e-3}),  # text to YAML 1.1
        ("r-max: null", {"r_max": None}),
        ("widths: [8, 16]", {"widths": (8, 16)}),
        ("ema: false\nparity: true", {"ema": False, "parity": True}),
        ("name: 7", {"name": "7"}),
        ("kind: muon", {"kind": "muon"}),
    ],
)
def test_yaml(tmp_path: Path, text: str, expected: dict) -> None:
    (tmp_path / "c.yaml").write_text(text)
    found = from_file(Outer, tmp_path / "c.yaml")
    assert found == expected
    assert {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in expected.items()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rmax: 4", "c.yaml: unknown option rmax; did you mean r_max?"),
        (
            "inner:\n  r_max: 4",
            "c.yaml: unknown option inner; options stand alone, not in",
        ),
        ("seed: 1.5", "c.yaml: seed must be a whole number, not 1.5"),
        ("seed: true", "c.yaml: seed must be a whole number, not True"),
        ("seed: null", "seed must be a whole number, not None"),
        ("ema: 'False'", "ema must be true or false, not 'False'"),
        ("ema: 1", "ema must be true or false, not 1"),
        ("r_max: abc", "r_max must be a number, not 'abc'"),
        ("r_max: true", "r_max must be a number, not True"),
        ("widths: [1, a]", "widths must be a list of whole numbers"),
        ("kind: sgd", "kind must be one of adam, muon, not 'sgd'"),
        ("name: [1]", "name must be text"),
    ],
)
def test_yaml_mistakes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        from_file(Outer, tmp_path / "c.yaml")


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == (
        "eqnet: error: there is no command 'trian'; did you mean train?\n"
    )
    assert main(["--help"]) == 0
    assert "evaluate" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["train", "--rmax", "3"]])
def test_help_and_mistakes_need_no_jax(words: list[str]) -> None:
    code = (
        "import resource, sys\n"
        "from eqnet.scripts import main\n"
        f"try: main({words!r})\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'jax' not in sys.modules\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "assert used.ru_utime + used.ru_stime < 1.0, used\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
