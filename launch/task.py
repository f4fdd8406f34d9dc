"""One task of a job: `python -m launch.task <folder> --task N --attempt A`, started by an executor.

A task of shards makes its share of the stage and ends; the task that finds all shards whole seals
the stage. A rank of a training takes its number from RANK and its companions, or from SLURM. A task
of trainings is one of them, alone; a task of units likewise.
SIGUSR2 and SIGTERM end a task whose shards are independent at once, for what it has not finished
leaves nothing behind, and so a unit between two trainings; a training saves first
(`vlmae.preemption`). Exit codes: 0, 1 for an error that is told in one line, 75 to be put back into
the queue, 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

from launch.jobs.job import COME_AGAIN, PARENT, RANKS, SHARDS, TERMINATED, UNITS, Job
from lsb.artifact import waiting_for_others, work_on_stage
from lsb.delegation import StageCall
from lsb.progress import FILE, progressed

SLURM_NAMES = {
    "RANK": "SLURM_PROCID",
    "WORLD_SIZE": "SLURM_NTASKS",
    "LOCAL_RANK": "SLURM_LOCALID",
    "LOCAL_WORLD_SIZE": "SLURM_NTASKS_PER_NODE",
}


def main(arguments: list[str] | None = None) -> int:
    """Command line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.task", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="of the job")
    parser.add_argument("--task", type=int, required=True, help="number of the task")
    parser.add_argument("--attempt", type=int, required=True, help="number of the attempt")
    options = parser.parse_args(arguments)
    _exit_with_parent()
    job = Job.open(options.folder)
    attempt = job.attempt(options.attempt)
    ranked = job.kind == RANKS
    rank = rank_from_slurm() if ranked else 0
    record = {
        "attempt": attempt.number,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "start": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    }
    if rank == 0:
        job.start(options.task, record)
    if job.kind in (SHARDS, UNITS):
        _end_on_signals()
    beat = job.beat(attempt.number, options.task, rank if ranked else None)
    beat.parent.mkdir(exist_ok=True)
    os.environ[FILE] = str(beat.absolute())
    progressed("it was started")
    started = time.monotonic()
    try:
        work = job.take_work(attempt.code)
        if job.kind == SHARDS:
            _share(job, options.task, work)
        else:
            _train(work if ranked else partial(work, options.task))
    except Exception as error:
        name = type(error).__name__
        another = name == "OtherRankError"  # of vlmae.ranks, which takes seconds to import
        told = another or isinstance(error, (ValueError, OSError, MemoryError))  # no bugs
        line = " ".join((_words(error) if told else f"{name}: {error}").split())
        if told:
            print(f"error: {line}", file=sys.stderr)
        else:
            traceback.print_exc()
        if not another:  # it would hide why
            job.fail(options.task, {**record, "rank": rank, "line": line})
        return 1
    if rank == 0:
        job.complete(options.task, {**record, "seconds": round(time.monotonic() - started, 3)})
    return 0


def _words(error: Exception) -> str:
    """What is told of an error; Python has no words for memory that runs out."""
    if not isinstance(error, MemoryError):
        return str(error)
    what = f" ({error})" if str(error) else ""
    return (
        f"memory ran out{what}: give each task more (++launcher.resources.<stage>.memory_gb=<GB>), "
        "or, on one machine, have fewer at a time (launcher.at_once=1)"
    )


def _share(job: Job, task: int, call: StageCall) -> None:
    """Make this task's share of a stage.

    A predecessor that SLURM believes lost may live on and hold the share: it is waited for.
    """
    if not job.finished:
        with waiting_for_others():
            work_on_stage(
                call.root,
                call.stage,
                config=call.config,
                inputs=call.inputs,
                parts=call.parts,
                share=(task, job.tasks),
                processes=call.processes,
                revision=call.revision,
            )


def _train(train: Callable[[], object]) -> None:
    """Train, alone or as a rank; SIGTERM after a save is told from a signal to come again."""
    try:
        train()
    except SystemExit as stop:
        if type(stop).__name__ != "Preempted":  # of vlmae.preemption, which takes seconds to import
            raise
        signalled = getattr(stop, "signal", "")
        raise SystemExit(TERMINATED if signalled == "SIGTERM" else COME_AGAIN) from None


def rank_from_slurm() -> int:
    """This process's rank, with the variables that `vlmae.ranks` reads set from those of srun."""
    for name, of_slurm in SLURM_NAMES.items():
        if name not in os.environ and of_slurm in os.environ:
            os.environ[name] = os.environ[of_slurm]
    return int(os.environ.get("RANK", "0"))


def _end_on_signals() -> None:
    """End this process where a signal finds it: what it has not finished leaves nothing behind."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(COME_AGAIN if number == signal.SIGUSR2 else TERMINATED)

    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, end)


def _exit_with_parent() -> None:
    """End with the command that started this process on the same machine."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
