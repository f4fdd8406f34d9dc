from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lsb.acquisition.seeds import SEEDS
from lsb.ids import IdArray, sample_id, sample_ids, to_bytes
from lsb.search.exact import HITS
from lsb.search.rescore import similarity
from lsb.selection import CHOSEN, DROPPED, Selection, SelectionConfig, select
from lsb.threshold import fixed

NONE = sample_ids([])


class Clips:
    """A pool in memory: key -> unit vector."""

    def __init__(self, vectors: dict[str, np.ndarray]):
        self.dimension = len(next(iter(vectors.values())))
        self.by_id = {sample_id(key): (key, vector) for key, vector in vectors.items()}

    def keys(self, ids: IdArray) -> list[str]:
        return [self.by_id[name][0] for name in to_bytes(ids)]

    def vectors(self, ids: IdArray) -> np.ndarray:
        found = [self.by_id[name][1] for name in to_bytes(ids)]
        return np.asarray(found, dtype=np.float32).reshape(len(found), self.dimension)


def spread(count: int, dimension: int = 64) -> Clips:
    random = np.random.default_rng(0)
    x = random.normal(size=(count, dimension))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return Clips({f"c{index}": x[index] for index in range(count)})


POOL = spread(60)
ORDER = sample_ids([f"c{index}" for index in range(60)])


def seeds(*rows: tuple[str, float, int | None]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "id": sample_id(key),
                "key": key,
                "task": "x",
                "kind": "entropy" if label is None else "confident_error",
                "weight": weight,
                "score": weight,
                "label": label,
            }
            for key, weight, label in rows
        ],
        schema=SEEDS,
    )


def hits(found: dict[str, list[str]]) -> pa.Table:
    rows = []
    for seed, keys in found.items():
        for rank, key in enumerate(keys):
            rows.append(
                {
                    "seed_id": sample_id(seed),
                    "id": sample_id(key),
                    "similarity": 0.99 - 0.01 * rank,
                    "rank": rank + 1,
                    "saturated": False,
                }
            )
    return pa.Table.from_pylist(rows, schema=HITS)


def run(
    chosen_seeds: pa.Table,
    found: pa.Table,
    *,
    pool: Clips = POOL,
    order: IdArray = ORDER,
    exclude: IdArray = NONE,
    **config: object,
) -> Selection:
    return select(
        chosen_seeds,
        found,
        order,
        pool,
        SelectionConfig(**config),  # type: ignore[arg-type]
        lookalike_threshold=fixed(0.7),
        exclude=exclude,
    )


def keys(selection: Selection) -> list[str]:
    return selection.chosen["key"].to_pylist()


def test_seeds_then_neighbours_in_turn_then_fill() -> None:
    result = run(
        seeds(("c0", 0.5, None), ("gold", 0.9, 1), ("c1", 0.7, None)),
        hits({"c0": ["c10", "c11"], "gold": ["c20", "c21", "c22"], "c1": ["c30"]}),
        budget=10,
    )
    assert keys(result) == [
        "c1", "c0", "c20", "c30", "c10", "c21", "c11", "c22", "c2", "c3",
    ]  # fmt: skip
    assert result.chosen["reason"].to_pylist() == ["seed"] * 2 + ["lookalike"] * 6 + ["fill"] * 2
    assert result.counts == {
        "seed": 2, "lookalike": 6, "fill": 2, "acquisition": 0,
        "chosen": 10, "near_duplicates": 0, "short": 0,
    }  # fmt: skip
    rows = {row["key"]: row for row in result.chosen.to_pylist()}
    assert rows["c21"] == {
        "id": sample_id("c21"),
        "key": "c21",
        "seed_id": sample_id("gold"),
        "seed_key": "gold",
        "kind": "confident_error",
        "task": "x",
        "similarity": pytest.approx(0.98),
        "lookalike_threshold": 0.7,
        "rank": 6,
        "reason": "lookalike",
    }
    assert (rows["c0"]["seed_key"], rows["c0"]["similarity"]) == ("c0", 1.0)
    assert (rows["c2"]["seed_key"], rows["c2"]["similarity"]) == (None, None)
    assert result.chosen.schema == CHOSEN


def test_per_seed_cap_counts_neighbours_only() -> None:
    result = run(
        seeds(("c0", 1.0, None)),
        hits({"c0": [f"c{i}" for i in range(10, 20)]}),
        budget=6,
        per_seed_cap=3,
    )
    assert keys(result) == ["c0", "c10", "c11", "c12", "c1", "c2"]
    none = run(seeds(("c0", 1.0, None)), hits({"c0": ["c10"]}), budget=2, per_seed_cap=0)
    assert keys(none) == ["c0", "c1"]


def test_a_clip_is_chosen_once_and_goes_to_the_heavier_seed() -> None:
    result = run(
        seeds(("g1", 0.9, 1), ("g2", 0.8, 0)),
        hits({"g1": ["c10", "c11"], "g2": ["c10", "c12"]}),
        budget=3,
    )
    assert keys(result) == ["c10", "c11", "c12"]
    assert result.chosen["seed_key"].to_pylist() == ["g1", "g1", "g2"]


def test_excluded_clips_are_never_chosen() -> None:
    result = run(
        seeds(("c0", 1.0, None)),
        hits({"c0": ["c10", "c11"]}),
        budget=4,
        exclude=sample_ids(["c0", "c10", "c1"]),
    )
    assert keys(result) == ["c11", "c2", "c3", "c4"]


def test_without_seeds_it_is_the_acquisition_order() -> None:
    result = run(SEEDS.empty_table(), HITS.empty_table(), budget=5, order=ORDER[::-1])
    assert keys(result) == ["c59", "c58", "c57", "c56", "c55"]
    assert set(result.chosen["reason"].to_pylist()) == {"acquisition"}


