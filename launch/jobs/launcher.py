"""The stages of a command made by tasks: who makes what is decided here, and nowhere else.

A command that is wrapped in `launched` asks for its stages as ever. Those that the config names are
made by tasks of an executor: stages of several parts as independent tasks, each with its share of
the parts; trainings as one task of connected ranks. The command itself only waits, and may be
killed and started again at any moment: it finds its jobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.jobs.executor import Say, run_job
from launch.jobs.job import RANKS, SHARDS, Job
from launch.jobs.launch_record import JOBS, Asked, executor_of, record_launch
from launch.jobs.launcher_config import TRAIN, LauncherConfig, LocalConfig
from launch.jobs.launcher_lock import only_one, require_no_other
from launch.jobs.snapshot import snapshot
from lsb.artifact import Stage, open_stage, waiting_for_others
from lsb.delegation import StageCall, delegated

if TYPE_CHECKING:
    from vlmae.training import Training


class Launcher:
    """Has stages made by tasks.

    Args:
        config: which, by whom.
        folder: of all jobs of the run.
        say: called with what changes.
        remedy: what to type after a failure.
        asked: what the command was asked for, for the record.
    """

    def __init__(
        self, config: LauncherConfig, folder: Path, say: Say, remedy: str, asked: Asked
    ) -> None:
        self.config, self.folder, self.say, self.remedy = config, folder, say, remedy
        self.executor = executor_of(config)
        self._asked = asked
        self._code: Path | None = None

    def by_tasks(self, stage: str) -> bool:
        """Whether tasks make the parts of such stages."""
        config = self.config
        return stage in config.stages and (config.tasks > 1 or not _is_local(config))

    def delegate(self, call: StageCall) -> bool:
        """Have the parts of a stage made by tasks; see `lsb.delegation.Delegate`."""
        config = self.config
        if call.stage == TRAIN:  # its work is no pickle: `train` has seen to it
            return False
        if not self.by_tasks(call.stage):
            return False
        job = Job.create(
            self.folder / call.target.name,
            stage=call.stage,
            kind=SHARDS,
            tasks=min(config.tasks, len(call.parts)),
            shards=[part.name for part in call.parts],
            target=call.target,
        )
        self.run(job, call)
        return job.finished

    def train(self, root: Path, training: Training) -> Stage:
        """Train on the ranks of the config."""
        # Here, as below: it takes seconds, which commands without a training need not spend.
        from vlmae.growing.kept import remember_rounds
        from vlmae.ranks import Ranks
        from vlmae.training import train, train_directory

        config = self.config
        if TRAIN not in config.stages or (config.world == 1 and _is_local(config)):
            return train(root, training)
        ranks = Ranks(0, config.world, config.ranks)
        target = train_directory(root, replace(training, ranks=ranks))
        if target.is_dir():
            stage = open_stage(target)
            remember_rounds(stage, training)
            return stage
        job = Job.create(
            self.folder / target.name,
            stage=TRAIN,
            kind=RANKS,
            tasks=1,
            shards=[target.name],
            target=target,
        )
        self.run(job, partial(train_on_ranks, root, training))
        stage = replace(open_stage(target), reused=False)
        remember_rounds(stage, training)
        return stage

    def run(self, job: Job, work: Any) -> None:
        """Have a job finished by tasks that run `work`."""
        code = self.code()
        job.put_work(work, code.name)
        run_job(
            self.executor,
            job,
            code.name,
            retries=self.config.retries,
            poll_seconds=self.config.poll_seconds,
            hang_minutes=self.config.hang_minutes,
            say=self.say,
            remedy=self.remedy,
        )

    def code(self) -> Path:
        """The snapshot that this command's tasks run, made with the first of them."""
        if self._code is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._code = snapshot(self.folder)
            record_launch(self.folder, self._code.name, self._asked)
        return self._code


def train_on_ranks(root: Path, training: Training) -> Stage:
    """What every rank of a training runs. Collective."""
    from vlmae.ranks import Ranks
    from vlmae.training import train

    ranks = Ranks.from_environment()
    with ranks.together(), waiting_for_others():
        return train(root, replace(training, ranks=ranks))


_launcher: ContextVar[Launcher | None] = ContextVar("launcher", default=None)


@contextmanager
def launched(
    config: LauncherConfig, run: Path, say: Say, asked: Asked
) -> Iterator[Launcher | None]:
    """Have the stages that are asked for in this context made as the config says.

    Args:
        config: which, by whom.
        run: folder of the run; jobs lie in its folder `jobs`.
        say: called with what changes.
        asked: what the command was asked for, for the record.

    Yields:
        Who has tasks started, for work that is no stage; None where the process does all itself.

    Raises:
        JobError: another command has jobs of this run under way.
    """
    if config.in_process:
        require_no_other(run, config)
        yield None
        return
    remedy = f"give the same command again, or python -m launch.retry {run}"
    launcher = Launcher(config, run / JOBS, say, remedy, asked)
    token = _launcher.set(launcher)
    try:
        with only_one(run, config), delegated(launcher.delegate):
            yield launcher
    finally:
        _launcher.reset(token)


def made_by_tasks(stage: str) -> bool:
    """Whether the launcher of this context has the parts of such stages made by tasks."""
    launcher = _launcher.get()
    return launcher is not None and launcher.by_tasks(stage)


def launched_training(root: Path, training: Training) -> Stage:
    """Train here, or on the ranks of the launcher of this context."""
    from vlmae.training import train

    launcher = _launcher.get()
    if launcher is None:
        return train(root, training)
    return launcher.train(root, training)


def _is_local(config: LauncherConfig) -> bool:
    return isinstance(config, LocalConfig)
