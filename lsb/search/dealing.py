"""Deals the work of a search to nodes, processes and threads, within their memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, log2

from lsb.search.costs import Costs
from lsb.search.machines import GIGA, GPUS, Cluster, Efficiency
from lsb.search.ways import BASE_BYTES, Load

THREADED = ("avx512", "avx2")
"""Backends that `SearchConfig.threads` is for."""


@dataclass(frozen=True)
class Way:
    """One way to search and what it costs on the nodes.

    Attributes:
        name: for people.
        backend: `SearchConfig.backend`; "" for the approximate ones.
        device: `SearchConfig.device`.
        recall: 1 if exact.
        neighbours: `SearchConfig.neighbours`, the fastest first ask.
        rows_per_block: `SearchConfig.rows_per_block`.
        processes: on a node.
        threads: of each.
        build_seconds: wall, once for all searches.
        search_seconds: wall, of one search, reading included.
        read_seconds: of these, reading.
        cpu_seconds: of all cores, of one search, without building.
        gpu_seconds: of all GPUs, likewise.
        build_cpu_seconds: of building.
        bytes_read: by all nodes, in one search.
        memory: bytes of a process, expected; mapped files, which the system may drop, not counted.
        worst_memory: bytes of a process if every seed has as many neighbours as it may.
        hits: expected.
        terms: CPU or GPU seconds by step, of one search.
        refused: why it cannot be, "" if it can.
    """

    name: str
    backend: str
    device: str
    recall: float
    neighbours: int
    rows_per_block: int
    processes: int
    threads: int
    build_seconds: float
    search_seconds: float
    read_seconds: float
    cpu_seconds: float
    gpu_seconds: float
    build_cpu_seconds: float
    bytes_read: float
    memory: float
    worst_memory: float
    hits: float
    terms: dict[str, float]
    refused: str = ""

    @property
    def exact(self) -> bool:
        """Whether it finds all neighbours, whatever the data."""
        return self.recall == 1

    def total_seconds(self, searches: int) -> float:
        """Wall seconds of building and all searches."""
        return self.build_seconds + searches * self.search_seconds


@dataclass(frozen=True)
class Choice:
    """What a way is called and how it is set up; see `Way`."""

    name: str
    backend: str
    device: str = "cpu"
    recall: float = 1.0
    neighbours: int = 64
    rows_per_block: int = 131_072


def deal(choice: Choice, load: Load, cluster: Cluster, costs: Costs, stated: Efficiency) -> Way:
    """A way on the nodes, with as many processes of each as are fastest and fit.

    Args:
        choice: the way.
        load: its work.
        cluster: the nodes.
        costs: of a core, for merging what processes found.
        stated: what is assumed of the nodes.
    """
    return min(
        (
            _dealt(choice, load, cluster, costs, stated, processes)
            for processes in _processes(choice, cluster)
        ),
        key=lambda way: (bool(way.refused), way.search_seconds, way.processes),
    )


def _processes(choice: Choice, cluster: Cluster) -> Iterator[int]:
    if choice.device == "cuda":
        yield cluster.gpus
        return
    number = cluster.cores
    while number > 1:
        yield number
        number = ceil(number / 2)
    yield 1


def _dealt(
    choice: Choice,
    load: Load,
    cluster: Cluster,
    costs: Costs,
    stated: Efficiency,
    processes: int,
) -> Way:
    total = processes * cluster.nodes
    threads = cluster.cores // processes if choice.backend in THREADED else 1
    efficiency = stated.cores if processes * threads > 1 else 1.0
    shared, serial, own = (sum(terms.values()) for terms in (load.rows, load.serial, load.process))
    gpu = sum(load.gpu.values())
    # Lists are merged along a binary tree of processes.
    merging = 2 * load.hits * costs.merge * ceil(log2(total))
    # A part is searched by one process: whoever has most parts is done last.
    most = ceil(load.parts / total) / load.parts
    wall = (shared / threads + serial) / efficiency * most + own + merging + gpu * most

    usable = cluster.memory_gb * GIGA * stated.memory
    needed = processes * (load.memory + BASE_BYTES)
    # A pool that fits beside the processes is read from storage once, then from the page cache.
    cached = load.stored_bytes / cluster.nodes + needed <= usable
    read_bytes = load.stored_bytes * (min(load.passes, 1) if cached else load.passes)
    read = read_bytes * ceil(load.parts / cluster.nodes) / load.parts / (cluster.read_gb_s * GIGA)
    refused = ""
    if needed > usable:
        refused = f"needs {needed / GIGA:.0f} GB a node"
    elif choice.device == "cuda" and load.memory > GPUS[cluster.gpu].memory_gb * GIGA:
        refused = f"needs more than the {GPUS[cluster.gpu].memory_gb:g} GB of a GPU"
    build, cores = sum(load.build.values()), cluster.cores * cluster.nodes
    return Way(
        name=choice.name,
        backend=choice.backend,
        device=choice.device,
        recall=choice.recall,
        neighbours=choice.neighbours,
        rows_per_block=choice.rows_per_block,
        processes=processes,
        threads=threads,
        build_seconds=build * ceil(load.parts / cores) / load.parts / efficiency,
        search_seconds=wall + read,
        read_seconds=read,
        cpu_seconds=shared + serial + total * own + merging,
        gpu_seconds=gpu,
        build_cpu_seconds=build,
        bytes_read=read_bytes,
        memory=load.memory + BASE_BYTES,
        worst_memory=load.worst + BASE_BYTES,
        hits=load.hits,
        terms={
            **load.rows,
            **load.serial,
            **{name: total * seconds for name, seconds in load.process.items()},
            "merge of processes": merging,
            **{f"GPU {name}": seconds for name, seconds in load.gpu.items()},
        },
        refused=refused,
    )
