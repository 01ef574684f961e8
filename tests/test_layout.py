"""The folders are what they say they are, and modules import in one direction only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINKS = ("ops", "models", "data", "scripts")

# A module may import modules of a lower rank and of its own folder; ops and data are siblings.
CORE = {"errors", "files", "processor", "irreps", "so3", "graph", "layers", "norms"}
RANK = {"core": 0, "ops": 1, "data": 1, "models": 2, "top": 3, "scripts": 4}


def folder_of(module: str) -> str:
    """The layer of a module such as 'eqnet.ops.power'."""
    parts = module.split(".")
    if len(parts) == 1:
        return "top"
    if parts[1] in LINKS:
        return parts[1]
    return "core" if parts[1] in CORE else "top"


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted((ROOT / "eqnet").glob("**/*.py")):
        if path.parent.name != "rivals":  # programs of other environments
            found.append(path)
    for link in LINKS:  # glob does not follow links
        found += sorted((ROOT / "eqnet" / link).glob("**/*.py"))
    names = {}
    for path in found:
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts).removesuffix(".__init__")] = path
    return sorted(names.items())


def imports(path: Path) -> list[str]:
    """Absolute names of what a file imports, wherever in the file."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write eqnet.<module>"
            names.append(node.module or "")
            if node.module in ("eqnet", *(f"eqnet.{link}" for link in LINKS)):
                names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("link", LINKS)
def test_link_resolves(link: str) -> None:
    path = ROOT / "eqnet" / link
    assert path.is_symlink(), (
        f"{path} must be a relative link to ../{link}; on Windows clone with core.symlinks=true"
    )
    assert path.readlink() == Path("..") / link
    assert path.is_dir()


def test_imports_go_one_way() -> None:
    wrong = []
    for module, path in modules():
        own = folder_of(module)
        for name in imports(path):
            if name.split(".")[0] in LINKS:
                wrong.append(f"{module} imports the bare name {name}")
            if name.split(".")[0] != "eqnet" or name == "eqnet":
                continue
            other = folder_of(name)
            if other != own and RANK[other] >= RANK[own]:
                wrong.append(f"{module} ({own}) imports {name} ({other})")
    # The package itself re-exports nouns of the top layer, loaded on first use.
    assert not wrong, "\n".join(wrong)


def test_only_data_and_calculators_know_ase() -> None:
    names = ("calculator", "elastic_band", "relaxation", "side_by_side", "simulate")
    names = (*names, "simulated_structures", "velocities")
    allowed = {f"eqnet.{name}" for name in names}
    for module, path in modules():
        if folder_of(module) in ("data", "scripts") or module in allowed:
            continue
        assert not any(name.split(".")[0] == "ase" for name in imports(path)), module


def test_data_never_touches_a_device() -> None:
    for module, path in modules():
        if folder_of(module) != "data":
            continue
        assert not any(name.startswith(("jax.", "flax")) for name in imports(path)), module
        for node in ast.walk(ast.parse(path.read_text())):  # pytrees of numpy arrays are allowed
            if isinstance(node, ast.ImportFrom) and node.module == "jax":
                names = {alias.name for alias in node.names}
                assert names <= {"tree_util"}, f"{module}: from jax import {', '.join(names)}"
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "jax":
                assert node.attr == "tree_util", f"{module}: jax.{node.attr}"


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_and_import_load_no_jax() -> None:
    out = run(
        "import sys, eqnet\n"
        "assert 'jax' not in sys.modules, 'import eqnet'\n"
        "from eqnet.scripts import main\n"
        "sys.argv = ['eqnet', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'jax' not in sys.modules, 'eqnet --help'\n"
    )
    assert "train" in out


def test_imports_change_no_jax_setting() -> None:
    names = [name for name, _ in modules() if not name.endswith("__main__")]
    run(
        "import importlib, jax, flax.nnx, e3nn_jax\n"
        "values = lambda: {k: v for k, v in jax.config.values.items()}\n"
        "before = values()\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "after = values()\n"
        "changed = {k: (before.get(k), v) for k, v in after.items() if before.get(k) != v}\n"
        "assert not changed, changed\n"
    )


def test_no_file_can_bring_code() -> None:
    """Nothing in the package evaluates text or opens formats that hold code."""
    formats = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
    calls = {"eval", "exec", "compile", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
    for module, path in modules():
        assert not {name.split(".")[0] for name in imports(path)} & formats, module
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in calls, f"{module}: line {node.lineno}"
                allowed = [k.value for k in node.keywords if k.arg == "allow_pickle"]
                assert all(ast.unparse(value) == "False" for value in allowed), module
