"""A data set and its frozen tokens by tasks: the bytes of one process, from one command."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
from small_clips import OF_CLIPS, write_clips
from tiny_run import run_python

from launch.jobs.job import jobs_below
from lsb.artifact import open_stage
from vlmae.config import as_dict, compose_config
from vlmae.ranks import Ranks
from vlmae.train import require_trainable

pytestmark = pytest.mark.slow

BY_TWO = ("launcher.tasks=2", "launcher.stages=[prepare,cache]", "launcher.poll_seconds=0.2")


def contents(folder: Path) -> dict[str, str]:
    stages = sorted((folder / "runs" / "stages").glob("*-*"))
    return {path.name: open_stage(path).content for path in stages if path.is_dir()}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips, and what one process made of them."""
    folder = tmp_path_factory.mktemp("here")
    path, *_ = write_clips(folder)
    done = run_python("-m", "vlmae.cache", *OF_CLIPS, path, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_tasks_prepare_and_cache_what_one_process_does(here: Path, tmp_path: Path) -> None:
    keys, there = (*OF_CLIPS, f"data.path={here / 'clips'}"), tmp_path
    done = run_python("-m", "launch.cache", *keys, *BY_TWO, cwd=there)
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


def test_a_training_that_requires_a_cache_is_refused_before_nodes_are_waited_for(
    here: Path,
) -> None:
    (data,) = (here / "runs" / "stages").glob("prepare-*[0-9a-f]")
    tables = [f"{name}={here / name}.csv" for name in ("labels", "validation")]
    of_towers = [key for key in OF_CLIPS if key.startswith(("decode.", "vl."))]
    names = "task.names=[relevance,unsafe]"
    stored = (f"runs={here / 'runs'}", "data=prepared", f"data.path={data}")
    small = ("trainer.batch_size=4", "prefix.use=require")
    overrides = [*of_towers, *tables, *stored, names, *small]

    def check(*more: str) -> None:
        config = compose_config("launch_train", [*overrides, *more])
        require_trainable(cast(dict[str, Any], as_dict(config)), Ranks())

    check()
    for other in ("vl.image_size=96", "prefix.dtype=bfloat16"):
        with pytest.raises(ValueError, match="no finished cache of these tokens"):
            check(other)


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
