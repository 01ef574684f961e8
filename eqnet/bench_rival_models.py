"""Models of other libraries, each in a process of an environment of its own, beside ours.

The programs of those processes are in `eqnet/rivals`; `turns.py` there says what is written to them
and what they answer. Between two calls such a process waits for its input, so that contestants in
turn never run at the same time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from eqnet.bench_machine import cores
from eqnet.bench_model import Case, Work, labelled
from eqnet.bench_rival_configs import reasons_against, settings
from eqnet.data.frame import Frame
from eqnet.errors import InputError
from eqnet.ops.timing import Clock

# The program of each library, as a module of the folder.
PROGRAMS = {
    "mace-torch": "rival_mace_torch",
    "mlip": "rival_mlip",
    "fairchem-core": "rival_fairchem",
}
FOLDER = Path(__file__).parent / "rivals"


def interpreters(text: str | None, case: Case) -> dict[str, str]:
    """The rivals of 'mace-torch=PYTHON,mlip=PYTHON' and their interpreters.

    Args:
        text: of the option; None for no rivals.
        case: what they are compared with, the first of the table.

    Raises:
        InputError: a name or an interpreter is not there, or the library has no such model.
    """
    found = {}
    for part in [] if text is None else text.split(","):
        name, _, python = (word.strip() for word in part.partition("="))
        if name not in PROGRAMS:
            raise InputError(f"--rivals: there is no {name!r}; there is {', '.join(PROGRAMS)}")
        path = shutil.which(os.path.expanduser(python))
        if path is None:
            raise InputError(
                f"--rivals {name}={python}: there is no such interpreter; write {name}=PYTHON "
                f"with the path of python in an environment that has {name}"
            )
        if name in found:
            raise InputError(f"--rivals names {name} twice: leave one of them out")
        found[name] = path
        for wrong, reason in reasons_against(name, case):
            if wrong:
                raise InputError(f"--rivals {name}: {reason}")
    return found


def task(case: Case, work: Work) -> dict[str, Any]:
    """What a rival is to compute, in plain values."""
    return {
        "structure": _plain(work.frame),
        "batch": [_plain(frame) for frame in work.batch],
        "model": case.model,
        "config": settings(case),
        "dtype": work.dtype,
        "platform": jax.default_backend(),
        "threads": cores(),
    }


def _plain(frame: Frame) -> dict[str, Any]:
    frame = labelled(frame)
    assert frame.forces is not None
    return {
        "numbers": frame.numbers.tolist(),
        "positions": frame.positions.tolist(),
        "cell": frame.cell.tolist(),
        "pbc": frame.pbc.tolist(),
        "energy": frame.energy,
        "forces": frame.forces.tolist(),
    }


class Rival:
    """A library in its process, ready for calls.

    Attributes:
        name: of the library.
        versions: of it and of what it rests on, in words.
        facts: atoms, edges, parameters and the CPU seconds of its start, by the keys of the table.

    Raises:
        InputError: it cannot be started, or ends before it answers.
    """

    def __init__(self, name: str, python: str, task: Mapping[str, Any]):
        self.name, self.python = name, python
        self.errors = tempfile.TemporaryFile()
        command = [python, str(FOLDER / "turns.py"), PROGRAMS[name]]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                text=True,
                env=_environment(task),
            )
        except OSError as error:
            self.errors.close()
            raise self._wrong(f"{python} cannot be run ({error.strerror})") from None
        try:
            self.facts = self._ask(json.dumps(task))
            versions = self.facts.pop("versions")
        except BaseException:
            self.close()
            raise
        self.compile_cpu = self.facts.pop("train_compile_cpu_s", 0.0)
        self.versions = ", ".join(f"{package} {number}" for package, number in versions.items())

    def forces(self) -> Clock:
        """One energy and forces of the structure."""
        return Clock(**self._ask("forces"))

    def train(self) -> Clock:
        """One step of training."""
        return Clock(**self._ask("train"))

    def peak_rss(self) -> int:
        """Most memory that its process has had, in bytes."""
        return self._ask("end")["peak_rss_bytes"]

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def _ask(self, line: str) -> dict[str, Any]:
        """Write a line and read the answer to it."""
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        try:
            print(line, file=process.stdin, flush=True)
            text = process.stdout.readline()
        except BrokenPipeError:
            text = ""
        if not text:
            raise self._wrong(self._why_it_ended())
        try:
            answer = json.loads(text)
        except json.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise self._wrong(
                f"it wrote {text.strip()[:60]!r} where an answer should be: {self.python} must "
                "print nothing by itself"
            )
        return answer

    def _why_it_ended(self) -> str:
        """The signal that killed the process, or the error that ended it."""
        code = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        named = [line for line in lines if re.match(r"[A-Za-z_][\w.]*: ", line)]
        last = (named or lines or ["it named no error"])[-1]
        if code < 0:
            return f"it was killed by signal {-code} ({signal.strsignal(-code)})"
        if last.startswith("ModuleNotFoundError"):
            package = last.split("'")[1]
            return f"{self.python} has no package {package}: install {self.name} there"
        return f"it ended with code {code}: {last}"

    def _wrong(self, reason: str) -> InputError:
        return InputError(f"--rivals {self.name}: {reason}")


def _environment(task: Mapping[str, Any]) -> dict[str, str]:
    """As many threads as ours and the same kind of device; the cores are inherited anyway."""
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = dict(os.environ) | dict.fromkeys(threads, str(task["threads"]))
    environment["OMP_WAIT_POLICY"] = "PASSIVE"  # idle threads must not spin in the turns of others
    if task["platform"] == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
    return environment


@contextmanager
def started(interpreters: Mapping[str, str], case: Case, work: Work) -> Iterator[Sequence[Rival]]:
    """The rivals, ready for calls; their processes end with the context.

    Args:
        interpreters: of each library by name, from `interpreters`.
        case: whose configuration they get.
        work: what they compute.

    Raises:
        InputError: one of them cannot be started.
    """
    rivals: list[Rival] = []
    try:
        for name, python in interpreters.items():
            rivals.append(Rival(name, python, task(case, work)))
        yield rivals
    finally:
        for rival in rivals:
            rival.close()
