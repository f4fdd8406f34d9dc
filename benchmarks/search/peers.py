"""Approximate indexes that are compared with exact search, each as its authors would use it.

Needs numpy only: a peer imports its package when it is made, in the virtual environment of that
package (`benchmarks.search.venvs`). `build` and `search` are timed, `tune` is not: it takes the
least effort with which `RECALL` of the pairs above LT is found. All work in one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search.found import RECALL, Found, K, above, recall, tuning_places


class Peer:
    """An index over the pool's .npy file.

    Attributes:
        efforts: search-time parameters, the cheapest first.
        effort: the one in use.
    """

    efforts: Sequence[Any]
    effort: Any

    def prepare(self) -> None:
        """Load what a process needs once; not timed."""

    def build(self, pool: Path, scratch: Path) -> None:
        """Make the index.

        Args:
            pool: .npy file, (N, D) float32.
            scratch: folder for files of the index.
        """
        raise NotImplementedError

    def search(self, seeds_QD: np.ndarray) -> Found:
        """All neighbours above LT, at most K, with the effort in use."""
        raise NotImplementedError

    def tune(self, seeds_QD: np.ndarray, truth: Found) -> None:
        """Choose the first effort that reaches `RECALL`, or the best.

        Args:
            seeds_QD: of which some are searched for.
            truth: of all of them.
        """
        places = tuning_places(len(seeds_QD))
        some = np.ascontiguousarray(seeds_QD[places])
        true = Found(truth.row[places], truth.score[places])
        best: tuple[float, Any] | None = None
        for effort in self.efforts:
            self.effort = effort
            reached = recall(self.search(some), true)
            if best is None or reached > best[0]:
                best = (reached, effort)
            if reached >= RECALL:
                return
        if best is not None:
            self.effort = best[1]


@dataclass
class Hnsw(Peer):
    """HNSW of faiss."""

    links: int = 32
    construction: int = 40
    efforts: Sequence[int] = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
    effort: int = 64

    def prepare(self) -> None:
        """See `Peer`."""
        import faiss

        faiss.omp_set_num_threads(1)

    def build(self, pool: Path, scratch: Path) -> None:
        """See `Peer`."""
        import faiss

        vectors_ND = np.load(pool, mmap_mode="r")
        self._index = faiss.IndexHNSWFlat(
            vectors_ND.shape[1], self.links, faiss.METRIC_INNER_PRODUCT
        )
        self._index.hnsw.efConstruction = self.construction
        for _, block in _blocks(vectors_ND):
            self._index.add(block)

    def search(self, seeds_QD: np.ndarray) -> Found:
        """See `Peer`."""
        self._index.hnsw.efSearch = self.effort
        score, row = self._index.search(seeds_QD, K)
        note = f"efConstruction {self.construction}, efSearch {self.effort}"
        return _found(row, score, note)


@dataclass
class Autofaiss(Peer):
    """The index that autofaiss chooses and builds; the search-time parameters are ours."""

    efforts: Sequence[int] = Hnsw.efforts
    effort: int = 64
    memory: str = "12G"

    def prepare(self) -> None:
        """See `Peer`."""
        import autofaiss
        import faiss

        del autofaiss
        faiss.omp_set_num_threads(1)

    def build(self, pool: Path, scratch: Path) -> None:
        """Build the index of autofaiss's choice, without its own tuning of search."""
        import faiss
        from autofaiss import build_index
        from autofaiss.external.optimize import get_optimal_index_keys_v2

        folder = scratch / "embeddings"
        folder.mkdir()
        (folder / pool.name).symlink_to(pool.resolve())
        rows, dimension = np.load(pool, mmap_mode="r").shape
        self._key = str(get_optimal_index_keys_v2(rows, dimension, self.memory)[0])
        inverted = self._key.startswith("IVF")
        self.efforts = (1, 2, 4, 8, 16, 32, 64, 128, 256) if inverted else self.efforts
        self._parameter = "nprobe" if inverted else "efSearch"
        index, _ = build_index(
            str(folder),
            save_on_disk=False,
            index_key=self._key,
            index_param=f"{self._parameter}={self.efforts[0]}",
            max_index_memory_usage=self.memory,
            current_memory_available="18G",
            metric_type="ip",
            nb_cores=1,
            verbose=40,
        )
        if index is None:
            raise RuntimeError(f"autofaiss built no {self._key}")
        self._space = faiss.ParameterSpace()
        self._index = index

    def search(self, seeds_QD: np.ndarray) -> Found:
        """See `Peer`."""
        self._space.set_index_parameter(self._index, self._parameter, self.effort)
        score, row = self._index.search(seeds_QD, K)
        return _found(row, score, f"{self._key}, {self._parameter} {self.effort}")


@dataclass
class Scann(Peer):
    """ScaNN: a tree, asymmetric hashing, and reordering by exact scores."""

    efforts: Sequence[tuple[int, int]] = (
        (8, 100),
        (8, 200),
        (16, 200),
        (16, 400),
        (32, 400),
        (64, 400),
        (64, 800),
        (128, 800),
        (256, 1600),
        (512, 3200),
    )
    effort: tuple[int, int] = (16, 200)

    def prepare(self) -> None:
        """See `Peer`."""
        import scann

        del scann

    def build(self, pool: Path, scratch: Path) -> None:
        """See `Peer`."""
        import scann

        vectors_ND = np.load(pool, mmap_mode="r")
        rows = len(vectors_ND)
        leaves = max(16, round(rows**0.5))
        self._leaves = leaves
        self._searcher = (
            scann.scann_ops_pybind.builder(np.asarray(vectors_ND), K, "dot_product")
            .set_n_training_threads(1)
            .tree(
                num_leaves=leaves,
                num_leaves_to_search=min(leaves, 16),
                training_sample_size=min(rows, 100_000),
            )
            .score_ah(2, anisotropic_quantization_threshold=0.2)
            .reorder(200)
            .build()
        )
        self._searcher.set_num_threads(1)

    def search(self, seeds_QD: np.ndarray) -> Found:
        """See `Peer`."""
        leaves, reordered = min(self.effort[0], self._leaves), self.effort[1]
        row, score = self._searcher.search_batched(
            seeds_QD,
            final_num_neighbors=K,
            pre_reorder_num_neighbors=reordered,
            leaves_to_search=leaves,
        )
        note = f"{leaves} of {self._leaves} leaves, {reordered} reordered"
        missing = ~np.isfinite(score)
        return _found(np.where(missing, -1, row), np.where(missing, -2, score), note)


