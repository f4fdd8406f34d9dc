"""What a search is planned for: its size, the nodes it gets, and datasheet numbers of GPUs."""

from __future__ import annotations

from dataclasses import dataclass

GIGA = 1e9


@dataclass(frozen=True)
class Gpu:
    """Datasheet numbers: assumptions, never measurements.

    Attributes:
        name: of the product.
        int8_tops: dense int8 operations a second, 1e12; a product and a sum are two.
        memory_gb: of the device.
        bandwidth_tb_s: of its memory.
    """

    name: str
    int8_tops: float
    memory_gb: float
    bandwidth_tb_s: float


GPUS = {
    "h100": Gpu("H100 SXM", 1979, 80, 3.35),
    "h200": Gpu("H200 SXM", 1979, 141, 4.8),
    "a100": Gpu("A100 SXM 80 GB", 624, 80, 2.04),
    "l40s": Gpu("L40S", 733, 48, 0.864),
    "l4": Gpu("L4", 242, 24, 0.3),
}


@dataclass(frozen=True)
class Job:
    """A search.

    Attributes:
        rows: of the pool, N.
        dimension: of its vectors, D.
        seeds: Q.
        lt: smallest similarity of a hit, None for none.
        most: neighbours that a seed may get.
        dtype: of the pool, "float32" or "float16".
        kept_codes: int8 codes lie beside the vectors already.
        searches: over the pool as it is; what is built is shared by them.
        rows_per_part: of the pool.
    """

    rows: float
    dimension: int
    seeds: int
    lt: float | None = 0.8
    most: int = 1024
    dtype: str = "float16"
    kept_codes: bool = False
    searches: int = 1
    rows_per_part: int = 1_000_000

    def __post_init__(self) -> None:
        for name in ("rows", "dimension", "seeds", "most", "searches", "rows_per_part"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.lt is not None and not -1 <= self.lt <= 1:
            raise ValueError(f"lt is {self.lt}: give a cosine similarity in [-1, 1]")
        if self.dtype not in ("float32", "float16"):
            raise ValueError(f"dtype is {self.dtype!r}: use float32 or float16")

    @property
    def padded(self) -> int:
        """Coordinates of whole codes."""
        return -(-self.dimension // 64) * 64

    @property
    def item(self) -> int:
        """Bytes of a coordinate."""
        return 2 if self.dtype == "float16" else 4

    @property
    def parts(self) -> int:
        """Of the pool."""
        return -(-int(self.rows) // self.rows_per_part)


@dataclass(frozen=True)
class Cluster:
    """Nodes that are all alike.

    Attributes:
        nodes: how many.
        cores: of a node.
        gpus: of a node.
        gpu: name in `GPUS`.
        memory_gb: of a node.
        read_gb_s: what a node reads from where the pool is stored.
    """

    nodes: int = 1
    cores: int = 1
    gpus: int = 0
    gpu: str = "h100"
    memory_gb: float = 16.0
    read_gb_s: float = 2.0

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("cores", 1), ("gpus", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least {least}")
        for name in ("memory_gb", "read_gb_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: give more than 0")
        if self.gpu not in GPUS:
            raise ValueError(f"gpu is {self.gpu!r}: known are {', '.join(GPUS)}")


@dataclass(frozen=True)
class Efficiency:
    """What cannot be measured on this machine, in one place; all assumptions.

    Attributes:
        cores: speed of a core when all of a node work, over that of one alone.
        gpu_products: share of a GPU's int8 peak that `torch._int_mm` reaches.
        gpu_memory: share of its bandwidth that element-wise kernels reach.
        host_gb_s: rows copied to a GPU, from memory that is not pinned.
        memory: share of a node's memory that searches may take.
    """

    cores: float = 0.85
    gpu_products: float = 0.5
    gpu_memory: float = 0.6
    host_gb_s: float = 8.0
    memory: float = 0.8
