"""A task of trainings: which of them it makes, and how it ends when it is stopped."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from launch import task
from launch.jobs.job import TRAININGS, Job
from vlmae.preemption import Preempted


def make(folder: Path, number: int) -> None:
    """Stands for a training: makes its stage, or is stopped by the signal of its name."""
    stop = folder / f"stop-{number}"
    if stop.is_file():
        raise Preempted(stop.read_text(), step=3)
    (folder / "stages" / f"train-{'abc'[number]}").mkdir(parents=True)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    made = Job.create(
        tmp_path / "jobs" / "sweep-1",
        stage="train",
        kind=TRAININGS,
        tasks=3,
        shards=["train-a", "train-b", "train-c"],
        target=tmp_path / "stages",
    )
    made.put_work(partial(make, tmp_path), "code-1")
    made.new_attempt("local", [0, 1, 2], "code-1")
    return made


def run(job: Job, number: int) -> int:
    return task.main([str(job.folder), "--task", str(number), "--attempt", "1"])


def test_a_task_makes_its_own_training(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert run(job, 1) == 0
    assert (job.missing(), job.recorded(), job.finished) == ([0, 2], {"train-b"}, False)
    assert job.told("done", 1)["shards"] == ["train-b"]
    assert run(job, 0) == run(job, 2) == 0
    assert job.finished
    (job.target / "train-a").rmdir()  # what is there counts, not what manifests tell
    assert job.missing() == [0]


@pytest.mark.parametrize(("signal", "code"), [("SIGUSR2", 75), ("SIGTERM", 143)])
def test_one_that_has_saved_comes_again_or_not(
    job: Job, tmp_path: Path, signal: str, code: int
) -> None:
    (tmp_path / "stop-1").write_text(signal)
    with pytest.raises(SystemExit) as ended:
        run(job, 1)
    assert ended.value.code == code
    assert not job.told("failed", 1)
