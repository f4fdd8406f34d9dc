"""How a run's jobs stand, on one page: `python -m launch.status runs/demo`.

One line a stage that tasks make: how many tasks and shards are done, who runs and who waits, ids of
the executor, how long it has taken and may take, and for what failed its last error. Of a sweep
also one line a point.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Group
from rich.table import Table

from launch.jobs.executor import ENDED, PENDING, RUNNING, TaskState
from launch.jobs.heartbeat import last_beats, server_time, silence
from launch.jobs.job import RANKS, Job, seconds_since
from launch.jobs.run_jobs import RunJobs, active
from launch.sweeping.table import SweepRecord, sweep_page
from lsb.console import console, run_command
from lsb.progress import seconds_left


@dataclass(frozen=True)
class JobStatus:
    """One job.

    Attributes:
        name: of the stage's folder.
        tasks: done, and of how many.
        shards: done, and of how many.
        running: tasks.
        waiting: tasks.
        ids: the executor's, of its last attempts.
        seconds: since its first attempt, until it was finished.
        remaining: seconds to go at the pace so far, of shards that are done or of a training's
            steps; None where nobody can tell.
        error: of the first task that is neither done nor under way, in one line; else empty.
        silent: seconds since the last progress, of the running task that is silent longest.
    """

    name: str
    tasks: tuple[int, int]
    shards: tuple[int, int]
    running: int
    waiting: int
    ids: tuple[str, ...]
    seconds: float
    remaining: float | None
    error: str
    silent: float | None = None

    @property
    def state(self) -> str:
        """In a word."""
        if self.tasks[0] == self.tasks[1]:
            return "done"
        if self.running:
            return "running"
        return "waiting" if self.waiting else "stopped"


def job_status(job: Job, states: dict[int, TaskState]) -> JobStatus:
    """How one job stands.

    Args:
        job: to look at.
        states: of its tasks, see `launch.jobs.executor.Executor.states`.
    """
    missing, busy = job.missing(), job.busy
    done, of = len(job.recorded()), len(job.shards)
    attempts = job.attempts()
    counts = Counter(one.state for task, one in states.items() if task in missing)
    stopped = [task for task in missing if task not in active(states)]
    seconds = seconds_since(attempts[0].time) if attempts else 0.0
    remaining = None
    if job.finished:
        done = of
        told = [job.told("done", task).get("time") for task in busy]
        ends = [seconds_since(time) for time in told if time]
        seconds -= min(ends, default=0.0)
    elif job.kind == RANKS:
        remaining = _steps_remaining(job, states)
    elif active(states) and done:
        remaining = seconds * (of - done) / done
    return JobStatus(
        job.name,
        (len(busy) - len(missing), len(busy)),
        (done, of),
        counts[RUNNING],
        counts[PENDING],
        tuple(attempt.id for attempt in attempts if attempt.id and set(attempt.tasks) & set(busy)),
        seconds,
        remaining,
        _error(job, stopped, states) if attempts else "",
        _silent(job, states),
    )


def _steps_remaining(job: Job, states: dict[int, TaskState]) -> float | None:
    """Of a training that runs: what the rank that got on last has told of its steps."""
    if states.get(0, TaskState(PENDING)).state != RUNNING:  # what it told is of before
        return None
    last = min(last_beats(job, 0), key=lambda beat: beat.seconds, default=None)
    left = None if last is None else seconds_left(last.what)
    return None if last is None or left is None else max(0.0, left - last.seconds)


def _silent(job: Job, states: dict[int, TaskState]) -> float | None:
    running = [task for task, one in states.items() if one.state == RUNNING]
    now = server_time(job) if running else 0.0
    found = [silence(job, task, now) for task in running]
    return max((one for one in found if one is not None), default=None)


def _error(job: Job, stopped: Sequence[int], states: dict[int, TaskState]) -> str:
    for task in stopped:
        reason = states[task].reason if task in states and states[task].state == ENDED else ""
        line = ": ".join(filter(None, [reason, job.why(task)]))
        return f"{job.title(task)}: {line or 'without a word'}"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry point; returns the exit code: 0, or 2 for what is no run with jobs."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.status", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("folder", metavar="run", type=Path, help="folder of the run")
    parser.set_defaults(run=lambda options: show(options.folder))
    return run_command(parser.parse_args(arguments))


def show(folder: Path) -> int:
    """Print the page of a run; returns an exit code."""
    run = RunJobs.open(folder)
    # What is finished needs no executor: a page of a finished run can be read anywhere.
    states = [(job, {} if job.finished else run.states(job)) for job in run.jobs]
    found = [job_status(job, its) for job, its in states]
    console().print(page(run, found), soft_wrap=True)
    sweep = SweepRecord.read(folder)
    if sweep is not None:
        sweep = sweep.looked_at(folder.absolute().parent / "stages", states)
        console().print(sweep_page(sweep), soft_wrap=True)
    return 0


def page(run: RunJobs, found: Sequence[JobStatus]) -> Group:
    """The page that `launch.status` prints."""
    words = {"stage", "state", "ids"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in (
        "stage",
        "state",
        "tasks",
        "shards",
        "runs",
        "waits",
        "took",
        "to go",
        "silent",
        "ids",
    ):
        table.add_column(name, justify="left" if name in words else "right", no_wrap=True)
    for one in found:
        table.add_row(
            one.name,
            one.state,
            f"{one.tasks[0]}/{one.tasks[1]}",
            f"{one.shards[0]}/{one.shards[1]}",
            str(one.running or ""),
            str(one.waiting or ""),
            span(one.seconds),
            "" if one.remaining is None else span(one.remaining),
            "" if one.silent is None else span(one.silent),
            ",".join(one.ids[-3:]),
        )
    errors = [f"{one.name}: {one.error}" for one in found if one.error]
    if run.at_work:
        doing = "a command is at work on it"
    elif all(one.state == "done" for one in found):
        doing = "all that was submitted is done, and no command is at work"
    else:
        doing = (
            "no command is at work: give the same one again to go on, or python -m launch.retry "
            f"{run.run} for the jobs alone"
        )
    head = f"{run.run}: launcher={run.config.name}, launched {run.time}; {doing}"
    return Group(head, table, *errors)


def span(seconds: float) -> str:
    """Seconds as people say them: "42 s", "7 min", "3 h 05"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d}"


if __name__ == "__main__":
    sys.exit(main())
