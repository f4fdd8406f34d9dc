"""Recall of an approximate search against the exact one, with an interval.

Pairs of one seed are found or missed together, so the interval counts effective pairs as that of LT
does (`lsb.threshold`: design effect of the seeds, then Clopper-Pearson).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lsb.ids import IdArray, from_arrow
from lsb.order import member
from lsb.search.ask import Hits
from lsb.threshold import precision_bound

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Recall:
    """Share of the exact result that was found, on a sample of seeds.

    Attributes:
        value: found / pairs; None where the exact result is empty, so that nothing was measured.
        low: lower end of the 95 % interval, 0 where nothing was measured.
        high: upper end, 1 where nothing was measured.
        found: pairs of the exact result that were found.
        pairs: pairs of the exact result.
        seeds: seeds of the sample, those without a neighbour included.
    """

    value: float | None
    low: float
    high: float
    found: int
    pairs: int
    seeds: int

    def __str__(self) -> str:
        if self.value is None:
            return f"unmeasured: no pair in the exact result of {self.seeds} seeds"
        return (
            f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}] "
            f"({self.found} of {self.pairs} pairs of {self.seeds} seeds)"
        )


def measure(exact: Hits, approximate: Hits, seeds: int) -> Recall:
    """Recall of the pairs of an exact result.

    Args:
        exact: neighbours of the sample of seeds.
        approximate: neighbours of at least these seeds, with the same LT, cap and exclusion.
        seeds: size of the sample.
    """
    wanted = _pairs(exact)
    found_P = member(wanted, np.sort(_pairs(approximate)))
    if not wanted.size:
        return Recall(None, 0.0, 1.0, 0, 0, seeds)
    _, seed_P = np.unique(from_arrow(exact.table["seed_id"]), return_inverse=True)
    tail = 1 - (1 - CONFIDENCE) / 2
    return Recall(
        value=float(found_P.mean()),
        low=precision_bound(found_P, seed_P, tail),
        high=1 - precision_bound(~found_P, seed_P, tail),
        found=int(found_P.sum()),
        pairs=len(found_P),
        seeds=seeds,
    )


def _pairs(hits: Hits) -> IdArray:
    """Seed and neighbour of each hit, (hits,) S32."""
    columns = [
        np.ascontiguousarray(from_arrow(hits.table[name])).view(np.uint8).reshape(-1, 16)
        for name in ("seed_id", "id")
    ]
    return np.ascontiguousarray(np.concatenate(columns, axis=1)).view("S32").reshape(-1)
