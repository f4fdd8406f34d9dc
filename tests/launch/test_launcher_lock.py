"""Who may submit jobs of a run: one command at a time, and by one launcher."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.jobs.executor import JobError
from launch.jobs.job import SHARDS, Job
from launch.jobs.launch_record import Asked, record_launch
from launch.jobs.launcher_config import LocalConfig, SlurmConfig
from launch.jobs.launcher_lock import ask_to_cancel, only_one

LOCAL, SLURM = LocalConfig(name="local"), SlurmConfig(name="slurm")


def test_one_command_at_a_time(tmp_path: Path) -> None:
    with (
        only_one(tmp_path, LOCAL),
        pytest.raises(JobError, match="another command is at work"),
        only_one(tmp_path, LOCAL),
    ):
        pass


def test_what_the_command_before_was_told_is_over(tmp_path: Path) -> None:
    job = Job.create(
        tmp_path / "jobs" / "embed-1",
        stage="embed",
        kind=SHARDS,
        tasks=1,
        shards=["a"],
        target=tmp_path / "embed-1",
    )
    ask_to_cancel(tmp_path)
    assert job.unwanted
    with only_one(tmp_path, LOCAL):
        assert not job.unwanted


def test_another_launcher_is_refused_while_tasks_are_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = tmp_path / "jobs"
    record_launch(jobs, "code-1", Asked({"launcher": {"name": "slurm"}}))
    job = Job.create(
        jobs / "embed-1",
        stage="embed",
        kind=SHARDS,
        tasks=1,
        shards=["a"],
        target=tmp_path / "embed-1",
    )
    attempt = job.new_attempt("slurm", [0], "code-1")
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\necho '{attempt.name}|7|0|RUNNING|node1'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    refused = r"embed-1 was sent by launcher=slurm and is under way.*launch\.cancel"
    with pytest.raises(JobError, match=refused), only_one(tmp_path, LOCAL):
        pass
    with only_one(tmp_path, SLURM):
        pass
    squeue.write_text("#!/bin/sh\n")  # SLURM has forgotten it
    with only_one(tmp_path, LOCAL):
        pass
