"""A sweep that is cancelled ends: what was not trained is no failure of its points."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from launch.jobs.executor import JobCancelledError, JobError
from launch.jobs.job import Job
from launch.sweeping.run import SweepRun

POINTS = cast(Any, [SimpleNamespace(stage=f"train-{n}", training=n) for n in range(2)])


class Ends:
    """A launcher whose jobs end with an error."""

    config = SimpleNamespace(world=1)

    def __init__(self, folder: Path, error: JobError) -> None:
        self.folder, self.error = folder, error

    def run(self, job: Job, work: object) -> None:
        raise self.error


def test_failures_are_results_and_cancelling_is_none(tmp_path: Path) -> None:
    failed, cancelled = JobError("task 0 failed"), JobCancelledError("was cancelled")
    for error in (failed, cancelled):
        launcher = cast(Any, Ends(tmp_path / "jobs", error))
        sweep = SweepRun(tmp_path, tmp_path / "stages", launcher, cast(Any, None))
        if error is failed:
            assert sweep.train(POINTS) == [failed]
        else:
            with pytest.raises(JobCancelledError):
                sweep.train(POINTS)
