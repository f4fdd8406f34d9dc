"""A comparison on a real SLURM, a job a unit: the table of the same comparison on one machine."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from one_machine import here
from slurm_cluster import Cluster, until
from small_round import SMALL

from launch.jobs.job import UNITS, jobs_below
from lsb.artifact import open_stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

COMPARE = (
    "-m",
    "launch.compare",
    "experiment=tiny",
    "arm=random,entropy",
    "seed=1",
    *SMALL,
    "trainer.epochs=1",
    "compare.resamples=20",
)
SLURM = (
    "launcher=slurm",
    "launcher.poll_seconds=0.5",
    "launcher.resources.default.cpus=1",
    "launcher.resources.default.memory_gb=1",
    "+launcher.resources.compare.memory_gb=2",
)


def test_units_by_jobs_are_those_of_one_machine(cluster: Cluster, tmp_path: Path) -> None:
    local, there = tmp_path / "local", tmp_path / "slurm"
    here(local, *COMPARE, "compare.processes=1")
    # What units share is made by jobs in test_chaos_on_slurm.py; here the units are.
    for stage in (local / "runs" / "stages").glob("[cpsw]*-*"):
        shutil.copytree(stage, there / "runs" / "stages" / stage.name)

    first = cluster.start(sys.executable, *COMPARE, *SLURM, cwd=there)
    run = there / "runs" / "tiny_compare"
    until(lambda: list(run.glob("jobs/compare-*/started/*.json")), "a unit is begun", 600)
    cluster.kill("launch.compare")
    first.communicate(timeout=60)
    code, out, err = cluster.python(*COMPARE, *SLURM, cwd=there)
    assert code == 0, f"{out}\n{err}"

    tables = [folder / "runs" / "tiny_compare" / "compare.json" for folder in (local, there)]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    trained = {
        stage.name: open_stage(stage).content
        for stage in (local / "runs" / "stages").glob("train-*")
    }
    assert len(trained) == 3  # the first model is one for both arms
    for name, content in trained.items():
        assert open_stage(there / "runs" / "stages" / name).content == content
    (job,) = jobs_below(run / "jobs")
    assert (job.kind, job.shards) == (UNITS, ("labels.random.1", "labels.entropy.1"))
    assert [attempt.tasks for attempt in job.attempts()] == [(0, 1)], "a unit was submitted twice"
    assert "--mem=2048M" in (job.folder / "attempts" / "001.sh").read_text()
    code, page, err = cluster.python("-m", "launch.status", run, cwd=there)
    assert code == 0, err
    assert " done " in page
    assert " 2/2 " in page
