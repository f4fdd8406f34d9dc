"""Executors: how the tasks of a job are started, watched and stopped, here or on a cluster.

`JobRun` is the same for all of them: submit what is missing, look, submit again what failed. It
can be killed and begun again: tasks that are under way are found by the names of their attempts.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from launch.jobs.heartbeat import HangWatch
from launch.jobs.job import RANKS, SHARDS, TRAININGS, UNITS, Attempt, Job

PENDING, RUNNING, ENDED = "pending", "running", "ended"
CANCELLED = "CANCELLED"
HUNG = "stopped"
LOOKS = 2
"""Looks at which an unfinished task has to be found ended: a job that goes back into the queue is
nowhere for a moment."""
SHOWN_SECONDS = 90.0
"""For how long a task that has ended well may leave its last files unseen: a client of a network
folder keeps what it has listed for up to a minute."""
ENDED_WELL = "COMPLETED"
LOST = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL")
"""Ends that no task has brought about itself: they do not count as failures, `LOSSES` times."""
LOSSES = 20
RELEASES = 5
"""How often a task is released that SLURM holds again and again."""

Say = Callable[[str], None]


class JobError(ValueError):
    """A job that cannot be finished; the message says which task, why, and what to type."""


class JobCancelledError(JobError):
    """Somebody has cancelled it, and with it all that was to follow."""


class JobUntriedError(JobError):
    """Tasks were refused, held or cancelled: it says nothing about what they would have made."""


@dataclass(frozen=True)
class TaskState:
    """What an executor knows of one task.

    Attributes:
        state: `PENDING`, `RUNNING` or `ENDED`.
        reason: how it ended, or why it waits; in the executor's words.
        id: the executor's id of the task.
        place: where it runs.
        held: it waits until somebody releases it.
    """

    state: str
    reason: str = ""
    id: str = ""
    place: str = ""
    held: bool = False


NOWHERE = TaskState(ENDED)


class Executor(Protocol):
    """Starts tasks somewhere.

    Attributes:
        name: "local" or "slurm".
        trouble: why `states` could not tell when it was asked last; else empty.
    """

    name: str
    trouble: str

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
            JobUntriedError: they were refused; says why.
        """

    def states(self, job: Job, attempts: Sequence[Attempt]) -> dict[int, TaskState] | None:
        """Task -> state, of the last attempt that has it; None if nobody can tell now."""

    def release(self, state: TaskState) -> bool:
        """Let one task start that is held; returns whether it may now."""

    def kill(self, state: TaskState) -> None:
        """Stop one task that hangs, whatever it does with signals; `state` is what it was last."""

    def cancel(self, job: Job, attempts: Sequence[Attempt]) -> None:
        """Stop what is under way of some attempts."""


def release_held(
    executor: Executor, job: Job, states: Mapping[int, TaskState], say: Say
) -> list[int]:
    """Release the tasks of a job that are held; returns the numbers of those that were."""
    released = []
    for task in [task for task, one in states.items() if one.held]:
        if executor.release(states[task]):
            say(f"{job.name}: {job.title(task)} is held, {states[task].reason}: released")
            released.append(task)
    return released


