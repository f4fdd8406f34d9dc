"""Points of a sweep trained by tasks: one array, or, of trainings on several ranks, a job each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from launch.jobs.executor import JobCancelledError, JobError, JobRun, run_jobs
from launch.jobs.job import RANKS, TRAININGS, Job, jobs_below
from launch.jobs.launcher import Launcher
from launch.jobs.launcher_config import TRAIN
from launch.sweeping.config import SweepConfig
from launch.sweeping.points import Point, train_point, train_point_on_ranks
from launch.sweeping.table import Outcome, SweepRecord
from lsb.artifact import fingerprint

SWEEP = "sweep"


@dataclass(frozen=True)
class SweepRun:
    """Trains points, and tells what became of them.

    Attributes:
        run: folder of the run.
        root: folder of all stages.
        launcher: starts tasks.
        config: metric and direction.
    """

    run: Path
    root: Path
    launcher: Launcher
    config: SweepConfig

    def train(self, points: Sequence[Point]) -> list[JobError]:
        """Train what is not there yet; no point waits for another that fails.

        Returns:
            What was wrong with those that could not be trained. A `JobUntriedError` among them says
            nothing about the points: some were refused or cancelled, and others may be under way.

        Raises:
            JobCancelledError: they were cancelled, which says nothing about the points.
        """
        wanted = {point.stage: point.training for point in points}
        missing = [stage for stage in wanted if not (self.root / stage).is_dir()]
        if not missing:
            return []
        root, config = self.root.absolute(), self.launcher.config
        if config.world == 1:
            # Named by its points: the same ones find their job again, whatever is done of them.
            job = Job.create(
                self.launcher.folder / f"{SWEEP}-{fingerprint(list(wanted))[:16]}",
                stage=TRAIN,
                kind=TRAININGS,
                tasks=len(wanted),
                shards=list(wanted),
                target=root,
            )
            try:
                self.launcher.run(job, partial(train_point, root, list(wanted.values())))
            except JobCancelledError:
                raise
            except JobError as error:
                return [error]
            return []
        code = self.launcher.code().name
        runs = []
        for stage in missing:
            job = Job.create(
                self.launcher.folder / stage,
                stage=TRAIN,
                kind=RANKS,
                tasks=1,
                shards=[stage],
                target=root / stage,
            )
            job.put_work(partial(train_point_on_ranks, root, wanted[stage]), code)
            runs.append(
                JobRun(
                    self.launcher.executor,
                    job,
                    code,
                    retries=config.retries,
                    say=self.launcher.say,
                    remedy=self.launcher.remedy,
                    hang_minutes=config.hang_minutes,
                )
            )
        return run_jobs(runs, at_once=config.at_once, poll_seconds=config.poll_seconds)

    def record(self, points: Sequence[Point]) -> SweepRecord:
        """How the points stand; written down, too."""
        executor = self.launcher.executor
        jobs = [
            (job, {} if job.finished else executor.states(job, job.attempts()) or {})
            for job in jobs_below(self.launcher.folder)
            if job.stage == TRAIN
        ]
        asked = [Outcome(point.number, point.choice, point.stage) for point in points]
        config = self.config
        record = SweepRecord(config.metric, config.direction, config.sampler, asked)
        record = record.looked_at(self.root, jobs)
        record.write(self.run)
        return record
