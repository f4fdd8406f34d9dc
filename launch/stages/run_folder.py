"""A run's own folder: which config it is of, which stages it rests on, and what it found.

    runs/demo/
        run.json              format, version, name, config, stages (directory names)
        <arm>/ledger.sqlite   labels and provenance of one arm; or ledger.location, where they are
        summary.json          the numbers of the table
        report.png            the same as a plot

`run.json` is what `launch.clean` reads: a stage that some run names is never deleted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from lsb.artifact import Stage, fingerprint, read_json, write_json

FORMAT = "vlmae-run"
VERSION = 1
STAGES = "stages"
"""The folder beside those of runs."""


class RunFolder:
    """The folder of one run.

    Args:
        path: `runs/<name>`; made with the first stage that is used.
        identity: what determines the run's results.

    Raises:
        ValueError: the folder belongs to a run of another configuration.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.made: set[str] = set()
        self.reused: set[str] = set()
        self._file = path / "run.json"
        self._record: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "name": path.name,
            "config": dict(identity),
            "stages": [],
        }
        if self._file.is_file():
            held = read_run(self._file)
            if fingerprint(held["config"]) != fingerprint(identity):
                changed = "; ".join(differences(held["config"], dict(identity))[:3])
                raise ValueError(
                    f"{path} holds a run of another configuration ({changed}): give this one "
                    f"another name with name=<name>, or move the old folder away"
                )
            self._record["stages"] = held["stages"]

    def use(self, stage: Stage) -> Stage:
        """Record that the run rests on a stage, and whether it was made now or before."""
        if stage.path.name not in self.made:
            (self.reused if stage.reused else self.made).add(stage.path.name)
        self.keep(stage.path.name)
        return stage

    def keep(self, name: str) -> None:
        """Record that the run rests on a stage, which need not be there yet."""
        if name not in self._record["stages"]:
            self.path.mkdir(parents=True, exist_ok=True)
            # Another process may compare other arms under the same name.
            with FileLock(self.path / ".run.lock"):
                if self._file.is_file():
                    self._record["stages"] = read_run(self._file)["stages"]
                if name not in self._record["stages"]:
                    self._record["stages"].append(name)
                write_json(self._file, self._record)


def run_name(name: str) -> str:
    """The name of a run, as its folder has it.

    Raises:
        ValueError: it is none of a folder, or that of the folder of all stages.
    """
    if name == STAGES or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"name is {name!r}: use letters, digits, - and _ only, and not {STAGES!r}")
    return name


def read_run(file: Path) -> dict[str, Any]:
    """A run.json.

    Raises:
        ValueError: of another format or version.
    """
    record: dict[str, Any] = read_json(file)
    if not isinstance(record, dict):
        raise ValueError(f"{file} is not a run's: delete this file (the labels beside it stay)")
    if record.get("format") != FORMAT or record.get("version") != VERSION:
        raise ValueError(
            f"{file} has format {record.get('format')!r} version {record.get('version')!r}, this "
            f"release reads {FORMAT!r} version {VERSION}: use the release that wrote it, or delete "
            "this file (the labels beside it stay)"
        )
    return record


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Leaves in which two configs differ, as "key: old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(set(old) | set(new)):
            prefix = f"{path}.{key}" if path else str(key)
            found += differences(old.get(key), new.get(key), prefix)
        return found
    return [] if old == new else [f"{path}: {old} -> {new}"]
