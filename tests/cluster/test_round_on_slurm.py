"""The round on a real SLURM: the stages and the summary of the same round on one machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import Cluster, until

from launch.job import Job, jobs_below
from lsb.artifact import open_stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROUND = (
    "-m",
    "launch.round",
    "experiment=tiny",
    "arms=[]",
    "controls=false",
    "rounds=1",
    "trainer.epochs=1",
    "trainer.batch_size=8",
    "data.pictures_per_digit=30",
    "data.first=24",
    "data.pool=32",
    "data.gold=16",
    "data.test=16",
)
SLURM = (
    "launcher=slurm",
    "launcher.tasks=2",
    "launcher.poll_seconds=0.5",
    "launcher.stages=[cache,embed,neighbours,train]",
    "launcher.resources.default.cpus=1",
    "launcher.resources.default.memory_gb=2",
)


def without_times(value: Any) -> Any:
    """A summary without what depends on the clock."""
    if isinstance(value, dict):
        clock = ("seconds", "epochs_to_pay")
        return {
            key: without_times(entry)
            for key, entry in value.items()
            if not key.endswith("seconds") and key not in clock
        }
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def stages(folder: Path, *left_out: str) -> dict[str, str]:
    """Name of each finished stage -> hash of its contents."""
    found = {}
    for path in sorted((folder / "runs" / "stages").glob("*-*")):
        if path.is_dir() and path.name.split("-")[0] not in left_out:
            found[path.name] = open_stage(path).content
    return found


def test_a_round_by_jobs_is_the_round_of_one_machine(cluster: Cluster, tmp_path: Path) -> None:
    local, there = tmp_path / "local", tmp_path / "slurm"
    local.mkdir()
    done = subprocess.run(
        [sys.executable, *ROUND],
        cwd=local,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # The data are made once; everything from the tokens on is made again, by jobs.
    for stage in (local / "runs" / "stages").glob("[ps]*-*"):
        shutil.copytree(stage, there / "runs" / "stages" / stage.name)

    first = cluster.start(sys.executable, *ROUND, *SLURM, cwd=there)
    jobs = there / "runs" / "tiny" / "jobs"
    until(lambda: list(jobs.glob("train-*/attempts/001.json")), "a training is submitted", 600)
    cluster.kill("launch.round")
    first.communicate(timeout=60)
    code, out, err = cluster.python(*ROUND, *SLURM, cwd=there)
    assert code == 0, f"{out}\n{err}"

    assert stages(there, "neighbours") == stages(local)
    summaries = [
        json.loads((folder / "runs" / "tiny" / "summary.json").read_text())
        for folder in (local, there)
    ]
    assert without_times(summaries[0]) == without_times(summaries[1])
    made = jobs_below(jobs)
    assert {job.stage for job in made} == {"cache", "embed", "neighbours", "train"}
    for job in made:
        assert job.finished
        assert len(job.attempts()) == 1, f"{job.target.name} was submitted twice"
    code, page, _ = cluster.python("-m", "launch.status", jobs.parent, cwd=there)
    assert code == 0
    assert page.count(" done ") == len(made)
    assert _hosts(made, "train") == {"node1"}


def _hosts(jobs: list[Job], stage: str) -> set[str]:
    return {job.told("done", 0)["host"] for job in jobs if job.stage == stage}
