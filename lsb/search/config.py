"""How a search is made: widths, which change what is found, and the backend, which does not."""

from __future__ import annotations

from dataclasses import dataclass

NOT_HASHED = ("rows_per_block", "backend", "threads", "device")
"""Settings of an exact search that change no bit of its result."""
BACKENDS = ("auto", "avx512", "avx2", "int_mm", "knn")


@dataclass(frozen=True)
class SearchConfig:
    """How wide to search, and with what.

    Attributes:
        neighbours: neighbours a seed asks for at first. It changes the cost, not the result.
        max_neighbours: most neighbours a seed may get; seeds that have more are saturated.
        rows_per_block: rows of the store that are compared at a time; bounds memory.
        backend: what compares vectors, see `lsb.search.backends`; changes no result.
        threads: of the compiled kernels; 0 takes every core this process may use.
        device: where `int_mm` multiplies, "cpu" or "cuda".
    """

    neighbours: int = 64
    max_neighbours: int = 1024
    rows_per_block: int = 131_072
    backend: str = "auto"
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 1 <= self.neighbours <= self.max_neighbours:
            raise ValueError(
                f"search.neighbours is {self.neighbours} and search.max_neighbours "
                f"{self.max_neighbours}: need 1 <= neighbours <= max_neighbours"
            )
        if self.rows_per_block < 1:
            raise ValueError(f"search.rows_per_block is {self.rows_per_block}: give at least 1")
        if self.backend not in BACKENDS:
            raise ValueError(f"search.backend is {self.backend!r}: use {', '.join(BACKENDS)}")
        if self.threads < 0:
            raise ValueError(f"search.threads is {self.threads}: give 0 (all cores) or more")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"search.device is {self.device!r}: use cpu or cuda")
