from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsb.acquisition.ranking import Best, Ranked, pool_blocks, rank_pool
from lsb.ids import sample_ids
from lsb.order import descending
from lsb.store import Store

Make = Callable[..., Store]
Unit = Callable[..., np.ndarray]
NONE = sample_ids([])


@given(
    st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.25, 0.5, 1.0]), max_size=60),
    st.integers(1, 20),
    st.integers(1, 25),
)
def test_is_the_head_of_a_full_sort_with_ties(scores: list[float], count: int, step: int) -> None:
    ids = sample_ids([f"clip-{row}" for row in range(len(scores))])
    clips = Ranked(ids, np.asarray(scores), np.arange(len(scores), dtype=np.int64))
    best = Best(count)
    for start in range(0, len(scores), step):
        best.add(clips[slice(start, start + step)])
    expected = descending(clips.score, ids)[:count]
    assert best.ranked().row.tolist() == expected.tolist()
    assert (best.ranked().ids == ids[expected]).all()
    assert (best.ranked().score == clips.score[expected]).all()


def test_holds_no_more_than_it_must() -> None:
    best, ids = Best(10), sample_ids([f"clip-{row}" for row in range(5000)])
    score = np.random.default_rng(0).random(5000)
    clips = Ranked(ids, score, np.arange(5000, dtype=np.int64))
    for start in range(0, 5000, 100):
        best.add(clips[slice(start, start + 100)])
        assert sum(len(held.ids) for held in best._held) <= 2 * 10 + 100


def test_a_score_that_is_no_number_names_its_clip() -> None:
    ids = sample_ids(["a", "b"])
    with pytest.raises(ValueError, match=rf"1 of 2 scores are NaN, first of clip {ids[1].hex()}"):
        Best(1).add(Ranked(ids, np.asarray([1.0, np.nan]), np.arange(2, dtype=np.int64)))


def test_blocks_hold_every_row_once(make_store: Make, unit: Unit) -> None:
    keys, vectors = [f"clip-{row}" for row in range(100)], unit(100, 4)
    values = np.random.default_rng(0).random(100)
    store = make_store(vectors, keys, {"x": values}, parts=3, shuffle=1)
    blocks = list(pool_blocks(store, ["x"], 7))
    assert max(len(block.ids) for block in blocks) == 7
    ids = np.concatenate([block.ids for block in blocks])
    assert (ids == store.ids).all()
    row = {name: index for index, name in enumerate(sample_ids(keys).tolist())}
    order = np.asarray([row[name] for name in ids.tolist()])
    assert (np.concatenate([block.columns["x"] for block in blocks]) == values[order]).all()
    assert (np.concatenate([block.vectors() for block in blocks]) == vectors[order]).all()
    assert [block.first_row for block in blocks] == np.cumsum(
        [0, *[len(block.ids) for block in blocks[:-1]]]
    ).tolist()
    with pytest.raises(ValueError, match="no column 'y'"):
        list(pool_blocks(store, ["y"], 7))


def test_excluded_clips_are_counted_and_left_out(make_store: Make, unit: Unit) -> None:
    keys = [f"clip-{row}" for row in range(50)]
    store = make_store(unit(50, 4), keys, {"x": np.arange(50.0)}, parts=4)
    exclude = sample_ids(["clip-49", "clip-3", "elsewhere"])
    found = rank_pool(store, ["x"], lambda block: block.columns["x"], 3, exclude, block_rows=6)
    assert found.best.score.tolist() == [48.0, 47.0, 46.0]
    assert found.free == 48
    assert (np.sort(store.ids[found.excluded]) == np.sort(sample_ids(["clip-49", "clip-3"]))).all()
    assert (store.ids[found.best.row] == found.best.ids).all()
    everything = rank_pool(store, ["x"], lambda block: block.columns["x"], 99, NONE)
    assert everything.best.score.tolist() == list(range(49, -1, -1))
    assert everything.excluded.size == 0
