"""A pool that goes by in batches, and lists made while embedding, end in the hits of the store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_exact import clustered, digest

from lsb.files import StageError
from lsb.ids import sample_ids
from lsb.search import streaming
from lsb.search.ask import seeds_of
from lsb.search.exact import Hits, SearchConfig, search
from lsb.search.partial import lists_file, void_lists
from lsb.search.streaming import SeedSearch, StreamingSearch
from lsb.store import Store

Make = Callable[..., Store]
KEYS = [f"clip-{number}" for number in range(500)]
EXCLUDE = sample_ids(KEYS[50:90])
CONFIG = SearchConfig(3, 20, 64)


@pytest.fixture(params=["float32", "float16"])
def store(make_store: Make, request: pytest.FixtureRequest) -> Store:
    return make_store(clustered(500, 24, 5, seed=1).astype(request.param), KEYS, parts=4)


def whole(store: Store, threshold: float | None) -> Hits:
    ids = store.ids[::20]
    return search(
        ids, store.vectors(ids), store, CONFIG, lookalike_threshold=threshold, exclude=EXCLUDE
    )


@pytest.mark.parametrize("threshold", [None, 0.7])
def test_batches_in_any_order_give_the_hits_of_the_store(
    store: Store, threshold: float | None
) -> None:
    expected = whole(store, threshold)
    assert expected.table.num_rows > 100
    assert threshold is None or expected.saturated > 0
    ids = store.ids[::20]
    all_ids = store.ids
    vectors = np.concatenate([part.vectors() for part in store.parts])
    for size in (7, 100, 500):
        stream = StreamingSearch(
            seeds_of(ids, store.vectors(ids)),
            CONFIG,
            lookalike_threshold=threshold,
            exclude=EXCLUDE,
        )
        starts = list(range(0, 500, size))
        for start in np.random.default_rng(size).permutation(starts):
            stream.add(all_ids[start : start + size], vectors[start : start + size])
        assert stream.rows == 500
        hits = stream.hits()
        assert digest(hits.table) == digest(expected.table)
        assert hits.saturated == expected.saturated
        assert hits.asked_again == 0, "nobody can ask again: all are asked widely from the start"


def test_hits_can_be_read_before_the_end(store: Store) -> None:
    ids = store.ids[:3]
    stream = StreamingSearch(
        seeds_of(ids, store.vectors(ids)), CONFIG, lookalike_threshold=0.5, exclude=EXCLUDE
    )
    assert stream.hits().table.num_rows == 0
    first = store.parts[0]
    stream.add(first.ids(), first.vectors())
    some = stream.hits().table.num_rows
    assert 0 < some == len(stream.lists().query)
    stream.add(store.parts[1].ids(), store.parts[1].vectors())
    assert stream.hits().table.num_rows > some


def test_wrong_batches_are_refused() -> None:
    seeds = seeds_of(sample_ids(["s"]), np.eye(1, 4, dtype=np.float32))
    stream = StreamingSearch(seeds, CONFIG, lookalike_threshold=0.5, exclude=EXCLUDE)
    ids = sample_ids(["a", "b"])
    with pytest.raises(ValueError, match=r"2 clips has vectors of shape \(2, 3\), seeds have dim"):
        stream.add(ids, np.eye(2, 3, dtype=np.float32))
    with pytest.raises(ValueError, match=r"batch: row 0 has norm 3"):
        stream.add(ids, 3 * np.eye(2, 4, dtype=np.float32))


@pytest.mark.parametrize("threshold", [None, 0.7])
def test_lists_beside_the_vectors_are_finished_over_the_store(
    store: Store, threshold: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = store.ids[::20]
    made = SeedSearch.of(
        ids, store.vectors(ids), CONFIG, lookalike_threshold=threshold, exclude=EXCLUDE
    )
    for part in store.parts:
        made.write(store.path, part.name, part.ids(), part.vectors())
        assert [made.files(part.name)[0]] == [f"{part.name}.neighbours.parquet"]
    expected = whole(store, threshold)

    def require_equal() -> None:
        hits = made.finish(store)
        assert digest(hits.table) == digest(expected.table)
        assert (hits.asked_again, hits.saturated) == (expected.asked_again, expected.saturated)
        np.testing.assert_array_equal(hits.row, expected.row)

    require_equal()
    # A part that lost a clip has void lists: it is searched again, here the whole of it.
    file = store.path / lists_file(store.parts[2].name)
    void_lists(file, file)
    require_equal()
    if threshold is None:  # one wave: the store is read only where lists are void
        monkeypatch.setattr(streaming, "_blocks", None)
        require_equal()
    other = dataclasses.replace(made, lookalike_threshold=0.71)
    with pytest.raises(StageError, match="answers another question"):
        other.finish(store)
    file.unlink()
    with pytest.raises(StageError, match=r"is missing: lists are merged only"):
        made.finish(store)


def test_seeds_of_another_dimension_are_refused(store: Store, tmp_path: Path) -> None:
    made = SeedSearch.of(
        sample_ids(["s"]),
        np.eye(1, 4, dtype=np.float32),
        CONFIG,
        lookalike_threshold=0.5,
        exclude=EXCLUDE,
    )
    part = store.parts[0]
    with pytest.raises(ValueError, match=r"dimension 24, the seeds of 4: embed the seeds with"):
        made.write(tmp_path, part.name, part.ids(), part.vectors())
    with pytest.raises(ValueError, match="embed the seeds with the checkpoint of the store"):
        made.finish(store)
