"""A command of a run under its launcher: what it records, and what `--dry-run` prints."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig

from launch.jobs.executor import Say
from launch.jobs.flags import NO_SCRIPTS, read_flags
from launch.jobs.job import RANKS, SHARDS
from launch.jobs.launch_record import JOBS, Asked
from launch.jobs.launcher import Launcher, launched
from launch.jobs.launcher_config import STAGES, TRAIN, SlurmConfig, launcher_config
from launch.slurm import render_script
from launch.stages.settings import Settings
from vlmae.config import as_dict

__all__ = [
    "NO_SCRIPTS",
    "is_dry_run",
    "launched_run",
    "print_script",
    "print_scripts",
    "print_stages",
    "read_flags",
]


def is_dry_run(config: DictConfig) -> bool:
    """Whether nothing is to be made."""
    return launcher_config(_values(config)["launcher"]).dry_run


def launched_run(
    config: DictConfig, say: Say, overrides: Sequence[str]
) -> AbstractContextManager[Launcher | None]:
    """Have the stages of a run made where its group `launcher` says; see `launched`.

    Args:
        config: composed, of a root file that `launch.stages.settings.Settings` reads.
        say: called with what changes.
        overrides: of the command line, for the record.
    """
    values = _values(config)
    settings = Settings.from_config(config)
    return launched(settings.launcher, settings.folder, say, Asked(values, overrides))


def print_scripts(config: DictConfig, stages: Sequence[str] = STAGES) -> None:
    """Print the script of every stage that jobs make, as it would be submitted.

    `<hash>` stands for what a stage's inputs will be, and a stage with fewer shards than
    `launcher.tasks` gets as many tasks as shards.

    Args:
        config: composed, see `launched_run`.
        stages: that the command itself asks for.
    """
    settings = Settings.from_config(config)
    launcher = settings.launcher
    if not isinstance(launcher, SlurmConfig):
        print(NO_SCRIPTS)
        return
    print_stages(launcher, settings.folder, stages)


def print_stages(launcher: SlurmConfig, run: Path, stages: Sequence[str]) -> None:
    """Print the script of each of these stages that jobs make; see `print_scripts`."""
    for stage in stages:
        if stage in launcher.stages:
            print(f"# ---- {stage}")
            ranked = stage == TRAIN
            print_script(
                launcher,
                stage,
                run,
                kind=RANKS if ranked else SHARDS,
                name=stage,
                tasks=1 if ranked else launcher.tasks,
            )


def print_script(
    launcher: SlurmConfig, stage: str, run: Path, *, kind: str, name: str, tasks: int
) -> None:
    """Print the script of a job as it would be submitted; see `print_scripts`.

    Args:
        launcher: resources and set-up.
        stage: whose resources are asked for.
        run: folder of the run.
        kind: of the job.
        name: of the job, without its hash.
        tasks: how many.
    """
    folder = run.absolute() / JOBS
    print(
        render_script(
            launcher,
            name=f"{name}-<hash>",
            stage=stage,
            kind=kind,
            folder=folder / f"{name}-<hash>",
            code=folder / "code-<hash>",
            cwd=Path.cwd(),
            attempt=1,
            tasks=range(tasks),
        )
    )


def _values(config: DictConfig) -> dict[str, Any]:
    return cast(dict[str, Any], as_dict(config))
