"""Live or cached, a model says the same of the same clips; only a whole, fitting cache is used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from token_values import tokens_of

from lsb.artifact import Stage
from lsb.ids import from_arrow, sample_ids
from vlmae.checkpoint import CHECKPOINT, load_checkpoint
from vlmae.data.batches import ClipBatch, LiveClips
from vlmae.data.decode import DecodePolicy
from vlmae.data.encode import read_shard_index
from vlmae.data.prefix_cache import Prefix, PrefixCache, cache_prefix, find_cache
from vlmae.data.prepare import read_truth
from vlmae.data.token_source import CachedTokens, LiveTokens, open_source
from vlmae.data.token_table import widths
from vlmae.prediction import ARRAYS, predict_clips
from vlmae.trainer import TrainConfig

MediaMaker = Callable[..., bytes]
DataMaker = Callable[..., Stage]
PrefixMaker = Callable[..., Prefix]
LabelTable = Callable[..., pa.Table]
TrainIn = Callable[..., Stage]
RANDOM = DecodePolicy(frames=2, backend="pyav", sampling="segment_random")


@pytest.fixture(scope="module")
def live(data: Stage, prefix_on: PrefixMaker) -> LiveTokens:
    return LiveTokens(prefix_on(data))


@pytest.fixture(scope="module")
def good(make_media: MediaMaker) -> bytes:
    return make_media(3, sound=np.full((1, 8000), 0.1, np.float32))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are encoded from now on."""
    names: list[str] = []
    encode = Prefix.encode

    def counted(self: Prefix, shard: str, only: Any = None) -> Any:
        names.append(shard)
        return encode(self, shard, only)

    monkeypatch.setattr(Prefix, "encode", counted)
    return names


def said(root: Path, prefix: Prefix) -> tuple[str, str]:
    """Kind of the source that is opened, and what is said about it."""
    lines: list[str] = []
    source = open_source(root, prefix, lines.append)
    assert len(lines) == 1
    return type(source).__name__, lines[0]


def test_live_and_cached_predictions_agree(
    data: Stage, live: LiveTokens, source: CachedTokens, trained: Stage
) -> None:
    model = load_checkpoint(trained.path / CHECKPOINT, live.identities).model
    table = read_truth(data, ["gold", "pool"])
    ids = from_arrow(table["id"])[np.random.default_rng(0).permutation(table.num_rows)][:14]
    bad = from_arrow(source.cache.quarantine()["id"])
    ids = np.concatenate([ids[:9], bad[:2], ids[9:]])
    (of_live, found), (of_cache, held) = (predict_clips(model, s, ids) for s in (live, source))
    assert found.tolist() == held.tolist() == (~np.isin(ids, bad)).tolist()
    for name in ARRAYS:
        ours, other = getattr(of_live, name), getattr(of_cache, name)
        assert ours.shape == other.shape
        np.testing.assert_allclose(ours, other, rtol=2e-3, atol=2e-3)
    assert np.ptp(of_live.logits) > 0.1


def test_live_and_cached_shards_hold_the_same_clips(live: LiveTokens, source: CachedTokens) -> None:
    assert live.streams == source.streams
    assert live.identities == source.identities
    for split in ("first", "pool", "gold", "test", "nowhere"):
        assert live.shards_of(split) == source.shards_of(split)
    name = source.shards_of("pool")[0]
    table, rows, quarantine = live.shard(name)
    kept, places, known = source.shard(name)
    assert quarantine.num_rows == 1
    assert quarantine.equals(known)
    fields = ["id", "key", "split", "shard", "offset", "size", "audio_missing", "video_missing"]
    assert (
        table.rows.take(rows)
        .select(fields)
        .equals(kept.rows.take(places).select(fields).combine_chunks())
    ), "in the order of the shard"
    for stream in widths(live.streams):
        for row, place in zip(rows, places, strict=True):
            ours, other = tokens_of(table, int(row), stream), tokens_of(kept, int(place), stream)
            largest = max(1.0, float(other.abs().max())) if len(other) else 1.0
            np.testing.assert_allclose(ours, other, rtol=2e-3, atol=2e-3 * largest)


