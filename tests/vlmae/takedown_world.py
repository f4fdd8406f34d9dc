"""A folder of runs with everything that can hold a clip; import `made` and `world`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from lsb.artifact import Stage, open_stage
from lsb.ids import sample_id, sample_ids
from lsb.store import Store
from vlmae.data.prepare import PrepareConfig
from vlmae.data.ranges import tar_members
from vlmae.data.token_source import CachedTokens
from vlmae.data.whitened import keep_whitened
from vlmae.embedding import EmbedConfig, embed_fused, embed_pooled

DATA = PrepareConfig(
    name="generated",
    bank="generated",
    first=24,
    pool=16,
    gold=8,
    test=16,
    shard_clips=8,
    clip_seconds=2.0,
    pictures_per_digit=30,
    unsafe_rate=0.4,
    broken=0.125,
)
HELD = ("prepare", "cache", "whitened", "embed")


@dataclass(frozen=True)
class World:
    """A folder of runs with a data set, its tokens, as they are and whitened, a checkpoint and
    stores of split first.

    Attributes:
        victim: key of a clip that was trained on.
        payload: name -> bytes that are of this clip alone.
    """

    runs: Path
    data: Stage
    cache: Stage
    kept: Stage
    trained: Stage
    pooled: Stage
    fused: Stage
    victim: str
    payload: dict[str, bytes]

    @property
    def root(self) -> Path:
        return self.runs / "stages"

    @property
    def id(self) -> bytes:
        return sample_id(self.victim)

    def stage(self, stage: Stage) -> Stage:
        """One of the stages as it is now, every hash checked."""
        return open_stage(self.root / stage.path.name)

    def copy(self, runs: Path) -> World:
        shutil.copytree(self.runs, runs)
        return replace(self, runs=runs)


def files_with(root: Path, payload: bytes) -> list[str]:
    found = [path for path in root.rglob("*") if path.is_file() and payload in path.read_bytes()]
    return [str(path.relative_to(root)) for path in found]


def tree(root: Path) -> dict[str, bytes]:
    """Every file of the stages, without what differs between two equal takedowns."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and path.name != "tombstones.jsonl"
    }


@pytest.fixture(scope="session")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    stages: Path,
    data: Stage,
    source: CachedTokens,
    whitened: Stage,
    trained: Stage,
) -> World:
    pooled = embed_pooled(stages, source, EmbedConfig("first"))
    fused = embed_fused(stages, source, trained, EmbedConfig("first"))
    assert pooled is not None
    assert fused is not None
    kept = keep_whitened(stages, source, whitened)
    runs = tmp_path_factory.mktemp("world") / "runs"
    cache = source.cache.stage
    bank = next(path for path in stages.glob("sources-*") if path.suffix == "")
    for path in (bank, *(s.path for s in (data, cache, whitened, kept, trained, pooled, fused))):
        shutil.copytree(path, runs / "stages" / path.name)
    # Neither the first nor the last of its shard, with sound and pictures.
    rows = source.cache.rows.filter(pc.equal(source.cache.rows["shard"], "first-00001.tar"))
    row = rows.to_pylist()[3]
    assert row["audio_missing"] is None
    tar = (data.path / row["shard"]).read_bytes()
    members = tar_members(tar[row["offset"] : row["offset"] + row["size"]], row["key"])
    payload = {"media": members["mp4"][200:1200]}
    for name in ("image", "audio"):
        start, length = row[f"{name}_start"], row[f"{name}_length"]
        array = np.load(cache.path / f"first-00001.{name}.npy")
        payload[f"{name} tokens"] = array[start : start + length].tobytes()
        array = np.load(kept.path / f"first-00001.{name}.npy")
        payload[f"whitened {name} tokens"] = array[start : start + length].tobytes()
    ids = sample_ids([row["key"]])
    payload |= {
        "pooled vector": Store.open(pooled.path).vectors(ids).tobytes(),
        "fused vector": Store.open(fused.path).vectors(ids).tobytes(),
    }
    return World(runs, data, cache, kept, trained, pooled, fused, row["key"], payload)


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    return made.copy(tmp_path / "runs")
