"""A data set and its frozen tokens by tasks: the bytes of one process, from one command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small_clips import OF_CLIPS, write_clips
from tiny_run import run_python

from launch.jobs.job import jobs_below
from lsb.artifact import open_stage

pytestmark = pytest.mark.slow

BY_TWO = ("launcher.tasks=2", "launcher.stages=[prepare,cache]", "launcher.poll_seconds=0.2")


def contents(folder: Path) -> dict[str, str]:
    stages = sorted((folder / "runs" / "stages").glob("*-*"))
    return {path.name: open_stage(path).content for path in stages if path.is_dir()}


def test_tasks_prepare_and_cache_what_one_process_does(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    path, *_ = write_clips(tmp_path)
    keys = (*OF_CLIPS, path)
    for folder, command in (
        (here, ("vlmae.cache", *keys)),
        (there, ("launch.cache", *keys, *BY_TWO)),
    ):
        folder.mkdir()
        done = run_python("-m", *command, cwd=folder)
        assert done.returncode == 0, done.stderr
    made = contents(here)
    assert {name.split("-")[0] for name in made} >= {"prepare", "cache"}
    assert contents(there) == made
    jobs = jobs_below(there / "runs" / "cache" / "jobs")
    assert {job.stage for job in jobs} == {"prepare", "cache"}
    assert all(job.finished for job in jobs)
    again = run_python("-m", "launch.cache", *keys, *BY_TWO, cwd=there)
    assert "reused" in again.stdout
    assert [len(job.attempts()) for job in jobs] == [1, 1]


def test_a_share_by_hand_is_refused_and_scripts_are_shown(tmp_path: Path) -> None:
    refused = run_python("-m", "launch.cache", "share=[0,2]", cwd=tmp_path)
    assert refused.returncode != 0
    assert "set launcher.tasks" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    shown = run_python("-m", "launch.cache", "launcher=slurm", "--dry-run", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    names = re.findall("--job-name=(.+)-<hash>", shown.stdout)
    assert names == ["sources", "prepare", "cache"]  # of clips that are composed
    assert not (tmp_path / "runs").exists()
