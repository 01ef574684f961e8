"""Files that try to run code, to write elsewhere or to exhaust memory, by name: 60 and more."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import safetensors.numpy

from eqnet import archive

SHELL = "touch pwned"


class Shell:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (SHELL,)


PICKLE = pickle.dumps(Shell())
YAML = {
    "apply": f"lr: !!python/object/apply:os.system ['{SHELL}']",
    "new": f"lr: !!python/object/new:os.system ['{SHELL}']",
    "name": "lr: !!python/name:os.system",
    "module": "lr: !!python/module:os",
    "object": "lr: !!python/object:subprocess.Popen {args: [touch, pwned]}",
    "tuple": "radial_MLP: !!python/tuple [1, 2]",
    "binary": "name: !!binary cHduZWQ=",
    "root": f"!!python/object/apply:os.system ['{SHELL}']",
    "laughs": "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip(
        "abcdefghijklmnopqrstuvwx", "bcdefghijklmnopqrstuvwxy", strict=True)),
    "itself": "lr: &a [*a]",
    "merge": "<<: &a {<<: *a}",
    "deep": "lr: " + "[" * 5000 + "]" * 5000,
    "path": "model: os.system",
    "import": "model: eqnet.models.mace.MACE",
    "expression": "lr: __import__('os').system('touch pwned')",
    "folder": "name: ../../pwned",
    "absolute": "name: /tmp/pwned",
    "product": "product: __import__('os')",
}  # fmt: skip
JSON_VALUES: dict[str, Any] = {
    "model": ["os.system", "eqnet.models.mace.MACE", {"__reduce__": SHELL}, "../../mace"],
    "config": [{"elements": [1], "r_max": "__import__('os')"}, {"elements": [10**9]}, [], {}],
    "potential": [{"elements": [1] * 10**5}, {"cutoff": 1e308}, {"scale": {"!": SHELL}}],
    "format": [10**30, "1", True, -1],
}


def members_of(valid: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(valid)) as file:
        return {name: file.read(name) for name in file.namelist() if name != archive.MANIFEST}


def zipped(members: list[tuple[zipfile.ZipInfo | str, bytes]], how: int = 0) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for name, data in members:
            file.writestr(name, data)
    return out.getvalue()


def models(valid: bytes, sealed: Callable[[dict[str, bytes]], bytes]) -> dict[str, bytes]:
    """Model files by name; `sealed` makes one with digests that fit."""
    members = members_of(valid)
    config = json.loads(members["config.json"])
    with zipfile.ZipFile(io.BytesIO(valid)) as file:
        whole: list[tuple[zipfile.ZipInfo | str, bytes]] = [
            (name, file.read(name)) for name in file.namelist()
        ]
    link = zipfile.ZipInfo("weights.safetensors")
    link.external_attr = 0o120777 << 16
    found = {
        "pickle": PICKLE,
        "torch": zipped([("archive/data.pkl", PICKLE), ("archive/version", b"3\n")]),
        "pickled weights": sealed({**members, "weights.safetensors": PICKLE}),
        "pickled examples": sealed({**members, "examples.json": PICKLE}),
        "pickled config": sealed({**members, "config.json": PICKLE}),
        "code beside": zipped([*whole, ("__init__.py", b"import os")]),
        "parent": zipped([*whole, ("../../pwned", b"x")]),
        "absolute": zipped([*whole, ("/tmp/pwned", b"x")]),
        "link": zipped([*whole[:1], (link, b"/etc/passwd"), *whole[2:]]),
        "twice": zipped([*whole, ("config.json", members["config.json"])]),
        "bomb": zipped([("config.json", b" " * 2**24), *whole[1:]], zipfile.ZIP_DEFLATED),
        "in front": PICKLE + valid,
        "behind": valid + PICKLE,
        "nothing": b"",
        "empty": zipped([]),
        "deep": sealed({**members, "config.json": b"[" * 10**5 + b"]" * 10**5}),
        "endless header": sealed({**members, "weights.safetensors": b"\xff" * 8 + b"{}"}),
    }
    weights = safetensors.numpy.load(members["weights.safetensors"])
    name, array = next(iter(weights.items()))
    for what, entry in {
        "huge": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, array.nbytes]},
        "negative": {"dtype": "F32", "shape": [-1], "data_offsets": [0, array.nbytes]},
        "beyond": {"dtype": "F32", "shape": list(array.shape), "data_offsets": [0, 2**50]},
        "object": {"dtype": "O", "shape": list(array.shape), "data_offsets": [0, array.nbytes]},
    }.items():
        head = json.dumps({name: entry}).encode()
        data = len(head).to_bytes(8, "little") + head + array.tobytes()
        found[f"{what} weights"] = sealed({**members, "weights.safetensors": data})
    for key, values in JSON_VALUES.items():
        for i, value in enumerate(values):
            changed = json.dumps(config | {key: value}).encode()
            found[f"{key} {i}"] = sealed({**members, "config.json": changed})
    for option in (name for name, value in config["config"].items() if type(value) is int):
        endless = json.dumps(config | {"config": config["config"] | {option: 10**30}}).encode()
        found[f"endless {option}"] = sealed({**members, "config.json": endless})
    examples = json.loads(members["examples.json"])
    examples[0] |= {"cell": [[0.0] * 3] * 3, "pbc": [0, 0, 1e308]}
    found["no cell vector"] = sealed({**members, "examples.json": json.dumps(examples).encode()})
    return found


def data() -> dict[str, bytes]:
    """Files of structures by name with their suffix."""
    xyz = b"1\nProperties=species:S:1:pos:R:3 energy=%s\nH 0 0 0\n"
    return {
        "pickle.xyz": PICKLE,
        "pickle.traj": PICKLE,
        "pickle.json": PICKLE,
        "pickle.pckl": PICKLE,
        "pickle.npy": PICKLE,
        "pickle.bundle": PICKLE,
        "code.xyz": xyz % b"__import__('os').system('touch_pwned')",
        "code.py": b"import os\nos.system('touch pwned')\n",
        "code.cif": b"data_x\n_cell_length_a __import__('os').system('touch pwned')\n",
        "object.json": json.dumps(
            {"1": {"__ase_objtype__": "os.system", "command": SHELL}, "ids": [1], "nextid": 2}
        ).encode(),
        "object.traj": b"- of UlmASE-Trajectory" + b"\0" * 200,
        "width.xyz": xyz.replace(b"R:3", b"R:99999999999") % b"1",
        "count.xyz": b"99999999999999\n\nH 0 0 0\n",
        "bomb.xyz.gz": gzip.compress(b"\0" * 2**27),
        "bomb.xyz.bz2": bz2.compress(b"\0" * 2**27),
        "bomb.xyz.xz": lzma.compress(b"\0" * 2**27),
        "inner.xyz.gz": gzip.compress(PICKLE),
    }  # fmt: skip
