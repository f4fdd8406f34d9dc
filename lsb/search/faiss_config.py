"""How an approximate search is made: which FAISS index, and how much of the result it may miss."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lsb.search.config import SearchConfig


@dataclass(frozen=True)
class FaissConfig(SearchConfig):
    """An exact search's settings, which the measured recall is against, and those of the index.

    `threads` and `device` ("cpu" or "cuda") are of the index as well; the graph of HNSW is built by
    one thread whatever `threads` says, since its bytes depend on who comes first.

    Attributes:
        factory: FAISS factory string, e.g. "IVF1024,Flat", "HNSW32", "OPQ32,IVF1024,PQ32".
        training_rows: rows that the index is trained on; all where the store has fewer.
        seed: of the sample of rows that train and of the sample of seeds that measure.
        recall: wanted share of the exact result, in (0, 1].
        sample: seeds that the search parameter is tuned on, and as many others that its recall is
            measured on.
        candidates: candidates that are rescored for each neighbour asked for. Compressed codes need
            more of them.
        allow_below_target: search even where `recall` is out of reach; the recall that is reported
            says by how much.
    """

    factory: str = "IVF1024,Flat"
    training_rows: int = 131_072
    seed: int = 0
    recall: float = 0.99
    sample: int = 256
    candidates: int = 2
    allow_below_target: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training_rows < 1:
            raise ValueError(f"search.training_rows is {self.training_rows}: give at least 1")
        if not 0 < self.recall <= 1:
            raise ValueError(f"search.recall is {self.recall}: give a share in (0, 1]")
        if self.sample < 1:
            raise ValueError(f"search.sample is {self.sample}: give at least 1 seed")
        if self.candidates < 1:
            raise ValueError(f"search.candidates is {self.candidates}: give at least 1")
        if re.search(r"\b(RFlat|Refine)", self.factory):
            raise ValueError(
                f"search.factory is {self.factory!r}: leave the refinement out, every candidate is "
                "rescored from the store already; raise search.candidates for more of them"
            )
        if "IDMap" in self.factory:
            raise ValueError(
                f"search.factory is {self.factory!r}: leave IDMap out, FAISS sees row numbers only"
            )
