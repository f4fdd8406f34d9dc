from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from growth_world import CONFIG, WORLD

import lsb.expand
from lsb.acquisition.seeds import BroadeningConfig, could_be_seeds
from lsb.expand import AcquisitionConfig, ExpandConfig, Expansion, expand
from lsb.ids import sample_ids
from lsb.search.exact import SearchConfig
from lsb.search.faiss_config import FaissConfig
from lsb.search.faiss_index import build_index, open_index
from lsb.search.rescore import similarity
from lsb.selection import SelectionConfig
from lsb.store import Store
from lsb.threshold import ThresholdConfig

Make = Callable[..., Store]
NONE = sample_ids([])


def run(store: Store, config: ExpandConfig = CONFIG, **options: object) -> Expansion:
    settings: dict[str, object] = {"round": 1, "exclude": NONE}
    return expand(store, WORLD.labelled, config, **(settings | options))  # type: ignore[arg-type]


def test_broadening_reaches_the_confident_errors_that_entropy_cannot_see(
    make_store: Make,
) -> None:
    store = WORLD.store(make_store, parts=3)
    broad = run(store)
    plain = run(store, dataclasses.replace(CONFIG, broadening=BroadeningConfig(0, 0, 0)))
    assert WORLD.cluster_of(plain).count(0) == 0
    assert set(plain.candidates["reason"].to_pylist()) == {"acquisition"}
    assert (plain.threshold, plain.seeds.num_rows, plain.hits.num_rows) == (None, 0, 0)
    assert WORLD.cluster_of(broad).count(0) == 20  # 5 seeds, cap 4
    assert broad.threshold is not None
    assert broad.threshold.mode == "calibrated"
    assert broad.threshold.precision is not None
    assert broad.threshold.precision >= 0.7
    # What LT promises: of all clips at or above it, this share is like the seed.
    errors = [r["id"] for r in broad.seeds.to_pylist() if r["kind"] == "confident_error"]
    around = [r["id"] for r in broad.hits.to_pylist() if r["seed_id"] in errors]
    alike = set(store.ids[WORLD.cluster[: len(store)] == 0].tolist())
    assert np.mean([name.rstrip(b"\0") in alike for name in around]) >= 0.7
    assert broad.counts["seeds_confident_error"] == broad.counts["seeds_entropy"] == 5
    assert broad.counts["chosen"] == 45
    assert broad.counts["pool"] == 300
    assert broad.counts["asked_again"] == 10
    assert broad.hits.num_rows == broad.counts["hits"]
    gold = dict(zip(WORLD.labelled.keys, WORLD.labelled.vectors, strict=True))
    vector = dict(zip(WORLD.keys, WORLD.vectors, strict=True)) | gold
    for row in broad.candidates.to_pylist():
        pair = vector[row["seed_key"]][None], vector[row["key"]][None]
        assert row["reason"] == "seed" or row["similarity"] == similarity(*pair)[0]
    lookalike = [r for r in broad.candidates.to_pylist() if r["reason"] == "lookalike"]
    assert all(r["similarity"] >= r["lookalike_threshold"] for r in lookalike)


def test_result_does_not_depend_on_how_the_pool_is_cut(make_store: Make) -> None:
    one = run(WORLD.store(make_store))
    many = run(WORLD.store(make_store, parts=7, order=[3, 1, 0, 2, 6, 5, 4], shuffle=4))
    for name in ("candidates", "seeds", "hits", "dropped"):
        assert getattr(one, name).equals(getattr(many, name))
    assert (one.threshold, one.counts) == (many.threshold, many.counts)


@pytest.mark.parametrize("mix", [{}, {"entropy": 1}, {"random": 1}])
def test_rows_of_the_pool_are_read_for_seeds_of_the_pool_alone(
    make_store: Make, monkeypatch: pytest.MonkeyPatch, mix: dict[str, int]
) -> None:
    none = {"entropy": 0, "random": 0, "confident_error": 5}
    seeds = BroadeningConfig(**{**none, **mix}, confidence=CONFIG.broadening.confidence)
    store, read = WORLD.store(make_store, parts=3), []

    def counted(piece: pa.Table, *given: Any, **more: Any) -> pa.Table:
        read.append(piece.num_rows)
        return could_be_seeds(piece, *given, **more)

    monkeypatch.setattr(lsb.expand, "could_be_seeds", counted)
    monkeypatch.delattr(Store, "rows")  # the whole pool at once
    found = run(store, dataclasses.replace(CONFIG, broadening=seeds))
    assert found.counts["seeds_confident_error"] == 5
    assert found.seeds.num_rows == 5 + len(mix)
    assert read == [part.rows for part in store.parts] * len(mix)


def test_an_approximate_search_says_what_it_found(make_store: Make, tmp_path: Path) -> None:
    store = WORLD.store(make_store, parts=3)
    search = FaissConfig(8, 100, 50, factory="IVF6,Flat", training_rows=300, recall=1.0)
    config = dataclasses.replace(CONFIG, search=search)
    with pytest.raises(ValueError, match="search=faiss needs an index of the pool"):
        run(store, config)
    index = open_index(build_index(tmp_path, store, search).path, store)
    found, exact = run(store, config, index=index), run(store)
    assert exact.approximate is None
    assert found.approximate is not None
    assert found.approximate.recall.value == 1
    assert found.approximate.evidence()["parameter"] == "nprobe"
    assert found.hits.equals(exact.hits)
    assert found.candidates.equals(exact.candidates)


