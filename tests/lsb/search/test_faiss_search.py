from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pools import clustered
from scipy import stats

from lsb.ids import IdArray, sample_ids, to_bytes
from lsb.search import exact
from lsb.search.ask import HITS, Hits
from lsb.search.faiss_anatomy import faiss
from lsb.search.faiss_config import FaissConfig
from lsb.search.faiss_index import FaissIndex, build_index, open_index
from lsb.search.faiss_search import ApproximateHits, search_with_index
from lsb.search.recall import measure
from lsb.store import Store

Make = Callable[..., Store]
NONE = sample_ids([])
COUNT, DIMENSION = 3000, 32
KEYS = [f"clip-{index}" for index in range(COUNT)]
CONFIG = FaissConfig(
    neighbours=8,
    max_neighbours=64,
    factory="IVF32,Flat",
    training_rows=2000,
    recall=0.95,
    sample=40,
)
LT = 0.6


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(COUNT, DIMENSION, 3, seed=4)


def indexed(root: Path, store: Store, config: FaissConfig) -> FaissIndex:
    return open_index(build_index(root, store, config).path, store)


def seeds_in(store: Store, count: int) -> tuple[IdArray, np.ndarray]:
    """Clips of the pool, and clips that are not in it."""
    outside = clustered(COUNT, DIMENSION, 3, seed=4)[:10] + 0.05
    outside /= np.linalg.norm(outside, axis=1, keepdims=True)
    ids = sample_ids(KEYS[: count - 10])
    return (
        np.concatenate([ids, sample_ids([f"gold-{index}" for index in range(10)])]),
        np.concatenate([store.vectors(ids), outside.astype(np.float32)]),
    )


def both(
    root: Path,
    store: Store,
    config: FaissConfig,
    *,
    threshold: float | None = LT,
    exclude: IdArray = NONE,
    seeds: int = 120,
) -> tuple[ApproximateHits, Hits]:
    ids, vectors_QD = seeds_in(store, seeds)
    index = indexed(root, store, config)
    found = search_with_index(
        ids, vectors_QD, store, index, config, lookalike_threshold=threshold, exclude=exclude
    )
    expected = exact.search(
        ids, vectors_QD, store, config, lookalike_threshold=threshold, exclude=exclude
    )
    return found, expected


def pairs(table: pa.Table) -> dict[tuple[bytes, bytes], float]:
    names = zip(table["seed_id"].to_pylist(), table["id"].to_pylist(), strict=True)
    return dict(zip(names, table["similarity"].to_pylist(), strict=True))


def in_order(table: pa.Table) -> bool:
    keys = [(row["seed_id"], -row["similarity"], row["id"]) for row in table.to_pylist()]
    return keys == sorted(keys)


@pytest.mark.parametrize(
    ("factory", "parameter", "candidates"),
    [
        ("IVF32,Flat", "nprobe", 2),
        ("IVF32,SQ8", "nprobe", 2),
        ("IVF32_HNSW8,Flat", "nprobe", 2),
        ("OPQ8,IVF8,PQ8x4fs", "nprobe", 8),
        ("PCA24,IVF16,SQ8", "nprobe", 4),
        ("HNSW32", "efSearch", 2),
        ("HNSW32,SQ8", "efSearch", 2),
        ("PQ16np", "none", 8),
        ("OPQ8,PQ8x4fs", "none", 12),
        ("SQ8", "none", 2),
        ("Flat", "none", 2),
    ],
)
@pytest.mark.parametrize("threshold", [LT, None])
def test_any_factory_reaches_its_target_with_exact_similarities(
    make_store: Make,
    tmp_path: Path,
    vectors: np.ndarray,
    factory: str,
    parameter: str,
    candidates: int,
    threshold: float | None,
) -> None:
    store = make_store(vectors, KEYS, parts=3)
    exclude = sample_ids(KEYS[1000:1400])
    config = replace(CONFIG, factory=factory, candidates=candidates)
    found, expected = both(tmp_path, store, config, threshold=threshold, exclude=exclude)
    mine, truth = pairs(found.table), pairs(expected.table)
    assert len(truth) > 1000
    assert {seed for seed, _ in mine} <= {seed for seed, _ in truth}
    shared = mine.keys() & truth.keys()
    assert all(mine[pair] == truth[pair] for pair in shared)
    assert in_order(found.table)
    assert not {name for _, name in mine} & set(to_bytes(exclude))
    assert all(seed != name for seed, name in mine)
    assert threshold is None or min(mine.values()) >= threshold
    assert found.parameter == parameter
    assert found.probes[-1].value == found.value
    assert all(probe.recall.value < config.recall for probe in found.probes[:-1])
    assert found.probes[-1].recall.value >= config.recall
    assert len(shared) / len(truth) > 0.9