@pytest.mark.parametrize("kind", ["live", "cached"])
def test_only_some_clips_of_a_shard(kind: str, live: LiveTokens, source: CachedTokens) -> None:
    tokens = live if kind == "live" else source
    name = source.shards_of("gold")[0]
    index = read_shard_index(live.prefix.data.path, name)
    ids, bad = from_arrow(index["id"]), from_arrow(source.cache.quarantine(name)["id"])
    good = ids[~np.isin(ids, bad)]
    wanted = np.sort(np.concatenate([bad[:1], good[[3, 1]]]))
    table, rows, quarantine = tokens.shard(name, wanted)
    assert from_arrow(table.rows["id"].take(rows)).tolist() == good[[1, 3]].tolist()
    assert from_arrow(quarantine["id"]).tolist() == bad[:1].tolist()
    table, rows, quarantine = tokens.shard(name, ids[:0])
    assert (len(rows), quarantine.num_rows) == (0, 0)
    with pytest.raises(ValueError, match=r"1 (of 2 )?clips are .* taken down"):
        list(tokens.tables(np.concatenate([good[:1], sample_ids(["unknown"])])))


def test_a_shard_of_bad_clips_is_not_forgotten_by_a_cache(
    tmp_path: Path, make_data: DataMaker, good: bytes, prefix_on: PrefixMaker
) -> None:
    shards = {"pool-0": [("x", b"broken")], "pool-1": [("y", good)], "test-0": [("z", b"")]}
    prefix = prefix_on(make_data(tmp_path, shards), skip_limit=1.0)
    stage = cache_prefix(tmp_path, prefix)
    assert stage is not None
    cached, live = CachedTokens(PrefixCache(stage)), LiveTokens(prefix)
    for tokens in (cached, live):
        assert tokens.shards_of("pool") == ["pool-0", "pool-1"]
        assert tokens.shards_of("test") == ["test-0"]
        reasons = [tokens.shard(name)[2]["key"].to_pylist() for name in shards]
        assert reasons == [["x"], [], ["z"]]


def test_frames_at_random_are_refused_by_a_cache_and_read_live(
    tmp_path: Path, data: Stage, prefix_on: PrefixMaker
) -> None:
    prefix = prefix_on(data, policy=RANDOM)
    with pytest.raises(ValueError, match=r"sampling=segment_random reads other frames every epoch"):
        cache_prefix(tmp_path, prefix)
    assert find_cache(tmp_path, prefix) is None
    assert said(tmp_path, prefix)[0] == "LiveTokens"
    with pytest.raises(ValueError, match=r"prefix\.use=require"):
        said(tmp_path, prefix_on(data, policy=RANDOM, use="require"))


def test_training_on_frames_at_random(
    tmp_path: Path,
    data: Stage,
    prefix_on: PrefixMaker,
    train_in: TrainIn,
    labels_of: LabelTable,
    source: CachedTokens,
) -> None:
    table, skipped = labels_of("first"), source.cache.quarantine()["key"].to_pylist()
    unusable = np.isin(table["key"].to_pylist(), skipped)
    rows = [*np.flatnonzero(unusable)[:1], *np.flatnonzero(~unusable)[:8]]
    labelled, known = table.take(rows), {table["key"][int(rows[0])].as_py()}
    config = TrainConfig(0, 2, 4, "cpu", 1, 0.8, "both")
    arguments = {"labelled": labelled, "validation": labels_of("gold", limit=0), "config": config}
    stages = [
        train_in(tmp_path, source=tokens, **arguments)
        for tokens in (
            LiveTokens(prefix_on(data, policy=RANDOM)),
            LiveTokens(prefix_on(data)),
            source,
        )
    ]
    histories = [(stage.path / "history.csv").read_text().splitlines() for stage in stages]
    assert len({stage.content for stage in stages}) == 3
    assert histories[0] != histories[1]
    for stage, history in zip(stages, histories, strict=True):
        assert len(history) == 3
        bad = pq.read_table(stage.path / "quarantine.parquet")["key"].to_pylist()
        assert set(bad) == known, "equal quarantine, live and cached"
        assert (stage.counts["labels"], stage.counts["labels skipped"]) == (8, 1)


def test_frames_at_random_differ_by_seed_alone(data: Stage) -> None:
    index = read_shard_index(data.path, "pool-00000")
    labels = np.zeros((index.num_rows, 1), np.int8)
    clips = LiveClips(data.path, index, labels, policy=RANDOM, sample_rate=16_000)

    def batch(seed: int, rows: list[int]) -> ClipBatch:
        return clips.batch(np.array(rows), seed)

    rows = list(range(index.num_rows))
    first, again, other = batch(1, rows), batch(1, rows[::-1]), batch(2, rows)
    assert len(first.bad) == 1
    moved = 0
    for number in rows:
        same, changed = again.clips[rows[::-1].index(number)], other.clips[number]
        ours = first.clips[number]
        assert ours.key == same.key
        assert np.array_equal(ours.frames, same.frames)
        assert np.array_equal(ours.audio, changed.audio)
        moved += not np.array_equal(ours.frames, changed.frames)
    assert moved > index.num_rows // 2
    (unusable,) = [n for n, row in enumerate(first.labels.tolist()) if row == [-1]]
    assert first.clips[unusable].key == first.bad[0].key


