"""A sweep over fusion variants on a real SLURM: the bytes of the same sweep on one machine."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from one_machine import here
from slurm_cluster import LARGEST_ARRAY, Cluster, until
from small_clips import OF_CLIPS, write_clips

from launch.jobs.job import TRAININGS, Job
from lsb.artifact import open_stage, read_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SWEEP = (
    "-m",
    "launch.sweep",
    "fusion=late,concat,gated,film",
    "model.dropout=0.1,0.4",
    "name=variants",
    "task.names=[relevance,unsafe]",
    "model.components=8",
    "fusion.width=16",
    "trainer.batch_size=4",
    "trainer.epochs=2",
    "launcher.poll_seconds=0.5",
)
SLURM = (
    "launcher=slurm",
    "launcher.resources.default.cpus=1",
    "launcher.resources.default.memory_gb=2",
    "+launcher.resources.train.gpus=1",
)


def test_eight_points_are_those_of_one_machine(cluster: Cluster, tmp_path: Path) -> None:
    local, there = tmp_path / "local", tmp_path / "slurm"
    path, *tables = write_clips(tmp_path)
    here(local, "-m", "vlmae.cache", *OF_CLIPS, path)
    shutil.copytree(local / "runs", there / "runs")
    keys = (*SWEEP, *OF_CLIPS, path, *tables)
    here(local, *keys)

    first = cluster.start(sys.executable, *keys, *SLURM, cwd=there)
    run = there / "runs" / "variants"
    until(lambda: list(run.glob("jobs/sweep-*/started/*.json")), "a point is begun", 1200)
    cluster.kill("launch.sweep")
    first.communicate(timeout=60)
    code, out, err = cluster.python(*keys, *SLURM, cwd=there)
    assert code == 0, f"{out}\n{err}"

    one, other = (folder / "runs" / "variants" / "sweep.json" for folder in (local, there))
    assert one.read_bytes() == other.read_bytes()
    points = read_json(other)["points"]
    assert len({point["stage"] for point in points}) == 8
    for point in points:
        trained = [
            open_stage(folder / "runs" / "stages" / point["stage"]) for folder in (local, there)
        ]
        assert trained[0].content == trained[1].content, point
    (job,) = (Job.open(folder) for folder in run.glob("jobs/sweep-*"))
    assert (job.kind, job.tasks) == (TRAININGS, 8)
    # One array, in as many pieces as the cluster wants; nothing twice, though the command was.
    assert [attempt.tasks for attempt in job.attempts()] == [
        tuple(range(LARGEST_ARRAY)),
        tuple(range(LARGEST_ARRAY, 8)),
    ]
    assert len({job.told("done", task)["host"] for task in range(8)}) > 1
    code, page, err = cluster.python("-m", "launch.status", run, cwd=there)
    assert code == 0, err
    assert "8 points: 8 finished" in page
    assert f"best: point {read_json(other)['best']}" in page
