"""Damaged files by the thousand: readers answer or refuse in a sentence, whatever comes.

    python -m eqnet.scripts.fuzz reader --minutes 30
    python -m eqnet.scripts.fuzz model --minutes 30

Valid files are damaged at random: bits, cuts, doubled pieces, swapped lines, and words that hurt
(NaN, 1e999, huge counts, open quotes). Each result must be an answer or an `InputError`, within ten
seconds and 2 GB more than at the start. Anything else is kept as a file and ends the run with exit
code 1.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from eqnet import archive
from eqnet.errors import InputError

# What one file may take: CPU seconds, as other programs may share the core, and seconds of waiting.
SECONDS, WAITING, BYTES = 10, 200, 2 * 2**30
WORDS = (
    b"NaN inf -inf 1e999 -1 0 99999999999999999999 1.0D-1 1,5 \" ' { } [ ] = : , \\ \0 \xff "
    b"\xef\xbb\xbf "
    b"Lattice= Properties= pbc= energy= forces:R:3 species:S:1 pos:R:3 stress= null true [] {} "
    b"1e308 Qq X H T F %s ../ \n \r\t"
).split(b" ")
# Whose labels have the keys of ASE's calculators, and keys of their own.
XYZ = (
    """3
Lattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.5 stress="0 0 0 0 0 0 0 0 0" pbc="T T T"
O 0.0 0.0 0.0 0.1 0.0 0.0
H 0.9 0.0 0.0 -0.1 0.0 0.0
H -0.3 0.9 0.0 0.0 0.0 0.0
1
energy=-0.5 config_type=IsolatedAtom
H 0 0 0
""",  # noqa: E501
    """2
Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy=-2.5 config_type='a b' pbc="F F F"
C 0 0 0 1e-3 0 0
O 1.1 0 0 -1e-3 0 0
1
REF_energy=-0.5 pbc="F F F"
H 0 0 0
""",
)


@dataclasses.dataclass(frozen=True)
class FuzzOptions:
    """Try damaged files on a reader."""

    target: Annotated[Literal["reader", "model"], tyro.conf.Positional]
    """reader: of structures with labels; model: of model files."""
    minutes: float = 30.0
    """How long."""
    seed: int = 0
    """Of the damages."""
    keep: str = "fuzz_failures"
    """Folder for files that were not handled."""


class TooSlow(BaseException):  # a reader makes a refusal of any Exception
    """A file took longer than it may."""


def damage(data: bytes, rng: random.Random) -> bytes:
    """The same bytes with a wound or a few."""
    for _ in range(rng.choice((1, 1, 1, 1, 2, 5))):
        at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        end = min(end, at + rng.choice((1, 1, 4, 40, 4000)))
        kind = rng.randrange(6)
        if kind == 0 and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[end:]
        elif kind == 2:
            data = data[:end] + data[at:end] * rng.randint(1, 3) + data[end:]
        elif kind == 3:
            data = data[:at] + rng.choice(WORDS) + data[rng.choice((at, end)) :]
        elif kind == 4:
            data = data[:at]
        else:
            lines = data.split(b"\n")
            rng.shuffle(lines) if rng.random() < 0.2 else lines.insert(
                rng.randrange(len(lines)), rng.choice(lines)
            )
            data = b"\n".join(lines)
    return data


def read_structures(rng: random.Random, folder: Path) -> tuple[Path, Callable[[], object]]:
    """A damaged file of structures and what reads it: XYZ, also compressed, and files of ASE."""
    from eqnet.data.read import read

    kind = rng.choice(("xyz", "xyz", "xyz", "xyz.gz", "traj", "db"))
    path = folder / f"frames.{kind}"
    text = rng.choice(XYZ) * rng.randint(1, 3)
    if kind == "xyz":
        path.write_bytes(damage(text.encode(), rng))
    elif kind == "xyz.gz":
        within = rng.random() < 0.5
        data = gzip.compress(damage(text.encode(), rng) if within else text.encode(), mtime=0)
        path.write_bytes(data if within else damage(data, rng))
    else:
        path.write_bytes(damage(valid_file(folder / f"valid.{kind}").read_bytes(), rng))
    return path, lambda: read(path)


def valid_file(path: Path) -> Path:
    """A file of ASE with the structures of the first XYZ, made once."""
    import io

    import ase.io

    if not path.exists():
        ase.io.write(path, list(ase.io.iread(io.StringIO(XYZ[0]), format="extxyz")))
    return path


def model_file(folder: Path) -> Path:
    """A small valid model file."""
    import numpy as np
    from flax import nnx

    from eqnet.data.frame import Frame
    from eqnet.evaluation import evaluate
    from eqnet.model_file import save
    from eqnet.models import MACE, MACEConfig
    from eqnet.potential import Potential

    config = MACEConfig(
        (1, 8), 3.0, num_channels=2, max_L=0, max_ell=1, correlation=1, num_interactions=1
    )
    potential = Potential(
        MACE(config, rngs=nnx.Rngs(0)),
        elements=(1, 8),
        cutoff=3.0,
        atomic_energies=(-1.0, -2.0),
        scale=(1.0, 1.0),
        shift=(0.0, 0.0),
    )
    frames = [Frame(np.array([8, 1]), np.eye(2, 3), np.zeros((3, 3)), np.zeros(3, bool))]
    answers = evaluate(potential, frames, dtype="float64")
    path = folder / "valid.eqnet"
    examples = list(zip(frames, answers, strict=True))
    save(path, potential, model_name="mace", config=config, training={}, examples=examples)
    return path


def open_model(rng: random.Random, folder: Path) -> tuple[Path, Callable[[], object]]:
    """A damaged model file: the archive itself, or a member behind digests that fit."""
    import zipfile

    from eqnet import load

    valid, path = folder / "valid.eqnet", folder / "model.eqnet"
    if not valid.exists():
        model_file(folder)
    if rng.random() < 0.3:
        path.write_bytes(damage(valid.read_bytes(), rng))
        return path, lambda: load(path, verify=False)
    with zipfile.ZipFile(valid) as file:
        members = {name: file.read(name) for name in file.namelist() if name != archive.MANIFEST}
    name = rng.choice(sorted(members))
    members[name] = other_value(members[name], rng) if name != "weights.safetensors" else b""
    if name == "weights.safetensors" or rng.random() < 0.5:
        with zipfile.ZipFile(valid) as file:
            members[name] = damage(file.read(name), rng)
    archive.write(path, members)
    return path, lambda: load(path, verify=rng.random() < 0.02)


def other_value(data: bytes, rng: random.Random) -> bytes:
    """JSON with one of its values replaced by something else."""
    values: tuple[object, ...] = (
        None,
        True,
        -1,
        0,
        10**30,
        1e308,
        0.5,
        "",
        "x" * 999,
        [],
        {},
        [[]],
    )
    tree = json.loads(data)
    place, key = tree, rng.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
    while isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.8:
        place = place[key]
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
    place[key] = rng.choice(values)
    return json.dumps(tree).encode()


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0, or 1 when a file was not handled."""
    options = tyro.cli(FuzzOptions, args=argv)
    make = {"reader": read_structures, "model": open_model}[options.target]
    warnings.simplefilter("ignore")

    def too_slow(*_: object) -> None:
        raise TooSlow(f"more than {SECONDS} CPU seconds, or {WAITING} in all")

    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, too_slow)
    outcomes: Counter[str] = Counter()
    more = number = 0
    with tempfile.TemporaryDirectory() as name:
        make(random.Random(0), Path(name))  # what is made or loaded once does not count
        for first in range(20):
            attempt(make(random.Random(first), Path(name))[1])
        at_first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        end = time.monotonic() + 60 * options.minutes
        while time.monotonic() < end:
            path, act = make(random.Random(f"{options.seed} {number}"), Path(name))
            outcome, trouble = attempt(act)
            more = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - at_first)
            if not trouble and more > BYTES:
                trouble = f"{more / 2**30:.1f} GB of memory"
            outcomes[outcome] += 1
            if trouble:
                Path(options.keep).mkdir(exist_ok=True)
                kept = Path(options.keep) / f"{options.seed}-{number}{''.join(path.suffixes)}"
                kept.write_bytes(path.read_bytes())
                print(f"{kept}: {trouble}")
                return 1
            number += 1
    print(f"{options.target}: {number} files, {dict(outcomes)}, {more / 2**20:.0f} MB more memory")
    return 0


def attempt(act: Callable[[], object]) -> tuple[str, str]:
    """How it ended, and what is wrong with that."""
    signal.alarm(WAITING)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        act()
        return "answered", ""
    except InputError as error:
        sentence = str(error)
        return "refused", "" if sentence and len(sentence) < 2000 else f"no sentence: {sentence!r}"
    except KeyboardInterrupt:
        raise
    except BaseException:
        return "failed", traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    sys.exit(main())
