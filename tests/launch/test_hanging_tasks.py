"""Real tasks and ranks that hang: stopped, told in one line, and started again.

They put their last progress back by an hour as they hang, and from then on the watcher's clock
jumps by an hour at every look until it has stopped something: no test waits, and none takes a slow
machine for one that hangs, or a slow watcher for one that has looked in time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import pytest
from counting_stage import counting_stage, times_begun
from hanging_rank import wait_for_each_other

from launch.jobs.executor import run_job
from launch.jobs.heartbeat import HangWatch
from launch.jobs.job import RANKS, Attempt, Job
from launch.jobs.launch_record import Asked
from launch.jobs.launcher import launched
from launch.jobs.launcher_config import LocalConfig
from launch.jobs.local import LocalExecutor
from launch.jobs.snapshot import snapshot

pytestmark = pytest.mark.slow

MINUTES = 30.0


@pytest.fixture
def hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is deleted by what hangs; tasks find what these tests have made."""
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    (tmp_path / "orders").mkdir()
    order = tmp_path / "orders" / "c.hang_once"
    order.touch()

    class HastyWatch(HangWatch):
        """Looks on a clock of its own."""

        hours = 0
        told = False

        def __init__(self, job: Job, minutes: float | None) -> None:
            super().__init__(job, minutes, lambda: time.monotonic() + 3600 * self.hours)

        def look(self, running: Collection[int], attempts: Sequence[Attempt]) -> dict[int, str]:
            if not order.exists() and not self.told:
                self.hours += 1
            found = super().look(running, attempts)
            self.told = self.told or bool(found)
            return found

    monkeypatch.setattr("launch.jobs.executor.HangWatch", HastyWatch)
    return order


def test_a_task_that_hangs_is_started_again(tmp_path: Path, hangs: Path) -> None:
    orders, said = hangs.parent, list[str]()
    config = LocalConfig(
        name="local", tasks=4, at_once=1, poll_seconds=0.2, hang_minutes=MINUTES, retries=1
    )
    with launched(config, tmp_path / "run", said.append, Asked({})):
        counting_stage(tmp_path / "stages", orders)
    job = Job.open(next((tmp_path / "run" / "jobs").glob("embed-*")))
    task = next(task for task in job.busy if "c" in job.shards_of(task))
    (line,) = [line for line in said if line.endswith(": stopped")]
    assert f"task {task} has made no progress for 60." in line
    assert any(f"task {task} ended, stopped: task {task} has made no" in line for line in said)
    begun = times_begun(orders)
    assert begun["c"] == 2
    assert job.finished
    assert [attempt.tasks for attempt in job.attempts()] == [tuple(job.busy), (task,)]


def test_a_rank_that_hangs_is_named_and_its_training_started_again(
    tmp_path: Path, hangs: Path
) -> None:
    target, jobs, said = tmp_path / "stages" / "train-1", tmp_path / "jobs", list[str]()
    jobs.mkdir()
    job = Job.create(
        jobs / "train-1", stage="train", kind=RANKS, tasks=1, shards=["all"], target=target
    )
    code = snapshot(jobs).name
    job.put_work(partial(wait_for_each_other, hangs, target), code)
    run_job(
        LocalExecutor(LocalConfig(name="local", ranks=2)),
        job,
        code,
        retries=1,
        poll_seconds=0.2,
        say=said.append,
        remedy="",
        hang_minutes=MINUTES,
    )
    assert target.is_dir()
    assert any("no progress for 60." in line and "rank 1 on" in line for line in said)
    assert len(job.attempts()) == 2
