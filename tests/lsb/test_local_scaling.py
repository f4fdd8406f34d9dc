"""LT that follows the density around each seed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from growth_world import CONFIG, WORLD, Make

from benchmarks.local_scaling import REGIONS, TARGET, World, config_of, judge, measure
from lsb.expand import expand
from lsb.ids import from_arrow, sample_ids, to_bytes
from lsb.local_scaling import LocalScaling, cut, density
from lsb.round_threshold import round_threshold
from lsb.search.ask import HITS, Hits
from lsb.search.exact import search
from lsb.search.faiss_config import FaissConfig
from lsb.search.faiss_index import build_index, open_index
from lsb.search.rescore import similarity
from lsb.threshold import ThresholdConfig

NONE = sample_ids([])


def hits(*rows: tuple[str, str, float, bool]) -> Hits:
    ranks: dict[str, int] = {}
    table = []
    for seed, clip, near, saturated in rows:
        ranks[seed] = ranks.get(seed, 0) + 1
        table.append(
            {
                "seed_id": to_bytes(sample_ids([seed]))[0],
                "id": to_bytes(sample_ids([clip]))[0],
                "similarity": near,
                "rank": ranks[seed],
                "saturated": saturated,
            }
        )
    table.sort(key=lambda row: (row["seed_id"], row["rank"]))
    saturated_seeds = len({row["seed_id"] for row in table if row["saturated"]})
    return Hits(pa.Table.from_pylist(table, schema=HITS), 0, saturated_seeds, np.arange(len(rows)))


def test_density_is_the_mean_over_neighbours_and_unknown_without_any() -> None:
    ids = np.sort(sample_ids(["a", "b", "c"]))
    found = density(hits(("a", "x", 0.5, False), ("a", "y", 0.25, False)).table, ids)
    place = ids.tolist().index(sample_ids(["a"])[0])
    assert found[place] == 0.375
    assert np.isnan(np.delete(found, place)).all()
    scaling = LocalScaling(0.25, 10, "pool")
    assert scaling.shift(np.asarray([0.375, np.nan])).tolist() == [0.125, 0.0]
    near = np.asarray([0.5, 0.5], np.float32)
    assert scaling.scaled(near, np.asarray([0.375, np.nan])).tolist() == [0.375, 0.5]


def test_cut_keeps_what_reaches_its_own_seeds_threshold_and_tells_which_lists_are_whole() -> None:
    found = hits(
        ("a", "x", 0.9, True), ("a", "y", 0.5, True), ("b", "x", 0.9, True), ("b", "y", 0.8, True)
    )
    ids = np.sort(sample_ids(["a", "b"]))
    a = sample_ids(["a"])[0]
    limit = np.where(ids == a, 0.6, 0.5)
    left = cut(found, ids, limit)
    assert left.table.num_rows == len(left.row) == 3
    by_seed = {row["seed_id"]: row["saturated"] for row in left.table.to_pylist()}
    # a: its list goes down below LT, so nothing at or above it was cut off. b: it may have been.
    assert by_seed == {to_bytes(sample_ids(["a"]))[0]: False, to_bytes(sample_ids(["b"]))[0]: True}
    assert left.saturated == 1


@pytest.fixture(scope="module")
def world() -> World:
    return World.draw(7)


def test_every_hit_reaches_the_threshold_of_its_seed_and_none_is_missed(
    world: World, tmp_path: Path
) -> None:
    store, labelled = world.store(tmp_path, parts=3), world.labelled()
    found = expand(store, labelled, config_of("density in the pool"), round=1, exclude=NONE)
    assert found.scaling is not None
    assert found.threshold is not None
    limit = dict(
        zip(
            found.seed_thresholds["seed_id"].to_pylist(),
            found.seed_thresholds["lookalike_threshold"].to_pylist(),
            strict=True,
        )
    )
    assert len(set(limit.values())) == len(limit) > 20
    vectors = dict(zip(to_bytes(labelled.ids), labelled.vectors, strict=True))
    pool = store.vectors(store.ids)
    for seed, value in limit.items():
        exact = similarity(pool, vectors[seed][None]).astype(np.float64)
        wanted = set(to_bytes(store.ids[exact >= value]))
        rows = [row for row in found.hits.to_pylist() if row["seed_id"] == seed]
        assert {row["id"] for row in rows} == wanted
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    # LT(q) = LT' + density(q) - centre, by the definition.
    nearest = np.sort(similarity(pool, vectors[seed][None]).astype(np.float64))[::-1][:10]
    told = found.seed_thresholds.to_pylist()[-1]
    assert told["density"] == pytest.approx(nearest.mean(), rel=1e-12)
    shifted = found.threshold.value + told["density"] - found.scaling.centre
    assert told["lookalike_threshold"] == pytest.approx(shifted, abs=1e-12)
    # Every chosen lookalike records the LT of its own seed.
    chosen = [r for r in found.candidates.to_pylist() if r["reason"] == "lookalike"]
    assert chosen
    for row in chosen:
        assert row["lookalike_threshold"] == limit[row["seed_id"]] <= row["similarity"]


@pytest.mark.parametrize("scaling", ["density in the pool", "density among labelled clips"])
def test_the_result_does_not_depend_on_parts(world: World, scaling: str, tmp_path: Path) -> None:
    config = config_of(scaling)
    one, many = (
        expand(
            world.store(tmp_path / str(parts), parts),
            world.labelled(),
            config,
            round=1,
            exclude=NONE,
        )
        for parts in (1, 5)
    )
    for name in ("candidates", "hits", "seed_thresholds", "curve"):
        assert getattr(one, name).equals(getattr(many, name)), name
    assert (one.threshold, one.scaling) == (many.threshold, many.scaling)


def test_no_single_threshold_serves_both_regions(world: World, tmp_path: Path) -> None:
    """Whatever LT: dense hits are below the target, or hardly a sparse lookalike is found."""
    store, labelled = world.store(tmp_path), world.labelled()
    seeds = np.flatnonzero(labelled.labels["policy"] == 1)
    everything = search(
        labelled.ids[seeds],
        labelled.vectors[seeds],
        store,
        dataclasses.replace(config_of("none").search, max_neighbours=len(store)),
        lookalike_threshold=None,
        exclude=NONE,
    ).table
    row = {name: place for place, name in enumerate(to_bytes(sample_ids(world.keys())))}
    seed_H, clip_H = (
        np.asarray([row[name] for name in to_bytes(from_arrow(everything[column]))])
        for column in ("seed_id", "id")
    )
    near = everything["similarity"].to_numpy()
    dense = world.group[seed_H] < 8
    own = world.group[seed_H] == world.group[clip_H]
    for limit in np.unique(near):
        passed = near >= limit
        precision = world.hard[clip_H][passed & dense].mean() if (passed & dense).any() else 1.0
        recall = (passed & own & ~dense).sum() / (own & ~dense).sum()
        assert precision < 0.6 or recall < 0.01
    # Scaled, the same seeds find most of both.
    scaled = judge(
        world,
        expand(store, labelled, config_of("density in the pool"), round=1, exclude=NONE),
    )
    assert scaled.precision >= TARGET
    assert min(recall for _, recall in scaled.of_region.values()) > 0.6


def test_calibrated_precision_holds_world_after_world(tmp_path: Path) -> None:
    worlds = 12
    scaled = [measure(n, "density in the pool", tmp_path / f"s{n}") for n in range(worlds)]
    plain = [measure(n, "none", tmp_path / f"p{n}") for n in range(worlds)]
    # The bound is one of 95 %: two failures of twelve have probability 0.02.
    assert sum(one.precision < TARGET for one in scaled) <= 1
    for judged, least in ((scaled, 0.6), (plain, 0.0)):
        recalls = [one.of_region["sparse"][1] for one in judged]
        assert np.mean(recalls) >= least
    assert np.mean([one.of_region["sparse"][1] for one in plain]) < 0.05
    assert set(REGIONS) == {"dense", "sparse"}


def test_a_fixed_threshold_is_scaled_around_the_seeds_of_the_round(make_store: Make) -> None:
    store = WORLD.store(make_store)
    threshold = ThresholdConfig(mode="fixed", value=0.9, scaling="density")
    found = expand(
        store,
        WORLD.labelled,
        dataclasses.replace(CONFIG, threshold=threshold),
        round=1,
        exclude=NONE,
    )
    told = found.seed_thresholds
    assert found.scaling is not None
    assert found.scaling.centre == pytest.approx(np.mean(told["density"].to_numpy()), abs=1e-12)
    assert np.mean(told["lookalike_threshold"].to_numpy()) == pytest.approx(0.9, abs=1e-12)


def test_a_fallback_is_not_scaled(make_store: Make) -> None:
    store = WORLD.store(make_store)
    threshold = ThresholdConfig(target=0.9999, fallback=0.93, scaling="density")
    found = expand(
        store,
        WORLD.labelled,
        dataclasses.replace(CONFIG, threshold=threshold),
        round=1,
        exclude=NONE,
    )
    assert found.scaling is None
    assert found.refusal is not None
    assert set(found.seed_thresholds["lookalike_threshold"].to_pylist()) == {0.93}
    assert min(found.hits["similarity"].to_pylist()) >= 0.93


def test_an_approximate_search_is_scaled_alike(make_store: Make, tmp_path: Path) -> None:
    store = WORLD.store(make_store, parts=3)
    search = FaissConfig(8, 100, 50, factory="IVF6,Flat", training_rows=300, recall=1.0)
    threshold = ThresholdConfig(target=0.7, scaling="density")
    exact = dataclasses.replace(CONFIG, threshold=threshold)
    index = open_index(build_index(tmp_path, store, search).path, store)
    one = expand(store, WORLD.labelled, exact, round=1, exclude=NONE)
    other = expand(
        store,
        WORLD.labelled,
        dataclasses.replace(exact, search=search),
        round=1,
        exclude=NONE,
        index=index,
    )
    assert other.approximate is not None
    assert len(other.approximate.row) == other.hits.num_rows
    for name in ("candidates", "hits", "seed_thresholds"):
        assert getattr(one, name).equals(getattr(other, name))


def test_density_among_labelled_clips_needs_some(make_store: Make) -> None:
    from lsb.acquisition.seeds import BroadeningConfig

    threshold = ThresholdConfig(
        mode="fixed", value=0.5, scaling="density", scaling_among="labelled"
    )
    config = dataclasses.replace(
        CONFIG, threshold=threshold, broadening=BroadeningConfig(0, 0, random=3)
    )
    with pytest.raises(ValueError, match="scaling_among is 'labelled' but there are no labelled"):
        expand(WORLD.store(make_store), None, config, round=1, exclude=NONE)


def test_settings_of_scaling_are_checked_and_hashed_only_where_they_count() -> None:
    with pytest.raises(ValueError, match=r"threshold\.scaling is 'dense'"):
        ThresholdConfig(scaling="dense")
    with pytest.raises(ValueError, match=r"threshold\.scaling_among is 'gold'"):
        ThresholdConfig(scaling_among="gold")
    with pytest.raises(ValueError, match=r"threshold\.scaling_neighbours is 0"):
        ThresholdConfig(scaling_neighbours=0)
    with pytest.raises(ValueError, match="there is no LT to scale"):
        ThresholdConfig(mode="none", scaling="density")
    plain = ThresholdConfig().identity()
    assert not [name for name in plain if name.startswith("scaling")]
    assert ThresholdConfig(scaling_neighbours=3).identity() == plain
    assert ThresholdConfig(scaling="density").identity()["scaling_neighbours"] == 10


def test_without_scaling_nobody_asks_for_a_density() -> None:
    def never(ids: object, vectors: object) -> np.ndarray:
        raise AssertionError("asked for a density")

    found = round_threshold(
        WORLD.labelled,
        ThresholdConfig(target=0.7),
        task_weights={"policy": 1.0},
        density_Q=np.empty(0),
        density_of=never,
    )
    assert found.threshold is not None
    assert found.scaling is None
