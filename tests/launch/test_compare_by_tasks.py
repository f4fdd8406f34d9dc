"""A comparison whose units are tasks: the table of one process, killed, partly failed, refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from tiny_run import run_python

from launch import compare, retry, status
from launch.jobs.job import UNITS, Job, jobs_below
from launch.jobs.launch_record import last_launch

SMALL = (
    "experiment=tiny",
    "arm=random,entropy",
    "seed=1",
    "rounds=1",
    "trainer.epochs=1",
    "trainer.batch_size=8",
    "data.pictures_per_digit=30",
    "data.first=24",
    "data.pool=32",
    "data.gold=16",
    "data.test=16",
    "compare.resamples=20",
)
TASKS = ("launcher.tasks=2", "launcher.at_once=1", "launcher.poll_seconds=0.2")
COMPARE = ("-m", "launch.compare", *SMALL)
ELSEWHERE = 'ledger.location="ledgers/{name}.{unit}.sqlite"'  # changes no result


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison in the command's own process."""
    folder = tmp_path_factory.mktemp("alone")
    done = run_python(*COMPARE, "compare.processes=1", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def table(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs" / "tiny_compare" / "compare.json").read_text())


def units_job(folder: Path) -> Job:
    (job,) = (
        job for job in jobs_below(folder / "runs" / "tiny_compare" / "jobs") if job.kind == UNITS
    )
    return job


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_units_by_tasks_are_those_of_one_process(alone: Path, tmp_path: Path) -> None:
    for stage in (alone / "runs" / "stages").glob("[ps]*-*"):  # the tokens are made by tasks, too
        shutil.copytree(stage, tmp_path / "runs" / "stages" / stage.name)
    killed = subprocess.Popen(
        [sys.executable, *COMPARE, *TASKS, ELSEWHERE],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    jobs = tmp_path / "runs" / "tiny_compare" / "jobs"
    deadline = time.monotonic() + 900
    while not list(jobs.glob("compare-*/started/1.json")):
        assert time.monotonic() < deadline
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    done = run_python(*COMPARE, *TASKS, ELSEWHERE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert table(tmp_path) == table(alone)
    assert sorted(path.name for path in (tmp_path / "ledgers").iterdir()) == [
        "tiny_compare.labels.entropy.1.sqlite",
        "tiny_compare.labels.random.1.sqlite",
    ]
    assert not list((tmp_path / "runs").glob("*/*/*/ledger.sqlite"))
    job = units_job(tmp_path)
    assert job.shards == ("labels.random.1", "labels.entropy.1")
    assert [attempt.tasks for attempt in job.attempts()] == [(0, 1), (1,)]
    assert {job.stage for job in jobs_below(jobs)} == {"cache", "compare"}
    assert sorted(last_launch(jobs)["overrides"]) == sorted([*SMALL, *TASKS, ELSEWHERE])


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs launch.compare in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(compare, "_CHOICES", {})

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["compare", *arguments])
        GlobalHydra.instance().clear()
        compare.main()

    return run


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_unit_that_fails_stops_no_other_and_retry_works(
    alone: Path,
    command: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(alone / "runs", tmp_path / "runs")
    run = tmp_path / "runs" / "tiny_compare"
    shutil.rmtree(run / "units")
    (run / "compare.json").unlink()
    (run / "units").mkdir()
    (run / "units" / "labels.random.1").touch()  # where a folder has to be
    with pytest.raises(SystemExit) as ended:
        command(*SMALL, *TASKS, "launcher.retries=0", "compare.processes=2")
    assert ended.value.code == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    for told in (
        "task 0 (labels.random.1) of 2 failed",
        "File exists",
        "launch.retry runs/tiny_compare",
    ):
        assert told in line
    assert "warning: compare.processes has no effect" in printed.out
    assert units_job(tmp_path).missing() == [0]
    assert not (run / "compare.json").exists()

    assert status.main(["runs/tiny_compare"]) == 0
    page = capsys.readouterr().out
    assert "stopped" in page
    assert " 1/2 " in page
    assert "task 0 (labels.random.1): " in page

    (run / "units" / "labels.random.1").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # paths of the command are relative
    assert retry.main([str(run)]) == 0
    assert units_job(tmp_path).finished
    monkeypatch.chdir(tmp_path)
    command(*SMALL, *TASKS)
    assert table(tmp_path) == table(alone)
    assert [attempt.tasks for attempt in units_job(tmp_path).attempts()] == [(0, 1), (0,)]


def test_dry_run_prints_the_scripts(
    command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(
        "experiment=tiny",
        "arm=random,entropy",
        "seed=1,2,3",
        "launcher=slurm",
        "launcher.at_once=4",
        "+launcher.resources.compare.gpus=1",
        "--dry-run",
    )
    told = capsys.readouterr().out
    names = [line for line in told.splitlines() if line.startswith("#SBATCH --job-name")]
    assert [name.split("=")[1] for name in names] == [
        f"{stage}-<hash>" for stage in ("sources", "prepare", "cache", "compare")
    ]
    units = told[told.index("# ---- compare") :]
    assert "#SBATCH --array=0-5%4" in units
    assert "#SBATCH --gres=gpu:1" in units
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ranks", [("launcher.ranks=2",), ("launcher=slurm", "launcher.nodes=2")])
def test_several_ranks_are_refused(
    command: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ranks: tuple[str, ...],
) -> None:
    with pytest.raises(SystemExit) as ended:
        command("experiment=tiny", *ranks)
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "a task of launch.compare trains on one device; leave both at 1" in line
    assert not list(tmp_path.iterdir())
