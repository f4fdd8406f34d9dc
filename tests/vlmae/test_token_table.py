"""Kept tokens come back within the tolerance of their dtype, one by one or as a padded batch."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from token_values import tokens_of

from lsb.artifact import Stage
from lsb.ids import from_arrow, sample_ids
from vlmae.data.decode import BadClipError
from vlmae.data.encode import EncodedShard, quarantine_table, read_shard_index
from vlmae.data.prefix_cache import Prefix, PrefixCache, cache_prefix
from vlmae.data.token_table import TokenCodec, pad_spans, widths

DTYPES = TokenCodec.DTYPES
PrefixMaker = Callable[..., Prefix]
few = settings(max_examples=50, deadline=None)


def random_tokens(count: int, width: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * scale


def tolerance(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """Largest error that is stated for each value."""
    if dtype == "float16":
        return values.abs() * 2.0**-11 + 2.0**-25
    if dtype == "bfloat16":
        return values.abs() * 2.0**-8
    if dtype == "float32":
        return torch.zeros_like(values)
    scale = values.abs().amax(dim=1, keepdim=True) / 127
    rounding = scale * 2.0**-11 + 2.0**-25  # of the float16 scale, once a step
    decoded = values.abs() * 2.0**-11 + 2.0**-24  # of the float16 that is handed out
    return scale / 2 + 128 * rounding + decoded


@few
@given(
    st.sampled_from(DTYPES),
    st.integers(0, 6),
    st.integers(1, 33),
    st.integers(0, 99),
    st.sampled_from([1e-7, 1e-5, 1e-3, 1.0, 300.0, 6000.0]),
)
def test_tokens_come_back_within_the_tolerance(
    dtype: str, count: int, width: int, seed: int, scale: float
) -> None:
    values = random_tokens(count, width, seed, scale)
    codec = TokenCodec(dtype)
    arrays = codec.encode(values)
    assert tuple(arrays) == codec.files
    assert arrays["tokens"].dtype == codec.kept
    assert sum(a.nbytes for a in arrays.values()) == count * codec.bytes_per_token(width)
    back = codec.decode(arrays)
    assert back.shape == values.shape
    assert back.dtype == {"bfloat16": torch.bfloat16, "float32": torch.float32}.get(
        dtype, torch.float16
    )
    assert ((back.float() - values).abs() <= tolerance(values, dtype)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_stays_zero_and_its_neighbours_keep_their_own_scale(dtype: str) -> None:
    values = torch.stack([torch.zeros(8), 1e-3 * torch.ones(8), 500 * torch.ones(8)])
    codec = TokenCodec(dtype)
    back = codec.decode(codec.encode(values)).float()
    assert not back[0].any()
    torch.testing.assert_close(back[1:], values[1:], rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e5, 1e7, 3.4e38])
def test_what_does_not_fit_is_refused(dtype: str, value: float) -> None:
    values = torch.ones(3, 4)
    values[1, 2] = value
    codec = TokenCodec(dtype)
    if (dtype == "bfloat16" and abs(value) < 1e10) or (dtype == "float32" and abs(value) < 1e39):
        assert codec.decode(codec.encode(values)).isfinite().all()
        return
    with pytest.raises(ValueError, match=rf"do not fit into {dtype}: use prefix.dtype=bfloat16"):
        codec.encode(values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_fits_is_finite_when_it_comes_back(dtype: str) -> None:
    codec = TokenCodec(dtype)
    for value in np.geomspace(1e3, 2e5, 40):
        values = torch.tensor([[value, -value / 3, 1.0]], dtype=torch.float32)
        try:
            arrays = codec.encode(values)
        except ValueError:
            assert value > 65_000
        else:
            assert codec.decode(arrays).isfinite().all()


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prefix.dtype is 'fp8': use one of float16, bfloat16"):
        TokenCodec("fp8")


@few
@given(
    st.sampled_from(DTYPES),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 9), st.integers(0, 6)), max_size=6),
)
def test_spans_of_several_arrays_become_one_padded_batch(
    dtype: str, spans: list[tuple[int, int, int]]
) -> None:
    codec, width = TokenCodec(dtype), 5
    flat = [random_tokens(16, width, part, 3.0) for part in (0, 1)]
    kept = [codec.encode(values) for values in flat]
    batch = pad_spans([(kept[part], start, length) for part, start, length in spans], width, codec)
    longest = max([1, *(length for _, _, length in spans)])
    assert batch.values.shape == (len(spans), longest, width)
    assert batch.mask.sum(dim=1).tolist() == [length for _, _, length in spans]
    assert not batch.values[~batch.mask].any(), "nothing but zeros under the mask"
    for row, (part, start, length) in enumerate(spans):
        own = codec.decode({n: array[start : start + length] for n, array in kept[part].items()})
        assert torch.equal(batch.values[row, :length], own)
        assert batch.mask[row, :length].all()


def lengths_of(number: int) -> dict[str, int]:
    """Tokens of clip `number`, some streams of some clips without any."""
    return {"image": number % 4, "text": 1, "audio": (3 * number) % 7}


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefixes that encode in no time: random tokens, every fifth clip in quarantine."""

    def encode(self: Prefix, shard: str, only: Any = None) -> EncodedShard:
        index = read_shard_index(self.data.path, shard)
        kept = np.flatnonzero(np.arange(index.num_rows) % 5 != 4)
        bad = [BadClipError(index["key"][n].as_py(), "made up", "") for n in range(4, 8, 5)]
        rows = index.take(kept)
        for column in ("audio_missing", "video_missing"):
            rows = rows.append_column(column, pa.nulls(len(kept), pa.string()))
        streams = {"vl": {"image": 1280, "text": 384}, "audio": {"audio": 384}}
        tokens = {
            name: [random_tokens(lengths_of(n)[name], width, int(n)) for n in kept]
            for name, width in widths(streams).items()
        }
        counts = {"clips": len(kept), "skipped": len(bad)}
        return EncodedShard(streams, {}, rows, tokens, quarantine_table(bad), counts)

    monkeypatch.setattr(Prefix, "encode", encode)


