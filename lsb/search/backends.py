"""Which implementation of `Scan` a search runs on.

| backend | what | needs |
|---|---|---|
| `avx512` | compiled scan of int8 codes | a C++ compiler, AVX-512 VNNI |
| `avx2` | the same for older processors | a C++ compiler, AVX2 |
| `int_mm` | int8 products by torch, on the CPU or on CUDA | nothing |
| `knn` | `faiss.knn` in float32 | nothing |

All give the same bits. `auto` takes the first that runs here, and `knn` for searches so small that
making codes does not pay.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lsb.search import int_mm
from lsb.search.coded import CodedScan
from lsb.search.config import SearchConfig
from lsb.search.kernel import library
from lsb.search.knn import KnnScan
from lsb.search.lists import FloatArray, NeighbourLists
from lsb.search.projection import best_step, fit, thinned
from lsb.search.scan import Block, Scan, Seeds
from lsb.store import Store

SMALL = 1 << 24
"""Pairs below which `faiss.knn` is as fast: fitting a projection costs tens of milliseconds."""
MANY = 1 << 40
SAMPLE_ROWS = 4096
SHORTEST = 32
"""Dimensions from which int8 codes pay."""

Sample = Callable[[], FloatArray]


def choose(config: SearchConfig, *, seeds: int, rows: int, dimension: int) -> str:
    """Name of the backend that a search runs on.

    Args:
        config: its `backend` unless that is "auto".
        seeds: how many.
        rows: of the pool.
        dimension: of the vectors.
    """
    if config.backend != "auto":
        return config.backend
    if config.device == "cuda":
        return "int_mm"
    if seeds * rows < SMALL or dimension < SHORTEST:
        return "knn"
    kernel = library.compiled()
    return "int_mm" if kernel is None else kernel.name


def open_scan(
    seeds: Seeds,
    limit: int,
    floor: float,
    config: SearchConfig,
    *,
    rows: int | None = None,
    sample: Sample | None = None,
) -> Scan:
    """A scan for given seeds.

    Args:
        seeds: what is searched for.
        limit: most neighbours of a seed.
        floor: smallest score of a neighbour, -inf for none.
        config: backend, threads, device.
        rows: that will be compared; None where nobody knows, which is taken for many.
        sample: called if the backend wants to see some rows of the pool, (M, D) float32. Without,
            it looks at the first block. What it sees decides speed only.

    Raises:
        KernelError: the backend was named and cannot run here.
        ValueError: the device was named and is not there.
    """
    dimension = seeds.vectors.shape[1]
    backend = choose(config, seeds=len(seeds), rows=rows or MANY, dimension=dimension)
    if backend == "knn":
        return KnnScan(seeds, limit, floor)
    if backend == "int_mm":
        int_mm.require_device(config.device)
    else:
        library.load(backend)

    def coded(sample_MD: FloatArray) -> Scan:
        if backend == "int_mm":
            step = best_step(sample_MD)
            return int_mm.IntMmScan(seeds, limit, floor, step, config.device)
        fitted = fit(sample_MD, seeds.vectors, wanted=floor)
        return CodedScan(seeds, limit, floor, fitted, library.load(backend), config.threads)

    return _FittedScan(seeds, limit, coded) if sample is None else coded(sample())


class _FittedScan:
    """A scan that is made when its first block is there to be looked at."""

    def __init__(self, seeds: Seeds, limit: int, make: Callable[[FloatArray], Scan]):
        self._seeds = seeds
        self._empty = NeighbourLists(len(seeds), limit)
        self._make = make
        self._scan: Scan | None = None

    @property
    def bound(self) -> FloatArray:
        """(Q,) see `Scan`."""
        return self._empty.bound if self._scan is None else self._scan.bound

    def raise_bound(self, bound_Q: FloatArray) -> None:
        """See `Scan`."""
        if self._scan is None:
            self._empty.bound = np.maximum(self._empty.bound, bound_Q)
        else:
            self._scan.raise_bound(bound_Q)

    def lists(self) -> NeighbourLists:
        """See `Scan`."""
        return self._empty if self._scan is None else self._scan.lists()

    def add(self, block: Block) -> None:
        """See `Scan`."""
        if not len(block):
            return
        if self._scan is None:
            rows = thinned(block.vectors, SAMPLE_ROWS).astype(np.float32)
            if len(rows) < SAMPLE_ROWS:  # of a small batch the seeds tell as much
                rows = np.concatenate([rows, thinned(self._seeds.vectors, SAMPLE_ROWS)])
            self._scan = self._make(rows)
            self._scan.raise_bound(self._empty.bound)
        self._scan.add(block)


def store_sample(store: Store) -> FloatArray:
    """About `SAMPLE_ROWS` rows from all parts of a store, drawn with a fixed seed."""
    random = np.random.default_rng(0)
    pieces = []
    for part in store.parts:
        share = -(-SAMPLE_ROWS * part.rows // max(1, len(store)))
        chosen = np.sort(random.choice(part.rows, min(share, part.rows), replace=False))
        pieces.append(part.vectors()[chosen].astype(np.float32))
    return np.concatenate(pieces)
