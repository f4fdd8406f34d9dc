"""Lookalikes stream by stream, in a world where one task is heard and one is a conjunction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from lsb.ids import sample_ids
from lsb.shortlist import streams
from lsb.shortlist.config import ShortlistConfig
from lsb.shortlist.known import Known
from lsb.shortlist.shortlist import shortlist
from lsb.shortlist.streams import stream_lookalikes
from lsb.store import Store
from lsb.threshold import ThresholdConfig
from lsb.views import fit_views

Make = Callable[..., Store]
WIDTHS = {"image": 12, "sound": 8}
CONFIG = ShortlistConfig(limited="streams", share=0.05)
NO_LT = ThresholdConfig(mode="none")


@dataclass
class Heard:
    """Clips show one of six things and say one of five; a noise is faint beside both.

    Task "noise" is heard alone, task "pair" is one thing shown and one thing said together.
    """

    vectors: np.ndarray
    labels: dict[str, np.ndarray]

    @classmethod
    def draw(cls, count: int, seed: int) -> Heard:
        random = np.random.default_rng(seed)
        shown, said = random.integers(0, 6, count), random.integers(0, 5, count)
        noisy = random.random(count) < 0.06
        image = 3.0 * np.eye(12)[shown] + 0.4 * random.normal(size=(count, 12))
        sound = 1.5 * np.eye(8)[said] + 0.1 * random.normal(size=(count, 8))
        sound[:, 7] += 0.5 * noisy
        vectors = np.concatenate([image, sound], axis=1)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        pair = (shown == 1) & (said == 2)
        return cls(
            vectors.astype(np.float32),
            {"noise": noisy.astype(np.int8), "pair": pair.astype(np.int8)},
        )

    def known(self, name: str) -> Known:
        keys = [f"{name}-{row}" for row in range(len(self.vectors))]
        return Known(sample_ids(keys), keys, self.vectors, self.labels)


@pytest.fixture
def pool() -> Heard:
    return Heard.draw(3000, 0)


@pytest.fixture
def store(make_store: Make, pool: Heard) -> Store:
    return make_store(pool.vectors, pool.known("pool").keys)


def listed(store: Store, *, count: int = 100, threshold: ThresholdConfig = NO_LT, **weights: float):
    views = fit_views(store, WIDTHS, shrinkage=0.1)
    return stream_lookalikes(
        store,
        views,
        Heard.draw(300, 1).known("first"),
        Heard.draw(200, 2).known("gold"),
        threshold,
        CONFIG,
        count=count,
        task_weights=weights,
        exclude=sample_ids([]),
    )


def share(pool: Heard, table, task: str) -> float:
    rows = [int(key.removeprefix("pool-")) for key in table["key"].to_pylist()]
    return float(pool.labels[task][rows].mean())


def test_each_task_is_searched_where_its_positives_are_alike(store: Store, pool: Heard) -> None:
    table, (noise, pair) = listed(store, noise=1.0, pair=1.0)
    assert noise.view == ("sound",)
    assert pair.view == ("image", "sound")
    assert noise.bounds["sound"] > noise.bounds["image"]
    tasks = np.asarray(table["task"].to_pylist())
    assert share(pool, table.filter(tasks == "noise"), "noise") > 0.9
    assert share(pool, table.filter(tasks == "pair"), "pair") > 0.8
    assert len(set(table["id"].to_pylist())) == table.num_rows


def test_a_task_with_positives_to_spare_waits(store: Store) -> None:
    table, _ = listed(store, count=20, noise=1.0, pair=1000.0)
    assert table["task"].to_pylist() == ["pair"] * 20


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_turns_let_the_positives_of_tasks_grow_in_proportion(store: Store, weight: float) -> None:
    table, told = listed(store, count=300, noise=weight, pair=1.0)
    named = Counter(table["task"].to_pylist())
    noise, pair = (one.seeds + max(one.bounds.values()) * named[one.task] for one in told)
    assert noise / weight == pytest.approx(pair, abs=1)
    (sure, unsure) = sorted(told, key=lambda one: -max(one.bounds.values()))
    assert weight > 1 or named[sure.task] < named[unsure.task]


def test_the_cosine_of_whole_vectors_does_not_hear_a_faint_noise(store: Store, pool: Heard) -> None:
    first = Heard.draw(300, 1)
    seeds = first.vectors[first.labels["noise"] == 1]
    nearest = np.argsort(-(seeds @ pool.vectors.T).max(axis=0))[:50]
    table, _ = listed(store, count=50, noise=1.0)
    assert share(pool, table, "noise") > pool.labels["noise"][nearest].mean() + 0.2


def test_seeds_are_told_and_are_labelled_positives(store: Store) -> None:
    table, _ = listed(store, noise=1.0)
    positive = {
        key
        for name, seed, count in (("first", 1, 300), ("gold", 2, 200))
        for key, label in zip(
            Heard.draw(count, seed).known(name).keys,
            Heard.draw(count, seed).labels["noise"],
            strict=True,
        )
        if label == 1
    }
    assert set(table["seed_key"].to_pylist()) <= positive
    assert table["lookalike_threshold"].null_count == table.num_rows


def test_a_calibrated_threshold_cuts_what_is_not_alike(store: Store, pool: Heard) -> None:
    calibrated = ThresholdConfig(target=0.8, fallback=0.9)
    table, (told,) = listed(store, count=1000, threshold=calibrated, noise=1.0)
    assert told.threshold is not None
    assert told.threshold.precision >= 0.8
    assert table.num_rows < 300  # of about 180 noisy ones
    assert min(table["similarity"].to_pylist()) >= np.float32(told.threshold.value)
    assert share(pool, table, "noise") > 0.7
    refused, (why,) = listed(
        store, count=1000, threshold=replace(calibrated, target=0.999), noise=1.0
    )
    assert why.threshold is None
    assert "0.999" in (why.refusal or "")
    assert refused.num_rows == 1000


def test_what_is_below_the_threshold_takes_no_place_of_what_is_above(
    store: Store, pool: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips that are far from negatives come first, and may be below LT all the same."""
    monkeypatch.setattr(streams, "SPARE", 0)
    sure = ThresholdConfig(mode="fixed", value=3.5)
    every, (told,) = listed(store, count=len(pool.vectors), threshold=sure, noise=1.0)
    assert told.threshold is not None
    assert told.threshold.value == 3.5  # standard deviations: no cosine
    unlimited, _ = listed(store, count=len(pool.vectors), noise=1.0)
    above = np.asarray(unlimited["similarity"].to_pylist()) >= np.float32(3.5)
    assert every.num_rows == above.sum()
    first = int(np.flatnonzero(~above)[0])
    assert above[first:].any(), "in this world the two orders are the same"
    few = int(above[: first + 1].sum()) + 1
    cut, _ = listed(store, count=few, threshold=sure, noise=1.0)
    assert cut["id"] == every["id"][:few]


