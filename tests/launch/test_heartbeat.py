"""Tasks that hang are found by their progress, by the file server's clock, and started again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch.jobs.executor import ENDED, RUNNING, JobError, TaskState, run_job
from launch.jobs.heartbeat import HangWatch, last_beats, server_time, silence
from launch.jobs.job import RANKS, SHARDS, Attempt, Job
from launch.jobs.launcher_config import launcher_config
from lsb import progress


def job_in(folder: Path, kind: str = SHARDS) -> Job:
    return Job.create(
        folder / "jobs" / "embed-1",
        stage="embed",
        kind=kind,
        tasks=1,
        shards=["a"],
        target=folder / "stages" / "embed-1",
    )


def beat(file: Path, age: float, now: float, what: str = "part a is whole") -> None:
    file.write_text(f"node2\n{what}\n")
    os.utime(file, (now - age, now - age))


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_is_written_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "beat"
    monkeypatch.setenv(progress.FILE, str(file))
    monkeypatch.setattr(progress, "_written", float("-inf"))
    progress.progressed("step 1")
    progress.progressed("step 2")  # just after: not worth a write
    assert file.read_text().splitlines()[1] == "step 1"
    monkeypatch.setattr(progress, "_written", float("-inf"))
    monkeypatch.setenv(progress.FILE, str(tmp_path / "absent" / "beat"))
    progress.progressed("step 3")  # whose folder is gone: the work goes on


def test_the_youngest_rank_tells_whether_a_training_gets_on(tmp_path: Path) -> None:
    job = job_in(tmp_path, RANKS)
    assert silence(job, 0) is None
    job.new_attempt("local", [0], "code")
    now = server_time(job)
    beat(job.beat(1, 0, 0), 50, now, "step 7")
    beat(job.beat(1, 0, 1), 20, now)
    assert silence(job, 0, now) == pytest.approx(20, abs=0.01)
    assert [one.rank for one in last_beats(job, 0, now)] == [0, 1]
    job.new_attempt("local", [0], "code")  # whose ranks have told nothing yet
    assert silence(job, 0, now) is None


def test_a_task_hangs_when_it_ran_and_was_silent_for_long(tmp_path: Path) -> None:
    job, clock = job_in(tmp_path), Clock()
    attempts = [job.new_attempt("local", [0], "code")]
    watch = HangWatch(job, 10, clock)
    now = server_time(job)
    beat(job.beat(1, 0), 3600, now)  # of before it went back into the queue
    assert watch.look([0], attempts) == {}
    clock.now = 599
    assert watch.look([0], attempts) == {}
    assert watch.look([], attempts) == {}  # back in the queue: counted anew
    clock.now = 1000
    assert watch.look([0], attempts) == {}
    clock.now = 1601
    beat(job.beat(1, 0), 300, server_time(job))
    assert watch.look([0], attempts) == {}
    beat(job.beat(1, 0), 660, server_time(job))
    (line,) = watch.look([0], attempts).values()
    assert line.startswith("task 0 has made no progress for 11.0 min (the last: on node2, part a")
    assert job.why(0) == line
    assert watch.look([0], attempts) == {}  # told once
    assert HangWatch(job, None, clock).look([0], attempts) == {}


def test_a_task_that_never_told_anything_hangs_since_it_runs(tmp_path: Path) -> None:
    job, clock = job_in(tmp_path), Clock()
    attempts = [job.new_attempt("local", [0], "code")]
    watch = HangWatch(job, 1, clock)
    watch.look([0], attempts)
    clock.now = 61
    (line,) = watch.look([0], attempts).values()
    assert "1.0 min (the last: none since it runs)" in line


class Hanging:
    """An executor whose tasks run until they are killed, and then look cancelled."""

    name = "fake"
    trouble = ""

    def __init__(self) -> None:
        self.killed: list[str] = []
        self.runs = ""

    def submit(
        self, job: Job, tasks: Sequence[int], code: str, after: Sequence[Attempt] = ()
    ) -> list[Attempt]:
        attempt = job.new_attempt(self.name, tasks, code)
        beat(job.beat(attempt.number, 0), 3600, server_time(job))
        self.runs = str(attempt.number)
        return [attempt]

    def states(self, job: Job, attempts: Sequence[Attempt]) -> dict[int, TaskState]:
        if not attempts:
            return {}
        state = TaskState(RUNNING, id=self.runs)
        return {0: TaskState(ENDED, "CANCELLED by 0") if self.runs in self.killed else state}

    def kill(self, state: TaskState) -> None:
        self.killed.append(state.id)

    def cancel(self, job: Job, attempts: Sequence[Attempt]) -> None:
        raise AssertionError("nobody cancels")


def test_what_hangs_is_a_failure_and_retried_as_one(tmp_path: Path) -> None:
    job, executor, said = job_in(tmp_path), Hanging(), []  # type: ignore[var-annotated]
    with pytest.raises(JobError, match="failed: stopped: task 0 has made no progress"):
        run_job(
            executor,
            job,
            "code",
            retries=1,
            poll_seconds=0.001,
            say=said.append,
            remedy="try again",
            hang_minutes=1e-9,
        )
    assert executor.killed == ["1", "2"]
    assert sum("has made no progress" in line and line.endswith(": stopped") for line in said) == 2
    assert sum(line.endswith(": again") for line in said) == 1


def test_the_time_has_to_be_more_than_nothing() -> None:
    assert launcher_config({"name": "local", "hang_minutes": None}).hang_minutes is None
    with pytest.raises(ValueError, match=r"launcher\.hang_minutes is 0.*null"):
        launcher_config({"name": "local", "hang_minutes": 0})
