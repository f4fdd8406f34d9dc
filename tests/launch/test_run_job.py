"""`run_job` against an executor that plays a script: what it submits, and when it gives up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from launch.jobs.executor import (
    ENDED,
    LOSSES,
    PENDING,
    RELEASES,
    RUNNING,
    SHOWN_SECONDS,
    JobCancelledError,
    JobError,
    JobRun,
    JobUntriedError,
    TaskState,
    run_job,
    run_jobs,
)
from launch.jobs.job import CANCEL, RANKS, Attempt, Job

Look = dict[int, TaskState] | None | Callable[[], dict[int, TaskState]]


class Script:
    """An executor that answers each look with the next state of its script."""

    name = "script"
    trouble = "squeue: no contact"

    def __init__(self, looks: Sequence[Look]) -> None:
        self.looks = list(looks)
        self.submitted: list[list[int]] = []
        self.released: list[str] = []
        self.cancelled: list[str] = []

    def submit(
        self, job: Job, tasks: Sequence[int], code: str, after: Sequence[Attempt] = ()
    ) -> list[Attempt]:
        self.submitted.append(list(tasks))
        return [job.new_attempt(self.name, tasks, code)]

    def states(self, job: Job, attempts: Sequence[Attempt]) -> dict[int, TaskState] | None:
        look = self.looks.pop(0)
        return look() if callable(look) else look

    def release(self, state: TaskState) -> bool:
        self.released.append(state.id)
        return state.id != "away"

    def cancel(self, job: Job, attempts: Sequence[Attempt]) -> None:
        self.cancelled.append(job.name)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    target = tmp_path / "stages" / "train-1"
    folder = tmp_path / "jobs" / "train-1"
    return Job.create(folder, stage="train", kind=RANKS, tasks=1, shards=["a"], target=target)


def run(job: Job, *looks: Look, retries: int = 1) -> tuple[Script, list[str]]:
    executor, said = Script(looks), []
    run_job(
        executor,
        job,
        "code-1",
        retries=retries,
        poll_seconds=0.001,
        say=said.append,
        remedy="give it again",
    )
    return executor, said


def state(name: str, reason: str = "") -> dict[int, TaskState]:
    return {0: TaskState(name, reason)}


def finish(job: Job) -> Callable[[], dict[int, TaskState]]:
    def look() -> dict[int, TaskState]:
        job.target.mkdir(parents=True)
        return state(RUNNING)

    return look


def test_what_is_missing_is_submitted_once(job: Job) -> None:
    executor, said = run(job, {}, state(PENDING), state(RUNNING), state(RUNNING), finish(job))
    assert executor.submitted == [[0]]
    assert len(said) == len(set(said))  # each change is said once


def test_what_is_under_way_is_not_submitted(job: Job) -> None:
    executor, _ = run(job, state(RUNNING), finish(job))
    assert executor.submitted == []


def test_what_is_held_is_released_and_waited_for(job: Job) -> None:
    held = {0: TaskState(PENDING, "launch failed requeued held", "7", held=True)}
    executor, said = run(job, held, state(PENDING), state(RUNNING), finish(job))
    assert executor.released == ["7"]
    assert executor.submitted == []
    assert "train-1: task 0 is held, launch failed requeued held: released" in said


def test_a_job_that_is_nowhere_for_a_moment_is_not_started_twice(job: Job) -> None:
    gone = state(ENDED, "GONE")
    executor, _ = run(job, state(RUNNING), gone, state(PENDING), gone, state(RUNNING), finish(job))
    assert executor.submitted == []


def test_a_failure_is_tried_again_and_then_told(job: Job) -> None:
    job.fail(0, {"attempt": 2, "line": "no space left on device"})
    failed = state(ENDED, "FAILED (NonZeroExitCode)")
    looks = [{}, state(RUNNING), failed, failed, state(RUNNING), failed, failed]
    words = r"failed: FAILED .*no space left on device.*give it again"
    with pytest.raises(JobError, match=words) as told:
        run(job, *looks)
    assert type(told.value) is JobError
    assert len(job.attempts()) == 2


def test_cancelled_tasks_are_not_tried_again(job: Job) -> None:
    ended = state(ENDED, "CANCELLED")
    with pytest.raises(JobUntriedError, match="was cancelled"):
        run(job, {}, state(RUNNING), ended, ended, retries=5)
    assert len(job.attempts()) == 1


def test_what_was_cancelled_before_is_submitted_by_a_new_command(job: Job) -> None:
    ended = state(ENDED, "CANCELLED")
    executor, _ = run(job, ended, ended, state(RUNNING), finish(job))
    assert executor.submitted == [[0]]


def test_an_executor_that_does_not_answer_is_waited_for(job: Job) -> None:
    executor, said = run(job, None, None, state(RUNNING), finish(job))
    assert executor.submitted == []
    assert [line for line in said if "does not answer" in line] == [
        "train-1: script does not answer (squeue: no contact), waiting; jobs run on"
    ]


def test_a_finished_job_asks_nobody(job: Job) -> None:
    job.target.mkdir(parents=True)
    executor, said = run(job)
    assert executor.submitted == said == []


def test_what_ended_well_may_show_its_files_late(job: Job) -> None:
    passed = [0.0]
    executor = Script([state(RUNNING), *[state(ENDED, "COMPLETED")] * 5])
    run = JobRun(
        executor,
        job,
        "code-1",
        retries=1,
        say=print,
        remedy="give it again",
        clock=lambda: passed[0],
    )
    for _ in range(5):
        assert not run.look()
        passed[0] += SHOWN_SECONDS / 4
    assert executor.submitted == []
    assert not run.look()
    assert executor.submitted == [[0]]
    job.target.mkdir(parents=True)
    assert run.look()


def test_what_was_nowhere_and_then_ended_well_is_waited_for(job: Job) -> None:
    gone, well = state(ENDED, "GONE"), state(ENDED, "COMPLETED")
    executor, _ = run(job, state(RUNNING), gone, well, well, well, finish(job))
    assert executor.submitted == []


def test_a_lost_node_is_no_failure(job: Job) -> None:
    lost = [state(RUNNING), state(ENDED, "NODE_FAIL"), state(ENDED, "NODE_FAIL")]
    executor, said = run(job, {}, *(lost * 3), state(RUNNING), finish(job), retries=0)
    assert executor.submitted == [[0]] * 4
    assert "train-1: task 0 ended, NODE_FAIL: again" in said


def test_a_job_that_is_always_preempted_ends(job: Job) -> None:
    preempted = [state(RUNNING), state(ENDED, "PREEMPTED"), state(ENDED, "PREEMPTED")]
    with pytest.raises(JobError, match="failed: PREEMPTED"):
        run(job, {}, *(preempted * (LOSSES + 1)), retries=0)
    assert len(job.attempts()) == LOSSES + 1


def test_what_is_held_for_ever_is_told(job: Job) -> None:
    held = {0: TaskState(PENDING, "launch failure limit exceeded requeued held", "7", held=True)}
    with pytest.raises(JobUntriedError, match=r"held again and again, .*launch\.doctor"):
        run(job, *[held] * (RELEASES + 1))
    away = {0: TaskState(PENDING, "launch failed requeued held", "away", held=True)}
    executor, said = run(job, *[away] * (3 * RELEASES), state(RUNNING), finish(job))
    assert len(executor.released) == 3 * RELEASES  # none of them counts
    assert not [line for line in said if "released" in line]


def test_told_to_cancel_it_starts_nothing_more(tmp_path: Path) -> None:
    executor, runs = Script([{}]), []
    for name in "ab":
        target, folder = tmp_path / "stages" / name, tmp_path / "jobs" / name
        made = Job.create(folder, stage="train", kind=RANKS, tasks=1, shards=[name], target=target)
        runs.append(JobRun(executor, made, "code-1", retries=5, say=print, remedy="give it again"))
    assert not runs[0].look()
    assert executor.submitted == [[0]]
    (tmp_path / "jobs" / CANCEL).touch()
    with pytest.raises(JobCancelledError, match=r"was cancelled by launch\.cancel: to go on, give"):
        run_jobs(runs, at_once=1, poll_seconds=0.001)
    assert executor.cancelled == ["a"]
    assert executor.submitted == [[0]]


class SideBySide(Script):
    """An executor of several jobs: each is found running twice, then done; that of "b" fails."""

    def __init__(self) -> None:
        super().__init__([])
        self.seen: dict[str, int] = {}
        self.most = 0

    def states(self, job: Job, attempts: Sequence[Attempt]) -> dict[int, TaskState] | None:
        if not attempts:
            return {}
        seen = self.seen[job.name] = self.seen.get(job.name, 0) + 1
        under_way = [name for name, looks in self.seen.items() if looks <= 2]
        self.most = max(self.most, len(under_way))
        if seen <= 2:
            return state(RUNNING)
        if job.name == "b":
            return state(ENDED, "FAILED")
        return finish(job)()


@pytest.mark.parametrize("at_once", [1, 2, None])
def test_jobs_side_by_side_so_many_at_a_time_and_one_fails(
    tmp_path: Path, at_once: int | None
) -> None:
    executor, runs = SideBySide(), []
    for name in "abcd":
        target, folder = tmp_path / "stages" / name, tmp_path / "jobs" / name
        job = Job.create(folder, stage="train", kind=RANKS, tasks=1, shards=[name], target=target)
        runs.append(JobRun(executor, job, "code-1", retries=0, say=print, remedy="give it again"))
    (error,) = run_jobs(runs, at_once=at_once, poll_seconds=0.001)
    assert "b: task 0 of 1 failed: FAILED" in str(error)
    assert [run.job.finished for run in runs] == [True, False, True, True]
    assert [len(run.job.attempts()) for run in runs] == [1, 1, 1, 1]
    assert executor.most == (at_once or 4)