def test_exhausted_pool_says_so() -> None:
    result = run(SEEDS.empty_table(), HITS.empty_table(), budget=70, exclude=ORDER[:10])
    assert (result.counts["chosen"], result.counts["short"], result.exhausted) == (50, 20, True)
    assert not run(SEEDS.empty_table(), HITS.empty_table(), budget=60).exhausted


def near_pool() -> Clips:
    """c0, its copy c1, c2 at cosine 0.95 of c0, c3 at 0.5, c4 and c5 orthogonal."""
    base = np.eye(6)
    mix = lambda cosine: cosine * base[0] + np.sqrt(1 - cosine**2) * base[1]  # noqa: E731
    vectors = [base[0], base[0], mix(0.95), mix(0.5), base[4], base[5]]
    return Clips({f"c{i}": v.astype(np.float32) for i, v in enumerate(vectors)})


def test_near_duplicates_are_dropped_and_name_their_representative() -> None:
    order = sample_ids([f"c{i}" for i in range(6)])
    result = run(
        seeds(("c0", 1.0, None)),
        hits({"c0": ["c1", "c2", "c3"]}),
        pool=near_pool(),
        order=order,
        budget=4,
        near_duplicate=0.9,
    )
    assert keys(result) == ["c0", "c3", "c4", "c5"]
    dropped = {row["id"]: row for row in result.dropped.to_pylist()}
    assert set(dropped) == {sample_id("c1"), sample_id("c2")}
    assert {row["representative_id"] for row in dropped.values()} == {sample_id("c0")}
    assert dropped[sample_id("c1")]["similarity"] == 1.0
    assert dropped[sample_id("c2")]["similarity"] == pytest.approx(0.95)
    assert result.dropped.schema == DROPPED
    kept = run(
        seeds(("c0", 1.0, None)), hits({}), pool=near_pool(), order=order, budget=6
    )  # null keeps them
    assert len(keys(kept)) == 6


def test_exact_copies_only_are_dropped_at_one() -> None:
    order = sample_ids([f"c{i}" for i in range(6)])
    empty = SEEDS.empty_table(), HITS.empty_table()
    result = run(*empty, pool=near_pool(), order=order, budget=6, near_duplicate=1.0)
    assert keys(result) == ["c0", "c2", "c3", "c4", "c5"]
    assert (result.counts["near_duplicates"], result.counts["short"]) == (1, 1)


def test_a_near_duplicate_is_offered_only_once() -> None:
    result = run(
        seeds(("g1", 0.9, 1), ("g2", 0.8, 0)),
        hits({"g1": ["c0", "c1"], "g2": ["c1", "c3"]}),
        pool=near_pool(),
        order=sample_ids(["c4"]),
        budget=3,
        near_duplicate=0.9,
    )
    assert keys(result) == ["c0", "c3", "c4"]
    assert result.counts["near_duplicates"] == 1


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(0, 10_000),
    st.integers(1, 70),
    st.integers(0, 6),
    st.sampled_from([None, 0.2, 0.3, 1.0]),
)
def test_rules_hold_and_row_order_does_not_matter(
    number: int, budget: int, cap: int, near: float | None
) -> None:
    random = np.random.default_rng(number)
    names = [f"c{index}" for index in random.permutation(60)]
    table = seeds(
        *((key, float(random.integers(3)), None) for key in names[:8]),
        *((f"gold-{index}", float(random.integers(3)), 1) for index in range(4)),
    )
    found = hits(
        {
            seed: [names[i] for i in random.permutation(60)[: random.integers(12)]]
            for seed in table["key"].to_pylist()
        }
    )
    found = found.filter(
        pa.array([row["seed_id"] != row["id"] for row in found.to_pylist()], pa.bool_())
    )
    exclude = sample_ids(names[5:12])
    options = {"budget": budget, "per_seed_cap": cap, "near_duplicate": near, "exclude": exclude}
    result = run(table, found, **options)
    shuffled = run(
        table.take(random.permutation(table.num_rows)),
        found.take(random.permutation(found.num_rows)),
        **(options | {"exclude": exclude[::-1]}),
    )
    assert result.chosen.equals(shuffled.chosen)
    assert result.dropped.equals(shuffled.dropped)

    ids = result.chosen["id"].to_pylist()
    assert len(set(ids)) == len(ids) == budget - result.counts["short"]
    assert not set(ids) & set(to_bytes(exclude))
    assert not set(ids) & set(result.dropped["id"].to_pylist())
    lookalikes = [row for row in result.chosen.to_pylist() if row["reason"] == "lookalike"]
    assert all(n <= cap for n in Counter(row["seed_id"] for row in lookalikes).values())
    if result.exhausted:
        assert len(ids) + result.dropped.num_rows == 60 - len(exclude)
    if near is not None:
        vectors = POOL.vectors(np.asarray(ids, dtype="S16"))
        for row in range(1, len(ids)):
            assert (similarity(vectors[:row], vectors[row : row + 1]) < near).all()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"selection\.budget is 0"):
        SelectionConfig(budget=0)
    with pytest.raises(ValueError, match=r"selection\.near_duplicate is 1\.2"):
        SelectionConfig(near_duplicate=1.2)
    with pytest.raises(ValueError, match=r"selection\.per_seed_cap is -1"):
        SelectionConfig(per_seed_cap=-1)


def test_a_store_is_a_pool(make_store: Callable[..., object], unit: Callable[..., object]) -> None:
    store = make_store(unit(20, 8), [f"c{i}" for i in range(20)], parts=3)
    result = run(SEEDS.empty_table(), HITS.empty_table(), pool=store, order=ORDER[:20], budget=20)  # type: ignore[arg-type]
    assert keys(result) == [f"c{i}" for i in range(20)]
