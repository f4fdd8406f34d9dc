"""Sweeps by processes of this machine: killed, partly failed, overlapping, on several ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from small_clips import OF_CLIPS, write_clips
from tiny_run import run_python

from launch import status, sweep
from launch.jobs.job import RANKS, Job, jobs_below
from lsb.artifact import open_stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

KEYS = (
    "task.names=[relevance,unsafe]",
    "model.components=8",
    "fusion.width=16",
    "trainer.batch_size=4",
    "trainer.epochs=1",
    "launcher.poll_seconds=0.2",
)


class Sweeping:
    """A folder with clips, their frozen tokens, and sweeps over trainings on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path, *tables = write_clips(folder)
        data = (*OF_CLIPS, path)
        done = run_python("-m", "vlmae.cache", *data, cwd=folder)
        assert done.returncode == 0, done.stderr
        self.keys = (*data, *tables, *KEYS)

    def run(self, *swept: str) -> subprocess.CompletedProcess[str]:
        return run_python("-m", "launch.sweep", *self.keys, *swept, cwd=self.folder)

    def start(self, *swept: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "launch.sweep", *self.keys, *swept],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def jobs(self, name: str) -> list[Job]:
        return jobs_below(self.folder / "runs" / name / "jobs")

    def record(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / "runs" / name / "sweep.json").read_text())

    def stage(self, point: dict[str, Any]) -> Path:
        return self.folder / "runs" / "stages" / point["stage"]


@pytest.fixture(scope="module")
def sweeping(tmp_path_factory: pytest.TempPathFactory) -> Sweeping:
    return Sweeping(tmp_path_factory.mktemp("sweep"))


def test_one_failing_point_stops_no_other_and_others_share(
    sweeping: Sweeping, capsys: pytest.CaptureFixture[str]
) -> None:
    # No transformer in these towers: `deep` is refused when its model is built.
    first = sweeping.run("fusion=deep,late,concat", "name=first", "launcher.retries=0")
    assert first.returncode == 1, first.stdout
    assert len(first.stderr.splitlines()) == 1
    assert "task 0 of 3 failed" in first.stderr
    record = sweeping.record("first")
    assert [one["state"] for one in record["points"]] == ["failed", "finished", "finished"]
    assert "fusion deep needs a transformer" in record["points"][0]["error"]
    assert "3 points: 2 finished, 0 running, 0 waiting, 1 failed" in first.stdout
    metrics = {one["number"]: one["metric"] for one in record["points"][1:]}
    assert record["best"] == max(metrics, key=lambda number: (metrics[number], -number))
    (job,) = sweeping.jobs("first")
    assert [attempt.tasks for attempt in job.attempts()] == [(0, 1, 2)]

    run = str(sweeping.folder / "runs" / "first")
    assert status.main([run]) == 0
    page = capsys.readouterr().out
    assert "point 0:" in page
    assert f"best: point {record['best']}" in page

    # Again, and only what failed is tried again; another sweep trains what is new to it.
    again = sweeping.run("fusion=deep,late,concat", "name=first", "launcher.retries=0")
    assert again.returncode == 1
    assert [attempt.tasks for attempt in job.attempts()] == [(0, 1, 2), (0,)]
    assert sweeping.record("first") == record

    killed = sweeping.start("fusion=late,film", "name=second")
    jobs = sweeping.folder / "runs" / "second" / "jobs"
    deadline = time.monotonic() + 900
    while not list(jobs.glob("sweep-*/started/1.json")):
        assert time.monotonic() < deadline
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    assert [one["state"] for one in sweeping.record("second")["points"]] == ["finished", "waiting"]
    second = sweeping.run("fusion=late,film", "name=second")
    assert second.returncode == 0, second.stderr
    (job,) = sweeping.jobs("second")
    assert [attempt.tasks for attempt in job.attempts()] == [(1,), (1,)]
    points = sweeping.record("second")["points"]
    assert [one["state"] for one in points] == ["finished", "finished"]
    assert points[0]["stage"] == record["points"][1]["stage"]
    for point in points:
        open_stage(sweeping.stage(point))  # whole
    kept = json.loads((jobs.parent / "run.json").read_text())["stages"]
    assert {one["stage"] for one in points} <= set(kept)


