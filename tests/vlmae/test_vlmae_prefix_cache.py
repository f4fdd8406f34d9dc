"""The cache of frozen tokens: equal to the live path, honest about what it skipped."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hydra.utils import instantiate
from token_values import tokens_of

from lsb.artifact import Stage
from lsb.ids import from_arrow, sample_ids
from vlmae.data.decode import DecodePolicy, decode_sample
from vlmae.data.prefix_cache import Prefix, PrefixCache, cache_prefix
from vlmae.data.prepare import read_index, read_truth
from vlmae.data.ranges import RangeReader, tar_members
from vlmae.module import VlmaeModule
from vlmae.objectives import MultiTaskBinary
from vlmae.optimizers import OptimizerConfig
from vlmae.towers import Towers

MediaMaker = Callable[..., bytes]
DataMaker = Callable[..., Stage]
PrefixMaker = Callable[..., Prefix]
BROKEN = b"not a video"
POLICY = DecodePolicy(frames=2, backend="pyav")


def made(root: Path, prefix: Prefix) -> Stage:
    stage = cache_prefix(root, prefix)
    assert stage is not None
    return stage


@pytest.fixture(scope="module")
def good(make_media: MediaMaker) -> bytes:
    time = np.arange(16_000) / 16_000
    sound = 0.3 * np.sin(2 * np.pi * 300 * time)[None]
    return make_media(4, sound=sound.astype(np.float32))


def by_key(table: pa.Table, column: str) -> dict[str, Any]:
    return dict(zip(table["key"].to_pylist(), table[column].to_pylist(), strict=True))


def test_cached_tokens_equal_the_live_path(data: Stage, cache: PrefixCache, towers: Towers) -> None:
    rows = {key: row for row, key in enumerate(cache.rows["key"].to_pylist())}
    index = read_index(data).to_pylist()
    checked = [entry for entry in index if entry["key"] in rows][::5]
    assert len(checked) > 8
    module = VlmaeModule(
        torch.nn.Identity(),  # type: ignore[arg-type]
        MultiTaskBinary(["a"], {}),
        OptimizerConfig(1e-3, 0.0, 0.0, 1.0),
        1,
        towers,
    )
    for entry in checked:
        record = RangeReader(data.path).read([entry["shard"]], [entry["offset"]], [entry["size"]])
        members = tar_members(record[0], entry["key"])
        clip = decode_sample(members, key=entry["key"], policy=POLICY, sample_rate=16_000)
        live = module.encode([clip])
        for stream_name, tokens in live.items():
            cached = tokens_of(cache, rows[entry["key"]], stream_name)
            values = tokens.values[0][tokens.mask[0]]
            assert cached.shape == values.shape
            if len(values):
                largest = float(values.abs().max())
                torch.testing.assert_close(cached, values, rtol=2e-3, atol=2e-3 * largest)


def test_module_without_towers_reads_no_clips() -> None:
    module = VlmaeModule(
        torch.nn.Identity(),  # type: ignore[arg-type]
        MultiTaskBinary(["a"], {}),
        OptimizerConfig(1e-3, 0.0, 0.0, 1.0),
        1,
    )
    with pytest.raises(ValueError, match="give `towers`"):
        module.encode([])


def test_every_clip_is_cached_or_skipped_with_a_reason(data: Stage, cache: PrefixCache) -> None:
    broken = by_key(read_truth(data), "broken")
    cached, skipped = cache.rows["key"].to_pylist(), by_key(cache.quarantine(), "reason")
    assert sorted([*cached, *skipped]) == sorted(broken)
    truncated = {key for key, kind in broken.items() if kind == "truncated"}
    assert truncated
    assert skipped == dict.fromkeys(truncated, "undecodable file")
    counts = cache.stage.counts
    assert counts["clips"] == len(cached)
    assert counts["skipped"] == counts["skipped: undecodable file"] == len(skipped)


def test_clips_without_sound_have_no_audio_token_and_say_why(
    data: Stage, cache: PrefixCache
) -> None:
    reasons = {"no_audio_track": "no audio track", "zero_length_audio": "zero-length audio"}
    broken = by_key(read_truth(data), "broken")
    seen = set()
    for row, key in enumerate(cache.rows["key"].to_pylist()):
        expected = reasons.get(broken[key])
        assert cache.rows["audio_missing"][row].as_py() == expected
        # AAC ends on a whole packet: up to one token more than the ten of two seconds.
        assert len(tokens_of(cache, row, "audio")) in ((0,) if expected else (10, 11))
        assert len(tokens_of(cache, row, "image")) == 2
        assert len(tokens_of(cache, row, "text")) == 1
        seen.add(expected)
    assert seen == {None, "no audio track", "zero-length audio"}


def test_rows_of_ids(data: Stage, cache: PrefixCache) -> None:
    ids = from_arrow(read_truth(data)["id"])
    rows = cache.rows_of(ids)
    absent = set(cache.quarantine()["key"].to_pylist())
    for key, row in zip(read_truth(data)["key"].to_pylist(), rows, strict=True):
        assert row == -1 if key in absent else cache.rows["key"][int(row)].as_py() == key
    with pytest.raises(ValueError, match=r"2 clips are neither in the cache .* nor in its quaran"):
        cache.rows_of(sample_ids(["never", "heard of"]))
    assert len(cache.rows_of(ids[:0])) == 0


def test_shards_of_a_split(cache: PrefixCache) -> None:
    assert cache.shards_of("first") == [f"first-{n:05d}" for n in range(3)]
    assert cache.shards_of("nowhere") == []
    rows = np.concatenate([cache.rows_of_shard(shard) for shard in cache.shards_of("test")])
    assert {cache.rows["split"][int(row)].as_py() for row in rows} == {"test"}
    assert cache.rows_of_shard("gold-00000").tolist() == [
        row for row, split in enumerate(cache.rows["split"].to_pylist()) if split == "gold"
    ]


def test_bytes_per_clip_are_those_of_the_files(cache: PrefixCache) -> None:
    arrays = [np.load(path) for path in cache.stage.path.glob("*.npy")]
    assert cache.bytes_per_clip == sum(a.nbytes for a in arrays) / len(cache.ids)


def test_shard_in_which_no_clip_decodes(
    tmp_path: Path, make_data: DataMaker, good: bytes, prefix_on: PrefixMaker
) -> None:
    data = make_data(tmp_path, {"pool-0": [("x", BROKEN)], "pool-1": [("y", good)]})
    cache = PrefixCache(made(tmp_path, prefix_on(data)))
    assert cache.rows["key"].to_pylist() == ["y"]
    assert by_key(cache.quarantine(), "reason") == {"x": "undecodable file"}
    assert cache.shards_of("pool") == ["pool-1"]
    assert len(tokens_of(cache, 0, "audio")) > 0


def test_shard_in_which_no_clip_has_sound(
    tmp_path: Path, make_data: DataMaker, make_media: MediaMaker, prefix_on: PrefixMaker
) -> None:
    data = make_data(tmp_path, {"pool-0": [("x", make_media(3)), ("y", make_media(3))]})
    cache = PrefixCache(made(tmp_path, prefix_on(data)))
    assert [len(tokens_of(cache, row, "audio")) for row in (0, 1)] == [0, 0]
    assert cache.stage.counts["masked: no audio track"] == 2


def test_too_many_skipped_clips_are_refused(
    tmp_path: Path, make_data: DataMaker, good: bytes, prefix_on: PrefixMaker
) -> None:
    data = make_data(tmp_path, {"pool-0": [("x", BROKEN), ("y", good), ("z", good)]})
    with pytest.raises(ValueError, match=r"1 of 3 clips.*undecodable file': 1.*skip_limit=0\.3"):
        made(tmp_path, prefix_on(data, skip_limit=0.3))
    lenient = made(tmp_path, prefix_on(data))
    assert lenient.reused, "the limit judges the stage, it is not part of it"


def test_data_without_a_clip_are_refused(
    tmp_path: Path, make_data: DataMaker, prefix_on: PrefixMaker
) -> None:
    data = make_data(tmp_path, {"pool-0": []})
    with pytest.raises(ValueError, match=r"holds no clip: run vlmae.prepare again"):
        made(tmp_path, prefix_on(data))


def test_other_weights_frames_or_data_are_another_stage(
    tmp_path: Path,
    make_data: DataMaker,
    good: bytes,
    prefix_on: PrefixMaker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = make_data(tmp_path, {"pool-0": [("x", good)]})
    stages = [made(tmp_path, prefix_on(data))]
    again = made(tmp_path, prefix_on(data, processes=2))
    assert again.reused
    assert again.path == stages[0].path
    three = dataclasses.replace(POLICY, frames=3)
    stages.append(made(tmp_path, prefix_on(data, policy=three)))
    other = make_data(tmp_path, {"pool-0": [("y", good)]})
    stages.append(made(tmp_path, prefix_on(other)))
    monkeypatch.setattr("vlmae.backbones.audio.weights_sha256", lambda *modules: "0" * 64)
    monkeypatch.setattr("vlmae.data.prefix_cache.build_towers", build_towers_anew)
    stages.append(made(tmp_path, prefix_on(data)))
    assert len({stage.path for stage in stages}) == len(stages)


def build_towers_anew(vl: dict[str, Any], audio: dict[str, Any]) -> Towers:
    """Not those that the process has loaded already, whose identities are known."""
    return Towers(instantiate(vl), instantiate(audio))


def with_shard(data: Stage, root: Path, change: Callable[[bytes], bytes]) -> Stage:
    """A copy of a data set whose tar was changed after it was opened."""
    folder = root / data.path.name
    shutil.copytree(data.path, folder)
    tar = next(folder.glob("*.tar"))
    tar.write_bytes(change(tar.read_bytes()))
    return dataclasses.replace(data, path=folder)


def flip_header(tar: bytes) -> bytes:
    """Damage the header of the second clip's mp4."""
    start = tar.index(b"y.mp4")
    return tar[:start] + bytes([tar[start] ^ 0xFF]) + tar[start + 1 :]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda tar: tar[: tar.index(b"y.mp4") + 700], id="cut in a clip"),
        pytest.param(lambda tar: tar[: tar.index(b"y.mp4")], id="cut between clips"),
        pytest.param(lambda tar: tar[: tar.index(b"y.json")], id="cut before a title"),
        pytest.param(lambda tar: tar[:100], id="cut in the first header"),
        pytest.param(lambda tar: b"", id="empty"),
    ],
)
def test_damaged_shard_is_an_error_that_names_it(
    tmp_path: Path,
    make_data: DataMaker,
    good: bytes,
    prefix_on: PrefixMaker,
    change: Callable[[bytes], bytes],
) -> None:
    data = make_data(tmp_path / "sound", {"pool-0": [("x", good), ("y", good)]})
    damaged = with_shard(data, tmp_path, change)
    with pytest.raises(ValueError, match=r"pool-0\.tar.*prepare"):
        made(tmp_path, prefix_on(damaged))
    assert not list(tmp_path.glob("cache-*[0-9a-f]"))


def test_a_damaged_header_is_one_bad_clip(
    tmp_path: Path, make_data: DataMaker, good: bytes, prefix_on: PrefixMaker
) -> None:
    data = make_data(tmp_path / "sound", {"pool-0": [("x", good), ("y", good), ("z", good)]})
    cache = PrefixCache(made(tmp_path, prefix_on(with_shard(data, tmp_path, flip_header))))
    assert cache.rows["key"].to_pylist() == ["x", "z"]
    assert by_key(cache.quarantine(), "reason") == {"y": "damaged sample"}


def test_a_shard_is_read_whole_under_torchrun(
    tmp_path: Path,
    make_data: DataMaker,
    good: bytes,
    prefix_on: PrefixMaker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    data = make_data(tmp_path, {"pool-0": [("x", good), ("y", good), ("z", good)]})
    assert made(tmp_path, prefix_on(data)).counts["clips"] == 3


def test_config_of_the_stage_tells_the_identities(cache: PrefixCache, towers: Towers) -> None:
    recorded = json.loads((cache.stage.path / "manifest.json").read_text())["config"]
    assert recorded["identities"] == cache.identities == towers.identities()
    assert cache.streams == towers.prefix_streams
