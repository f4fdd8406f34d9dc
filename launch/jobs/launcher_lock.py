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
            require_no_other(run, config)
            yield
    except Timeout:
        raise JobError(
            f"another command is at work on {run} ({run / LOCK} is held): watch it with python "
            f"-m launch.status {run}, or end it; its jobs stay"
        ) from None


def require_no_other(run: Path, config: LauncherConfig) -> None:
    """Refuse to go on with what another launcher was asked for, and may still be at work on.

    Args:
        run: folder of the run.
        config: the launcher that is to go on.

    Raises:
        JobError: tasks are under way, or nobody here can tell.
    """
    jobs = run / JOBS
    if not any((jobs / "launches").glob("[0-9]*.json")):
        return
    before = launcher_of(last_launch(jobs))
    if before.name == config.name:
        return
    executor = executor_of(before)
    for job in jobs_below(jobs):
        if job.finished:
            continue
        sent = f"{job.name} was sent by launcher={before.name}"
        try:
            states = executor.states(job, job.attempts())
        except JobError as error:
            raise JobError(
                f"{sent}, and whether it is under way cannot be asked here ({error}); if nothing "
                f"of it is at work any more, delete {jobs}, and launcher={config.name} goes on"
            ) from error
        if states is None:
            raise JobError(f"{sent}, which does not answer ({executor.trouble}): try again later")
        if any(one.state != ENDED for one in states.values()):
            raise JobError(
                f"{sent} and is under way: wait for it, or python -m launch.cancel {run}; then "
                f"launcher={config.name} goes on"
            )


def ask_to_cancel(run: Path) -> None:
    """Tell the command at work on a run, whichever host it is on, to start nothing more."""
    (run / JOBS / CANCEL).touch()
