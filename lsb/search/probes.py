"""Short measurements of single steps of a search, for `lsb.search.calibration`.

The real scans run on synthetic arrays made so that pairs end at a known step. CPU seconds of one
thread, the fastest of a few turns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lsb.ids import IdArray, from_arrow
from lsb.search import _faiss
from lsb.search.ask import ask, seeds_of
from lsb.search.coded import CodedScan
from lsb.search.codes import BlockCodes
from lsb.search.costs import IvfCosts, KernelCosts, KnnCosts, TorchCosts, entries
from lsb.search.int_mm import IntMmScan
from lsb.search.kernel import library
from lsb.search.kernel.encode import encode
from lsb.search.knn import MARGIN, KnnScan
from lsb.search.lists import FloatArray, NeighbourLists
from lsb.search.projection import (
    Projection,
    _projection,
    best_step,
    fit,
    principal_axes,
    without_prefix,
)
from lsb.search.scan import Block, Seeds
from lsb.search.selectivity import code_bounds, prefix_bounds
from lsb.store import part_files, write_part

faiss = _faiss.load()

REPEATS = 3
ROWS, FEW_ROWS, SEEDS = 8192, 2048, 8192
"""So many seeds that their codes do not stay in a core's cache, as in a search."""
NARROW, WIDE = 128, 512
"""Dimensions between which a cost for each coordinate is the slope."""
PREFIX = 64
NOTHING_PASSES = 1.5
LIMIT = 65


# ---- data


@cache
def _unit(count: int, dimension: int, seed: int) -> FloatArray:
    x = np.random.default_rng(seed).standard_normal((count, dimension), dtype=np.float32)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), dtype=np.float32)


@cache
def _near(count: int, dimension: int, seed: int, centres: int = 1024) -> FloatArray:
    """Vectors of which every `centres`-th pair has a cosine of about 0.9."""
    x = np.tile(_unit(centres, dimension, 0), (-(-count // centres), 1))[:count]
    x = x + np.float32(0.33) * _unit(count, dimension, seed)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), dtype=np.float32)


def _ids(count: int, start: int = 0) -> IdArray:
    numbers = np.arange(start, start + count, dtype=">u8")
    return np.concatenate([numbers, numbers]).reshape(2, -1).T.copy().view("S16").ravel()


def _seeds(vectors_QD: FloatArray) -> Seeds:
    return Seeds(_ids(len(vectors_QD), 1 << 40), vectors_QD)


@cache
def _projections(dimension: int) -> tuple[Projection, Projection]:
    """Without, and with a prefix."""
    sample = _unit(2048, dimension, 3)
    step = best_step(sample)
    whole = Projection(dimension, step, np.zeros((0, dimension), np.int8), 1.0, 1.0)
    return whole, _projection(sample[:1024], principal_axes(sample), PREFIX, step)


def fit_costs() -> tuple[float, float]:
    """Seconds of choosing a projection: at once, and times the dimension squared."""

    def fitted(dimension: int) -> Projection:
        sample, seeds = _unit(4096, dimension, 4), _unit(512, dimension, 5)
        return fit(sample, seeds, wanted=0.8, seeds=10_000)

    taken = {dimension: seconds_of(partial(fitted, dimension)) for dimension in (NARROW, WIDE)}
    square = slope(taken, lambda dimension: dimension**2)
    return max(0.0, taken[NARROW] - square * NARROW**2), square


# ---- time


def seconds_of(work: Callable[[], object]) -> float:
    """CPU seconds of the fastest turn: what else runs on the machine only ever adds to them."""
    work()
    taken = []
    for _ in range(REPEATS):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken)


