"""Hostile files under Python's audit hooks: nothing runs, nothing is written elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import hostile_files
import pytest

from eqnet import archive
from eqnet.scripts.fuzz import model_file

#: Opens every file of a folder, all that is needed imported before, and tells what happened.
PROBE = """
import json, resource, sys, warnings
from pathlib import Path
from eqnet import load
from eqnet.data.read import read
from eqnet.errors import InputError
from eqnet.scripts.train_command import read_command
from eqnet.model_choice import model_options
from eqnet.options import check

import ase.io.db, ase.io.trajectory, ase.io.cif, ase.io.bundletrajectory, ase.db.jsondb
import numpy.lib.format, encodings.idna
warnings.simplefilter("ignore")
folder, seen, watching = Path(sys.argv[1]), [], [False]
WATCHED = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect",
    "pickle.find_class", "ctypes.dlopen", "os.remove", "os.rename", "os.mkdir", "shutil.",
)

def hook(event, arguments):
    if not watching[0]:
        return
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        seen.append([event, str(arguments[0])])
    if event == "exec":  # libraries make functions; not of what the files hold
        code = arguments[0]
        words = " ".join(map(str, (*code.co_names, *code.co_consts)))
        if "pwned" in words or "system" in words:
            seen.append([event, words])
    elif event.startswith(WATCHED):
        seen.append([event, str(arguments[:1])])

def act(path):
    if path.parent.name == "models":
        load(path)
    elif path.parent.name == "options":
        command = read_command(["--config", str(path), "some.xyz"])
        check(command.options)
        model_options(command.options)
    else:
        read(path)

def told(path):
    watching[0] = True
    try:
        act(path)
        return "opened"
    except InputError as error:
        return "refused: " + str(error)[:300]
    except BaseException as error:
        return "failed: " + repr(error)[:300]
    finally:
        watching[0] = False

paths = sorted(path for path in folder.glob("*/*") if path.is_file())
for path in paths:
    told(path)  # what is imported on first use is no work of the file
sys.addaudithook(hook)
found = {}
for path in paths:
    seen.clear()
    outcome = told(path)
    found[f"{path.parent.name}/{path.name}"] = [outcome, list(seen)]
status = Path("/proc/self/status")
if status.exists():  # what the other counter says before exec() is that of the parent process
    memory = int(status.read_text().split("VmHWM:")[1].split()[0]) // 1024
else:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**20
print(json.dumps({"found": found, "memory": memory}))
"""


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("valid"))


def test_nothing_runs_and_nothing_is_written(valid: Path, tmp_path: Path) -> None:
    def sealed(members: dict[str, bytes]) -> bytes:
        archive.write(tmp_path / "sealed.eqnet", members)
        return (tmp_path / "sealed.eqnet").read_bytes()

    folder, work = tmp_path / "files", tmp_path / "work"
    files = {
        "models": {
            f"{name}.eqnet": content
            for name, content in hostile_files.models(valid.read_bytes(), sealed).items()
        },
        "options": {f"{name}.yaml": text.encode() for name, text in hostile_files.YAML.items()},
        "data": hostile_files.data(),
    }
    for kind, contents in files.items():
        (folder / kind).mkdir(parents=True)
        for name, content in contents.items():
            (folder / kind / name).write_bytes(content)
    work.mkdir()
    run = subprocess.run(
        [sys.executable, "-c", PROBE, str(folder)], cwd=work, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    report = json.loads(run.stdout.splitlines()[-1])
    assert len(report["found"]) == sum(map(len, files.values())) >= 60
    for name, (outcome, events) in report["found"].items():
        assert not outcome.startswith("failed"), (name, outcome)
        assert not events, (name, events)
    assert not list(work.iterdir())
    opened = {name for name, (outcome, _) in report["found"].items() if outcome == "opened"}
    assert opened == OPENED
    assert report["memory"] < 2000  # MB


#: What is before and behind a zip archive is no part of it; a mapping of itself into itself is
#: empty; the name of a product is looked up, in a table, when a model is made.
OPENED = {
    "models/in front.eqnet",
    "models/behind.eqnet",
    "options/merge.yaml",
    "options/product.yaml",
}
