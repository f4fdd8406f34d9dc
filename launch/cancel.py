"""Stop a run's jobs, waiting or running: `python -m launch.cancel runs/demo`.

Nothing that is done is lost. A command that waits for them ends with an error; the same command, or
`launch.retry`, goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.jobs.launcher_lock import ask_to_cancel
from launch.jobs.run_jobs import RunJobs, active
from lsb.console import console, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry point; returns the exit code: 0, or 2 where something cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.cancel", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("folder", metavar="run", type=Path, help="folder of the run")
    parser.set_defaults(run=lambda options: cancel(options.folder))
    return run_command(parser.parse_args(arguments))


def cancel(folder: Path) -> int:
    """Cancel what is under way; returns an exit code.

    Raises:
        JobError: the executor refused.
    """
    run = RunJobs.open(folder)
    out = console()
    stopped = 0
    if run.at_work:
        ask_to_cancel(folder)
        out.print(f"{folder}: the command at work is told, and starts nothing more")
        stopped += 1
    for job in run.jobs:
        tasks = active(run.states(job))  # of one that is finished, too: sent twice, or still ending
        if tasks:
            run.executor.cancel(job, job.attempts())
            out.print(f"{job.name}: tasks {', '.join(map(str, tasks))} cancelled")
            stopped += 1
    if not stopped:
        out.print(f"{folder}: no task is under way")
    return 0


if __name__ == "__main__":
    sys.exit(main())
