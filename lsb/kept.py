"""Stages that somebody asked for by hand: `<root>/kept.json`, which `launch.clean` respects.

    {"format": "vlmae-kept", "version": 1, "stages": {"cache-3f2a...": {"by": ..., "time": ...}}}

A stage that a run made is named in the run's own folder; one that a command made alone would be
nobody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from lsb.artifact import Stage
from lsb.files import StageError, read_json, write_json

FILE = "kept.json"
FORMAT = "vlmae-kept"
VERSION = 1


def keep(root: Path, stage: Stage, by: str) -> Stage:
    """Record that a stage was asked for.

    Args:
        root: folder of all stages.
        stage: below it.
        by: command that was asked.
    """
    with FileLock(root / ".kept.lock"):
        held = _read(root)
        if stage.path.name not in held:
            time = datetime.now(UTC).isoformat(timespec="seconds")
            _write(root, {**held, stage.path.name: {"by": by, "time": time}})
    return stage


def kept(root: Path) -> dict[str, dict[str, Any]]:
    """Name of each stage that was asked for by hand -> by which command and when.

    Raises:
        StageError: the file is damaged, or of another version.
    """
    return _read(root)


def forget(root: Path, names: Sequence[str]) -> None:
    """Let go of stages.

    Raises:
        ValueError: one was not asked for by hand.
    """
    with FileLock(root / ".kept.lock"):
        held = _read(root)
        require_kept(held, names)
        _write(root, {name: entry for name, entry in held.items() if name not in set(names)})


def require_kept(held: dict[str, dict[str, Any]], names: Sequence[str]) -> None:
    """Refuse names that are not among those kept.

    Raises:
        ValueError: names the first, and what is kept.
    """
    for name in names:
        if name not in held:
            raise ValueError(
                f"{name} is not kept by hand, only {', '.join(sorted(held)) or 'nothing'}: give a "
                "stage's folder name; what a run keeps goes with the run's folder"
            )


def _read(root: Path) -> dict[str, dict[str, Any]]:
    file = root / FILE
    if not file.is_file():
        return {}
    record = read_json(file)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise StageError(f"{file} is no list of kept stages: restore it, or delete it")
    if record.get("version") != VERSION:
        raise StageError(
            f"{file} has version {record.get('version')!r}, this release reads {VERSION}: use the "
            "release that wrote it, or delete it"
        )
    stages: dict[str, dict[str, Any]] = record["stages"]
    return stages


def _write(root: Path, stages: dict[str, dict[str, Any]]) -> None:
    write_json(root / FILE, {"format": FORMAT, "version": VERSION, "stages": stages})