def test_trainings_on_several_ranks_are_a_job_each(sweeping: Sweeping) -> None:
    two = ("fusion=late,deep", "name=ranks", "launcher.ranks=2", "launcher.retries=0")
    done = sweeping.run(*two)
    assert done.returncode == 1
    assert "fusion deep needs a transformer" in done.stderr
    points = sweeping.record("ranks")["points"]
    assert [one["state"] for one in points] == ["finished", "failed"]
    assert open_stage(sweeping.stage(points[0])).manifest["config"]["ranks"] == 2
    jobs = sweeping.jobs("ranks")
    assert {job.kind for job in jobs} == {RANKS}
    assert {job.name for job in jobs} == {one["stage"] for one in points}


def test_optuna_chooses_and_another_study_of_the_same_seed_trains_nothing(
    sweeping: Sweeping,
) -> None:
    pytest.importorskip("optuna", reason="no Optuna here: pip install 'vlmae[sweep]'")
    asked = ("sweep.sampler=optuna", "sweep.batch=2", "fusion=late,film")
    space = "model.dropout=interval(0.1,0.5)"
    first = sweeping.run(*asked, space, "sweep.trials=2", "name=asked")
    assert first.returncode == 0, first.stderr
    more = sweeping.run(*asked, space, "sweep.trials=4", "name=asked")
    assert more.returncode == 0, more.stderr
    points = sweeping.record("asked")["points"]
    assert [one["state"] for one in points] == ["finished"] * 4
    assert all(0.1 <= float(one["choice"]["model.dropout"]) <= 0.5 for one in points)
    assert len(sweeping.jobs("asked")) == 2  # an array a batch
    other = sweeping.run(*asked, space, "sweep.trials=4", "name=other")
    assert other.returncode == 0, other.stderr
    assert sweeping.record("other") == sweeping.record("asked")
    assert sweeping.jobs("other") == []


@pytest.mark.parametrize(
    ("swept", "code", "told"),
    [
        (("optimizer.learning_rate=1e-3,-1",), 1, "point 1 (optimizer.learning_rate=-1)"),
        (("fusion=late,nothing",), 1, "point 1 (fusion=nothing)"),
        (("fusion=late,film", "sweep.metric=val/ap/x"), 1, "the tasks are relevance, unsafe"),
        (("fusion=late,film", "growing=every"), 1, "set growing=none"),
        (("fusion=late,film", "+growing.ledger=postgresql://me:secret@db/x"), 1, "~/.pgpass"),
        (('+growing.ledger="x.sqlite","postgresql://:secret@db/x"',), 1, "~/.pgpass"),
        (("fusion=late,film", "name=a/b"), 1, "name is 'a/b'"),
        (("fusion=late,film", "name=stages"), 1, "name is 'stages'"),
        (("fusion=late,film", "name=.."), 1, "name is '..'"),
        (("fusion=late,film", "name="), 1, "name is ''"),
        (("fusion=late",), 2, "nothing is swept over"),
        (("fusion=late,film(",), 2, "error: fusion=late,film( "),
        (("--config-dir", "mine", "fusion=late,film"), 2, "takes no --config-dir"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_submitted(
    sweeping: Sweeping,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    swept: tuple[str, ...],
    code: int,
    told: str,
) -> None:
    monkeypatch.chdir(sweeping.folder)
    monkeypatch.setattr(sweep, "_GIVEN", [])
    monkeypatch.setattr(sys, "argv", ["sweep", *sweeping.keys, "name=wrong", *swept])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as ended:
        sweep.main()
    assert ended.value.code == code
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert told in errors[0]
    assert sweeping.jobs("wrong") == []
    for launch in (sweeping.folder / "runs" / "wrong").glob("jobs/launches/*.json"):
        assert "secret" not in launch.read_text()
