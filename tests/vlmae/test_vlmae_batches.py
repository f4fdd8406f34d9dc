"""Batches of cached clips and the controls that take a modality away."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from token_values import tokens_of

from lsb.ids import ID_TYPE, sample_id
from vlmae.data.batches import Batch, CachedClips
from vlmae.data.labels import label_matrix, labels_fingerprint
from vlmae.data.prefix_cache import PrefixCache

VISUAL = ("image", "text")


def rows_with_sound(cache: PrefixCache, count: int) -> np.ndarray:
    missing = cache.rows["audio_missing"].to_pylist()
    return np.array([row for row, why in enumerate(missing) if why is None][:count])


def batch_of(cache: PrefixCache, rows: np.ndarray, inputs: str, seed: int = 0) -> Batch:
    labels = np.arange(len(rows), dtype=np.int8)[:, None] % 2
    clips = CachedClips(cache, rows, labels, inputs, seed)
    return clips.batch(np.arange(len(clips)))


def test_both_gives_every_clip_its_own_tokens(cache: PrefixCache) -> None:
    rows = np.arange(len(cache.ids))[::-1].copy()
    batch = batch_of(cache, rows, "both")
    assert batch.labels[:, 0].tolist() == [index % 2 for index in range(len(rows))]
    assert batch.labels.dtype == torch.int64
    for name, tokens in batch.streams.items():
        for place, row in enumerate(rows):
            own = tokens.values[place][tokens.mask[place]]
            assert torch.equal(own.float(), tokens_of(cache, int(row), name))


@pytest.mark.parametrize(("inputs", "masked"), [("vl", ("audio",)), ("audio", VISUAL)])
def test_one_tower_is_masked_and_the_other_is_not(
    cache: PrefixCache, inputs: str, masked: tuple[str, ...]
) -> None:
    rows = rows_with_sound(cache, 6)
    whole, batch = batch_of(cache, rows, "both"), batch_of(cache, rows, inputs)
    for name, tokens in batch.streams.items():
        if name in masked:
            assert not tokens.mask.any()
            assert not tokens.values.any()
        else:
            assert torch.equal(tokens.values, whole.streams[name].values)
            assert tokens.present.all()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_shuffled_audio_gives_every_clip_that_of_another(
    cache: PrefixCache, count: int, seed: int
) -> None:
    rows = rows_with_sound(cache, count)
    clips = CachedClips(cache, rows, np.zeros((count, 1), np.int8), "shuffled_audio", seed)
    assert sorted(clips.audio_rows) == sorted(rows)
    assert (clips.audio_rows != rows).all()
    batch = batch_of(cache, rows, "shuffled_audio", seed)
    whole = batch_of(cache, rows, "both")
    for name in VISUAL:
        assert torch.equal(batch.streams[name].values, whole.streams[name].values)
    for place, row in enumerate(clips.audio_rows):
        audio = batch.streams["audio"]
        own = audio.values[place][audio.mask[place]].float()
        assert torch.equal(own, tokens_of(cache, int(row), "audio"))
    again = batch_of(cache, rows, "shuffled_audio", seed)
    assert torch.equal(again.streams["audio"].values, batch.streams["audio"].values)


def test_another_seed_is_another_shuffle(cache: PrefixCache) -> None:
    rows = rows_with_sound(cache, 10)
    orders = {
        tuple(CachedClips(cache, rows, np.zeros((10, 1), np.int8), "shuffled_audio", s).audio_rows)
        for s in range(5)
    }
    assert len(orders) > 3


def test_a_batch_moves_as_a_whole(cache: PrefixCache) -> None:
    moved = batch_of(cache, rows_with_sound(cache, 3), "both").to(torch.device("meta"))
    tensors = [moved.labels, *(t.values for t in moved.streams.values())]
    tensors += [t.mask for t in moved.streams.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_errors_name_the_value(cache: PrefixCache) -> None:
    rows, labels = np.array([0, 1]), np.zeros((2, 1), np.int8)
    with pytest.raises(ValueError, match=r"inputs must be one of .*'sound'"):
        CachedClips(cache, rows, labels, "sound")
    with pytest.raises(ValueError, match="2 rows and 1 labels"):
        CachedClips(cache, rows, labels[:1])
    with pytest.raises(ValueError, match="1 clips are not in the cache"):
        CachedClips(cache, np.array([0, -1]), labels)


def label_table(keys: str, labels: list[int | None], source: str = "gold") -> pa.Table:
    return pa.table(
        {
            "id": pa.array([sample_id(key) for key in keys], ID_TYPE),
            "key": list(keys),
            "source": [source] * len(keys),
            "label_a": pa.array(labels, pa.int8()),
            "label_b": pa.array([None] * len(keys), pa.int8()),
        }
    )


def test_missing_labels_are_minus_one() -> None:
    table = label_table("xyz", [1, None, 0])
    assert label_matrix(table, ["b", "a"]).tolist() == [[-1, 1], [-1, -1], [-1, 0]]
    with pytest.raises(ValueError, match=r"no label column for tasks \['c'\]"):
        label_matrix(table, ["a", "c"])
    with pytest.raises(ValueError, match=r"0, 1 or missing, found \[2\]"):
        label_matrix(label_table("x", [2]), ["a"])


def test_fingerprint_is_of_the_content_and_not_of_the_order() -> None:
    tables = [
        label_table("xyz", [1, None, 0]),
        label_table("xyz", [1, 0, 0]),
        label_table("xyw", [1, None, 0]),
        label_table("xy", [1, None]),
        label_table("xyz", [1, None, 0], "pseudo"),
    ]
    prints = [labels_fingerprint(table, ["a", "b"]) for table in tables]
    assert len({*prints, labels_fingerprint(tables[0], ["a"])}) == len(tables) + 1
    assert labels_fingerprint(tables[0].take([2, 0, 1]), ["a", "b"]) == prints[0]
