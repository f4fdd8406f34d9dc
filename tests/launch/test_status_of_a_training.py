"""`launch.status` of one training: how long its steps will take, by the progress its ranks tell."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.jobs.executor import ENDED, PENDING, RUNNING, TaskState
from launch.jobs.heartbeat import server_time
from launch.jobs.job import RANKS, Job
from launch.status import JobStatus, job_status
from lsb.progress import seconds_left, steps_told


def training_in(folder: Path) -> Job:
    job = Job.create(
        folder / "jobs" / "train-1",
        stage="train",
        kind=RANKS,
        tasks=1,
        shards=["train"],
        target=folder / "jobs" / "train-1" / "result",
    )
    job.new_attempt("slurm", [0], "code")
    return job


def tell(job: Job, rank: int, what: str, age: float, attempt: int = 1) -> None:
    file, now = job.beat(attempt, 0, rank), server_time(job)
    file.write_text(f"node1\n{what}\n")
    os.utime(file, (now - age, now - age))


def status(job: Job, state: str = RUNNING) -> JobStatus:
    return job_status(job, {0: TaskState(state)})


def test_steps_that_are_left_take_as_long_as_those_of_this_process(tmp_path: Path) -> None:
    job = training_in(tmp_path)
    assert status(job).remaining is None, "no rank has told anything"
    tell(job, 0, "step 120 of 450 (2.000 s each)", 60)
    tell(job, 1, "step 121 of 450 (2.000 s each), validation batch 3", 8)
    found = status(job).remaining
    assert found == pytest.approx(329 * 2 - 8, abs=0.5), "by the rank that got on last"
    for state in (PENDING, ENDED):
        assert status(job, state).remaining is None, "the files are of before"
    assert job_status(job, {}).remaining is None
    # Another attempt, at first without steps; then by its own pace.
    job.new_attempt("slurm", [0], "code")
    assert status(job).remaining is None
    tell(job, 0, "it was started", 1, attempt=2)
    assert status(job).remaining is None
    tell(job, 0, "step 122 of 450 (0.500 s each)", 0, attempt=2)
    assert status(job).remaining == pytest.approx(164, abs=0.5)


def test_what_takes_longer_than_it_should_is_due_now(tmp_path: Path) -> None:
    job = training_in(tmp_path)
    tell(job, 0, "step 449 of 450 (2.000 s each)", 30)
    assert status(job).remaining == 0
    tell(job, 0, "step 450 of 450 (2.000 s each)", 1)  # the rest is no step
    assert status(job).remaining is None
    job.target.mkdir()
    assert status(job).remaining is None
    assert status(job).state == "done"


def test_steps_are_read_as_they_are_told() -> None:
    assert steps_told(3, 450, None) == "step 3 of 450"
    assert steps_told(3, 450, 0.84049) == "step 3 of 450 (0.840 s each)"
    assert seconds_left(steps_told(3, 450, 12345.6789)) == pytest.approx(447 * 12345.679)
    for other in ("step 3 of 450", "it was started", "step 3", "part a of 5 (1.0 s each)"):
        assert seconds_left(other) is None
