"""Executors: how the tasks of a job are started, watched and stopped, here or on a cluster.

`run_job` is the same for all of them: submit what is missing, wait, submit again what failed. It
can be killed and called again: tasks that are under way are found by the names of their attempts.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from launch.heartbeat import HangWatch
from launch.job import SHARDS, Attempt, Job

PENDING, RUNNING, ENDED = "pending", "running", "ended"
CANCELLED = "CANCELLED"
HUNG = "stopped"
LOOKS = 2
"""Looks at which an unfinished task has to be found ended: a job that goes back into the queue is
nowhere for a moment, and a folder on a network may show the last files late."""

Say = Callable[[str], None]


class JobError(ValueError):
    """A job that cannot be finished; the message says which task, why, and what to type."""


@dataclass(frozen=True)
class TaskState:
    """What an executor knows of one task.

    Attributes:
        state: `PENDING`, `RUNNING` or `ENDED`.
        reason: how it ended, or why it waits; in the executor's words.
        id: the executor's id of the task.
        place: where it runs.
    """

    state: str
    reason: str = ""
    id: str = ""
    place: str = ""


class Executor(Protocol):
    """Starts tasks somewhere."""

    name: str

    def submit(
        self, job: Job, tasks: Sequence[int], code: str, after: Sequence[Attempt] = ()
    ) -> list[Attempt]:
        """Start some tasks of a job.

        Args:
            job: with the work of `code`.
            tasks: numbers of tasks.
            code: name of the snapshot beside the job.
            after: attempts that have to end well before.

        Raises:
            JobError: they were refused; says why.
        """

    def states(self, job: Job, attempts: Sequence[Attempt]) -> dict[int, TaskState] | None:
        """Task -> state, of the last attempt that has it; None if nobody can tell now."""

    def kill(self, state: TaskState) -> None:
        """Stop one task that hangs, whatever it does with signals; `state` is what it was last."""

    def cancel(self, job: Job, attempts: Sequence[Attempt]) -> None:
        """Stop what is under way of some attempts."""


def run_job(
    executor: Executor,
    job: Job,
    code: str,
    *,
    retries: int,
    poll_seconds: float,
    say: Say,
    remedy: str,
    hang_minutes: float | None = None,
    watch: Callable[[], None] | None = None,
) -> None:
    """Have a job finished: submit what is missing and not under way, wait, retry what failed.

    Args:
        executor: starts tasks.
        job: what to finish.
        code: name of the snapshot that new tasks run.
        retries: how often a task that failed is submitted again.
        poll_seconds: between two looks.
        say: called with what changes.
        remedy: what to type after a failure.
        hang_minutes: a task that has made no progress for so long is stopped, as a failure; None
            waits for ever.
        watch: called at every look.

    Raises:
        JobError: a task failed more often, or was cancelled. All tasks that could be finished are.
    """
    begun: Counter[int] = Counter()
    found_ended: Counter[int] = Counter()
    watched: set[int] = set()
    hangs = HangWatch(job, hang_minutes)
    told = ""
    while True:
        missing = job.missing()
        if watch is not None:
            watch()
        if job.finished:
            return
        attempts = job.attempts()
        states = executor.states(job, attempts)
        if states is None:
            told = _say_once(say, told, f"{job.name}: the executor does not answer, waiting")
            time.sleep(poll_seconds)
            continue
        running = {task for task, one in states.items() if one.state == RUNNING}
        for task, line in hangs.look(running, attempts).items():
            say(f"{job.name}: {line}: stopped")
            executor.kill(states[task])
        for task in hangs.stopped:  # by us, and not cancelled by anybody
            if task in states and states[task].state == ENDED:
                states[task] = replace(states[task], reason=HUNG)
        active = [task for task, one in states.items() if one.state != ENDED]
        if not missing and not active:
            return  # all shards are whole; whoever asked for the stage seals it
        watched.update(active)
        idle = [task for task in missing if task not in active]
        for task in job.busy:
            found_ended[task] = found_ended[task] + 1 if task in idle else 0
        looked = [task for task in idle if task not in states or found_ended[task] >= LOOKS]
        cancelled = [t for t in looked if t in watched and _is_cancelled(states.get(t))]
        failed = [t for t in looked if begun[t] > retries or t in cancelled]
        again = [task for task in looked if task not in failed]
        if again:
            for task in again:
                if begun[task]:
                    say(f"{job.name}: task {task} ended, {_why(job, task, states)}: again")
                begun[task] += 1
                hangs.stopped.discard(task)
                found_ended[task] = 0
            executor.submit(job, again, code)
        elif failed and not active:
            raise JobError(_failure(job, failed, cancelled, states, remedy))
        told = _say_once(say, told, _progress(job, missing, states))
        time.sleep(poll_seconds)


def _is_cancelled(state: TaskState | None) -> bool:
    return state is not None and state.reason.startswith(CANCELLED)


def _say_once(say: Say, told: str, line: str) -> str:
    if line and line != told:
        say(line)
    return line


def _progress(job: Job, missing: Sequence[int], states: Mapping[int, TaskState]) -> str:
    counts = Counter(one.state for one in states.values())
    done = len(job.busy) - len(missing)
    waiting = f", {counts[PENDING]} waiting" if counts[PENDING] else ""
    unit = "tasks" if job.kind == SHARDS else "training"
    running = f"{counts[RUNNING]} running{waiting}"
    return f"{job.name}: {done} of {len(job.busy)} {unit}, {running}"


def _why(job: Job, task: int, states: Mapping[int, TaskState]) -> str:
    reason = states[task].reason if task in states else ""
    line = job.why(task)
    return ": ".join(filter(None, [reason, line])) or "without a word"


def _failure(
    job: Job,
    failed: Sequence[int],
    cancelled: Sequence[int],
    states: Mapping[int, TaskState],
    remedy: str,
) -> str:
    task = failed[0]
    what = "was cancelled" if task in cancelled else "failed"
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    return (
        f"{job.name}: task {task} of {job.tasks}{more} {what}: {_why(job, task, states)}; "
        f"logs are in {job.folder / 'logs'}; mend it, then {remedy}"
    )
