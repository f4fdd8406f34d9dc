"""Tasks of units: which one each runs, when a unit is whole, and jobs of another configuration."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from launch import status, task
from launch.comparing.unit_tasks import run_units_by_tasks
from launch.comparing.units import Comparison, Unit
from launch.jobs.executor import ENDED, RUNNING, JobError, TaskState
from launch.jobs.job import UNITS, Attempt, Job, jobs_below
from launch.jobs.launch_record import Asked
from launch.jobs.launcher import Launcher
from launch.jobs.launcher_config import LocalConfig
from launch.jobs.unit_result import UNIT_FILE, read_unit
from lsb.artifact import write_json
from lsb.progress import FILE
from vlmae.preemption import Preempted

COMPARED = [Unit("labels", arm, 1) for arm in ("random", "entropy", "lsb")]


class Comparing:
    """Stands for `launch.comparing.units.Comparison`: a file of a unit's name tells what it does.

    Args:
        folder: of the comparison.
        config: what units are made of, beside their names.
    """

    def __init__(self, folder: Path, config: str = "one") -> None:
        self.units, self.config = folder / "units", config

    def place(self, unit: Unit) -> Path:
        return self.units / unit.name

    def made_of(self, unit: Unit) -> str:
        return f"{self.config} {unit.name}"

    def finished(self, unit: Unit, made_of: str) -> dict[str, Any] | None:
        return read_unit(self.place(unit), made_of)

    def order(self, unit: Unit) -> Path:
        return self.units.parent / f"{unit.name}.order"

    def run(self, unit: Unit) -> None:
        order = self.order(unit)
        told = order.read_text() if order.is_file() else ""
        if told == "fail":
            raise ValueError("there are no labels")
        if told:
            raise Preempted(told, step=3)
        self.place(unit).mkdir(parents=True)
        write_json(self.place(unit) / UNIT_FILE, {"made_of": self.made_of(unit)})


class AtOnce:
    """An executor whose tasks run when they are submitted, in this process."""

    name = "local"

    def __init__(self) -> None:
        self.submitted: list[list[int]] = []
        self.running: dict[int, TaskState] = {}

    def submit(
        self, job: Job, tasks: Sequence[int], code: str, after: Sequence[Attempt] = ()
    ) -> list[Attempt]:
        attempt = job.new_attempt(self.name, tasks, code)
        self.submitted.append(list(tasks))
        for number in tasks:
            run(job, number, attempt.number)
        return [attempt]

    def states(self, job: Job, attempts: Sequence[Attempt]) -> dict[int, TaskState]:
        ended = {number: TaskState(ENDED) for attempt in attempts for number in attempt.tasks}
        return ended | self.running

    def kill(self, state: TaskState) -> None:
        raise AssertionError("nothing hangs here")

    def cancel(self, job: Job, attempts: Sequence[Attempt]) -> None:
        raise AssertionError("nothing is cancelled here")


def run(job: Job, number: int, attempt: int = 1) -> int:
    return task.main([str(job.folder), "--task", str(number), "--attempt", str(attempt)])


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to run in; what a task changes of its process is undone."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    monkeypatch.setenv(FILE, "")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Command:
    """A command that compares; `said` is what it has printed."""

    def __init__(self, config: str = "one") -> None:
        self.comparing = Comparing(Path("runs/tiny"), config)  # relative, as commands give it
        self.said: list[str] = []
        self.executor = AtOnce()
        local = LocalConfig(name="local", tasks=2, retries=0, poll_seconds=0.001)
        self.launcher = Launcher(
            local, Path("runs/tiny/jobs"), self.said.append, "give it again", Asked({})
        )
        self.launcher.executor = self.executor

    def run(self, units: Sequence[Unit] = COMPARED) -> list[str]:
        comparison = cast(Comparison, self.comparing)
        found = run_units_by_tasks(self.launcher, comparison, units)
        return [result["made_of"] for _, result in found]

    @property
    def jobs(self) -> list[Job]:
        return jobs_below(self.launcher.folder)


def test_each_unit_is_a_task_and_what_is_finished_is_read() -> None:
    command = Command()
    assert command.run() == [f"one {unit.name}" for unit in COMPARED]
    assert command.executor.submitted == [[0, 1, 2]]
    (job,) = command.jobs
    assert (job.kind, job.stage, job.finished) == (UNITS, "compare", True)
    assert job.told("done", 1)["shards"] == ["labels.entropy.1"]
    again = Command()
    assert again.run() == [f"one {unit.name}" for unit in COMPARED]
    assert again.executor.submitted == []
    more = Command()
    assert len(more.run([*COMPARED, Unit("labels", "random", 2)])) == 4
    assert more.executor.submitted == [[3]]  # in a job of its own, which finds three finished


def test_a_failing_unit_stops_no_other_and_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    command = Command()
    order = command.comparing.order(COMPARED[1])
    order.parent.mkdir(parents=True)
    order.write_text("fail")
    told = r"task 1 \(labels\.entropy\.1\) of 3 failed: there are no labels; .* give it again"
    with pytest.raises(JobError, match=told):
        command.run()
    (job,) = command.jobs
    assert (job.missing(), job.recorded()) == ([1], {"labels.random.1", "labels.lsb.1"})
    error = status.job_status(job, {}).error
    assert error == "task 1 (labels.entropy.1): there are no labels"
    order.unlink()
    again = Command()
    assert len(again.run()) == 3
    assert again.executor.submitted == [[1]]


def test_a_result_of_another_configuration_does_not_count(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Command("one")
    first.run()
    (old,) = first.jobs
    second = Command("two")
    second.executor.running = {0: TaskState(RUNNING)}
    with pytest.raises(JobError, match=rf"{old.name} may be at work.*launch\.cancel runs/tiny"):
        second.run()
    second.executor.running = {}
    for unit in COMPARED:  # the stand-in wants to make them itself
        (second.comparing.place(unit) / UNIT_FILE).unlink()
        second.comparing.place(unit).rmdir()
    assert second.run() == [f"two {unit.name}" for unit in COMPARED]
    assert [job.name for job in second.jobs] != [old.name]  # retried, it would undo the other
    assert any(old.name in line and "deleted" in line for line in second.said)
    (job,) = second.jobs
    write_json(second.comparing.place(COMPARED[0]) / UNIT_FILE, {"made_of": "older"})
    assert (job.finished, job.missing()) == (False, [0])
    monkeypatch.chdir("/")  # tasks started again from elsewhere find the same folders
    (place / "runs/tiny/units/labels.random.1/unit.json").unlink()
    (place / "runs/tiny/units/labels.random.1").rmdir()
    job = Job.open(place / "runs/tiny/jobs" / job.name)
    assert run(job, 0) == 0
    assert job.finished


@pytest.mark.parametrize(("name", "code"), [("SIGUSR2", 75), ("SIGTERM", 143)])
def test_a_unit_that_is_stopped_comes_again_or_not(name: str, code: int) -> None:
    command = Command()
    command.run()
    (job,) = command.jobs
    order = command.comparing.order(COMPARED[0])
    order.write_text(name)
    with pytest.raises(SystemExit) as ended:
        run(job, 0)
    assert ended.value.code == code
    assert not job.told("failed", 0)
    order.write_text("")
    with pytest.raises(SystemExit) as ended:  # between two trainings, which handle it themselves
        signal.raise_signal(getattr(signal, name))
    assert ended.value.code == code
