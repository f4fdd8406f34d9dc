"""Exact scan of int8 codes by the compiled kernel: the fast one on CPUs."""

from __future__ import annotations

import ctypes
import os
import weakref
from dataclasses import dataclass

import numpy as np

from lsb.search.kernel import library
from lsb.search.kernel.encode import PackedProjection, packed, seed_codes
from lsb.search.lists import FloatArray, NeighbourLists
from lsb.search.projection import Projection, encode_seeds
from lsb.search.rescore import proposal_error
from lsb.search.scan import Block, Seeds

CODES_AT_A_TIME = 1 << 19
"""Bytes of codes that stay in a core's cache while all seeds go by."""


@dataclass
class Counters:
    """Pairs that got how far.

    Attributes:
        compared: all pairs.
        prefix: passed the bound by prefixes.
        codes: passed the bound by whole codes.
        rescored: went through the rescoring kernel.
    """

    compared: int = 0
    prefix: int = 0
    codes: int = 0
    rescored: int = 0


class CodedScan:
    """See `lsb.search.scan.Scan`.

    Args:
        seeds: what is searched for.
        limit: most neighbours of a seed.
        floor: smallest score of a neighbour, -inf for none.
        projection: how rows become codes.
        kernel: the loaded library.
        threads: 0 for every core that this process may use.
    """

    def __init__(
        self,
        seeds: Seeds,
        limit: int,
        floor: float,
        projection: Projection,
        kernel: library.Library,
        threads: int = 1,
    ):
        self.seeds = seeds
        self.limit = limit
        self.floor = floor
        self.kernel = kernel
        self.threads = threads or len(os.sched_getaffinity(0))
        self.counters = Counters()
        self._ids = np.ascontiguousarray(seeds.ids)
        self._handle = kernel.calls.scan_new(len(seeds), limit, floor, self._ids.ctypes.data)
        weakref.finalize(self, kernel.calls.scan_free, self._handle)
        self._projection = _Projected(projection, seeds, kernel)
        self._of_kept: _Projected | None = None

    @property
    def bound(self) -> FloatArray:
        """(Q,) see `Scan`."""
        bound = np.empty(len(self.seeds), np.float32)
        self.kernel.calls.scan_bound(self._handle, bound.ctypes.data)
        return bound

    def raise_bound(self, bound_Q: FloatArray) -> None:
        """See `Scan`."""
        bound = np.ascontiguousarray(bound_Q, dtype=np.float32)
        self.kernel.calls.scan_raise(self._handle, bound.ctypes.data)

    def add(self, block: Block) -> None:
        """See `Scan`."""
        if not len(block) or not len(self.seeds):
            return
        ids = np.ascontiguousarray(block.ids)
        vectors = np.ascontiguousarray(block.vectors)
        excluded = None if block.excluded is None else np.ascontiguousarray(block.excluded)
        rows = library.Rows(
            count=len(block),
            first_row=block.first_row,
            ids=ids.ctypes.data,
            excluded=None if excluded is None else excluded.ctypes.data,
            vectors=vectors.ctypes.data,
            half=vectors.dtype == np.float16,
        )
        held, kept = self._projection, None if block.codes is None else block.codes()
        if kept is not None:
            held = self._projected(kept.projection)
            arrays = [
                np.ascontiguousarray(array)
                for array in (kept.codes, kept.code_error, kept.prefix, kept.prefix_error)
            ]
            rows.codes, rows.code_error, rows.prefix, rows.prefix_error = (
                array.ctypes.data for array in arrays
            )
        counters = np.zeros(3, np.int64)
        self.kernel.calls.scan_add(
            self._handle,
            ctypes.byref(held.projection),
            ctypes.byref(held.queries),
            ctypes.byref(rows),
            max(64, CODES_AT_A_TIME // held.projection.padded),
            self.threads,
            counters.ctypes.data,
        )
        self.counters.compared += len(block) * len(self.seeds)
        self.counters.prefix += int(counters[0])
        self.counters.codes += int(counters[1])
        self.counters.rescored += int(counters[2])

    def _projected(self, projection: Projection) -> _Projected:
        """Seeds under the projection of kept codes; parts follow each other, so one is held."""
        if self._of_kept is None or self._of_kept.source is not projection:
            self._of_kept = _Projected(projection, self.seeds, self.kernel)
        return self._of_kept

    def lists(self) -> NeighbourLists:
        """See `Scan`."""
        sizes = np.zeros(len(self.seeds), np.int64)
        total = int(self.kernel.calls.scan_finish(self._handle, sizes.ctypes.data))
        score, row = np.empty(total, np.float32), np.empty(total, np.int64)
        ids = np.empty(total, dtype="S16")
        self.kernel.calls.scan_take(
            self._handle, score.ctypes.data, row.ctypes.data, ids.ctypes.data
        )
        query = np.repeat(np.arange(len(self.seeds)), sizes)
        lists = NeighbourLists(len(self.seeds), self.limit, query, score, ids, row)
        lists.bound = self.bound
        return lists


class _Projected:
    """A projection and the seeds under it, laid out as the kernel wants them, kept alive."""

    def __init__(self, projection: Projection, seeds: Seeds, kernel: library.Library):
        self.source = projection
        self._packed = PackedProjection(projection, kernel)
        self.projection = self._packed.struct
        codes = encode_seeds(projection, seeds.vectors)
        whole = np.zeros((len(seeds), projection.padded), np.int8)
        whole[:, : projection.dimension] = codes.codes
        self._arrays = (
            seeds.vectors,
            packed(codes.prefix if projection.prefix else whole, kernel),
            codes.prefix_error,
            seed_codes(whole, kernel),
            codes.code_error,
        )
        vectors, panels, error, whole_codes, code_error = (
            array.ctypes.data for array in self._arrays
        )
        row_step = projection.prefix_step if projection.prefix else projection.step
        self.queries = library.Queries(
            count=len(seeds),
            panels=-(-len(seeds) // kernel.panel),
            vectors=vectors,
            packed=panels,
            error=error,
            scale=row_step * codes.prefix_step,
            codes=whole_codes,
            code_error=code_error,
            code_scale=projection.step * codes.code_step,
            norm=codes.norm,
            float_error=proposal_error(projection.dimension),
        )
