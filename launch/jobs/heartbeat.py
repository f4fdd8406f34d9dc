"""Tasks that hang: found by the file that each writes as it gets on (`lsb.progress`).

    <job>/beats/001-<task>           host, and what it has done; of attempt 1
    <job>/beats/001-<task>-rank-<r>  of one rank
    <job>/beats/.now                 touched by whoever looks

No clock but the file server's is read: the age of a file is the difference of its time and that of
a file that is touched now. Ranks wait for each other, and the first makes stages that the others
wait for, so a training hangs when none of its ranks gets on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from launch.jobs.job import RANKS, Attempt, Job

NOW = ".now"


@dataclass(frozen=True)
class Beat:
    """The last progress of a task, or of one of its ranks.

    Attributes:
        seconds: since then.
        time: of it, in seconds since the epoch, by the file server.
        host: where.
        what: was done, in a few words.
        rank: of a training; None for other tasks.
    """

    seconds: float
    time: float
    host: str
    what: str
    rank: int | None = None

    def __str__(self) -> str:
        """E.g. "rank 1 on node2, step 120 at 10:03:04 UTC"."""
        at = datetime.fromtimestamp(self.time, UTC).strftime("%H:%M:%S")
        who = "" if self.rank is None else f"rank {self.rank} "
        return f"{who}on {self.host or 'a host it has not told'}, {self.what} at {at} UTC"


def server_time(job: Job) -> float:
    """What the clock of the file server of a job's folder shows, in seconds since the epoch."""
    folder = job.folder / "beats"
    file = folder / NOW
    try:
        folder.mkdir(exist_ok=True)
        file.touch()
        os.utime(file)  # without times: the server takes its own
        return file.stat().st_mtime
    except OSError:  # somebody who may only read
        return time.time()


def last_beats(job: Job, task: int, now: float | None = None) -> list[Beat]:
    """Last progress of a task's latest attempt, of each of its ranks that has told any.

    Args:
        job: of the task.
        task: its number.
        now: what `server_time` says; None asks.
    """
    attempts = [attempt.number for attempt in job.attempts() if task in attempt.tasks]
    if not attempts:
        return []
    own = job.beat(attempts[-1], task)
    if job.kind == RANKS:
        files = {
            int(file.name.rsplit("-", 1)[1]): file
            for file in own.parent.glob(f"{own.name}-rank-[0-9]*")
        }
    else:
        files = {None: own}  # type: ignore[dict-item]
    now = server_time(job) if now is None else now
    found = []
    for rank, file in sorted(files.items()):
        with suppress(FileNotFoundError):
            time_told = file.stat().st_mtime
            host, _, what = file.read_text("utf-8", "replace").partition("\n")
            found.append(Beat(max(0.0, now - time_told), time_told, host, what.strip(), rank))
    return found


def silence(job: Job, task: int, now: float | None = None) -> float | None:
    """Seconds since a task got on last; of ranks, since any of them did. None: it has not begun."""
    return min((beat.seconds for beat in last_beats(job, task, now)), default=None)


class HangWatch:
    """Looks for tasks of a job that run and do not get on.

    A task has to be seen running for as long as it is silent: what went back into the queue, and
    runs again, has old files.

    Args:
        job: to look at.
        minutes: without progress; None finds nothing.
        clock: seconds that pass here.
    """

    def __init__(
        self, job: Job, minutes: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.job, self.minutes, self._clock = job, minutes, clock
        self.stopped: set[int] = set()
        self._since: dict[tuple[int, int], float] = {}  # task and attempt that run -> since when

    def look(self, running: Collection[int], attempts: Sequence[Attempt]) -> dict[int, str]:
        """Tasks that hang -> what to say of each; each is told once an attempt, as failed.

        Args:
            running: tasks that run now.
            attempts: of the job, in order.
        """
        if self.minutes is None:
            return {}
        now, limit = self._clock(), self.minutes * 60
        latest = {task: one.number for one in attempts for task in one.tasks}
        since = {task: self._since.get((task, latest[task]), now) for task in running}
        self._since = {(task, latest[task]): seconds for task, seconds in since.items()}
        long = [t for t in running if now - since[t] > limit and t not in self.stopped]
        if not long:  # the folder is asked only where it may tell something
            return {}
        server, found = server_time(self.job), {}
        for task in long:
            beats = last_beats(self.job, task, server)
            silent = min((beat.seconds for beat in beats), default=now - since[task])
            if silent > limit:
                # All ranks wait for the one that hangs: it is among the first to fall silent.
                first = max(beats, key=lambda beat: beat.seconds, default=None)
                last = "none since it runs" if first is None else str(first)
                line = (
                    f"task {task} has made no progress for {silent / 60:.1f} min (the last: {last})"
                )
                self.stopped.add(task)
                start = self.job.told("started", task).get("start", 0)
                self.job.fail(task, {"attempt": latest[task], "start": start, "line": line})
                found[task] = line
        return found
