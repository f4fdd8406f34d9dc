"""One command at a time submits the jobs of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from launch.jobs.executor import ENDED, JobError
from launch.jobs.job import CANCEL, jobs_below
from launch.jobs.launch_record import JOBS, executor_of, last_launch, launcher_of
from launch.jobs.launcher_config import LauncherConfig

LOCK = ".jobs.lock"


@contextmanager
def only_one(run: Path, config: LauncherConfig) -> Iterator[None]:
    """Keep other commands from submitting jobs of a run while the context lasts.

    Args:
        run: folder of the run.
        config: the launcher that will.

    Raises:
        JobError: one has them under way, or tasks of another launcher are.
    """
    run.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run / LOCK, timeout=0):
            (run / JOBS / CANCEL).unlink(missing_ok=True)  # it was for the command before
            _require_no_other(run / JOBS, config)
            yield
    except Timeout:
        raise JobError(
            f"another command is at work on {run} ({run / LOCK} is held): watch it with python "
            f"-m launch.status {run}, or end it; its jobs stay"
        ) from None


def _require_no_other(jobs: Path, config: LauncherConfig) -> None:
    """Refuse to go on here with what was sent elsewhere, and may still be at work there."""
    if not any((jobs / "launches").glob("[0-9]*.json")):
        return
    before = launcher_of(last_launch(jobs))
    if before.name == config.name:
        return
    executor = executor_of(before)
    for job in jobs_below(jobs):
        states = {} if job.finished else executor.states(job, job.attempts())
        if states is None or any(one.state != ENDED for one in states.values()):
            raise JobError(
                f"{job.name} was sent by launcher={before.name} and is under way: wait for it, or "
                f"python -m launch.cancel {jobs.parent}; then launcher={config.name} goes on"
            )


def ask_to_cancel(run: Path) -> None:
    """Tell the command at work on a run, whichever host it is on, to start nothing more."""
    (run / JOBS / CANCEL).touch()
