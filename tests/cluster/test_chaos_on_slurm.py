"""The round on a real SLURM while things happen: stages and summary of one machine's round."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from chaos import COMMAND, CONTROLLER, EPOCHS, KILLED, POWER, PREEMPTED, Chaos, at, table
from rich.console import Console
from slurm_cluster import Cluster
from small_round import RUN, round_here

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SHORT = [
    at(CONTROLLER, "cache"),
    PREEMPTED,
    at(POWER, "embed"),
    at(KILLED, "neighbours"),
    at(COMMAND, "train"),
]


def test_a_disturbed_round_by_jobs_is_the_round_of_one_machine(
    cluster: Cluster, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    here, there = tmp_path / "here", tmp_path / "slurm"
    round_here(here, EPOCHS)
    chaos = Chaos(cluster, here, list(SHORT), print)
    try:
        jobs = chaos.round(there)
    finally:
        cluster.up()
    told = io.StringIO()
    Console(file=told, width=160, markup=False, highlight=False).print(table(chaos.blows))
    record_property("table", told.getvalue())
    assert [blow.event.name for blow in chaos.blows] == [event.name for event in SHORT]
    assert {job.stage for job in jobs} == {"cache", "embed", "neighbours", "train"}
    for job in jobs:
        assert job.finished
        # Only a task that is killed fails: all else goes back into the queue, or is not felt.
        killed = [b for b in chaos.blows if b.event.name == KILLED.name and b.target.job == job]
        assert len(job.attempts()) == 1 + len(killed), f"{job.name} was submitted twice"
    assert all("again" in blow.went_on for blow in chaos.blows if blow.event.restarts)
    code, page, _ = cluster.python("-m", "launch.status", there / RUN, cwd=there)
    assert code == 0
    assert page.count(" done ") == len(jobs)
