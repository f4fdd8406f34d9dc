"""The ways to find all neighbours above LT that are compared, ours and its peers.

Each is `build`, counted as building, then `search`, counted as searching. All work in one thread
and read the pool from the store's memory-mapped vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.search.found import (
    LT,
    RECALL,
    Found,
    K,
    above,
    differences,
    merged,
    recall,
    tuning_places,
)
from lsb.ids import from_arrow, sample_ids
from lsb.search.config import SearchConfig
from lsb.search.exact import search
from lsb.search.kernel import library
from lsb.search.projection import fit
from lsb.store import Store

__all__ = ["METHODS", "RECALL", "Found", "Method", "differences", "one_thread", "recall"]

BLOCK = 131_072
PROBES = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
NONE = sample_ids([])


class Method:
    """One way. `build` and `search` are timed, `tune` is not."""

    def warm(self, store: Store, seeds_QD: np.ndarray) -> None:
        """Load and compile what a process needs once; no cost of a search."""

    def build(self, store: Store) -> None:
        """What has to be done once for a pool."""

    def tune(self, store: Store, seeds_QD: np.ndarray) -> None:
        """Choose search-time parameters, untimed: a gift to the peer."""

    def search(self, store: Store, seeds_QD: np.ndarray) -> Found:
        """All neighbours above LT, at most K."""
        raise NotImplementedError


@dataclass
class Exact(Method):
    """Ours, by a backend."""

    backend: str

    def warm(self, store: Store, seeds_QD: np.ndarray) -> None:
        """Compile the kernel, start torch."""
        library.compiled()
        if self.backend in library.INSTRUCTION_SETS:
            library.load(self.backend)
        fit(seeds_QD[:512], seeds_QD[:64], wanted=LT)

    def search(self, store: Store, seeds_QD: np.ndarray) -> Found:
        """See `Method`."""
        ids = sample_ids([f"seed {number}" for number in range(len(seeds_QD))])
        hits = search(
            ids,
            seeds_QD,
            store,
            SearchConfig(K, K, backend=self.backend),
            lookalike_threshold=LT,
            exclude=NONE,
        )
        order = np.argsort(ids)
        query = order[np.searchsorted(ids[order], from_arrow(hits.table["seed_id"]))]
        rank = hits.table["rank"].to_numpy() - 1
        found = Found(np.full((len(ids), K), -1, np.int64), np.full((len(ids), K), -2, np.float32))
        found.row[query, rank] = hits.row
        found.score[query, rank] = hits.table["similarity"].to_numpy()
        return found


class FaissKnn(Method):
    """`faiss.knn` in float32: the peer that ratios refer to."""

    def search(self, store: Store, seeds_QD: np.ndarray) -> Found:
        """See `Method`; a float16 pool is widened block by block."""
        import faiss

        best = Found(
            np.zeros((len(seeds_QD), 0), np.int64), np.zeros((len(seeds_QD), 0), np.float32)
        )
        for start, block in _blocks(store):
            score, row = faiss.knn(
                seeds_QD, block, min(K, len(block)), metric=faiss.METRIC_INNER_PRODUCT
            )
            best = merged(best, Found(row + start, score))
        return above(best)


@dataclass
class Ivf(Method):
    """An inverted file over float32, searched list by list for many seeds at once."""

    lists: int
    big_batch: bool
    probes: int = 8

    def build(self, store: Store) -> None:
        """Train on a sample, add all."""
        import faiss

        pool = store.parts[0].vectors()
        self.index = faiss.index_factory(
            store.dimension, f"IVF{self.lists},Flat", faiss.METRIC_INNER_PRODUCT
        )
        random = np.random.default_rng(0)
        rows = np.sort(random.choice(len(pool), min(len(pool), 64 * self.lists), replace=False))
        self.index.train(np.asarray(pool[rows], np.float32))
        for _, block in _blocks(store):
            self.index.add(block)

    def tune(self, store: Store, seeds_QD: np.ndarray) -> None:
        """The fewest probes with which `RECALL` of the pairs above LT is found."""
        some = seeds_QD[tuning_places(len(seeds_QD))]
        truth = Exact("auto").search(store, some)
        for self.probes in PROBES:
            if self.probes >= self.lists:
                break
            if recall(self.search(store, some), truth) >= RECALL:
                return
        self.probes = min(PROBES[-1], self.lists)

    def search(self, store: Store, seeds_QD: np.ndarray) -> Found:
        """See `Method`."""
        self.index.nprobe = self.probes
        if self.big_batch and len(seeds_QD) > 2000:
            from faiss.contrib.big_batch_search import big_batch_search

            score, row = big_batch_search(
                self.index, seeds_QD, K, method="knn_function", threaded=0, verbose=0
            )
        else:
            score, row = self.index.search(seeds_QD, K)
        found = above(Found(row.astype(np.int64), score))
        found.note = f"nprobe {self.probes}"
        return found


def _blocks(store: Store) -> Any:
    pool = store.parts[0].vectors()
    if pool.dtype == np.float32:
        yield 0, np.asarray(pool)  # faiss itself goes through it block by block
        return
    for start in range(0, len(pool), BLOCK):
        yield start, np.asarray(pool[start : start + BLOCK], np.float32)


METHODS: dict[str, Callable[[], Method]] = {
    "faiss.knn": FaissKnn,
    "exact": lambda: Exact("auto"),
    "exact, AVX2": lambda: Exact("avx2"),
    "exact, no compiler": lambda: Exact("int_mm"),
    "IVF256, big batch": lambda: Ivf(256, big_batch=True),
    "IVF1024": lambda: Ivf(1024, big_batch=False),
}


def one_thread() -> None:
    """Keep every library to one thread."""
    import faiss

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
