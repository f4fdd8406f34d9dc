"""The folder of a stage that is made by tasks: what is to be done, by whom, and what is done.

    <run>/jobs/embed-3f2a.../
        run.json             format, version, stage, kind, tasks, shards, target; of units made_of,
                             too; written once
        work-<code>.pickle   what a task calls, for one state of the code
        attempts/001.json    a submission: name, tasks, executor, code, id; 001.sh its script
        started/<task>.json  where and when a task was started last
        done/<task>.json     completion manifest of a task: its shards, host, job, seconds
        failed/<task>.json   why it failed last, in one line
        logs/001-<task>.log  what it printed
        beats/001-<task>     its last progress, see `launch.jobs.heartbeat`

Shards belong to tasks by the hash of their id (`lsb.artifact.share_of`), so the number of tasks is
part of the job: another number is refused. A task is complete when all its shards are recorded as
whole in the stage's own folder; nothing here is believed over that. Trainings that stand side by
side are a job, too: each is a task, and whole when its stage is there. So are the units of a
comparison, each whole when its own result says that it is made of what this job makes it of.
"""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from launch.jobs.unit_result import read_unit
from lsb.artifact import read_json, share_of, write_json

FORMAT = "vlmae-job"
VERSION = 1
SHARDS, RANKS, TRAININGS, UNITS = "shards", "ranks", "trainings", "units"
ALONE = (TRAININGS, UNITS)
"""Kinds whose shards are a task each."""
COME_AGAIN = 75
"""Exit code of a task that was stopped and has saved: `vlmae.preemption.EXIT_CODE`, which takes
seconds to import."""
TORN = ("Connection closed", "Connection reset", "Connection refused", "Broken pipe", "NCCL")
"""Words of errors that ranks end with because another one has left."""
TERMINATED = 143
"""Exit code of a task after SIGTERM."""
CANCEL = ".cancelled"
"""File beside jobs, while the command that has them under way is to start nothing more."""
PARENT = "VLMAE_PARENT"
"""Environment variable with the process that a local task does not outlive."""


@dataclass(frozen=True)
class Attempt:
    """One submission of some tasks of a job.

    Attributes:
        number: from 1.
        name: by which an executor finds it again; unique.
        executor: "local" or "slurm".
        tasks: numbers of the tasks.
        code: name of the folder with the code it runs.
        time: when, in UTC.
        offset: what a task's number has more than its index in the executor's array.
        id: the executor's, empty until it has told it.
    """

    number: int
    name: str
    executor: str
    tasks: tuple[int, ...]
    code: str
    time: str
    offset: int = 0
    id: str = ""


