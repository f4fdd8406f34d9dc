"""Start again what a run's jobs have not finished: `python -m launch.retry runs/demo`.

Only tasks that are neither complete nor under way are submitted, with the code they were started
with; tasks that the cluster holds are released. A job that is refused or fails stops no other. On a
cluster it comes back at once; on one machine it waits. The command that was given goes on with what
comes after them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from launch.jobs.executor import JobError, JobRun, Say, release_held, run_jobs
from launch.jobs.job import RANKS, Job
from launch.jobs.launcher_config import LocalConfig
from launch.jobs.launcher_lock import only_one
from launch.jobs.run_jobs import RunJobs, active
from lsb.console import console, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry point; returns the exit code: 0, or 2 where something cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.retry", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("folder", metavar="run", type=Path, help="folder of the run")
    parser.set_defaults(run=lambda options: retry(options.folder))
    return run_command(parser.parse_args(arguments))


def retry(folder: Path) -> int:
    """Submit what is missing; returns an exit code.

    Raises:
        JobError: a command has the run under way, or tasks were refused or failed again. All other
            tasks were started.
    """
    run = RunJobs.open(folder)
    out = console()
    say = partial(out.print, soft_wrap=True)
    with only_one(folder, run.config):
        wanted: list[tuple[Job, list[int]]] = []
        released = under_way = 0
        for job in run.jobs:
            if job.finished or not job.attempts():
                continue
            states = run.states(job)
            released += bool(release_held(run.executor, job, states, say))
            waiting = active(states)
            under_way += bool(waiting) and job.kind == RANKS
            idle = [task for task in job.missing() if task not in waiting]
            if idle:
                wanted.append((job, idle))
        if not released and not wanted:
            out.print(f"{folder}: no task is to be started again")
        if isinstance(run.config, LocalConfig):
            errors = _finish(run, wanted, say, f"python -m launch.retry {folder}")
        else:
            errors = _submit(run, wanted, say, under_way)
    if errors:
        raise errors[0]
    return 0


def _finish(
    run: RunJobs, wanted: Sequence[tuple[Job, list[int]]], say: Say, remedy: str
) -> list[JobError]:
    """Have jobs finished by processes of this machine; returns what was wrong."""
    runs = []
    for job, idle in wanted:
        say(_again(job, idle))
        runs.append(
            JobRun(
                run.executor,
                job,
                job.attempts()[-1].code,
                retries=run.config.retries,
                hang_minutes=run.config.hang_minutes,
                say=say,
                remedy=remedy,
            )
        )
    return run_jobs(runs, at_once=run.config.at_once, poll_seconds=run.config.poll_seconds)


def _submit(
    run: RunJobs, wanted: Sequence[tuple[Job, list[int]]], say: Say, under_way: int
) -> list[JobError]:
    """Send tasks to a cluster; returns what was refused.

    Args:
        run: whose they are.
        wanted: jobs and their tasks.
        say: called with what is sent.
        under_way: jobs of ranks that wait or run: those of a sweep are `at_once` at a time.
    """
    errors, most = list[JobError](), run.config.at_once
    left = 0
    for job, idle in wanted:
        if job.kind == RANKS and most is not None and under_way >= most:
            left += 1
            continue
        say(_again(job, idle))
        try:
            attempts = run.executor.submit(job, idle, job.attempts()[-1].code)
        except JobError as error:
            errors.append(error)
            continue
        under_way += job.kind == RANKS
        for attempt in attempts:
            say(f"  submitted as {attempt.id}")
    if left:
        say(
            f"{left} more are left for when others end (launcher.at_once={most}): give the command "
            "of the run again, which waits for that, or this one later"
        )
    return errors


def _again(job: Job, tasks: Sequence[int]) -> str:
    return f"{job.name}: tasks {', '.join(map(str, tasks))} again"


if __name__ == "__main__":
    sys.exit(main())