def slope(seconds: dict[int, float], of: Callable[[int], float] = float) -> float:
    """Seconds for each unit, from two sizes."""
    (small, few), (large, many) = sorted(seconds.items())
    return max(0.0, many - few) / (of(large) - of(small))


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch and faiss to one thread within the block."""
    threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        faiss.omp_set_num_threads(threads[1])


# ---- the compiled scan


def kernel_costs(kernel: library.Library) -> KernelCosts:
    """Costs of the compiled scan."""
    rows = ROWS
    plain, half, prefixed = {}, {}, {}
    for dimension in (NARROW, WIDE):
        vectors, (whole, prefix) = _unit(rows, dimension, 1), _projections(dimension)
        short = vectors.astype(np.float16)
        plain[dimension] = seconds_of(partial(encode, whole, vectors, kernel)) / rows
        half[dimension] = seconds_of(partial(encode, whole, short, kernel)) / rows
        prefixed[dimension] = seconds_of(partial(encode, prefix, vectors, kernel)) / rows
    coordinate = slope(plain)
    project = {d: max(0.0, prefixed[d] - plain[d]) / PREFIX for d in (NARROW, WIDE)}

    dimension = 256
    rows = FEW_ROWS
    vectors, (whole, prefix) = _unit(rows, dimension, 1), _projections(dimension)
    seeds = _seeds(_unit(SEEDS, dimension, 2))
    first = {}
    for projection in (prefix, whole):
        scan = CodedScan(seeds, LIMIT, NOTHING_PASSES, projection, kernel)
        kept = BlockCodes(projection, *encode(projection, vectors, kernel))
        block = Block(_ids(rows), vectors, 0, codes=_always(kept))
        scan.add(block)
        taken = seconds_of(partial(scan.add, block))
        first[projection.prefix or projection.padded] = taken / (rows * len(seeds))
    product = slope(first)
    codes = {d: _code_pair(kernel, d) for d in (NARROW, WIDE)}
    floats = {d: _score_pair(kernel, d, excluded=True) for d in (NARROW, WIDE)}
    scores = {d: _score_pair(kernel, d, excluded=False) - floats[d] for d in (NARROW, WIDE)}
    made = seconds_of(lambda: CodedScan(seeds, LIMIT, 0.8, prefix, kernel))
    made += seconds_of(lambda: seeds_of(seeds.ids, seeds.vectors))
    many = np.zeros((rows, 512), np.int8)
    return KernelCosts(
        encode_row=max(0.0, plain[NARROW] - coordinate * NARROW),
        encode_coordinate=coordinate,
        half_coordinate=max(0.0, half[WIDE] - plain[WIDE]) / WIDE,
        prefix_coordinate=max(0.0, project[NARROW] - slope(project) * NARROW),
        encode_product=slope(project),
        pair=max(0.0, first[PREFIX] - product * PREFIX),
        product=product,
        code_pair=max(0.0, codes[NARROW] - slope(codes) * NARROW),
        code_coordinate=slope(codes),
        float_pair=max(0.0, floats[NARROW] - slope(floats) * NARROW),
        float_coordinate=slope(floats),
        score_pair=max(0.0, scores[NARROW] - slope(scores) * NARROW),
        score_coordinate=slope(scores),
        seed_coordinate=made / (len(seeds) * dimension),
        kept_byte=seconds_of(lambda: many.copy()) / many.nbytes,
    )


def _always(kept: BlockCodes) -> Callable[[], BlockCodes]:
    return lambda: kept


def _code_pair(kernel: library.Library, dimension: int) -> float:
    """Seconds of a pair that passes the first bound and not the second.

    Directions are uniform, so a prefix of a few says little and whole codes say all.
    """
    _, prefix = _projections(dimension)
    vectors, seeds = _unit(ROWS, dimension, 1), _seeds(_unit(SEEDS, dimension, 2))
    floor = _bound_passed_by(0.0025, vectors, seeds, prefix)
    return _pair(kernel, vectors, seeds, prefix, floor)


def _score_pair(kernel: library.Library, dimension: int, *, excluded: bool) -> float:
    """Seconds of a pair that passes all bounds; rows that are excluded end before rescoring."""
    vectors, seeds = _near(FEW_ROWS, dimension, 1), _seeds(_near(SEEDS, dimension, 2))
    return _pair(kernel, vectors, seeds, _projections(dimension)[0], 0.7, excluded=excluded)


def _pair(
    kernel: library.Library,
    vectors: FloatArray,
    seeds: Seeds,
    projection: Projection,
    floor: float,
    *,
    excluded: bool = False,
) -> float:
    """Seconds for each pair that passes the first bound, which is step 1 taken away."""
    kept = BlockCodes(projection, *encode(projection, vectors, kernel))
    without = np.full(len(vectors), excluded)
    block = Block(_ids(len(vectors)), vectors, 0, without, _always(kept))
    roomy = 2 * REPEATS * len(vectors)  # lists that are never full
    passing, none = (
        CodedScan(seeds, roomy, least, projection, kernel) for least in (floor, NOTHING_PASSES)
    )
    taken = seconds_of(lambda: passing.add(block)) - seconds_of(lambda: none.add(block))
    return max(0.0, taken) * (REPEATS + 1) / max(1, passing.counters.prefix)


def _bound_passed_by(
    share: float, vectors: FloatArray, seeds: Seeds, projection: Projection
) -> float:
    """Floor that about a share of pairs reaches by its prefixes."""
    bounds = prefix_bounds(projection, vectors[:1024], seeds.vectors[:256])
    return float(np.quantile(bounds, 1 - share))


# ---- the others


def torch_costs() -> TorchCosts:
    """Costs of `int_mm` on the CPU."""
    rows = 4096
    each: dict[int, float] = {}
    alone: dict[int, float] = {}
    for dimension in (NARROW, WIDE):
        vectors, seeds = _unit(rows, dimension, 1), _seeds(_unit(1024, dimension, 2))
        block, step = Block(_ids(rows), vectors, 0), best_step(vectors)
        taken: dict[int, float] = {}
        for count in (32, 1024):
            some = Seeds(seeds.ids[:count], np.ascontiguousarray(seeds.vectors[:count]))
            scan = IntMmScan(some, LIMIT, NOTHING_PASSES, step)
            taken[count] = seconds_of(partial(scan.add, block)) / rows
        each[dimension] = (taken[1024] - taken[32]) / (1024 - 32)
        alone[dimension] = max(0.0, taken[32] - 32 * each[dimension])
    product, score = slope(each), {d: _torch_pair(d) for d in (NARROW, WIDE)}
    made = seconds_of(lambda: IntMmScan(seeds, LIMIT, 0.8, step))
    made += seconds_of(lambda: seeds_of(seeds.ids, seeds.vectors))
    return TorchCosts(
        encode_coordinate=alone[WIDE] / WIDE,
        pair=max(0.0, each[NARROW] - product * NARROW),
        product=product,
        score_pair=max(0.0, score[NARROW] - slope(score) * NARROW),
        score_coordinate=slope(score),
        seed_coordinate=made / (len(seeds) * WIDE),
    )


def _torch_pair(dimension: int) -> float:
    """Seconds of a pair that passes the bound and fails by float32."""
    vectors, seeds = _unit(4096, dimension, 1), _seeds(_unit(512, dimension, 2))
    step = best_step(vectors)
    bounds = code_bounds(without_prefix(dimension, step), vectors[:1024], seeds.vectors[:256])
    floor = float(np.quantile(bounds, 1 - 0.005))
    block = Block(_ids(len(vectors)), vectors, 0)
    scans = [IntMmScan(seeds, len(vectors), least, step) for least in (floor, NOTHING_PASSES)]
    pairs, none = (seconds_of(partial(scan.add, block)) for scan in scans)
    return max(0.0, pairs - none) / (0.005 * len(vectors) * len(seeds))


def knn_costs() -> KnnCosts:
    """Costs of `faiss.knn` and of what makes it exact."""
    rows, count = 16_384, 256
    each: dict[int, float] = {}
    for dimension in (NARROW, WIDE):
        vectors, seeds = _unit(rows, dimension, 1), _unit(count, dimension, 2)
        each[dimension] = seconds_of(partial(_knn, seeds, vectors, 1)) / (rows * count)
    product = slope(each)
    vectors, seeds = _unit(rows, NARROW, 1), _unit(count, NARROW, 2)
    width = LIMIT + MARGIN
    wide = seconds_of(partial(_knn, seeds, vectors, width))
    scan = KnnScan(_seeds(seeds), LIMIT, 0.8)
    block = Block(_ids(rows), vectors, 0)
    short = vectors.astype(np.float16)
    return KnnCosts(
        row_coordinate=seconds_of(lambda: np.ascontiguousarray(short, np.float32)) / short.size,
        pair=max(0.0, each[NARROW] - product * NARROW),
        product=product,
        entry=max(0.0, wide / count - rows * each[NARROW]) / entries(rows, width),
        proposal=max(0.0, seconds_of(lambda: scan.add(block)) - wide) / (count * width),
    )


def _knn(seeds_QD: FloatArray, vectors_ND: FloatArray, width: int) -> None:
    faiss.knn(seeds_QD, vectors_ND, width, metric=faiss.METRIC_INNER_PRODUCT)


def ivf_costs() -> IvfCosts:
    """Costs of an inverted file."""
    rows, dimension, lists, probes, count = 16_384, 256, 128, 8, 256
    vectors, seeds = _near(rows, dimension, 1), _near(count, dimension, 2)
    index = faiss.index_factory(dimension, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)

    def train() -> None:
        fresh = faiss.index_factory(dimension, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
        fresh.train(vectors[: 64 * lists])

    def add() -> None:
        index.reset()
        index.add(vectors)

    trained = seconds_of(train)
    index.train(vectors[: 64 * lists])
    added = seconds_of(add)
    index.nprobe = probes
    _, probed = index.quantizer.search(seeds, probes)
    sizes = np.array([index.invlists.list_size(number) for number in range(lists)])
    scanned = int(sizes[probed].sum())
    searched = seconds_of(lambda: index.search(seeds, LIMIT))
    written = seconds_of(lambda: faiss.serialize_index(index))
    return IvfCosts(
        train_product=trained / (64 * lists * lists * dimension),
        add_product=added / (rows * lists * dimension),
        scan_product=searched / (scanned * dimension),
        byte=written / (rows * (4 * dimension + 8)),
    )


def reading_costs() -> tuple[float, float]:
    """Seconds of a mapped byte and of a row's id, both in the page cache."""
    rows, dimension = 32_768, 256
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        keys = [f"clip {number}" for number in range(rows)]
        zeros = np.zeros(rows, dtype=np.int64)
        table = pa.table(
            {"key": keys, "shard": ["shard.tar"] * rows, "offset": zeros, "size": zeros}
        )
        write_part(folder, "part", _unit(rows, dimension, 1), table, kind="pooled")
        vectors, ids = (folder / name for name in part_files("part")[:2])

        def touch() -> None:
            mapped = np.load(vectors, mmap_mode="r")
            int(mapped.reshape(-1).view(np.uint8)[::4096].sum())

        byte = seconds_of(touch) / (rows * dimension * 4)
        return byte, seconds_of(lambda: from_arrow(pq.read_table(ids, columns=["id"])["id"])) / rows


def listing_costs() -> tuple[float, float]:
    """Seconds of a hit on its way to the table, and of one that is merged."""
    count, each = 2048, 32
    seeds = _seeds(_unit(count, 64, 1))
    query = np.repeat(np.arange(count), each)
    score = -np.sort(-np.random.default_rng(0).random((count, each), np.float32), axis=1).ravel()
    row = np.arange(count * each)
    ids = _ids(count * each)

    def lists() -> NeighbourLists:
        return NeighbourLists(count, LIMIT, query, score, ids, row)

    def table() -> None:
        ask(
            seeds,
            lambda *_: lists(),
            neighbours=LIMIT - 1,
            max_neighbours=LIMIT - 1,
            lookalike_threshold=0.0,
        )

    def merge() -> None:
        NeighbourLists(count, LIMIT).merge(query, score, ids, row)

    return seconds_of(table) / len(query), seconds_of(merge) / len(query)