@dataclass
class Usearch(Peer):
    """HNSW of usearch in float16, with the library's own number of links."""

    dtype: str = "f16"
    construction: int = 64
    efforts: Sequence[int] = Hnsw.efforts
    effort: int = 64

    def prepare(self) -> None:
        """See `Peer`."""
        import usearch.index

        del usearch

    def build(self, pool: Path, scratch: Path) -> None:
        """See `Peer`."""
        from usearch.index import Index

        vectors_ND = np.load(pool, mmap_mode="r")
        self._index = Index(
            ndim=vectors_ND.shape[1],
            metric="ip",
            dtype=self.dtype,
            expansion_add=self.construction,
            enable_key_lookups=False,
        )
        for start, block in _blocks(vectors_ND):
            keys = np.arange(start, start + len(block), dtype=np.uint64)
            self._index.add(keys, block, threads=1, copy=True)

    def search(self, seeds_QD: np.ndarray) -> Found:
        """See `Peer`."""
        self._index.expansion_search = self.effort
        matches = self._index.search(seeds_QD, K, threads=1)
        row = matches.keys.astype(np.int64)
        score = 1 - matches.distances.astype(np.float32)
        beyond = np.arange(row.shape[1]) >= np.asarray(matches.counts)[:, None]
        note = f"{self.dtype}, expansion {self.construction} / {self.effort}"
        return _found(np.where(beyond, -1, row), np.where(beyond, -2, score), note)


@dataclass
class Lance(Peer):
    """LanceDB: IVF_PQ on disk, the nearest refined by their vectors."""

    efforts: Sequence[tuple[int, int]] = (
        (8, 2),
        (16, 2),
        (16, 4),
        (32, 4),
        (32, 8),
        (64, 8),
        (128, 8),
        (128, 16),
        (256, 32),
    )
    effort: tuple[int, int] = (16, 4)

    def prepare(self) -> None:
        """Its pools of threads have one for each core that the process may use: leave it one."""
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        os.environ["LANCE_CPU_THREADS"] = os.environ["RAYON_NUM_THREADS"] = "1"
        import lancedb

        del lancedb

    def build(self, pool: Path, scratch: Path) -> None:
        """Write the table, then the index: LanceDB searches its own files."""
        import lancedb
        import pyarrow as pa

        vectors_ND = np.load(pool, mmap_mode="r")
        rows, dimension = vectors_ND.shape
        schema = pa.schema(
            [pa.field("row", pa.int64()), pa.field("vector", pa.list_(pa.float32(), dimension))]
        )

        def batches() -> Iterator[Any]:
            for start, block in _blocks(vectors_ND):
                vectors = pa.FixedSizeListArray.from_arrays(block.reshape(-1), dimension)
                row = pa.array(np.arange(start, start + len(block)))
                yield pa.record_batch([row, vectors], schema=schema)

        self._table = lancedb.connect(str(scratch / "lance")).create_table(
            "pool", pa.RecordBatchReader.from_batches(schema, batches())
        )
        self._partitions = max(16, round(rows**0.5))
        self._table.create_index(
            metric="dot",
            num_partitions=self._partitions,
            num_sub_vectors=dimension // 8,
            index_type="IVF_PQ",
        )

    def search(self, seeds_QD: np.ndarray) -> Found:
        """See `Peer`; one seed at a time: a batch takes the same time."""
        probes, refine = min(self.effort[0], self._partitions), self.effort[1]
        row = np.full((len(seeds_QD), K), -1, np.int64)
        score = np.full((len(seeds_QD), K), -2, np.float32)
        for number, seed in enumerate(seeds_QD):
            hits = (
                self._table.search(seed, vector_column_name="vector")
                .distance_type("dot")
                .nprobes(probes)
                .refine_factor(refine)
                .limit(K)
                .select(["row", "_distance"])
                .to_arrow()
            )
            row[number, : len(hits)] = hits["row"].to_numpy()
            score[number, : len(hits)] = 1 - hits["_distance"].to_numpy()
        note = f"{probes} of {self._partitions} partitions, refine {refine}"
        return _found(row, score, note)


def _blocks(vectors_ND: np.ndarray, rows: int = 131_072) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(vectors_ND), rows):
        yield start, np.ascontiguousarray(vectors_ND[start : start + rows], np.float32)


def _found(row: np.ndarray, score: np.ndarray, note: str) -> Found:
    found = above(Found(np.asarray(row, np.int64), np.asarray(score, np.float32)))
    found.note = note
    return found


PEERS: dict[str, tuple[Callable[[], Peer], str]] = {
    "HNSW32": (Hnsw, ""),
    "ScaNN": (Scann, "scann"),
    "usearch": (Usearch, "usearch"),
    "LanceDB IVF_PQ": (Lance, "lancedb"),
    "autofaiss": (Autofaiss, "autofaiss"),
}
"""Name -> how to make it, and the virtual environment it needs, "" for that of the project."""
