"""What a run's jobs were started with: `<run>/jobs/launches/<number>.json`, one a change.

format, version, time, code (name of the snapshot beside it), overrides, config
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.jobs.executor import Executor
from launch.jobs.job import now
from launch.jobs.launcher_config import LauncherConfig, LocalConfig, SlurmConfig, launcher_config
from launch.jobs.local import LocalExecutor
from launch.slurm import SlurmExecutor
from lsb.artifact import canonical, read_json, write_json

JOBS = "jobs"
FORMAT = "vlmae-launch"
VERSION = 1


@dataclass(frozen=True)
class Asked:
    """What a command was asked for.

    Attributes:
        config: composed, as plain containers.
        overrides: what its command line says besides the name of the command.
    """

    config: dict[str, Any]
    overrides: Sequence[str] = ()


def record_launch(folder: Path, code: str, asked: Asked) -> None:
    """Write down what was asked for and which code it ran, unless the last launch was the same.

    Args:
        folder: of all jobs of a run; the record goes to `launches/<number>.json` in it.
        code: name of the snapshot.
        asked: what the command was asked for.
    """
    launches = folder / "launches"
    launches.mkdir(parents=True, exist_ok=True)
    record = {"format": FORMAT, "version": VERSION, "code": code, **asdict(asked)}
    earlier = sorted(launches.glob("[0-9]*.json"))
    if earlier:
        held = {key: value for key, value in read_json(earlier[-1]).items() if key != "time"}
        if canonical(held) == canonical(record):
            return
    write_json(launches / f"{len(earlier) + 1:03d}.json", {**record, "time": now()})


def last_launch(folder: Path) -> dict[str, Any]:
    """The record of a run's last launch.

    Raises:
        ValueError: there is none, or it is of another format or version.
    """
    files = sorted((folder / "launches").glob("[0-9]*.json"))
    if not files:
        raise ValueError(
            f"{folder.parent} has no jobs: give the folder of a run that was started with "
            "launcher=slurm, or with several local tasks"
        )
    record: dict[str, Any] = read_json(files[-1])
    if record.get("format") != FORMAT or record.get("version") != VERSION:
        raise ValueError(
            f"{files[-1]} has format {record.get('format')!r} version {record.get('version')!r}, "
            f"this release reads {FORMAT!r} version {VERSION}: use the release that wrote it"
        )
    return record


def executor_of(config: LauncherConfig) -> Executor:
    """The executor that a config names."""
    if isinstance(config, SlurmConfig):
        return SlurmExecutor(config)
    assert isinstance(config, LocalConfig)
    return LocalExecutor(config)


def launcher_of(record: dict[str, Any]) -> LauncherConfig:
    """The launcher of a recorded launch."""
    return launcher_config(record["config"]["launcher"])
