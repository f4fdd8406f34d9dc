"""Tasks as processes of this machine, so many at a time; none outlives the command.

Ranks of a training are processes that find each other on 127.0.0.1, and count as one task.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from launch.jobs.executor import CANCELLED, ENDED, PENDING, RUNNING, TaskState
from launch.jobs.job import COME_AGAIN, PARENT, RANKS, TERMINATED, Attempt, Job
from launch.jobs.launcher_config import LocalConfig


@dataclass
class _Entry:
    """One task of an attempt."""

    job: Job
    attempt: Attempt
    task: int
    after: tuple[str, ...]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    codes: list[int] | None = None


class LocalExecutor:
    """See `launch.jobs.executor.Executor`.

    Args:
        config: how many at a time, and of how many ranks a training is.
    """

    name = "local"
    trouble = ""

    def __init__(self, config: LocalConfig) -> None:
        self.config = config
        self._entries: list[_Entry] = []

    def submit(
        self, job: Job, tasks: Sequence[int], code: str, after: Sequence[Attempt] = ()
    ) -> list[Attempt]:
        """Queue tasks; `states` starts them as there is room."""
        attempt = job.new_attempt(self.name, tasks, code)
        names = tuple(earlier.name for earlier in after)
        self._entries += [_Entry(job, attempt, task, names) for task in tasks]
        self._advance()
        return [job.submitted(attempt, str(os.getpid()))]

    def states(self, job: Job, attempts: Sequence[Attempt]) -> dict[int, TaskState]:
        """Those of this process's tasks, and of others' that still run on this machine."""
        self._advance()
        found: dict[int, TaskState] = {}
        for task in {task for attempt in attempts for task in attempt.tasks}:
            process = _running(job, task)
            gone = TaskState(ENDED, "GONE")
            found[task] = gone if process is None else TaskState(RUNNING, id=str(process.pid))
        for entry in self._entries:
            if entry.job.folder == job.folder:
                found[entry.task] = self._state(entry)
        return found

    def release(self, state: TaskState) -> bool:
        """Nothing is held here."""
        return True

    def kill(self, state: TaskState) -> None:
        """Kill the processes of a task; what it was making is made again."""
        for pid in filter(None, state.id.split(",")):
            with suppress(psutil.NoSuchProcess):
                psutil.Process(int(pid)).kill()

    def cancel(self, job: Job, attempts: Sequence[Attempt]) -> None:
        """Send SIGTERM to tasks of a job, whichever process started them; none is started then."""
        for entry in self._entries:
            if entry.job.folder == job.folder and not entry.processes and entry.codes is None:
                entry.codes = [TERMINATED]
        for task in job.busy:
            process = _running(job, task)
            if process is not None:
                process.terminate()

    def _advance(self) -> None:
        """Note who has ended, and start those for whom there is room."""
        for entry in self._entries:
            if entry.processes and entry.codes is None:
                codes = [process.poll() for process in entry.processes]
                if all(code is not None for code in codes):
                    entry.codes = [code for code in codes if code is not None]
                elif any(codes):  # ranks that are left would wait for the one that failed
                    for process in entry.processes:
                        process.terminate()
        running = sum(1 for entry in self._entries if entry.processes and entry.codes is None)
        for entry in self._entries:
            room = self.config.at_once is None or running < self.config.at_once
            if room and not entry.processes and entry.codes is None and self._may_start(entry):
                entry.processes = self._start(entry)
                running += 1

    def _may_start(self, entry: _Entry) -> bool:
        before = [one for one in self._entries if one.attempt.name in entry.after]
        if any(one.codes is not None and any(one.codes) for one in before):
            entry.codes = [1]
            return False
        return all(one.codes is not None for one in before)

    def _start(self, entry: _Entry) -> list[subprocess.Popen[bytes]]:
        job, attempt = entry.job, entry.attempt
        code = str((job.folder.parent / attempt.code).absolute())
        home = {
            "PYTHONPATH": os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")])),
            "PYTHONSAFEPATH": "1",  # else `-m` looks in the working folder first
            PARENT: str(os.getpid()),
        }
        if job.kind != RANKS:
            return [self._process(entry, home, job.log(attempt, entry.task))]
        world = self.config.world
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        shared |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        return [
            self._process(
                entry,
                {**home, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                job.log(attempt, entry.task, rank),
            )
            for rank in range(world)
        ]

    def _process(
        self, entry: _Entry, environment: dict[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "launch.task", str(entry.job.folder.absolute())]
        command += ["--task", str(entry.task), "--attempt", str(entry.attempt.number)]
        with open(log, "ab") as stream:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )

    def _state(self, entry: _Entry) -> TaskState:
        ids = ",".join(str(process.pid) for process in entry.processes)
        if entry.codes is None:
            return TaskState(RUNNING if entry.processes else PENDING, id=ids)
        return TaskState(ENDED, _reason(entry.codes, bool(entry.processes)), ids)


def _reason(codes: Sequence[int], started: bool) -> str:
    """How a task ended, in one word or two."""
    if not started:
        return CANCELLED if TERMINATED in codes else "one it depends on failed"
    if TERMINATED in codes or -signal.SIGTERM in codes:
        # Of several ranks it may be we who ended those that another left alone.
        others = [code for code in codes if code not in (0, TERMINATED, -signal.SIGTERM)]
        return f"exit code {others[0]}" if others else CANCELLED
    worst = next((code for code in codes if code), 0)
    if worst == COME_AGAIN:
        return "stopped by a signal"
    if worst == -signal.SIGKILL:
        return "killed by signal 9, as it is where memory runs out (launcher.at_once=1 takes least)"
    return f"killed by signal {-worst}" if worst < 0 else f"exit code {worst}"


def _running(job: Job, task: int) -> psutil.Process | None:
    """The process of a task on this machine, if it still is that."""
    told = job.told("started", task)
    if not told or told["host"] != socket.gethostname():
        return None
    try:
        process = psutil.Process(int(told["pid"]))
        is_task = str(job.folder.absolute()) in process.cmdline()
    except psutil.NoSuchProcess:
        return None
    return process if is_task and process.status() != psutil.STATUS_ZOMBIE else None


def free_port() -> int:
    """A port of this machine that nobody has."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port
