"""Neighbours in the order of diversity and of expected value, and caps of clusters."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from growth_world import CONFIG, WORLD, Make
from hypothesis import given, settings
from hypothesis import strategies as st
from test_selection import Clips, hits, keys, seeds

from lsb.acquisition.seeds import BroadeningConfig
from lsb.expand import ExpandConfig, Expansion, expand
from lsb.ids import sample_id, sample_ids, to_bytes
from lsb.selection import Neighbours, Selection, SelectionConfig, select
from lsb.threshold import ThresholdConfig

NONE = sample_ids([])
RANKS = ("similarity", "diversity", "expected_value")


def circle(**degrees: float) -> Clips:
    """Clips on a circle."""
    angle = {key: np.deg2rad(value) for key, value in degrees.items()}
    return Clips(
        {k: np.asarray([np.cos(a), np.sin(a)], dtype=np.float32) for k, a in angle.items()}
    )


def around(pool: Clips, chosen: pa.Table, *, at: float = 0.0) -> Neighbours:
    """Vectors of the seeds: those of the pool, labelled ones at an angle."""
    ids = np.unique(np.asarray([row["id"] for row in chosen.to_pylist()], dtype="S16"))
    direction = np.asarray([np.cos(at), np.sin(at)], dtype=np.float32)
    vectors = [pool.by_id.get(name, ("", direction))[1] for name in to_bytes(ids)]
    return Neighbours(ids, np.asarray(vectors, dtype=np.float32))


def run(
    chosen_seeds: pa.Table,
    found: pa.Table,
    pool: Clips,
    *,
    neighbours: Neighbours | None = None,
    order: tuple[str, ...] = (),
    **config: object,
) -> Selection:
    return select(
        chosen_seeds,
        found,
        sample_ids(order),
        pool,
        SelectionConfig(**config),  # type: ignore[arg-type]
        lookalike_threshold=None,
        exclude=NONE,
        neighbours=neighbours,
    )


def test_diversity_takes_the_neighbour_farthest_from_seeds_and_chosen() -> None:
    pool = circle(near=5, middle=35, far=60, beyond=62)
    table = seeds(("gold", 1.0, 1))
    found = hits({"gold": ["near", "middle", "far", "beyond"]})
    result = run(table, found, pool, neighbours=around(pool, table), rank="diversity", budget=3)
    # 62 is farthest from the seed at 0; then 35 (27 from 62), then 5, then 60.
    assert keys(result) == ["beyond", "middle", "near"]
    # A near duplicate is dropped and becomes no centre.
    near = run(
        table,
        found,
        pool,
        neighbours=around(pool, table),
        rank="diversity",
        budget=4,
        near_duplicate=0.999,
    )
    assert keys(near) == ["beyond", "middle", "near"]
    assert near.dropped["id"].to_pylist() == [sample_id("far")]


def test_diversity_credits_the_most_similar_seed_that_has_room() -> None:
    pool = circle(a=80, b=70, c=60)
    table = seeds(("light", 0.1, 1), ("heavy", 0.9, 1))
    # Similarities .99 .98 .97 down the list: "light" reaches a best, "heavy" c.
    found = hits({"light": ["a", "b", "c"], "heavy": ["c", "b", "a"]})
    result = run(
        table,
        found,
        pool,
        neighbours=around(pool, table),
        rank="diversity",
        budget=3,
        per_seed_cap=2,
    )
    credit = dict(zip(keys(result), result.chosen["seed_key"].to_pylist(), strict=True))
    assert credit == {"a": "light", "c": "heavy", "b": "heavy"}
    short = run(
        table,
        found,
        pool,
        neighbours=around(pool, table),
        rank="diversity",
        budget=3,
        per_seed_cap=1,
    )
    assert len(keys(short)) == 2


def test_expected_value_is_chance_of_any_lookalike_times_the_weight() -> None:
    pool = circle(once=10, twice=20, poor=30)
    table = seeds(("g1", 1.0, 1), ("g2", 0.9, 1), ("g3", 0.1, 1))
    found = hits({"g1": ["once", "twice"], "g2": ["twice"], "g3": ["poor"]})
    chance = {("g1", "once"): 0.6, ("g1", "twice"): 0.5, ("g2", "twice"): 0.5, ("g3", "poor"): 0.99}
    name = {sample_id(key): key for key in ("g1", "g2", "g3", "once", "twice", "poor")}
    told = [chance[name[row["seed_id"]], name[row["id"]]] for row in found.to_pylist()]
    neighbours = dataclasses.replace(around(pool, table), chance=np.asarray(told))
    result = run(table, found, pool, neighbours=neighbours, rank="expected_value", budget=3)
    # twice .75 x 1, once .6 x 1, poor .99 x .1.
    assert keys(result) == ["twice", "once", "poor"]
    assert result.chosen["seed_key"].to_pylist() == ["g1", "g1", "g3"]
    capped = run(
        table, found, pool, neighbours=neighbours, rank="expected_value", budget=3, per_seed_cap=1
    )
    # g1 is full after "twice"; nobody else reaches "once".
    assert keys(capped) == ["twice", "poor"]


def test_what_an_order_needs_is_asked_for() -> None:
    pool = circle(a=10)
    table, found = seeds(("g1", 1.0, 1)), hits({"g1": ["a"]})
    with pytest.raises(ValueError, match="nobody told the chance of a lookalike"):
        run(table, found, pool, neighbours=around(pool, table), rank="expected_value", budget=1)
    with pytest.raises(ValueError, match="no vectors of the seeds"):
        run(table, found, pool, rank="diversity", budget=1)


@pytest.mark.parametrize("rank", RANKS)
def test_a_cluster_has_its_cap_and_the_fill_order_may_bring_the_rest(rank: str) -> None:
    pool = circle(a0=10, a1=11, a2=12, a3=13, b0=100, b1=101, c0=200)
    names = ["a0", "a1", "a2", "a3", "b0", "b1", "c0"]
    table, found = seeds(("gold", 1.0, 1)), hits({"gold": names})
    neighbours = dataclasses.replace(around(pool, table), chance=np.linspace(0.9, 0.3, len(names)))
    options = {"rank": rank, "per_cluster_cap": 1, "clusters": 3, "budget": 6}
    result = run(table, found, pool, neighbours=neighbours, **options)
    assert sorted(key[0] for key in keys(result)) == ["a", "b", "c"]
    filled = run(table, found, pool, neighbours=neighbours, order=tuple(names), **options)
    reasons = Counter(filled.chosen["reason"].to_pylist())
    assert (reasons["lookalike"], reasons["fill"]) == (3, 3)


@pytest.mark.parametrize("rank", RANKS)
def test_neighbours_that_are_all_equal_are_no_trouble(rank: str) -> None:
    pool = circle(**{f"c{row}": 40.0 for row in range(30)})
    table, found = seeds(("gold", 1.0, 1)), hits({"gold": [f"c{row}" for row in range(30)]})
    neighbours = dataclasses.replace(around(pool, table), chance=np.full(30, 0.5))
    options = {"rank": rank, "per_cluster_cap": 40, "clusters": 20, "per_seed_cap": 40}
    result = run(table, found, pool, neighbours=neighbours, budget=25, **options)
    assert len(keys(result)) == 25
    one = run(
        table, found, pool, neighbours=neighbours, budget=25, near_duplicate=0.9999, **options
    )
    assert (one.counts["chosen"], one.counts["near_duplicates"]) == (1, 29)


@pytest.mark.parametrize("rank", RANKS)
def test_of_many_neighbours_only_the_most_similar_are_compared(rank: str) -> None:
    pool = circle(a=10, b=60, c=120, d=170)
    table, found = seeds(("gold", 1.0, 1)), hits({"gold": ["a", "b", "c", "d"]})
    neighbours = dataclasses.replace(around(pool, table), chance=np.full(4, 0.5))
    result = run(
        table,
        found,
        pool,
        neighbours=neighbours,
        rank=rank,
        per_cluster_cap=9,
        clusters=2,
        candidates=2,
        budget=4,
    )
    assert sorted(keys(result)) == ["a", "b"]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(RANKS),
    st.sampled_from([None, 0, 2]),
    st.sampled_from([None, 0.9]),
    st.integers(0, 4),
)
def test_rules_hold_and_row_order_does_not_matter(
    number: int, rank: str, cluster_cap: int | None, near: float | None, cap: int
) -> None:
    random = np.random.default_rng(number)
    x = random.normal(size=(40, 4))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    pool = Clips({f"c{row}": x[row].astype(np.float32) for row in range(40)})
    table = seeds(
        *((f"c{row}", float(random.integers(3)), None) for row in range(4)),
        *((f"gold-{row}", float(random.integers(3)), 1) for row in range(4)),
    )
    reach = {
        seed: [f"c{i}" for i in random.permutation(40)[: random.integers(12)] if f"c{i}" != seed]
        for seed in table["key"].to_pylist()
    }
    found = hits(reach)
    ids = np.sort(sample_ids(table["key"].to_pylist()))
    vectors = random.normal(size=(len(ids), 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    # A function of the pair, so that it can follow the rows.
    chance = np.asarray(
        [0.01 + 0.97 * row["seed_id"][0] * row["id"][0] / 65025 for row in found.to_pylist()]
    )
    order = random.permutation(found.num_rows)
    config = {
        "rank": rank,
        "budget": 20,
        "per_seed_cap": cap,
        "per_cluster_cap": cluster_cap,
        "clusters": 4,
        "near_duplicate": near,
    }
    fill = tuple(f"c{row}" for row in range(40))
    one, other = (
        run(
            seeds_table,
            hits_table,
            pool,
            order=fill,
            neighbours=Neighbours(ids, vectors.astype(np.float32), told),
            **config,
        )
        for seeds_table, hits_table, told in (
            (table, found, chance),
            (table.take(random.permutation(table.num_rows)), found.take(order), chance[order]),
        )
    )
    assert one.chosen.equals(other.chosen)
    assert one.dropped.equals(other.dropped)
    names = one.chosen["id"].to_pylist()
    assert len(set(names)) == len(names) == 20 - one.counts["short"]
    lookalikes = [row for row in one.chosen.to_pylist() if row["reason"] == "lookalike"]
    assert all(n <= cap for n in Counter(row["seed_id"] for row in lookalikes).values())
    for row in lookalikes:
        assert row["key"] in reach[row["seed_key"]]
    if cluster_cap == 0:
        assert not lookalikes


def grown(store: object, **config: object) -> Expansion:
    how = dataclasses.replace(CONFIG.selection, **config)  # type: ignore[arg-type]
    whole: ExpandConfig = dataclasses.replace(CONFIG, selection=how)
    return expand(store, WORLD.labelled, whole, round=1, exclude=NONE)  # type: ignore[arg-type]


@pytest.mark.parametrize("rank", RANKS)
def test_an_expansion_in_any_rank_does_not_depend_on_parts(make_store: Make, rank: str) -> None:
    options = {"rank": rank, "per_cluster_cap": 8, "clusters": 4}
    one = grown(WORLD.store(make_store), **options)
    many = grown(WORLD.store(make_store, parts=5, order=[3, 1, 0, 2, 4], shuffle=4), **options)
    assert one.candidates.equals(many.candidates)
    assert one.counts == many.counts
    # Capped clusters go round the confident errors of cluster 0, too.
    assert one.counts["lookalike"] > 8


def test_ranks_choose_different_clips_among_the_same_hits(make_store: Make) -> None:
    store = WORLD.store(make_store)
    found = {rank: grown(store, rank=rank, per_seed_cap=3, budget=25) for rank in RANKS}
    assert all(one.hits.equals(found["similarity"].hits) for one in found.values())
    chosen = {rank: frozenset(one.candidates["key"].to_pylist()) for rank, one in found.items()}
    assert len(set(chosen.values())) == 3

    def spread(rank: str) -> float:
        rows = [r for r in found[rank].candidates.to_pylist() if r["reason"] == "lookalike"]
        x = np.stack([WORLD.vectors[WORLD.keys.index(row["key"])] for row in rows])
        return float((x @ x.T)[np.triu_indices(len(x), 1)].mean())

    assert spread("diversity") < spread("similarity")


def test_without_enough_pairs_expected_value_falls_back_where_it_may(make_store: Make) -> None:
    store = WORLD.store(make_store)
    how = dataclasses.replace(CONFIG.selection, rank="expected_value")
    poor = ThresholdConfig(minimum_pairs=100_000, fallback=0.9)
    found = expand(
        store,
        WORLD.labelled,
        dataclasses.replace(CONFIG, selection=how, threshold=poor),
        round=1,
        exclude=NONE,
    )
    assert found.refusal is not None
    assert "too few to tell the chance" in found.refusal
    plain = expand(
        store,
        WORLD.labelled,
        dataclasses.replace(CONFIG, threshold=poor),
        round=1,
        exclude=NONE,
    )
    assert found.candidates.equals(plain.candidates)
    strict = ThresholdConfig(mode="fixed", value=0.9, minimum_pairs=100_000)
    with pytest.raises(ValueError, match="too few to tell the chance"):
        expand(
            store,
            WORLD.labelled,
            dataclasses.replace(CONFIG, selection=how, threshold=strict),
            round=1,
            exclude=NONE,
        )
    unlabelled = dataclasses.replace(
        CONFIG,
        selection=how,
        threshold=ThresholdConfig(mode="none"),
        broadening=BroadeningConfig(3, 0),
    )
    with pytest.raises(ValueError, match="rank is 'expected_value' but there are no labelled"):
        expand(store, None, unlabelled, round=1, exclude=NONE)


def test_settings_are_checked_and_hashed_only_where_they_count() -> None:
    for options, message in {
        ("rank", "nearest"): r"selection\.rank is 'nearest'",
        ("per_cluster_cap", -1): r"selection\.per_cluster_cap is -1",
        ("clusters", 0): r"selection\.clusters is 0",
        ("candidates", 0): r"selection\.candidates is 0",
        ("carry_labels", True): "no clip is a near duplicate",
    }.items():
        with pytest.raises(ValueError, match=message):
            SelectionConfig(**dict([options]))  # type: ignore[arg-type]
    first = {"budget", "per_seed_cap", "near_duplicate"}
    assert set(SelectionConfig().identity()) == first
    assert set(SelectionConfig(clusters=3, candidates=9).identity()) == first
    assert set(SelectionConfig(rank="expected_value").identity()) == first | {"rank"}
    assert set(SelectionConfig(rank="diversity").identity()) == first | {"rank", "candidates"}
    capped = SelectionConfig(per_cluster_cap=2).identity()
    assert set(capped) == first | {"per_cluster_cap", "clusters", "candidates"}
    copies = SelectionConfig(media_hashes=True, carry_labels=True).identity()
    assert set(copies) == first | {"media_hashes", "carry_labels"}
