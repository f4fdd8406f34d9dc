"""Embedding stages: stores of both kinds that open, whoever shares the work and whatever grows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lsb.artifact import Stage
from lsb.ids import from_arrow, sample_ids
from lsb.store import Store
from vlmae.data.prefix_cache import Prefix, PrefixCache, cache_prefix
from vlmae.data.token_source import CachedTokens, LiveTokens
from vlmae.embedding import EmbedConfig, Scoring, embed_fused, embed_pooled, pooled_vectors

MediaMaker = Callable[..., bytes]
DataMaker = Callable[..., Stage]
PrefixMaker = Callable[..., Prefix]
TrainIn = Callable[..., Stage]
TASKS = ("relevance", "unsafe")
WIDTHS = {"audio": 384, "image": 1280, "text": 384}
POOL = EmbedConfig("pool")


def opened(stage: Stage | None) -> Store:
    assert stage is not None
    return Store.open(stage.path, verify=True)


def bytes_of(stage: Stage) -> dict[str, bytes]:
    return {
        file.name: file.read_bytes()
        for file in stage.path.iterdir()
        if file.name != "timing.json" and file.is_file()
    }


def dropout_of(store: Store) -> np.ndarray:
    """(clips, tasks, samples)"""
    names = [[f"dropout_logit_{task}_{n}" for n in range(3)] for task in TASKS]
    rows = store.rows()
    return np.array([[rows[name].to_numpy() for name in of] for of in names]).transpose(2, 0, 1)


@pytest.fixture(scope="module")
def good(make_media: MediaMaker) -> bytes:
    return make_media(3, sound=np.full((1, 8000), 0.1, np.float32))


@pytest.fixture(scope="module")
def random_dropout(
    tmp_path_factory: pytest.TempPathFactory, train_in: TrainIn, model_config: dict[str, Any]
) -> Stage:
    """A checkpoint of a model with dropout in its heads and its attention."""
    fusion = {**model_config["fusion"], "dropout": 0.3}
    model = {**model_config, "dropout": 0.3, "fusion": fusion}
    return train_in(tmp_path_factory.mktemp("dropout"), model=model, epochs=1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pooled_store_opens_in_both_dtypes(
    tmp_path: Path, source: CachedTokens, dtype: str
) -> None:
    stage = embed_pooled(tmp_path, source, EmbedConfig("first", dtype))
    store = opened(stage)
    assert (store.kind, store.dtype, store.dimension) == ("pooled", dtype, sum(WIDTHS.values()))
    assert list(store.columns) == ["id", "key", "shard", "offset", "size"]
    index = source.index.filter(np.array(source.index["split"].to_pylist()) == "first")
    assert store.rows().equals(index.select(list(store.columns)).combine_chunks())
    vectors, start = store.vectors(store.ids), 0
    silent = np.array([why is not None for why in index["audio_missing"].to_pylist()])
    assert silent.any()
    for stream, width in WIDTHS.items():  # in the order of their names
        share = np.linalg.norm(vectors[:, start : start + width], axis=1)
        missing = silent if stream == "audio" else np.zeros_like(silent)
        expected = np.where(missing, 0, np.where(silent, 2**-0.5, 3**-0.5))
        np.testing.assert_allclose(share, expected, atol=2e-3)
        start += width
    again = embed_pooled(tmp_path, source, EmbedConfig("first", dtype))
    assert again is not None
    assert again.reused


def test_vectors_of_some_clips_are_those_of_the_stores(
    tmp_path: Path, source: CachedTokens
) -> None:
    stores = [
        opened(embed_pooled(tmp_path, source, EmbedConfig(name))) for name in ("first", "pool")
    ]
    wanted = np.concatenate([stores[1].ids[::-2], stores[0].ids[1:3]])
    ids, vectors = pooled_vectors(source, wanted)
    assert ids.tolist() == sorted(wanted.tolist())
    for store in stores:
        mine = np.isin(ids, store.ids)
        assert mine.any()
        np.testing.assert_allclose(vectors[mine], store.vectors(ids[mine]), atol=1e-6)
    with pytest.raises(ValueError, match="another data set"):
        pooled_vectors(source, sample_ids(["nobody"]))


def test_fused_store_tells_logits_and_probabilities_of_every_head(
    tmp_path: Path, source: CachedTokens, trained: Stage
) -> None:
    store = opened(embed_fused(tmp_path, source, trained, POOL))
    heads = [(prefix, task) for prefix in ("", "vl_", "audio_") for task in TASKS]
    columns = ["id", "key", "shard", "offset", "size"]
    columns += [f"{prefix}probability_{task}" for prefix, task in heads]
    columns += [f"{prefix}logit_{task}" for prefix, task in heads]
    assert list(store.columns) == columns
    assert store.kind == "fused"
    rows = store.rows()
    for prefix, task in heads:
        logit = rows[f"{prefix}logit_{task}"].to_numpy()
        expected = 1 / (1 + np.exp(-logit.astype(np.float64)))
        np.testing.assert_allclose(rows[f"{prefix}probability_{task}"], expected, atol=1e-6)
    assert np.ptp(rows["vl_logit_unsafe"].to_numpy()) > 0


def test_dropout_samples_differ_between_passes_and_repeat_with_their_seed(
    tmp_path: Path, source: CachedTokens, random_dropout: Stage
) -> None:
    def samples(folder: str, seed: int) -> np.ndarray:
        scoring = Scoring(seed=seed, dropout_samples=3)
        return dropout_of(
            opened(embed_fused(tmp_path / folder, source, random_dropout, POOL, scoring))
        )

    first, again, other = samples("a", 4), samples("b", 4), samples("a", 5)
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert (first[..., one] != first[..., two]).mean() > 0.9
    plain = opened(embed_fused(tmp_path, source, random_dropout, POOL))
    for column, task in enumerate(TASKS):  # they scatter about the prediction without dropout
        logit = plain.rows()[f"logit_{task}"].to_numpy()
        spread = first[:, column].std(axis=1).mean()
        assert spread > 0
        assert np.abs(first[:, column].mean(axis=1) - logit).mean() < 3 * spread


def test_only_some_clips_are_scored_and_shards_without_any_are_empty_parts(
    tmp_path: Path, source: CachedTokens, trained: Stage
) -> None:
    shards = source.shards_of("pool")
    assert len(shards) == 2
    ids = source.cache.ids[source.cache.rows_of_shard(shards[1])][[4, 0]]
    scoring = Scoring(only=ids, dropout_samples=3)
    stage = embed_fused(tmp_path, source, trained, POOL, scoring)
    store = opened(stage)
    assert [part.rows for part in store.parts] == [0, 2]
    assert store.ids.tolist() == ids[::-1].tolist()
    whole = opened(embed_fused(tmp_path, source, trained, POOL))
    np.testing.assert_allclose(store.vectors(ids), whole.vectors(ids), atol=1e-6)
    assert dropout_of(store).shape == (2, 2, 3)
    assert stage is not None
    assert "skipped" not in stage.counts or stage.counts["skipped"] == 0


def test_clips_that_the_data_set_lacks_cannot_be_scored(
    tmp_path: Path, source: CachedTokens, trained: Stage, data: Stage, prefix_on: PrefixMaker
) -> None:
    bad = from_arrow(source.cache.quarantine("pool-00000")["id"])
    assert len(bad)
    ids = np.concatenate([source.cache.ids[:1], bad, sample_ids(["nobody knows it"])])
    for tokens in (source, LiveTokens(prefix_on(data))):
        with pytest.raises(ValueError, match=r"1 (of \d )?clips are .* taken down"):
            embed_fused(tmp_path, tokens, trained, POOL, Scoring(only=ids))
    stage = embed_fused(tmp_path, source, trained, POOL, Scoring(only=bad))
    assert stage is not None
    assert (stage.counts["rows"], stage.counts["skipped"]) == (0, len(bad)), "known, but bad"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_shares_in_either_order_give_the_bytes_of_one(
    tmp_path: Path, source: CachedTokens, trained: Stage, order: tuple[int, int]
) -> None:
    alone = embed_fused(tmp_path / "alone", source, trained, EmbedConfig("first"))
    made = []
    for number in order:
        config = EmbedConfig("first", share=(number, 2))
        made.append(embed_fused(tmp_path / "shared", source, trained, config))
    assert made[0] is None, "nobody waits"
    assert alone is not None
    assert made[1] is not None
    assert bytes_of(made[1]) == bytes_of(alone)
    assert made[1].path.name == alone.path.name


def test_live_and_cached_vectors_agree(
    tmp_path: Path, source: CachedTokens, data: Stage, prefix_on: PrefixMaker
) -> None:
    gold = EmbedConfig("gold")
    cached = opened(embed_pooled(tmp_path, source, gold))
    live = opened(embed_pooled(tmp_path, LiveTokens(prefix_on(data)), gold))
    assert live.path != cached.path
    assert live.ids.tolist() == cached.ids.tolist()
    np.testing.assert_allclose(live.vectors(live.ids), cached.vectors(live.ids), atol=2e-3)


@pytest.mark.parametrize("kind", ["cached", "live"])
def test_a_grown_data_set_embeds_the_new_shard_alone(
    tmp_path: Path, make_data: DataMaker, good: bytes, prefix_on: PrefixMaker, kind: str
) -> None:
    def tokens(shards: dict[str, Any]) -> CachedTokens | LiveTokens:
        prefix = prefix_on(make_data(tmp_path, shards))
        if kind == "live":
            return LiveTokens(prefix)
        stage = cache_prefix(tmp_path, prefix)
        assert stage is not None
        return CachedTokens(PrefixCache(stage))

    done: list[int] = []
    shards: dict[str, Any] = {"pool-0": [("a", good), ("b", good)], "test-0": [("c", good)]}
    first = embed_pooled(tmp_path, tokens(shards), POOL, lambda progress: done.append(1))
    grown = tokens({**shards, "pool-1": [("d", good)]})
    second = embed_pooled(tmp_path, grown, POOL, lambda progress: done.append(2))
    assert done == [1, 2], "one shard each"
    assert first is not None
    assert opened(second).rows()["key"].to_pylist() == ["a", "b", "d"]
    assert second is not None
    assert (second.path / "pool-0.npy").samefile(first.path / "pool-0.npy")


def test_every_bad_clip_is_in_the_stores_quarantine_and_too_many_are_refused(
    tmp_path: Path, make_data: DataMaker, good: bytes, prefix_on: PrefixMaker
) -> None:
    broken, empty = ("b", b"no video"), ("d", b"")
    shards = {"pool-0": [("a", good), broken], "pool-1": [("c", good)], "pool-2": [empty]}
    prefix = prefix_on(make_data(tmp_path, shards))
    cached = cache_prefix(tmp_path, prefix)
    assert cached is not None
    for tokens in (LiveTokens(prefix), CachedTokens(PrefixCache(cached))):
        config = dataclasses.replace(POOL, skip_limit=0.4)
        with pytest.raises(ValueError, match=r"2 of 4 clips .*skipped: empty file': 1.*0\.4"):
            embed_pooled(tmp_path, tokens, config)
        stage = embed_pooled(tmp_path, tokens, POOL)
        store = opened(stage)
        assert store.rows()["key"].to_pylist() == ["a", "c"]
        files = sorted(store.path.glob("*.quarantine.parquet"))
        found = {row["key"]: row["reason"] for f in files for row in pq.read_table(f).to_pylist()}
        assert found == {"b": "undecodable file", "d": "empty file"}


def test_clips_without_picture_or_without_sound_are_embedded(
    tmp_path: Path,
    make_data: DataMaker,
    make_media: MediaMaker,
    good: bytes,
    prefix_on: PrefixMaker,
    trained: Stage,
) -> None:
    sound = np.full((1, 8000), 0.1, np.float32)
    heard = {"m4a": make_media(0, sound=sound)}
    shards = {"pool-0": [("both", good), ("heard", heard), ("seen", make_media(3))]}
    tokens = LiveTokens(prefix_on(make_data(tmp_path, shards)))
    store = opened(embed_pooled(tmp_path, tokens, POOL))
    assert store.rows()["key"].to_pylist() == ["both", "heard", "seen"]
    vectors = store.vectors(store.ids)
    parts = np.split(vectors, [384, 384 + 1280], axis=1)  # audio, image, text
    there = np.stack([part.any(axis=1) for part in parts], axis=1)
    assert there.tolist() == [[True, True, True], [True, False, True], [False, True, True]]
    fused = opened(embed_fused(tmp_path, tokens, trained, POOL))
    assert np.isfinite(fused.rows()["audio_logit_unsafe"].to_numpy()).all()
    assert len(fused) == 3


def test_settings_are_checked(tmp_path: Path, source: CachedTokens) -> None:
    with pytest.raises(ValueError, match=r"embed.dtype is 'int8': use float32 or float16"):
        EmbedConfig("pool", dtype="int8")
    with pytest.raises(ValueError, match=r"threads 0, processes 1"):
        EmbedConfig("pool", threads=0)
    with pytest.raises(ValueError, match=r"dropout_samples is -1"):
        Scoring(dropout_samples=-1)
    with pytest.raises(ValueError, match=r"no clip is in split 'sport': the data set has \['fir"):
        embed_pooled(tmp_path, source, EmbedConfig("sport"))
