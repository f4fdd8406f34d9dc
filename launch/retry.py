"""Start again what a run's jobs have not finished: `python -m launch.retry runs/demo`.

Only tasks that are neither complete nor under way are submitted, with the code they were started
with; tasks that the cluster holds are released. On a cluster it comes back at once; on one machine
it waits. The command that was given goes on with what comes after them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from launch.jobs.executor import release_held, run_job
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
        JobError: a command has the run under way, or tasks were refused or failed again.
    """
    run = RunJobs.open(folder)
    out = console()
    say = partial(out.print, soft_wrap=True)
    started = 0
    with only_one(folder, run.config):
        for job in run.jobs:
            attempts = job.attempts()
            if job.finished or not attempts:
                continue
            states = run.states(job)
            held = release_held(run.executor, job, states, say)
            waiting = active(states)
            idle = [task for task in job.missing() if task not in waiting]
            started += bool(held or idle)
            if not idle:
                continue
            code = attempts[-1].code
            out.print(f"{job.name}: tasks {', '.join(map(str, idle))} again")
            if isinstance(run.config, LocalConfig):
                run_job(
                    run.executor,
                    job,
                    code,
                    retries=run.config.retries,
                    poll_seconds=run.config.poll_seconds,
                    hang_minutes=run.config.hang_minutes,
                    say=say,
                    remedy=f"python -m launch.retry {folder}",
                )
            else:
                for attempt in run.executor.submit(job, idle, code):
                    out.print(f"  submitted as {attempt.id}")
    if not started:
        out.print(f"{folder}: no task is to be started again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
