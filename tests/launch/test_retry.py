"""`launch.retry` on jobs that stand side by side: one that is refused or fails stops no other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch import retry
from launch.jobs.executor import ENDED, RUNNING, TaskState
from launch.jobs.job import RANKS, Attempt, Job
from launch.jobs.launch_record import Asked, record_launch


def trainings(run: Path, **launcher: object) -> dict[str, Job]:
    """A sweep's jobs of two ranks each, submitted once by a launcher."""
    record_launch(run / "jobs", "code-1", Asked({"launcher": {"ranks": 2, **launcher}}))
    made = {}
    for name in "abc":
        made[name] = Job.create(
            run / "jobs" / name,
            stage="train",
            kind=RANKS,
            tasks=1,
            shards=[name],
            target=run.parent / "stages" / name,
        )
        made[name].new_attempt(str(launcher["name"]), [0], "code-1")
    return made


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster that refuses job "a", and whose queue is what the file `queue` says."""
    commands = {
        "sbatch": 'case "$2" in */jobs/a/*) echo "QOSMaxSubmitJob" >&2; exit 1;; esac; echo 8',
        "squeue": f"cat {tmp_path}/queue",
    }
    for name, script in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "queue").touch()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


def submitted(jobs: dict[str, Job]) -> list[str]:
    """Names of the jobs that were submitted again, and taken."""
    return [name for name, job in jobs.items() if job.attempts()[-1].id]


def test_a_refused_job_stops_no_other(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = trainings(slurm / "run", name="slurm")
    assert retry.main([str(slurm / "run")]) == 2
    assert submitted(jobs) == ["b", "c"]
    out, err = capsys.readouterr()
    assert out.count("submitted as 8") == 2
    assert len(err.splitlines()) == 1
    assert "/jobs/a/attempts/002.sh: QOSMaxSubmitJob" in err


def test_trainings_of_a_sweep_are_so_many_at_a_time(
    slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = trainings(slurm / "run", name="slurm", at_once=2)
    (first,) = jobs["a"].attempts()
    (slurm / "queue").write_text(f"{first.name}|7|N/A|RUNNING|node1\n")
    assert retry.main([str(slurm / "run")]) == 0
    assert submitted(jobs) == ["b"]
    assert "1 more are left for when others end (launcher.at_once=2)" in capsys.readouterr().out


class Here:
    """An executor of this machine: what is started ends well at the next look, but job "a"."""

    name, trouble = "local", ""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.most = 0

    def submit(
        self, job: Job, tasks: Sequence[int], code: str, after: Sequence[Attempt] = ()
    ) -> list[Attempt]:
        self.running.append(job.name)
        self.most = max(self.most, len(self.running))
        return [job.submitted(job.new_attempt(self.name, tasks, code), "1")]

    def states(self, job: Job, attempts: Sequence[Attempt]) -> dict[int, TaskState]:
        if job.name not in self.running:
            return {0: TaskState(ENDED, "exit code 1")}
        self.running.remove(job.name)
        if job.name != "a":
            job.target.mkdir(parents=True)
        return {0: TaskState(RUNNING)}


def test_here_a_job_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    executor = Here()
    monkeypatch.setattr("launch.jobs.run_jobs.executor_of", lambda config: executor)
    asked = {"name": "local", "at_once": 2, "retries": 0, "poll_seconds": 0.001}
    jobs = trainings(tmp_path / "run", **asked)
    assert retry.main([str(tmp_path / "run")]) == 2
    assert [job.finished for job in jobs.values()] == [False, True, True]
    assert executor.most == 2  # of three
    assert "a: task 0 of 1 failed: exit code 1" in capsys.readouterr().err
