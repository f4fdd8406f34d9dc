"""One command at a time submits the jobs of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from launch.jobs.executor import JobError
from launch.jobs.job import CANCEL
from launch.jobs.launch_record import JOBS

LOCK = ".jobs.lock"


@contextmanager
def only_one(run: Path) -> Iterator[None]:
    """Keep other commands from submitting jobs of a run while the context lasts.

    Args:
        run: folder of the run.

    Raises:
        JobError: one has them under way.
    """
    run.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run / LOCK, timeout=0):
            (run / JOBS / CANCEL).unlink(missing_ok=True)  # it was for the command before
            yield
    except Timeout:
        raise JobError(
            f"another command is at work on {run} ({run / LOCK} is held): watch it with python "
            f"-m launch.status {run}, or end it; its jobs stay"
        ) from None


def ask_to_cancel(run: Path) -> None:
    """Tell the command at work on a run, whichever host it is on, to start nothing more."""
    (run / JOBS / CANCEL).touch()
