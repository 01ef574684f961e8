"""The folder of a run: what is in it, whether it may go on, and the history of its validations.

runs/<name>/
    config.yaml            every option, resolved; `eqnet train --config` takes it
    data.json              digests of the files, the split, reference energies
    metrics.jsonl, .csv    one row per validation
    log.txt                what was printed
    checkpoints/           to go on from
    <name>.eqnet           the best weights by validation loss
    <name>-last.eqnet      the weights of the last step
    results.json           errors on the test structures
    plots/, report.html
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from eqnet.errors import InputError, naming, reason
from eqnet.files import TEMPORARY, replacing
from eqnet.options import TrainOptions, free_options


class RunFolder:
    """Names and files of one run."""

    def __init__(self, work_dir: str | Path, name: str):
        self.name = name
        self.path = Path(work_dir) / name
        self.config = self.path / "config.yaml"
        self.data = self.path / "data.json"
        self.checkpoints = self.path / "checkpoints"
        self.lock = self.path / "lock"
        self.log = self.path / "log.txt"
        self.results = self.path / "results.json"
        self.best_model = self.path / f"{name}.eqnet"
        self.last_model = self.path / f"{name}-last.eqnet"

    @property
    def exists(self) -> bool:
        """Whether a run has begun here."""
        return self.config.is_file()

    def check_free(self) -> None:
        """Refuse a folder with other things in it, and one that cannot be made."""
        if self.exists:
            return
        if self.path.exists() and (not self.path.is_dir() or self._foreign()):
            raise InputError(
                f"{self.path} exists and is no run of eqnet train; choose another --name"
            )
        parent = next(p for p in self.path.absolute().parents if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise InputError(
                f"{self.path} cannot be made, {parent} is not writable: use --work_dir"
            )

    def _foreign(self) -> bool:
        """A start that was killed leaves no more than what is written before config.yaml."""
        early = {"lock", "log.txt", "data.json"}
        return any(
            p.name not in early and not TEMPORARY.fullmatch(p.name) for p in self.path.iterdir()
        )

    def check_same(self, options: TrainOptions, data: Mapping[str, Any]) -> None:
        """Refuse to go on with other options or other data than the run began with.

        Args:
            options: resolved.
            data: what `data.json` would hold; its "files" are compared.

        Raises:
            InputError: listing what differs.
        """
        before = read_yaml(self.config)
        now, free = plain(options.flat()), free_options(options)
        different = [
            f"{name} was {before.get(name)}, is {now.get(name)}"
            for name in now
            if before.get(name) != now.get(name) and name not in free
        ]
        if different:
            raise InputError(
                f"{self.path} holds a run with other options ({'; '.join(different)}): train under "
                "another --name, or repeat the options of that run to go on with it"
            )
        try:
            files = json.loads(self.data.read_text())["files"]
        except (OSError, ValueError, KeyError):
            files = data["files"]
        for role in sorted({*files, *data["files"]}):
            if files.get(role) != data["files"].get(role):
                raise InputError(
                    f"the {role} file is not the one that the run in {self.path} began with (its "
                    "SHA-256 differs); train under another --name"
                )

    def other_versions(self, data: Mapping[str, Any]) -> str | None:
        """A sentence if other programs made the steps so far: the numbers may differ slightly."""
        try:
            before = dict(json.loads(self.data.read_text())["versions"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        now = data["versions"]
        changed = [f"{n} {before.get(n)}, now {now[n]}" for n in now if before.get(n) != now[n]]
        if not changed:
            return None
        return (
            f"the run in {self.path} was last worked on with {'; '.join(changed)}: it goes on, but "
            "its numbers may differ in the last digits from an unbroken run"
        )

    def write_config(self, options: TrainOptions, data: Mapping[str, Any]) -> None:
        """Write config.yaml and data.json, the former last: with it, the run exists."""
        write(self.data, json.dumps(data, indent=1) + "\n")
        header = (
            f"# eqnet {version('eqnet')}\n# again or further: eqnet train --config {self.config}\n"
        )
        write(self.config, header + yaml.safe_dump(plain(options.flat()), sort_keys=False))

    def read_results(self) -> dict[str, Any]:
        """What results.json holds; nothing if there is none."""
        try:
            return json.loads(self.results.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write results.json."""
        write(self.results, json.dumps(results, indent=1, allow_nan=False) + "\n")


class History:
    """metrics.jsonl and metrics.csv: a row per validation, none twice and none missing.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        self._jsonl = folder / "metrics.jsonl"
        self._csv = folder / "metrics.csv"
        self.rows: list[dict[str, Any]] = []

    def restart(self, epoch: int) -> None:
        """Keep the rows up to an epoch, those that the checkpoint in use knows of."""
        rows = []
        if self._jsonl.is_file():
            for line in self._jsonl.read_text().splitlines():
                try:
                    rows.append(json.loads(line))
                except ValueError:  # cut short by a kill: a later epoch than the checkpoint's
                    break
        self.rows = [row for row in rows if row["epoch"] <= epoch]
        if self.rows or rows:
            write(self._jsonl, "".join(json.dumps(row) + "\n" for row in self.rows))
            self._csv.unlink(missing_ok=True)
            for row in self.rows:
                self._append_csv(row)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row; numbers that are not finite become null."""
        row = {k: v if v == v and abs(v) != float("inf") else None for k, v in row.items()}
        self.rows.append(row)
        with naming(self._jsonl), self._jsonl.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._append_csv(row)

    def sync(self) -> None:
        """Return when all rows are on the disk: a checkpoint that knows of them comes after."""
        for path in (self._jsonl, self._csv):
            if path.is_file():
                sync(path)

    def _append_csv(self, row: dict[str, Any]) -> None:
        new = not self._csv.exists()
        with naming(self._csv), self._csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)


def check_can_go_on(folder: Path) -> None:
    """Refuse a run whose checkpoints are gone: it would start over without having been asked.

    Raises:
        InputError: there are validations, and no checkpoint, or damaged ones alone.
    """
    checkpoints = folder / "checkpoints"
    gone = all(path.name.endswith(".damaged") for path in checkpoints.glob("*"))
    if gone and (folder / "metrics.jsonl").is_file():
        raise InputError(
            f"{folder} holds a run that cannot go on, as {checkpoints} has no sound checkpoint: "
            "train elsewhere (another --name or --out), or delete the folder to start again"
        )


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with naming(path), replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Return when a file is on the disk."""
    with naming(path), path.open("rb") as file:
        os.fsync(file.fileno())


def read_yaml(path: Path) -> dict[str, Any]:
    """A file of names and values.

    Raises:
        InputError: it cannot be read or is something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({reason(error)})") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where else ""
        problem = str(getattr(error, "problem", None) or "it cannot be parsed")[:200]
        raise InputError(f"{path}: no valid YAML{line} ({problem})") from None
    except RecursionError:
        raise InputError(f"{path}: lists within lists too deep; options stand alone") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{path} must hold lines of 'option: value'")
    return content


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as YAML gives them back."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