def test_recall_is_that_of_the_returned_result_on_seeds_nothing_was_tuned_on(
    make_store: Make, tmp_path: Path, vectors: np.ndarray
) -> None:
    store = make_store(vectors, KEYS, parts=2)
    config = replace(CONFIG, recall=0.5)
    found, expected = both(tmp_path, store, config)
    truth, mine = pairs(expected.table), pairs(found.table)
    assert 0.3 < len(mine.keys() & truth.keys()) / len(truth) < 1
    # Which seeds: written here anew from the documentation.
    ids, _ = seeds_in(store, 120)

    def mixed(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    def place(name: bytes) -> int:
        high, low = int.from_bytes(name[:8], "big"), int.from_bytes(name[8:], "big")
        return mixed(mixed(high ^ 0x9E3779B97F4A7C15) ^ low)

    chosen = sorted(to_bytes(ids), key=place)[:80]
    for recall, sample in ((found.probes[-1].recall, chosen[::2]), (found.recall, chosen[1::2])):
        wanted = [pair for pair in truth if pair[0] in set(sample)]
        assert (recall.pairs, recall.seeds) == (len(wanted), 40)
        assert recall.found == sum(pair in mine for pair in wanted)
        assert recall.value == recall.found / recall.pairs
        assert recall.low < recall.value < recall.high


def test_recall_counts_pairs_and_bounds_them() -> None:
    def hits(rows: list[tuple[str, str]]) -> Hits:
        columns = [
            pa.array(to_bytes(sample_ids([row[side] for row in rows])), type=HITS.field("id").type)
            for side in (0, 1)
        ]
        count = len(rows)
        rest = [pa.array([0.9] * count, pa.float32()), pa.array(range(count), pa.int32())]
        rest.append(pa.array([False] * count))
        return Hits(pa.table([*columns, *rest], schema=HITS), 0, 0)

    truth = hits([(f"s{index}", f"n{index}") for index in range(100)])
    some = hits([(f"s{index}", f"n{index}") for index in range(10, 100)] + [("s0", "n1")])
    recall = measure(truth, some, 120)
    assert (recall.found, recall.pairs, recall.seeds, recall.value) == (90, 100, 120, 0.9)
    # One pair a seed: plain Clopper-Pearson.
    interval = stats.binomtest(90, 100).proportion_ci(0.95, method="exact")
    assert recall.low == pytest.approx(interval.low)
    assert recall.high == pytest.approx(interval.high)
    assert str(recall) == "0.9000 [0.8238, 0.9510] (90 of 100 pairs of 120 seeds)"
    # All pairs of a seed together: ten seeds are no hundred.
    together = [(f"s{index // 10}", f"n{index}") for index in range(100)]
    wide = measure(hits(together), hits(together[10:]), 10)
    assert wide.value == 0.9
    assert wide.low < recall.low - 0.1
    nothing = measure(hits([]), some, 7)
    assert (nothing.value, nothing.low, nothing.high, nothing.pairs) == (None, 0.0, 1.0, 0)
    assert str(nothing) == "unmeasured: no pair in the exact result of 7 seeds"


@pytest.mark.parametrize("threshold", [LT, None])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_all_lists_of_uncompressed_codes_give_the_exact_bytes(
    make_store: Make,
    tmp_path: Path,
    vectors: np.ndarray,
    threshold: float | None,
    dtype: type[np.floating],
) -> None:
    store = make_store(vectors.astype(dtype), KEYS, parts=3, shuffle=1)
    config = replace(CONFIG, factory="IVF4,Flat", recall=1.0, candidates=3)
    exclude = sample_ids(KEYS[50:500])
    index = indexed(tmp_path, store, config)
    ids, vectors_QD = store.ids[:90], store.vectors(store.ids[:90])
    found = search_with_index(
        ids, vectors_QD, store, index, config, lookalike_threshold=threshold, exclude=exclude
    )
    expected = exact.search(
        ids, vectors_QD, store, config, lookalike_threshold=threshold, exclude=exclude
    )
    assert found.value == 4
    assert found.table.equals(expected.table)
    assert found.row.tolist() == expected.row.tolist()
    assert (found.saturated, found.asked_again) == (expected.saturated, expected.asked_again)
    assert found.recall.value == 1


def test_parts_may_be_empty_uneven_or_gone(make_store: Make, tmp_path: Path) -> None:
    vectors = clustered(5, DIMENSION, 1, seed=0)
    keys = KEYS[:5]
    store = make_store(vectors, keys, parts=8)  # three parts without rows
    ids = sample_ids(["gold"])
    for factory in ("IVF2,Flat", "HNSW8", "SQ8"):
        config = replace(CONFIG, factory=factory, recall=1.0)
        index = indexed(tmp_path, store, config)
        options = {"lookalike_threshold": -1.0, "exclude": NONE}
        found = search_with_index(ids, vectors[:1], store, index, config, **options)
        assert found.table.equals(exact.search(ids, vectors[:1], store, config, **options).table), (
            factory
        )
        nothing = search_with_index(NONE, vectors[:0], store, index, config, **options)
        assert (nothing.table.num_rows, nothing.recall.pairs) == (0, 0)
        options["exclude"] = store.ids
        assert search_with_index(ids, vectors[:1], store, index, config, **options).table == (
            nothing.table
        )
    nobody = make_store(vectors[:0], [], parts=2)
    config = replace(CONFIG, factory="HNSW8")
    index = indexed(tmp_path, nobody, config)
    found = search_with_index(
        ids, vectors[:1], nobody, index, config, lookalike_threshold=0.1, exclude=NONE
    )
    assert (found.table.num_rows, found.parameter) == (0, "none")


def test_nothing_to_measure_means_the_most_thorough_search(
    make_store: Make, tmp_path: Path, vectors: np.ndarray
) -> None:
    store = make_store(vectors, KEYS)
    ids = sample_ids(["gold"])
    far = np.eye(1, DIMENSION, dtype=np.float32)
    index = indexed(tmp_path, store, CONFIG)
    found = search_with_index(
        ids, far, store, index, CONFIG, lookalike_threshold=0.999, exclude=NONE
    )
    assert (found.table.num_rows, found.value, found.recall.value) == (0, 32, None)


def test_a_target_out_of_reach_says_what_is_in_reach(
    make_store: Make, tmp_path: Path, vectors: np.ndarray
) -> None:
    store = make_store(vectors, KEYS, parts=2)
    config = replace(CONFIG, factory="IVF8,PQ2x4", candidates=1, recall=0.999)
    with pytest.raises(
        ValueError, match=r"search.recall is 0.999 but 'IVF8,PQ2x4' reaches 0\.\d+ \[.* at nprobe"
    ) as caught:
        both(tmp_path, store, config)
    assert "search.candidates" in str(caught.value)
    found, _ = both(tmp_path, store, replace(config, allow_below_target=True))
    assert found.value == max(found.probes, key=lambda probe: probe.recall.value).value
    assert found.recall.value < 0.999
    assert len(found.probes) == 4


def test_the_result_does_not_depend_on_the_order_of_seeds_or_threads(
    make_store: Make, tmp_path: Path, vectors: np.ndarray
) -> None:
    store = make_store(vectors, KEYS, parts=3)
    index = indexed(tmp_path, store, CONFIG)
    ids, vectors_QD = seeds_in(store, 100)
    results = []
    for threads, order in ((1, np.arange(100)), (2, np.random.default_rng(0).permutation(100))):
        found = search_with_index(
            ids[order],
            vectors_QD[order],
            store,
            index,
            replace(CONFIG, threads=threads),
            lookalike_threshold=LT,
            exclude=NONE,
        )
        results.append((found.table, found.recall, found.value))
    assert results[0] == results[1]


def test_the_wrong_index_is_refused(make_store: Make, tmp_path: Path, vectors: np.ndarray) -> None:
    store, other = make_store(vectors, KEYS), make_store(vectors, KEYS, parts=2)
    index = indexed(tmp_path, store, CONFIG)
    ids, vectors_QD = seeds_in(store, 20)
    options = {"lookalike_threshold": LT, "exclude": NONE}
    with pytest.raises(ValueError, match=r"is not an index of"):
        search_with_index(ids, vectors_QD, other, index, CONFIG, **options)
    with pytest.raises(ValueError, match=r"search.factory is 'HNSW8' but .* is 'IVF32,Flat'"):
        search_with_index(
            ids, vectors_QD, store, index, replace(CONFIG, factory="HNSW8"), **options
        )


@pytest.mark.gpu
@pytest.mark.skipif(
    not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0,
    reason="needs a CUDA device and faiss-gpu (pip install vlmae[gpu])",
)
@pytest.mark.parametrize("factory", ["IVF32,Flat", "IVF32,SQ8", "IVF32,PQ16", "Flat"])
def test_a_gpu_reaches_the_same_target(
    make_store: Make, tmp_path: Path, vectors: np.ndarray, factory: str
) -> None:
    store = make_store(vectors, KEYS, parts=3)
    config = replace(CONFIG, factory=factory, device="cuda", candidates=8)
    exclude = sample_ids(KEYS[1000:1100])
    found, expected = both(tmp_path, store, config, exclude=exclude)
    mine, truth = pairs(found.table), pairs(expected.table)
    assert all(mine[pair] == truth[pair] for pair in mine.keys() & truth.keys())
    assert found.recall.value > 0.9
    assert not {name for _, name in mine} & set(to_bytes(exclude))
