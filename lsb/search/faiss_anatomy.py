"""What a FAISS index is made of, so that any factory string is searched by one code path.

An index is a chain of vector transforms (often none) before a core. The kind of the core says which
parameter trades time for recall: `nprobe` lists of an inverted file, `efSearch` of an HNSW graph,
nothing otherwise.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lsb.order import IndexArray
from lsb.search import _faiss
from lsb.search.lists import FloatArray
from lsb.search.rescore import proposal_error

faiss = _faiss.load()

SMALLEST_EF = 16
LARGEST_EF = 1 << 14
GPU_LIMIT = 2048
"""Most neighbours, and most probed lists, of FAISS on a GPU."""


def new_index(dimension: int, factory: str) -> Any:
    """An untrained, empty index of inner products.

    Raises:
        ValueError: FAISS does not understand the string, or not for this dimension.
    """
    try:
        return faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"search.factory is {factory!r}: FAISS makes no index of dimension {dimension} from it "
            f"({reason(error)}): correct it, or use search=exact"
        ) from None


def reason(error: RuntimeError) -> str:
    """What FAISS says, on one line, without the place in its sources."""
    text = " ".join(str(error).split())
    return re.sub(r"^Error in .*? at \S+:\d+: (Error: )?", "", text)[:300]


@contextmanager
def threads_of(threads: int) -> Iterator[int]:
    """Let FAISS use some threads, 0 for every core this process may use, for a while."""
    before = faiss.omp_get_max_threads()
    wanted = threads or len(os.sched_getaffinity(0))
    faiss.omp_set_num_threads(wanted)
    try:
        yield wanted
    finally:
        faiss.omp_set_num_threads(before)


class Anatomy:
    """An index taken apart, and searched with one parameter.

    Attributes:
        index: the whole, as FAISS made or read it.
        core: what the transforms lead to.
        parameter: "nprobe", "efSearch" or "none".
        error: largest error of the scores it gives, None where codes are compressed.
    """

    def __init__(self, index: Any):
        self.index = index
        self.core = faiss.downcast_index(index)
        self._chain: list[Any] = []
        while isinstance(self.core, faiss.IndexPreTransform):
            chain = self.core.chain
            self._chain += [
                faiss.downcast_VectorTransform(chain.at(place)) for place in range(chain.size())
            ]
            self.core = faiss.downcast_index(self.core.index)
        self.parameter = "none"
        if isinstance(self.core, faiss.IndexIVF):
            self.parameter = "nprobe"
        elif isinstance(self.core, faiss.IndexHNSW):
            self.parameter = "efSearch"
        uncompressed = (faiss.IndexIVFFlat, faiss.IndexHNSWFlat, faiss.IndexFlat)
        self.error: float | None = None
        if not self._chain and isinstance(self.core, uncompressed):
            self.error = proposal_error(int(index.d))

    @property
    def is_graph(self) -> bool:
        """Whether adding rows with several threads gives other bytes each time."""
        return isinstance(self.core, faiss.IndexHNSW | faiss.IndexNSG | faiss.IndexNNDescent)

    def transformed(self, x_ND: FloatArray) -> FloatArray:
        """What the core sees of some vectors."""
        for transform in self._chain:
            x_ND = transform.apply(x_ND)
        return x_ND

    def ladder(self, width: int, device: str) -> list[int]:
        """Values of the parameter to try, from fast to thorough.

        Args:
            width: candidates of a query; a graph is never searched with less than that.
            device: "cpu" or "cuda".
        """
        if self.parameter == "none":
            return [0]
        if self.parameter == "efSearch":
            first = max(SMALLEST_EF, 1 << (width - 1).bit_length())
            return _doubled(first, max(first, LARGEST_EF))
        lists = int(self.core.nlist)
        return _doubled(1, lists if device == "cpu" else min(lists, GPU_LIMIT))


class Queries:
    """Queries as the parts' indexes take them; what all parts share is computed once.

    Args:
        anatomy: of any part; all have the same transforms and the same coarse quantiser.
        queries_QD: (Q, D) float32.
        value: of the parameter.
        device: "cpu" or "cuda".
    """

    def __init__(self, anatomy: Anatomy, queries_QD: FloatArray, value: int, device: str):
        self.value = value
        self.device = device
        self._x_QD = anatomy.transformed(np.ascontiguousarray(queries_QD, dtype=np.float32))
        self._lists: tuple[FloatArray, IndexArray] | None = None
        if anatomy.parameter == "nprobe" and device == "cpu":
            self._lists = anatomy.core.quantizer.search(self._x_QD, value)

    def search(
        self, part: Anatomy, chunk: slice, width: int, allowed: npt.NDArray[np.uint8] | None
    ) -> tuple[FloatArray, IndexArray]:
        """Candidates of some queries in one part.

        Args:
            part: its index.
            chunk: of the queries.
            width: candidates of a query.
            allowed: one bit for each row of the part, the lowest first: which may be found; None
                for all. It is heeded while searching where the index can, and afterwards by others:
                those then find less, which the measured recall counts.

        Returns:
            (q, width) scores, and row numbers with -1 where there is nothing.
        """
        x_QD = np.ascontiguousarray(self._x_QD[chunk])
        score_QW, row_QW = self._search(part, x_QD, chunk, width, allowed)
        if allowed is not None:
            known = row_QW >= 0
            place = np.where(known, row_QW, 0)
            fine = (allowed[place >> 3] >> (place & 7).astype(np.uint8)) & 1
            row_QW = np.where(known & (fine == 1), row_QW, -1)
        return score_QW, row_QW

    def _search(
        self,
        part: Anatomy,
        x_QD: FloatArray,
        chunk: slice,
        width: int,
        allowed: npt.NDArray[np.uint8] | None,
    ) -> Any:
        if self.device == "cuda":
            width = min(width, GPU_LIMIT)
            if part.parameter == "nprobe":
                params = faiss.SearchParametersIVF(nprobe=self.value)
                return part.core.search(x_QD, width, params=params)
            return part.core.search(x_QD, width)
        selector = None if allowed is None else faiss.IDSelectorBitmap(allowed)
        if self._lists is not None:
            params = faiss.SearchParametersIVF(nprobe=self.value, sel=selector)
            return _search_lists(part.core, x_QD, width, self._lists, chunk, params)
        if part.parameter == "efSearch":
            params = faiss.SearchParametersHNSW(efSearch=self.value, sel=selector)
            return part.core.search(x_QD, width, params=params)
        return part.core.search(x_QD, width)


def _search_lists(
    core: Any,
    x_QD: FloatArray,
    width: int,
    lists: tuple[FloatArray, IndexArray],
    chunk: slice,
    params: Any,
) -> tuple[FloatArray, IndexArray]:
    """Search an inverted file whose lists were chosen before.

    The method that FAISS offers to Python for this takes no parameters, so no selector: this calls
    what it calls.
    """
    distance_QL, list_QL = (np.ascontiguousarray(values[chunk]) for values in lists)
    score_QW = np.empty((len(x_QD), width), dtype=np.float32)
    row_QW = np.empty((len(x_QD), width), dtype=np.int64)
    core.search_preassigned_c(
        len(x_QD),
        faiss.swig_ptr(x_QD),
        width,
        faiss.swig_ptr(list_QL),
        faiss.swig_ptr(distance_QL),
        faiss.swig_ptr(score_QW),
        faiss.swig_ptr(row_QW),
        False,
        params,
    )
    return score_QW, row_QW


def read_index(path: Path, *, inverted_file: bool) -> Any:
    """An index of a file, memory-mapped as far as FAISS can.

    Lists of an inverted file and flat codes or graphs are mapped by different means. Fast-scan
    codes are read.

    Raises:
        ValueError: the file is not one of an index that the installed FAISS reads.
    """
    flags = faiss.IO_FLAG_MMAP if inverted_file else faiss.IO_FLAG_MMAP_IFC
    try:
        return faiss.read_index(str(path), flags | faiss.IO_FLAG_READ_ONLY)
    except RuntimeError as error:
        raise ValueError(
            f"{path} is not an index that faiss {faiss.__version__} reads ({reason(error)}): "
            "delete its stage and build it again"
        ) from None


def require_device(device: str) -> None:
    """Refuse a device that the installed FAISS does not have.

    Raises:
        ValueError: says which package to install, or that there is no GPU.
    """
    if device == "cpu":
        return
    if not hasattr(faiss, "StandardGpuResources"):
        raise ValueError(
            "search.device is cuda but this FAISS is built for CPUs: run `pip uninstall -y "
            "faiss-cpu` and `pip install vlmae[gpu]`, or set search.device=cpu"
        )
    if faiss.get_num_gpus() == 0:
        raise ValueError("search.device is cuda but FAISS sees no GPU: set search.device=cpu")


def to_device(index: Any, device: str, resources: Any) -> Any:
    """An index where it is to work; `resources` is a `faiss.StandardGpuResources`, None on CPUs.

    Raises:
        ValueError: FAISS has no such index on a GPU, or it does not fit there.
    """
    if device == "cpu":
        return index
    try:
        return faiss.index_cpu_to_gpu(resources, 0, index)
    except RuntimeError as error:
        raise ValueError(
            f"search.device is cuda but this index cannot be there ({reason(error)}): use an IVF "
            "or Flat factory and parts that fit the GPU, or set search.device=cpu"
        ) from None


def _doubled(first: int, last: int) -> list[int]:
    values = [first]
    while values[-1] < last:
        values.append(min(values[-1] * 2, last))
    return values