def test_labelled_clips_are_not_asked_for_again(make_store: Make) -> None:
    store = WORLD.store(make_store)
    first = run(store)
    done = sample_ids(first.candidates["key"].to_pylist())
    second = run(store, exclude=done, round=2)
    assert not set(second.candidates["key"].to_pylist()) & set(first.candidates["key"].to_pylist())
    assert second.counts["excluded"] == 45
    greedy = dataclasses.replace(CONFIG, selection=SelectionConfig(budget=400))
    everything = run(store, greedy, exclude=done)
    assert everything.counts["short"] == 400 - (300 - 45)
    assert not set(everything.candidates["key"].to_pylist()) & set(
        first.candidates["key"].to_pylist()
    )
    # Gold clips that are in the pool are seeds there, never candidates.
    inside = dataclasses.replace(
        WORLD.labelled, ids=sample_ids(WORLD.keys[:120]), keys=WORLD.keys[:120]
    )
    third = expand(store, inside, CONFIG, round=1, exclude=NONE)
    assert not set(third.candidates["key"].to_pylist()) & set(WORLD.keys[:120])


def test_near_duplicates_at_the_head_of_the_order_do_not_shorten_the_choice(
    make_store: Make, unit: Callable[..., np.ndarray]
) -> None:
    copies, others = 400, 60
    vectors = np.concatenate([np.repeat(unit(1, 8, 1), copies, axis=0), unit(others, 8)])
    unsure = np.r_[np.full(copies, 0.5), np.linspace(0.3, 0.01, others)]
    keys = [f"clip-{row}" for row in range(copies + others)]
    store = make_store(vectors, keys, {"probability_policy": unsure}, parts=2)
    config = ExpandConfig(
        acquisition=AcquisitionConfig("margin", {"policy": 1.0}),
        broadening=BroadeningConfig(0, 0, 0),
        selection=SelectionConfig(budget=20, near_duplicate=0.999),
    )
    chosen = expand(store, None, config, round=1, exclude=NONE)
    assert chosen.candidates["key"].to_pylist()[1:] == keys[copies : copies + 19]
    assert chosen.counts["near_duplicates"] == copies - 1
    assert (chosen.counts["chosen"], chosen.counts["short"]) == (20, 0)


def test_random_arm_needs_neither_probabilities_nor_labels(make_store: Make) -> None:
    store = make_store(WORLD.vectors, WORLD.keys, kind="pooled")
    config = ExpandConfig(
        acquisition=AcquisitionConfig("random", seed=5),
        broadening=BroadeningConfig(0, 0, 0),
        selection=SelectionConfig(budget=30),
    )
    one, two = (expand(store, None, config, round=r, exclude=NONE) for r in (1, 2))
    assert one.counts["acquisition"] == 30
    assert one.candidates["key"].to_pylist() != two.candidates["key"].to_pylist()
    # Random seeds without LT: the arm that separates "neighbours" from "which seeds".
    around = dataclasses.replace(
        config,
        broadening=BroadeningConfig(0, 0, random=4),
        threshold=ThresholdConfig(mode="none"),
        search=SearchConfig(5, 5),
    )
    broad = expand(store, None, around, round=1, exclude=NONE)
    assert (broad.counts["seeds_random"], broad.counts["hits"], broad.threshold) == (4, 20, None)
    assert broad.counts["saturated"] == 0


def test_threshold_sources(make_store: Make) -> None:
    store = WORLD.store(make_store)

    def with_threshold(**fields: object) -> ExpandConfig:
        return dataclasses.replace(CONFIG, threshold=ThresholdConfig(**fields))  # type: ignore[arg-type]

    fixed = run(store, with_threshold(mode="fixed", value=0.9))
    assert fixed.threshold is not None
    assert (fixed.threshold.value, fixed.threshold.mode) == (0.9, "fixed")
    assert min(fixed.hits["similarity"].to_pylist()) >= 0.9
    with pytest.raises(ValueError, match=r"no similarity has lookalike precision >= 0\.999"):
        run(store, with_threshold(target=0.999))
    fallen = run(store, with_threshold(target=0.999, fallback=0.95))
    assert fallen.threshold is not None
    assert (fallen.threshold.value, fallen.threshold.mode) == (0.95, "fallback")
    assert fallen.refusal is not None
    assert "best lower bound" in fallen.refusal
    only_entropy = dataclasses.replace(CONFIG, broadening=BroadeningConfig(5, 0))
    with pytest.raises(ValueError, match="'calibrated' but there are no labelled clips"):
        expand(store, None, only_entropy, round=1, exclude=NONE)


def test_inputs_that_do_not_fit_are_refused(
    make_store: Make, unit: Callable[..., np.ndarray]
) -> None:
    scores = {"probability_policy": np.full(20, 0.5)}
    narrow = make_store(unit(20, 4), [f"n{i}" for i in range(20)], scores)
    with pytest.raises(ValueError, match=r"vectors of dimension 16, store .* of 4"):
        run(narrow)
    with pytest.raises(ValueError, match=r"acquisition\.name is 'coin'"):
        AcquisitionConfig("coin")
    bare = make_store(WORLD.vectors, WORLD.keys)
    with pytest.raises(ValueError, match="no column 'probability_policy'"):
        run(bare)