class JobRun:
    """One job on its way: submit what is missing and not under way, submit again what failed.

    Args:
        executor: starts tasks.
        job: what to finish.
        code: name of the snapshot that new tasks run.
        retries: how often a task that failed is submitted again.
        say: called with what changes.
        remedy: what to type after a failure.
        hang_minutes: a task that has made no progress for so long is stopped, as a failure; None
            waits for ever.
        clock: seconds that pass here.
    """

    def __init__(
        self,
        executor: Executor,
        job: Job,
        code: str,
        *,
        retries: int,
        say: Say,
        remedy: str,
        hang_minutes: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self.executor, self.job, self.code = executor, job, code
        self.retries, self.say, self.remedy = retries, say, remedy
        self._begun: Counter[int] = Counter()
        self._lost: Counter[int] = Counter()
        self._released: Counter[int] = Counter()
        self._ended_since: dict[int, float] = {}
        self._found_ended: Counter[int] = Counter()
        self._watched: set[int] = set()
        self._hangs = HangWatch(job, hang_minutes)
        self._told = ""

    def look(self) -> bool:
        """Look once, and do what is to be done; returns whether the job is finished.

        Raises:
            JobError: a task failed more often than it may, or was cancelled. All tasks that could
                be finished are.
            JobUntriedError: one was refused or cancelled, or cannot start. What runs goes on.
        """
        job, begun = self.job, self._begun
        missing = job.missing()
        if job.finished:
            return True
        attempts = job.attempts()
        if job.unwanted:
            self.executor.cancel(job, attempts)  # what waits within this process, too
            raise JobCancelledError(
                f"{job.name} was cancelled by launch.cancel: to go on, {self.remedy}"
            )
        states = self.executor.states(job, attempts)
        if states is None:
            why = f" ({self.executor.trouble})" if self.executor.trouble else ""
            self._say_once(
                f"{job.name}: {self.executor.name} does not answer{why}, waiting; jobs run on"
            )
            return False
        stuck = self._release(states)
        states = self._without_hanging(states, attempts)
        active = [t for t, one in states.items() if one.state != ENDED and t not in stuck]
        if not missing and not active:
            return True  # all shards are whole; whoever asked for the stage seals it
        self._watched.update(active)
        idle = [task for task in missing if task not in (*active, *stuck)]
        ended = self._found_ended
        for task in job.busy:
            ended[task] = ended[task] + 1 if task in idle else 0
        looked = [task for task in idle if self._has_ended(task, states)]
        for task in looked:
            lost = states.get(task, NOWHERE).reason.split(" ")[0] in LOST
            self._lost[task] += lost and begun[task] > 0 and self._lost[task] < LOSSES
        cancelled = [t for t in looked if t in self._watched and _is_cancelled(states.get(t))]
        failed = [t for t in looked if begun[t] - self._lost[t] > self.retries or t in cancelled]
        again = [task for task in looked if task not in failed]
        if again:
            for task in again:
                if begun[task]:
                    why = _why(job, task, states)
                    self.say(f"{job.name}: {job.title(task)} ended, {why}: again")
                begun[task] += 1
                self._hangs.stopped.discard(task)
                self._ended_since.pop(task, None)
                ended[task] = 0
            self.executor.submit(job, again, self.code)
        elif failed and not active:
            kind = JobUntriedError if cancelled or stuck else JobError
            raise kind(_failure(job, failed, cancelled, states, self.remedy))
        elif stuck and not active:
            raise JobUntriedError(
                f"{job.name}: {job.title(stuck[0])} is held again and again, "
                f"{states[stuck[0]].reason}: SLURM cannot start it where it tries; python -m "
                "launch.doctor with the same keys says what is wrong with the nodes, then "
                f"launch.cancel and {self.remedy}"
            )
        self._say_once(_progress(job, missing, states))
        return False

    def _has_ended(self, task: int, states: Mapping[int, TaskState]) -> bool:
        """Whether an unfinished task is given up, rather than looked at again."""
        if task not in states:
            return True
        if not states[task].reason.startswith(ENDED_WELL):
            self._ended_since.pop(task, None)
            return self._found_ended[task] >= LOOKS
        since = self._ended_since.setdefault(task, self._clock())
        return self._clock() - since >= SHOWN_SECONDS

    def _release(self, states: Mapping[int, TaskState]) -> list[int]:
        """Release what is held; returns tasks that were released `RELEASES` times in vain."""
        held = {task: one for task, one in states.items() if one.held}
        stuck = [task for task in held if self._released[task] >= RELEASES]
        once_more = {task: one for task, one in held.items() if task not in stuck}
        self._released.update(release_held(self.executor, self.job, once_more, self.say))
        return stuck

    def _without_hanging(
        self, states: Mapping[int, TaskState], attempts: Sequence[Attempt]
    ) -> dict[int, TaskState]:
        """The states; tasks that hang are stopped, and those stopped so say why they ended."""
        running = {task for task, one in states.items() if one.state == RUNNING}
        for line in self._hangs.look(running, attempts).values():
            self.say(f"{self.job.name}: {line}: stopped")
        stopped = self._hangs.stopped  # by us, and not cancelled by anybody
        for task in running & stopped:  # at every look: one call may not have been heard
            self.executor.kill(states[task])
        return {
            task: replace(one, reason=HUNG) if task in stopped and one.state == ENDED else one
            for task, one in states.items()
        }

    def _say_once(self, line: str) -> None:
        if line and line != self._told:
            self.say(line)
        self._told = line


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
        hang_minutes: see `JobRun`.
        watch: called at every look.

    Raises:
        JobError: see `JobRun.look`.
    """
    run = JobRun(
        executor, job, code, retries=retries, say=say, remedy=remedy, hang_minutes=hang_minutes
    )
    while True:
        if watch is not None:
            watch()
        if run.look():
            return
        time.sleep(poll_seconds)


def run_jobs(runs: Sequence[JobRun], *, at_once: int | None, poll_seconds: float) -> list[JobError]:
    """Have several jobs finished, side by side; none waits for another that fails.

    Args:
        runs: in the order in which they start.
        at_once: jobs at a time; None for no limit.
        poll_seconds: between two looks.

    Returns:
        What was wrong with those that could not be finished.

    Raises:
        JobCancelledError: they were cancelled; none that waits is started.
    """
    waiting, under_way = list(runs), list[JobRun]()
    errors = []
    while waiting or under_way:
        room = len(waiting) if at_once is None else at_once - len(under_way)
        under_way, waiting = under_way + waiting[:room], waiting[room:]
        for run in list(under_way):
            try:
                done = run.look()
            except JobCancelledError:
                raise
            except JobError as error:
                errors.append(error)
                done = True
            if done:
                under_way.remove(run)
        if under_way:
            time.sleep(poll_seconds)
    return errors


def _is_cancelled(state: TaskState | None) -> bool:
    return state is not None and state.reason.startswith(CANCELLED)


def _progress(job: Job, missing: Sequence[int], states: Mapping[int, TaskState]) -> str:
    counts = Counter(one.state for one in states.values())
    done = len(job.busy) - len(missing)
    waiting = f", {counts[PENDING]} waiting" if counts[PENDING] else ""
    unit = {SHARDS: "tasks", RANKS: "training", TRAININGS: "trainings", UNITS: "units"}[job.kind]
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
        f"{job.name}: {job.title(task)} of {job.tasks}{more} {what}: {_why(job, task, states)}; "
        f"logs are in {job.folder / 'logs'}; mend it, then {remedy}"
    )
