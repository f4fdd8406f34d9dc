"""Units of a comparison as tasks of one job: an array on a cluster, or processes here.

A task runs what the command would run itself (`launch.comparing.units.Comparison.run`), and its
unit is whole when `unit.json` says so: a unit that some command has finished is not submitted. The
job's name is made of the units, so the same command finds it again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from launch.comparing.units import Comparison, Unit
from launch.jobs.executor import JobError
from launch.jobs.job import UNITS, Job, jobs_below
from launch.jobs.launcher import Launcher
from launch.jobs.launcher_config import COMPARE
from launch.jobs.run_jobs import active
from lsb.artifact import fingerprint


def run_units_by_tasks(
    launcher: Launcher, comparison: Comparison, units: Sequence[Unit]
) -> Iterator[tuple[Unit, dict[str, Any]]]:
    """Units with their results, when all are finished; see `launch.comparing.units.run_units`.

    Args:
        launcher: starts tasks.
        comparison: what the units share.
        units: in the order in which they start.

    Raises:
        JobError: a unit failed or was cancelled, all others are finished; or units of another
            configuration are under way in the same folders.
    """
    made_of = {unit.name: comparison.made_of(unit) for unit in units}
    _retire(launcher, made_of)
    if any(comparison.finished(unit, made_of[unit.name]) is None for unit in units):
        job = Job.create(
            launcher.folder / f"{COMPARE}-{fingerprint(list(made_of.items()))[:16]}",
            stage=COMPARE,
            kind=UNITS,
            tasks=len(units),
            shards=list(made_of),
            target=comparison.units,
            made_of=list(made_of.values()),
        )
        launcher.run(job, partial(run_unit, comparison, list(units)))
    for unit in units:
        result = comparison.finished(unit, made_of[unit.name])
        if result is None:
            raise JobError(
                f"{comparison.place(unit)} has lost its result: give the same command again"
            )
        yield unit, result


def run_unit(comparison: Comparison, units: Sequence[Unit], number: int) -> None:
    """What a task runs: one of the units.

    Args:
        comparison: what they share.
        units: all of them.
        number: of the task.
    """
    comparison.run(units[number])


def _retire(launcher: Launcher, made_of: Mapping[str, str]) -> None:
    """Delete jobs whose units are to be made of something else now: retried, they would undo it.

    Raises:
        JobError: one is under way.
    """
    for job in jobs_below(launcher.folder):
        theirs = zip(job.shards, job.made_of, strict=False)
        if all(made_of.get(unit, of) == of for unit, of in theirs):
            continue
        states = launcher.executor.states(job, job.attempts())
        if states is None or active(states):
            raise JobError(
                f"{job.name} may be at work on the same units by another configuration: python -m "
                f"launch.cancel {launcher.folder.parent}, then give the same command again"
            )
        launcher.say(f"{job.name} was of the same units by another configuration: deleted")
        shutil.rmtree(job.folder)