def test_the_cut_into_parts_changes_nothing(make_store: Make, pool: Heard, tmp_path) -> None:
    keys = pool.known("pool").keys
    one = make_store(pool.vectors, keys)
    several = make_store(pool.vectors, keys, parts=4)
    weights = {"noise": 1.0, "pair": 2.0}
    assert listed(one, **weights)[0] == listed(several, **weights)[0]


def test_a_task_without_positives_is_left_out_and_says_so(store: Store) -> None:
    first = Heard.draw(300, 1).known("first")
    nothing = Known(first.ids, first.keys, first.vectors, {"pair": np.zeros(300, np.int8)})
    table, (told,) = stream_lookalikes(
        store,
        fit_views(store, WIDTHS, shrinkage=0.1),
        nothing,
        nothing,
        NO_LT,
        CONFIG,
        count=10,
        task_weights={"pair": 1.0},
        exclude=sample_ids([]),
    )
    assert table.num_rows == 0
    assert "0 labelled clips are positive" in (told.refusal or "")


def test_similarities_are_in_standard_deviations_of_the_pool(store: Store, pool: Heard) -> None:
    views = fit_views(store, WIDTHS, shrinkage=0.1)
    queries = views.queries(pool.vectors[:5], ("sound",))
    similarity = views.similarity(queries, pool.vectors)
    assert similarity.mean(axis=1) == pytest.approx(0, abs=0.05)
    assert similarity.std(axis=1) == pytest.approx(1, abs=0.05)
    both = views.similarity(views.queries(pool.vectors[:5], ("image", "sound")), pool.vectors)
    assert (both <= similarity).all()


def test_widths_that_are_not_the_stores_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match=r"have 19 elements, store .* has dimension 20"):
        fit_views(store, {"image": 11, "sound": 8}, shrinkage=0.1)


def test_a_whitened_proxy_is_a_head_over_stored_clips(store: Store, pool: Heard) -> None:
    known = Heard.draw(300, 1).known("first")
    views = fit_views(store, WIDTHS, shrinkage=0.1)
    found = {}
    for whiten in (False, True):
        config = ShortlistConfig(limited="proxy", share=0.05, whiten=whiten, penalty=0.1)
        table = shortlist(
            store,
            known,
            config,
            count=150,
            task_weights={"noise": 1.0},
            exclude=sample_ids([]),
            round=1,
            views=views,
        )
        found[whiten] = share(pool, table, "noise")
    assert found[True] > found[False]
    weight = np.random.default_rng(0).normal(size=20)
    stored, constant = views.unwhitened(weight)
    expected = views.whitened(pool.vectors) @ weight
    assert pool.vectors @ stored + constant == pytest.approx(expected, abs=1e-6)