@dataclass(frozen=True)
class Job:
    """What tasks make: a stage, trainings, or units of a comparison.

    Attributes:
        folder: of the job.
        stage: name of the stage.
        kind: `SHARDS`, whose tasks are independent; `RANKS`, one task of connected ranks;
            `TRAININGS`, a task each, of one rank; or `UNITS`, a task each.
        tasks: how many share the shards; 1 for ranks.
        shards: names of the stage's parts; of trainings, of their stages; of units, of their
            folders.
        target: directory of the finished stage; of trainings, the folder of all stages; of units,
            that of their folders.
        token: makes the names of its attempts unique.
        made_of: of units, what each one's result has to tell (`launch.jobs.unit_result`).
    """

    folder: Path
    stage: str
    kind: str
    tasks: int
    shards: tuple[str, ...]
    target: Path
    token: str
    made_of: tuple[str, ...] = ()

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        stage: str,
        kind: str,
        tasks: int,
        shards: Sequence[str],
        target: Path,
        made_of: Sequence[str] = (),
    ) -> Job:
        """A new job, or the one that is there.

        Raises:
            ValueError: it is there with another number of tasks, or other shards.
        """
        wanted = {
            "format": FORMAT,
            "version": VERSION,
            "stage": stage,
            "kind": kind,
            "tasks": tasks,
            "shards": list(shards),
            "target": str(target.absolute()),
        }
        if made_of:
            wanted["made_of"] = list(made_of)
        for name in ("attempts", "started", "done", "failed", "logs", "beats"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        _write_once(folder / "run.json", {**wanted, "token": uuid4().hex[:8]})
        job = cls.open(folder)
        if job.tasks != tasks:
            raise ValueError(
                f"{folder} was started as {job.tasks} tasks, and {tasks} are asked for: shards "
                f"belong to tasks by that number, so set launcher.tasks={job.tasks}; or run "
                "python -m launch.cancel, delete this folder and start again (shards that are "
                "done are kept)"
            )
        held = (job.stage, job.kind, job.shards, job.made_of)
        if held != (stage, kind, tuple(shards), tuple(made_of)):
            raise ValueError(
                f"{folder} is of other shards than those of the stage {target.name}: delete it "
                "and start again (shards that are done are kept)"
            )
        return job

    @classmethod
    def open(cls, folder: Path) -> Job:
        """The job of a folder.

        Raises:
            ValueError: there is none, or it is of another format or version.
        """
        file = folder / "run.json"
        if not file.is_file():
            raise ValueError(f"{folder} holds no job: give a folder of <run>/jobs")
        record = read_json(file)
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ValueError(f"{file} is not of a job: delete {folder} and start again")
        if record.get("version") != VERSION:
            raise ValueError(
                f"{file} has version {record.get('version')!r}, this release reads {VERSION}: use "
                f"the release that wrote it, or delete {folder} and start again"
            )
        return cls(
            folder,
            record["stage"],
            record["kind"],
            int(record["tasks"]),
            tuple(record["shards"]),
            Path(record["target"]),
            record["token"],
            tuple(record.get("made_of", ())),
        )

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether the stage is whole, or all trainings or units are."""
        if self.kind in ALONE:
            return len(self.recorded()) == len(self.shards)
        return self.target.is_dir()

    @property
    def unwanted(self) -> bool:
        """Whether the command that has it under way was told to stop by `launch.cancel`."""
        return (self.folder.parent / CANCEL).is_file()

    @property
    def busy(self) -> list[int]:
        """Numbers of the tasks that have shards; by chance of the hash some may have none."""
        return sorted(set(self._task_of.values()))

    def shards_of(self, task: int) -> list[str]:
        """Shards of a task, in order."""
        return [shard for shard, its in self._task_of.items() if its == task]

    def title(self, task: int) -> str:
        """A task in words: its number, of a unit its name, too."""
        return f"task {task} ({self.shards[task]})" if self.kind == UNITS else f"task {task}"

    def recorded(self) -> set[str]:
        """Shards that are whole."""
        if self.kind == TRAININGS:
            return {shard for shard in self.shards if (self.target / shard).is_dir()}
        if self.kind == UNITS:
            wanted = zip(self.shards, self.made_of, strict=True)
            return {unit for unit, of in wanted if read_unit(self.target / unit, of)}
        if self.finished:
            return set(self.shards)
        parts = self.target.with_name(f"{self.target.name}.partial") / "parts"
        # Listed, not asked for one by one: a folder on a network answers once.
        names = {file.name.removesuffix(".json") for file in parts.glob("*.json")}
        return names & set(self.shards)

    def missing(self) -> list[int]:
        """Tasks that are not complete."""
        recorded = self.recorded()
        return sorted({task for shard, task in self._task_of.items() if shard not in recorded})

    @property
    def _task_of(self) -> dict[str, int]:
        """Shard -> number of its task."""
        if self.kind in ALONE:
            return {shard: number for number, shard in enumerate(self.shards)}
        of = 1 if self.kind == RANKS else self.tasks
        return {shard: share_of(shard, of) for shard in self.shards}

    # ---- what is to be done

    def put_work(self, work: Any, code: str) -> None:
        """Keep what a task calls, for one state of the code, and the folder its paths are from."""
        file = self.work_file(code)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        with open(temporary, "wb") as stream:
            pickle.dump((str(Path.cwd()), work), stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)

    def take_work(self, code: str) -> Any:
        """What `put_work` has kept; this process goes into the folder of whoever kept it."""
        with open(self.work_file(code), "rb") as stream:
            folder, work = pickle.load(stream)
        if not Path(folder).is_dir():
            raise ValueError(
                f"{folder}, the folder in which the command was given, is not there on "
                f"{socket.gethostname()}: give it in one that all nodes see"
            )
        os.chdir(folder)
        return work

    def work_file(self, code: str) -> Path:
        """Where `put_work` keeps it."""
        return self.folder / f"work-{code}.pickle"

    # ---- who does it

    def new_attempt(
        self, executor: str, tasks: Sequence[int], code: str, offset: int = 0
    ) -> Attempt:
        """Record that some tasks are about to be submitted, before they are."""
        number = len(self.attempts()) + 1
        name = f"{self.name}.{self.token}.{number:03d}"
        attempt = Attempt(number, name, executor, tuple(tasks), code, now(), offset)
        self._write_attempt(attempt)
        return attempt

    def submitted(self, attempt: Attempt, id: str) -> Attempt:
        """Record the executor's id of an attempt."""
        known = Attempt(**{**vars(attempt), "id": id})
        self._write_attempt(known)
        return known

    def attempts(self) -> list[Attempt]:
        """All of them, in order."""
        files = (self.folder / "attempts").glob("[0-9]*.json")
        return [self.attempt(number) for number in sorted(int(file.stem) for file in files)]

    def attempt(self, number: int) -> Attempt:
        """One of them. Read by its name: a listing of a folder on a network may be an old one."""
        record = read_json(self._attempt_file(number))
        return Attempt(**{**record, "tasks": tuple(record["tasks"])})

    def _attempt_file(self, number: int) -> Path:
        return self.folder / "attempts" / f"{number:03d}.json"

    def _write_attempt(self, attempt: Attempt) -> None:
        write_json(self._attempt_file(attempt.number), vars(attempt))

    # ---- what is done

    def start(self, task: int, record: dict[str, Any]) -> None:
        """Record that a task has been started."""
        write_json(self.folder / "started" / f"{task}.json", {**record, "time": now()})

    def complete(self, task: int, record: dict[str, Any]) -> None:
        """Write the completion manifest of a task."""
        manifest = {"task": task, "of": self.tasks, "shards": self.shards_of(task)}
        write_json(self.folder / "done" / f"{task}.json", {**manifest, **record, "time": now()})
        (self.folder / "failed" / f"{task}.json").unlink(missing_ok=True)

    def fail(self, task: int, record: dict[str, Any]) -> None:
        """Record why a task failed.

        Of several ranks, the first that says so: the others fail because of it, most of them with
        a connection that is torn, which may be told before its reason is. What was requeued since,
        under the same attempt, is another start.
        """
        held = self.told("failed", task)
        again = all(held.get(key, 0) == record.get(key, 0) for key in ("attempt", "start"))
        if again and (not _is_torn(held["line"]) or _is_torn(record["line"])):
            return
        write_json(self.folder / "failed" / f"{task}.json", {**record, "time": now()})

    def told(self, kind: str, task: int) -> dict[str, Any]:
        """Record of a task, "started", "done" or "failed"; empty where there is none."""
        file = self.folder / kind / f"{task}.json"
        if not file.is_file():
            return {}
        record: dict[str, Any] = read_json(file)
        return record

    def log(self, attempt: Attempt, task: int, rank: int | None = None) -> Path:
        """Where an attempt's task prints, or one rank of it."""
        index = task - attempt.offset
        place = f"{index}" if rank is None else f"{index}-rank-{rank}"
        return self.folder / "logs" / f"{attempt.number:03d}-{place}.log"

    def beat(self, attempt: int, task: int, rank: int | None = None) -> Path:
        """The file that an attempt's task writes as it gets on, or one rank of it."""
        place = f"{task}" if rank is None else f"{task}-rank-{rank}"
        return self.folder / "beats" / f"{attempt:03d}-{place}"

    def logs(self, attempt: Attempt, task: int) -> list[Path]:
        """What an attempt's task has written so far: its own log, and those of its ranks."""
        own = self.log(attempt, task)
        ranks = own.parent.glob(f"{own.stem}-rank-*.log")
        return [file for file in (own, *sorted(ranks)) if file.is_file()]

    def why(self, task: int) -> str:
        """The last error of a task, in one line; what it printed last where it could not say."""
        told = self.told("failed", task)
        for attempt in reversed(self.attempts()):
            if task in attempt.tasks:
                if told.get("attempt") == attempt.number:  # else it is of an earlier one
                    return str(told["line"])
                return next(filter(None, map(last_line, self.logs(attempt, task))), "")
        return ""


def jobs_below(folder: Path) -> list[Job]:
    """Jobs of a run's folder `jobs`, in the order in which they were made."""
    files = sorted(folder.glob("*/run.json"), key=lambda file: (file.stat().st_mtime, file))
    return [Job.open(file.parent) for file in files]


def _is_torn(line: str) -> bool:
    """Whether an error says no more than that another rank has left."""
    return any(words in line for words in TORN)


def last_line(log: Path) -> str:
    """The last line of a log that says something; empty for none."""
    if not log.is_file():
        return ""
    with open(log, "rb") as stream:
        stream.seek(max(0, log.stat().st_size - 8192))
        lines = stream.read().decode("utf-8", "replace").splitlines()
    said: Iterable[str] = (line.strip() for line in reversed(lines))
    return next((line for line in said if line), "")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def seconds_since(time_told: str) -> float:
    """Seconds since a time that `now` told."""
    return time.time() - datetime.fromisoformat(time_told).timestamp()


def _write_once(file: Path, record: dict[str, Any]) -> None:
    """Write a JSON file unless it is there, whoever else tries at the same time."""
    if file.is_file():
        return
    temporary = file.with_name(f".{file.name}.{uuid4().hex[:8]}")
    write_json(temporary, record)
    try:
        with suppress(FileExistsError):
            os.link(temporary, file)
    except OSError:  # no hard links there
        if not file.exists():
            shutil.copyfile(temporary, file)
    finally:
        temporary.unlink()
