"""The jobs of a run, for the commands that look after them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from launch.jobs.executor import ENDED, Executor, JobError, TaskState
from launch.jobs.job import Job, jobs_below
from launch.jobs.launch_record import JOBS, executor_of, last_launch, launcher_of
from launch.jobs.launcher_config import LauncherConfig
from launch.jobs.launcher_lock import LOCK


@dataclass(frozen=True)
class RunJobs:
    """What a run's folder knows of its jobs.

    Attributes:
        run: the folder.
        config: of the launcher that was used last.
        executor: of that launcher.
        jobs: in the order in which they were made.
        time: of the last launch.
    """

    run: Path
    config: LauncherConfig
    executor: Executor
    jobs: list[Job]
    time: str

    @classmethod
    def open(cls, run: Path) -> RunJobs:
        """The jobs of a run.

        Raises:
            ValueError: it has none, or they are of another format or version.
        """
        record = last_launch(run / JOBS)
        config = launcher_of(record)
        return cls(run, config, executor_of(config), jobs_below(run / JOBS), record["time"])

    def states(self, job: Job) -> dict[int, TaskState]:
        """Task -> state; see `Executor.states`.

        Raises:
            JobError: the executor does not answer.
        """
        states = self.executor.states(job, job.attempts())
        if states is None:
            why = self.executor.trouble
            raise JobError(f"SLURM does not answer ({why}): jobs run on; try again later")
        return states

    @property
    def at_work(self) -> bool:
        """Whether a command has this run under way."""
        try:
            with FileLock(self.run / LOCK, timeout=0):
                return False
        except Timeout:
            return True


def active(states: Mapping[int, TaskState]) -> list[int]:
    """Tasks that wait or run."""
    return sorted(task for task, one in states.items() if one.state != ENDED)
