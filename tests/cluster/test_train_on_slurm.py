"""One training over several nodes: the weights of as many ranks on one machine, one log a rank."""

from __future__ import annotations

from pathlib import Path

import pytest
from one_machine import here
from slurm_cluster import Cluster
from small_clips import OF_CLIPS, write_clips

from launch.jobs.job import jobs_below
from lsb.artifact import open_stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

KEYS = (
    *OF_CLIPS,
    "task.names=[relevance,unsafe]",
    "model.components=8",
    "fusion.width=16",
    "fusion.heads=2",
    "trainer.batch_size=4",
    "trainer.epochs=2",
    "strategy=zero2",
    "launcher.poll_seconds=0.5",
)
SLURM = (
    "launcher=slurm",
    "launcher.nodes=2",
    "launcher.resources.default.cpus=1",
    "launcher.resources.default.memory_gb=2",
)


def test_two_nodes_train_as_two_processes_do(cluster: Cluster, tmp_path: Path) -> None:
    local, there = tmp_path / "local", tmp_path / "slurm"
    there.mkdir()
    keys = (*write_clips(tmp_path), *KEYS)
    here(local, "-m", "launch.train", *keys, "launcher.ranks=2")
    code, out, err = cluster.python("-m", "launch.train", *keys, *SLURM, cwd=there)
    assert code == 0, f"{out}\n{err}"
    one, other = (
        open_stage(next((folder / "runs" / "stages").glob("train-*"))) for folder in (local, there)
    )
    assert one.path.name == other.path.name
    assert one.content == other.content
    assert "[0] " in out
    (job,) = jobs_below(there / "runs" / "train" / "jobs")
    logs = sorted(path.name for path in (job.folder / "logs").glob("*rank*"))
    assert logs == ["001-0-rank-0.log", "001-0-rank-1.log"]
    code, again, err = cluster.python("-m", "launch.train", *keys, *SLURM, cwd=there)
    assert code == 0, err
    assert other.path.name in again
    assert len(job.attempts()) == 1
