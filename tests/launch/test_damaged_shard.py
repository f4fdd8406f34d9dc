"""A shard that is damaged where it lies, read by tasks: its clips are named, or the shard is."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_clips import OF_CLIPS, write_clip
from tiny_run import run_python

from launch import retry
from launch.jobs.job import Job
from lsb.artifact import Stage, open_stage
from vlmae.config import as_dict, compose_config
from vlmae.data.prefix_cache import cache_prefix
from vlmae.settings import prefix_of, prepared_data

pytestmark = pytest.mark.slow

SHARDS, CLIPS = 3, 8
KEYS = tuple(key for key in OF_CLIPS if key.startswith(("decode.", "vl.", "prefix.")))
IN_PLACE = ("data=shards", "data.copy=false", "data.reencode=false")
BY_TASKS = (
    "launcher.tasks=4",
    "launcher.at_once=2",
    "launcher.stages=[cache]",
    "launcher.poll_seconds=0.2",
    "launcher.retries=0",
)


def values_of(root: str, *overrides: str) -> dict[str, Any]:
    return cast(dict[str, Any], as_dict(compose_config(root, [*KEYS, *overrides])))


@dataclass(frozen=True)
class World:
    """Three tars, a data set that indexes them where they lie, and the cache of one process."""

    tars: Path
    data: Stage
    cache: Stage

    def command(self, folder: Path) -> tuple[int, str]:
        """`launch.cache` by tasks in a folder: exit code, and its error in one line."""
        given = ("data=prepared", f"data.path={self.data.path}", *BY_TASKS)
        done = run_python("-m", "launch.cache", *KEYS, *given, cwd=folder)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == (done.returncode != 0), done.stderr
        return done.returncode, "".join(errors)

    def job(self, folder: Path) -> Job:
        (found,) = (folder / "runs" / "cache" / "jobs").glob("cache-*")
        return Job.open(found)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    tars = folder / "tars"
    tars.mkdir()
    for shard in range(SHARDS):
        with tarfile.open(tars / f"part-{shard}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for number in range(shard * CLIPS, (shard + 1) * CLIPS):
                media = folder / "clip.mp4"
                write_clip(media, number)
                archive.add(media, f"clip-{number:04d}.mp4")
    values = values_of("launch_cache", *IN_PLACE, f"data.path={tars}")
    data = prepared_data(values, folder / "stages")
    cache = cache_prefix(folder / "stages", prefix_of(values, data))
    assert cache is not None
    return World(tars, data, cache)


@pytest.fixture
def damaged(world: World) -> Any:
    """A function that changes the bytes of the second tar, until the test is over."""
    tar = world.tars / "part-1.tar"
    whole = tar.read_bytes()

    def damage(change: Callable[[bytes], bytes]) -> Callable[[], int]:
        tar.write_bytes(change(whole))
        return lambda: tar.write_bytes(whole)

    yield damage
    tar.write_bytes(whole)


def test_a_shard_that_is_cut_is_named_and_retried_once_it_is_restored(
    world: World, damaged: Callable[..., Callable[[], int]], tmp_path: Path
) -> None:
    restore = damaged(lambda whole: whole[: len(whole) // 2])
    code, error = world.command(tmp_path)
    assert code == 1
    assert str(world.tars / "part-1.tar") in error
    assert "the shard is cut or not the one that was indexed; restore it" in error
    assert "launch.retry" in error
    job = world.job(tmp_path)
    (task,) = job.missing()
    others = set(job.shards) - set(job.shards_of(task))
    assert others <= job.recorded(), "the tasks of whole shards were finished first"
    run = tmp_path / "runs" / "cache"
    assert retry.main([str(run)]) == 2, "it is still cut"
    restore()
    assert retry.main([str(run)]) == 0
    assert [attempt.tasks for attempt in job.attempts()[1:]] == [(task,), (task,)]
    assert world.command(tmp_path)[0] == 0
    assert content(tmp_path) == world.cache.content


def test_a_clip_whose_bytes_are_damaged_is_quarantined_by_tasks(
    world: World, damaged: Callable[..., Callable[[], int]], tmp_path: Path
) -> None:
    rows = index_of(world.data)
    key, offset = "clip-0011", rows["clip-0011"]["offset"]
    damaged(lambda whole: whole[:offset] + b"\x07" * 512 + whole[offset + 512 :])
    assert world.command(tmp_path) == (0, "")
    (path,) = (tmp_path / "runs" / "stages").glob("cache-*[0-9a-f]")
    stage = open_stage(path)
    assert stage.counts["skipped"] == 1
    assert stage.counts["clips"] == SHARDS * CLIPS - 1
    tables = [pq.read_table(file) for file in sorted(path.glob("*quarantine.parquet"))]
    bad = pa.concat_tables(tables).to_pylist()
    assert [(row["key"], row["reason"]) for row in bad] == [(key, "damaged sample")]


def content(folder: Path) -> str:
    (path,) = (folder / "runs" / "stages").glob("cache-*[0-9a-f]")
    return open_stage(path).content


def index_of(data: Stage) -> dict[str, dict[str, Any]]:
    """Key -> row of the index of a data set."""
    tables: Sequence[pa.Table] = [
        pq.read_table(file) for file in sorted(data.path.glob("pool-*.parquet"))
    ]
    return {row["key"]: row for table in tables for row in table.to_pylist() if "offset" in row}
