"""Every backend against a float64 brute force, and against each other bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsb.ids import IdArray, from_arrow, sample_ids, to_bytes
from lsb.search import backends, knn
from lsb.search.backends import choose, open_scan
from lsb.search.config import SearchConfig
from lsb.search.exact import nearest
from lsb.search.kernel import library
from lsb.search.rescore import EPSILON
from lsb.search.scan import Block, Seeds

knn.faiss.omp_set_num_threads(1)

RUNNING = [
    name
    for name, (needed, _) in library.INSTRUCTION_SETS.items()
    if library.processor_flags() >= set(needed)
]
NAMES = ["knn", "int_mm", *RUNNING]
NONE = sample_ids([])


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def pool(kind: str, count: int, dimension: int, random: np.random.Generator) -> np.ndarray:
    """Unit vectors that are hard in one way each."""
    spectrum = np.arange(1, dimension + 1) ** -0.5
    centres = random.normal(size=(max(1, count // 40), dimension)) * spectrum
    x = centres[random.integers(len(centres), size=count)]
    x = unit(x + 0.2 * random.normal(size=(count, dimension)) * spectrum)
    if kind == "copies":
        x = x[random.integers(max(1, count // 5), size=count)]
    elif kind == "axes":  # codes of a spread step miss nearly all of them
        x[::2] = np.eye(dimension, dtype=np.float32)[random.integers(dimension, size=len(x[::2]))]
    elif kind == "norms":
        x = (x * (1 + 9e-4 * random.choice([-1, 1], size=(count, 1)))).astype(np.float32)
    elif kind == "denormals":
        x[:, 1::2] = random.choice([1e-40, -1e-40, 1e-38, 0.0], size=x[:, 1::2].shape)
        x[:, 0] += 1e-3
        x = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None]).astype(
            np.float32
        )
    elif kind == "one cluster":
        x = unit(x[:1] + 0.01 * random.normal(size=(count, dimension)))
    return x


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["clusters", "copies", "axes", "norms", "denormals", "one cluster"]),
    count=st.sampled_from([1, 7, 130, 700, 2500]),
    seeds=st.sampled_from([1, 17, 90]),
    dimension=st.sampled_from([2, 33, 64, 100, 256, 768]),
    half=st.booleans(),
    threshold=st.sampled_from([None, -1.0, 0.0, 0.3, 0.6, 0.8, 0.95, 1.0]),
    width=st.sampled_from([(1, 1), (3, 12), (64, 64)]),
    block=st.sampled_from([50, 1000, 131_072]),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 10_000),
)
def test_every_backend_finds_what_brute_force_finds(
    kind: str,
    count: int,
    seeds: int,
    dimension: int,
    half: bool,
    threshold: float | None,
    width: tuple[int, int],
    block: int,
    threads: int,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    vectors = pool(kind, count, dimension, random)
    if half:
        vectors = vectors.astype(np.float16)
        good = np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1) < 9e-4
        vectors = vectors[good]
    ids = sample_ids([f"{seed}-{row}" for row in range(len(vectors))])
    own = min(len(vectors), seeds // 2)
    queries = unit(random.normal(size=(seeds, dimension)))
    queries[:own] = unit(vectors[:own].astype(np.float64))
    seed_ids = np.concatenate([ids[:own], sample_ids([f"gold-{n}" for n in range(seeds - own)])])
    exclude = ids[random.integers(len(ids), size=len(ids) // 6)] if len(ids) else ids

    def blocks() -> Iterator[tuple[IdArray, np.ndarray]]:
        for start in range(0, len(vectors), block):
            yield ids[start : start + block], vectors[start : start + block]

    tables: dict[str, pa.Table] = {}
    for name in NAMES:
        hits = nearest(
            seed_ids,
            queries,
            blocks,
            SearchConfig(*width, backend=name, threads=threads),
            lookalike_threshold=threshold,
            exclude=exclude,
        )
        tables[name] = hits.table
    for name in NAMES:
        assert tables[name].equals(tables["knn"]), f"{name} differs from knn"
    check_against_float64(
        tables["knn"], seed_ids, queries, ids, vectors, threshold, width[1], exclude
    )


def check_against_float64(
    table: pa.Table,
    seed_ids: IdArray,
    seeds: np.ndarray,
    ids: IdArray,
    vectors: np.ndarray,
    threshold: float | None,
    limit: int,
    exclude: IdArray,
) -> None:
    """No pair beyond epsilon of the edge is missing or too much, and the order holds up to it."""
    epsilon = 2 * EPSILON  # of both, ours and float64's rounding
    score = seeds.astype(np.float64) @ vectors.astype(np.float64).T
    gone = set(to_bytes(exclude))
    names = to_bytes(ids)
    found: dict[bytes, list[tuple[bytes, float]]] = {name: [] for name in to_bytes(seed_ids)}
    for row in table.to_pylist():
        found[row["seed_id"]].append((row["id"], row["similarity"]))
    place = {name: column for column, name in enumerate(names)}
    for number, seed in enumerate(to_bytes(seed_ids)):
        allowed = np.asarray([name not in gone and name != seed for name in names], dtype=bool)
        true = np.where(allowed, score[number], -np.inf) if len(names) else np.empty(0)
        mine = found[seed]
        for name, similarity in mine:
            assert abs(similarity - true[place[name]]) <= epsilon
        similarities = [similarity for _, similarity in mine]
        assert similarities == sorted(similarities, reverse=True)
        edge = -np.inf if threshold is None else threshold
        if len(mine) == limit:
            edge = max(edge, similarities[-1])
        assert all(similarity >= edge - epsilon for similarity in similarities)
        have = {name for name, _ in mine}
        missing = [
            names[column]
            for column in np.flatnonzero(true > edge + epsilon)
            if names[column] not in have
        ]
        assert not missing, f"{len(missing)} pairs beyond epsilon of the edge are missing"


def test_ties_at_the_cut_come_out_by_id_in_every_backend() -> None:
    vectors = np.tile(unit(np.ones((1, 64))), (3000, 1))
    ids = sample_ids([f"copy-{row}" for row in range(3000)])
    seed = unit(np.ones((1, 64)) + 0.1 * np.arange(64))
    for name in NAMES:
        hits = nearest(
            sample_ids(["seed"]),
            seed,
            lambda: [(ids[:1000], vectors[:1000]), (ids[1000:], vectors[1000:])],
            SearchConfig(5, 5, backend=name),
            lookalike_threshold=0.5,
            exclude=NONE,
        )
        assert hits.table["id"].to_pylist() == sorted(to_bytes(ids))[:5], name
        assert hits.saturated == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_bound_from_elsewhere_only_leaves_out_what_is_below_it(name: str) -> None:
    random = np.random.default_rng(0)
    vectors = pool("clusters", 2000, 64, random)
    ids = sample_ids([str(row) for row in range(2000)])
    seeds = Seeds(sample_ids(["a", "b"]), vectors[:2].copy())

    def lists(bound: float | None) -> dict[bytes, float]:
        scan = open_scan(seeds, 50, -np.inf, SearchConfig(backend=name), rows=2000)
        if bound is not None:
            scan.raise_bound(np.full(2, bound, np.float32))
        for start in range(0, 2000, 500):
            scan.add(Block(ids[start : start + 500], vectors[start : start + 500], start))
        found = scan.lists()
        assert (scan.bound >= (-np.inf if bound is None else bound)).all()
        keys = [
            bytes([query]) + key for query, key in zip(found.query, to_bytes(found.id), strict=True)
        ]
        return dict(zip(keys, found.score.tolist(), strict=True))

    free = lists(None)
    bound = sorted(free.values())[len(free) // 2]
    held = lists(bound)
    expected = {key: score for key, score in free.items() if score >= bound}
    assert {key: score for key, score in held.items() if score >= bound} == expected


def test_rows_are_numbered_over_blocks() -> None:
    random = np.random.default_rng(1)
    vectors = pool("clusters", 900, 128, random)
    ids = sample_ids([str(row) for row in range(900)])
    for name in NAMES:
        hits = nearest(
            sample_ids(["seed"]),
            vectors[:1],
            lambda: [(ids[:400], vectors[:400]), (ids[400:], vectors[400:])],
            SearchConfig(20, 20, backend=name),
            lookalike_threshold=None,
            exclude=NONE,
        )
        assert np.array_equal(ids[hits.row], from_arrow(hits.table["id"]))


def test_small_searches_and_short_vectors_stay_with_faiss() -> None:
    config = SearchConfig()
    assert choose(config, seeds=10, rows=1000, dimension=256) == "knn"
    assert choose(config, seeds=10_000, rows=1_000_000, dimension=8) == "knn"
    assert choose(config, seeds=10_000, rows=1_000_000, dimension=256) != "knn"
    assert choose(SearchConfig(backend="knn"), seeds=10_000, rows=10**6, dimension=256) == "knn"


def test_without_a_kernel_auto_takes_int_mm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.library, "compiled", lambda: None)
    assert choose(SearchConfig(), seeds=10_000, rows=1_000_000, dimension=256) == "int_mm"


def test_a_device_that_is_not_there_is_refused() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    seeds = Seeds(sample_ids(["a"]), unit(np.ones((1, 64))))
    with pytest.raises(ValueError, match=r"search.device is cuda .* set search.device=cpu"):
        open_scan(seeds, 5, 0.5, SearchConfig(device="cuda"))


@pytest.mark.gpu
def test_cuda_finds_what_the_cpu_finds() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: run on a machine with one")
    random = np.random.default_rng(2)
    vectors = pool("clusters", 200_000, 256, random)
    ids = sample_ids([str(row) for row in range(len(vectors))])
    tables = [
        nearest(
            ids[:500],
            vectors[:500],
            lambda: [(ids, vectors)],
            SearchConfig(64, 64, backend=name, device=device),
            lookalike_threshold=0.8,
            exclude=NONE,
        ).table
        for name, device in (("knn", "cpu"), ("int_mm", "cuda"))
    ]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backend": "avx"}, "search.backend is 'avx': use auto"),
        ({"threads": -1}, "search.threads is -1"),
        ({"device": "tpu"}, "search.device is 'tpu': use cpu or cuda"),
        ({"rows_per_block": 0}, "search.rows_per_block is 0"),
    ],
)
def test_config_is_checked(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig(**values)  # type: ignore[arg-type]