def test_a_whole_cache_is_found_and_none_of_other_settings(
    stages: Path, data: Stage, cache: PrefixCache, prefix_on: PrefixMaker
) -> None:
    kind, line = said(stages, prefix_on(data, use="require"))
    assert (kind, line) == ("CachedTokens", f"tokens from the cache {cache.stage.path.name}")
    kind, line = said(stages, prefix_on(data, use="off"))
    assert (kind, line[:36]) == ("LiveTokens", "no finished cache of these tokens: c")
    audio = {"_target_": "vlmae.backbones.audio.WhisperEncoder", "pool": 10, "tuned_blocks": 1}
    others: list[dict[str, Any]] = [
        {"dtype": "int8"},
        {"dtype": "bfloat16"},
        {"threads": 2},
        {"policy": DecodePolicy(frames=3, backend="pyav")},
        {"policy": DecodePolicy(frames=2, backend="pyav", sampling="keyframe")},
        {"policy": DecodePolicy(frames=2, backend="pyav", max_seconds=1.0)},
        {"audio": audio},
    ]
    for changes in others:
        assert find_cache(stages, prefix_on(data, **changes)) is None, changes
        with pytest.raises(ValueError, match=r"prefix\.use=require, and there is no finished"):
            said(stages, prefix_on(data, use="require", **changes))
    same = prefix_on(data, processes=2, skip_limit=0.1)
    assert find_cache(stages, same) is not None, "these change no token"


def test_an_unfinished_cache_is_not_used_and_is_finished_later(
    tmp_path: Path, make_data: DataMaker, good: bytes, prefix_on: PrefixMaker, encoded: list[str]
) -> None:
    shards = {f"pool-{n}": [(f"x{n}", good)] for n in range(4)}
    prefix = prefix_on(make_data(tmp_path, shards))
    assert cache_prefix(tmp_path, prefix, share=(0, 2)) is None
    done = list(encoded)
    assert 0 < len(done) < 4
    assert list(tmp_path.glob("cache-*.partial"))
    assert find_cache(tmp_path, prefix) is None
    assert said(tmp_path, prefix)[0] == "LiveTokens"
    with pytest.raises(ValueError, match=r"there is no finished cache"):
        said(tmp_path, prefix_on(prefix.data, use="require"))
    assert cache_prefix(tmp_path, prefix, share=(1, 2)) is not None
    assert sorted(encoded) == sorted(shards), "each once"
    assert said(tmp_path, prefix)[0] == "CachedTokens"


def test_grown_data_encode_the_new_shard_and_changed_data_the_changed_one(
    tmp_path: Path,
    make_data: DataMaker,
    make_media: MediaMaker,
    good: bytes,
    prefix_on: PrefixMaker,
    encoded: list[str],
) -> None:
    shards: dict[str, Any] = {"pool-0": [("a", good), ("b", b"broken")], "pool-1": [("c", good)]}
    first = prefix_on(make_data(tmp_path, shards))
    assert cache_prefix(tmp_path, first) is not None
    grown = prefix_on(make_data(tmp_path, {**shards, "pool-2": [("d", good)]}))
    assert find_cache(tmp_path, grown) is None, "the cache of fewer clips is stale"
    assert said(tmp_path, grown)[0] == "LiveTokens"
    encoded.clear()
    stage = cache_prefix(tmp_path, grown)
    assert encoded == ["pool-2"]
    assert stage is not None
    assert stage.counts["clips"] == 3
    assert PrefixCache(stage).rows["key"].to_pylist() == ["a", "c", "d"]
    changed = {**shards, "pool-1": [("c", make_media(5))]}
    (tmp_path / "other").mkdir()
    other = prefix_on(make_data(tmp_path / "other", changed))
    shutil.copytree(stage.path, tmp_path / "other" / stage.path.name)
    assert find_cache(tmp_path / "other", other) is None
    encoded.clear()
    assert cache_prefix(tmp_path / "other", other) is not None
    assert encoded == ["pool-1"]