def cached(root: Path, prefix: Prefix) -> PrefixCache:
    stage = cache_prefix(root, prefix)
    assert stage is not None
    return PrefixCache(stage)


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_of_a_cache_equals_its_rows_read_one_by_one(
    tmp_path: Path, data: Stage, prefix_on: PrefixMaker, dtype: str
) -> None:
    cache = cached(tmp_path, prefix_on(data, dtype=dtype))
    assert len(cache.ids) == 56
    rng = np.random.default_rng(0)
    place = {key: n for s in cache._shards for n, key in enumerate(keys_in(data, s))}
    for stream, width in widths(cache.streams).items():
        rows = rng.integers(0, len(cache.ids), 40)
        batch = cache.batch(rows, stream)
        for number, row in enumerate(rows):
            own = tokens_of(cache, int(row), stream)
            assert torch.equal(batch.values[number][batch.mask[number]].float(), own)
            clip = place[cache.rows["key"][int(row)].as_py()]
            values = random_tokens(lengths_of(clip)[stream], width, clip)
            assert own.shape == values.shape
            assert ((own - values).abs() <= tolerance(values, dtype)).all() or not len(values)
        assert cache.batch(rows[:0], stream).values.shape == (0, 1, width)


def keys_in(data: Stage, shard: str) -> list[str]:
    keys: list[str] = read_shard_index(data.path, shard)["key"].to_pylist()
    return keys


@pytest.mark.usefixtures("made_up")
def test_a_cache_travels_to_workers_without_its_maps(
    tmp_path: Path, data: Stage, prefix_on: PrefixMaker
) -> None:
    cache = cached(tmp_path, prefix_on(data, dtype="int8"))
    before = len(pickle.dumps(cache))
    rows = np.arange(len(cache.ids))[::-1]
    expected = {stream: cache.batch(rows, stream) for stream in widths(cache.streams)}
    pickled = pickle.dumps(cache)
    assert abs(len(pickled) - before) < 100, "tokens do not travel"
    other = pickle.loads(pickled)
    assert other._maps == {}
    assert cache._maps != {}, "the one here keeps its own"
    for stream, tokens in expected.items():
        assert torch.equal(other.batch(rows, stream).values, tokens.values)


@pytest.mark.usefixtures("made_up")
def test_rows_of_ids_that_are_not_there(
    tmp_path: Path, data: Stage, prefix_on: PrefixMaker
) -> None:
    cache = cached(tmp_path, prefix_on(data))
    bad = from_arrow(cache.quarantine()["id"])
    mixed = np.concatenate([bad[:2], cache.ids[5:8], bad[2:3], cache.ids[:1]])
    assert cache.rows_of(mixed).tolist() == [-1, -1, 5, 6, 7, -1, 0]
    assert sorted(cache.rows_of(cache.ids[::-1]).tolist()) == list(range(len(cache.ids)))
    with pytest.raises(ValueError, match=r"1 clips are neither in the cache .* were taken down"):
        cache.rows_of(np.concatenate([mixed, sample_ids(["unheard of"])]))
