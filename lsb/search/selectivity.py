"""How many pairs get how far in a search: shares by threshold, from a sample or from a law.

A scan's work depends on how many pairs pass each bound and, once lists are full, on how fast the
bounds rise. Both follow from how scores are distributed for each seed: what is needed of that is
kept here, for the bound by prefixes, the bound by whole codes, and the score itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lsb.search.ask import WIDENING
from lsb.search.backends import store_sample
from lsb.search.lists import FloatArray
from lsb.search.projection import (
    Projection,
    encode_prefix,
    encode_seeds,
    encode_whole,
    fit,
    thinned,
)
from lsb.search.scan import Seeds
from lsb.store import Store

Array = npt.NDArray[np.float64]

GRID = np.linspace(-1.0, 1.2, 221)
"""Thresholds at which shares are kept; between them their logarithm is taken for linear."""
TAIL = 8
"""Largest scores of a seed by which its tail is judged; beyond them it is taken for exponential."""
LEAST = -80.0
CELLS = 40
"""Stretches of a pool, ever longer, within which bounds of full lists are taken for constant."""
SAMPLE_ROWS, SAMPLE_SEEDS = 32_768, 256


@dataclass(frozen=True)
class Wave:
    """What happens when some seeds ask for some neighbours; numbers are means over these seeds.

    Attributes:
        share: of all seeds that take part.
        limit: most neighbours of one.
        prefix, codes, scored: rows that pass the bound by prefixes, by whole codes, and that reach
            the lists.
        hits: neighbours that are kept.
        held: neighbours that a list of the compiled scan holds at its longest.
    """

    share: float
    limit: int
    prefix: float
    codes: float
    scored: float
    hits: float
    held: float


@dataclass(frozen=True)
class Selectivity:
    """Share of a pool's rows that reach each threshold of `GRID`, for each of some seeds.

    Attributes:
        prefix: coordinates of the prefix, 0 for none.
        bounds: (S, T) natural logarithms, of the bound by prefixes.
        codes: the same for whole codes.
        scores: the same for the scores.
        source: what it rests on, for people.
        measured: whether that is the pool that will be searched.
    """

    prefix: int
    bounds: Array
    codes: Array
    scores: Array
    source: str
    measured: bool

    def waves(self, rows: float, lt: float | None, neighbours: int, most: int) -> list[Wave]:
        """The waves of a search, see `lsb.search.ask`.

        Args:
            rows: of the pool.
            lt: smallest score of a hit, None for none.
            neighbours: asked for at first.
            most: asked for at last.
        """
        floor = -1.0 if lt is None else lt
        expected = rows * np.exp(_at(self.scores, floor))
        width = most if lt is None else neighbours
        pending = np.ones(len(expected), dtype=bool)
        waves = []
        while pending.any():
            waves.append(self._wave(rows, floor, width + 1, pending))
            pending = pending & (expected > width) & (width < most)
            width = min(width * WIDENING, most)
        return waves

    def _wave(self, rows: float, floor: float, limit: int, pending: npt.NDArray[np.bool_]) -> Wave:
        # The scan's first rows are compared when no bound is known; later ones ever longer.
        ends = np.unique(np.concatenate([[0.0], np.geomspace(min(64.0, rows), rows, CELLS)]))
        lengths, middles = np.diff(ends), (ends[1:] + ends[:-1]) / 2
        sums = np.zeros(4)
        seeds = np.flatnonzero(pending)
        for seed in seeds:
            # A list is cut when it is twice as long as wanted: its bound is that of fewer rows.
            kth = np.log(np.minimum(1.0, limit / (middles / np.sqrt(2))))
            wanted = np.maximum(floor, np.interp(-kth, -self.scores[seed], GRID))
            passing = [
                lengths * np.exp(np.interp(wanted, GRID, of[seed]))
                for of in (self.bounds, self.codes, self.scores)
            ]
            hits = min(
                float(limit), rows * float(np.exp(np.interp(floor, GRID, self.scores[seed])))
            )
            sums += [*(float(each.sum()) for each in passing), hits]
        prefix, codes, scored, hits = sums / len(seeds)
        if not self.prefix:
            prefix = codes
        reached = rows * np.exp(_at(self.scores[seeds], floor))
        held = float(np.mean(np.minimum(reached, 2 * limit + 8)))
        return Wave(len(seeds) / len(pending), limit, prefix, codes, scored, hits, held)


def sampled(
    projection: Projection, rows_MD: FloatArray, seeds_QD: FloatArray, source: str
) -> Selectivity:
    """Selectivity of a projection from rows of the pool and seeds.

    Args:
        projection: how rows become codes.
        rows_MD: (M, D) float32, drawn from all over the pool.
        seeds_QD: (Q, D) float32, of which `SAMPLE_SEEDS` are used.
        source: what they are, for people.
    """
    seeds = thinned(seeds_QD, SAMPLE_SEEDS)
    scores = _logarithms(rows_MD @ seeds.T)
    codes = _logarithms(code_bounds(projection, rows_MD, seeds))
    bounds = codes
    if projection.prefix:
        bounds = _logarithms(prefix_bounds(projection, rows_MD, seeds))
    return Selectivity(projection.prefix, bounds, codes, scores, source, True)


def of_store(store: Store, seeds: Seeds, lt: float | None, backend: str) -> Selectivity:
    """Selectivity of a store for seeds, by the projection that is fitted to them.

    Args:
        store: that will be searched.
        seeds: all of them.
        lt: smallest score of a hit, None for none.
        backend: for which the projection is fitted.
    """
    random, pieces = np.random.default_rng(0), []
    for part in store.parts:
        share = -(-SAMPLE_ROWS * part.rows // max(1, len(store)))
        chosen = np.sort(random.choice(part.rows, min(share, part.rows), replace=False))
        pieces.append(part.vectors()[chosen].astype(np.float32))
    rows = np.concatenate(pieces)
    sample, wanted = store_sample(store), -np.inf if lt is None else lt
    projection = fit(sample, seeds.vectors, wanted=wanted)
    source = f"pairs pass as in a sample of {len(rows):,} rows and {SAMPLE_SEEDS} seeds"
    return sampled(projection, rows, seeds.vectors, source)


def prefix_bounds(projection: Projection, rows_MD: FloatArray, seeds_QD: FloatArray) -> FloatArray:
    """(M, Q) bounds of the scores by prefixes."""
    prefix, error = encode_prefix(projection, rows_MD)
    seeds = encode_seeds(projection, seeds_QD)
    product = prefix.astype(np.float32) @ seeds.prefix.astype(np.float32).T
    product *= np.float32(projection.prefix_step * seeds.prefix_step)
    return product + (error * seeds.norm)[:, None] + seeds.prefix_error


def code_bounds(projection: Projection, rows_MD: FloatArray, seeds_QD: FloatArray) -> FloatArray:
    """(M, Q) bounds of the scores by whole codes."""
    codes, error = encode_whole(projection, rows_MD)
    seeds = encode_seeds(projection, seeds_QD)
    product = codes.astype(np.float32) @ seeds.codes.astype(np.float32).T
    product *= np.float32(projection.step * seeds.code_step)
    return product + (error * seeds.norm)[:, None] + seeds.code_error


def _logarithms(value_MS: FloatArray) -> Array:
    """(S, T) logarithm of the share of each column that reaches each threshold."""
    count = len(value_MS)
    ordered = np.sort(np.ascontiguousarray(value_MS.T), axis=1)
    rank = min(TAIL, count)
    result = np.empty((len(ordered), len(GRID)))
    for number, column in enumerate(ordered):
        reached = count - np.searchsorted(column, GRID, side="left")
        edge = float(column[-rank])
        excess = max(float(column[-rank:].mean()) - edge, 1e-4)
        tail = np.log(rank / count) - (GRID - edge) / excess
        with np.errstate(divide="ignore"):
            result[number] = np.where(edge >= GRID, np.log(reached / count), tail)
    return np.maximum(result, LEAST)


def _at(of_ST: Array, threshold: float) -> Array:
    return np.array([np.interp(threshold, GRID, row) for row in of_ST])


def assumed(dimension: int) -> Selectivity:
    """Selectivity of the clustered law of benchmarks/search/data.py, for want of a sample.

    Args:
        dimension: of the vectors; the nearer of the two that were measured is taken.
    """
    known = min(LAW, key=lambda of: abs(np.log(of / dimension)))
    columns = np.array(LAW[known]).T
    bounds, codes, scores = (
        np.maximum(
            LEAST,
            np.minimum(0.0, np.log(share)[:, None] - decay[:, None] * (GRID - LAW_LT)[None]),
        )
        for share, decay in (columns[0:2], columns[2:4], columns[4:6])
    )
    source = f"pairs pass as in the clustered law of benchmarks/search/data.py at d = {known}"
    return Selectivity(LAW_PREFIX, bounds, codes, scores, source, False)


LAW_LT, LAW_PREFIX = 0.8, 64
LAW = {
    256: (
        (6.93e-04, 52.2, 3.30e-06, 28.0, 1.54e-06, 24.5),
        (5.18e-04, 41.5, 1.34e-05, 21.4, 7.84e-06, 19.4),
        (1.14e-03, 38.7, 3.66e-05, 23.1, 2.01e-05, 20.5),
        (1.64e-03, 35.0, 7.28e-05, 24.9, 4.02e-05, 22.9),
        (2.68e-03, 32.9, 1.41e-04, 27.3, 8.49e-05, 26.9),
        (4.06e-03, 30.6, 2.63e-04, 28.9, 1.81e-04, 32.7),
        (6.05e-03, 25.5, 6.81e-04, 28.4, 4.68e-04, 34.8),
        (1.34e-02, 15.6, 4.46e-03, 24.9, 3.29e-03, 31.6),
    ),
    768: (
        (2.17e-03, 38.2, 5.41e-06, 24.0, 2.80e-06, 21.4),
        (2.25e-03, 36.8, 1.71e-05, 20.9, 9.88e-06, 18.9),
        (2.42e-03, 34.0, 3.28e-05, 18.7, 2.04e-05, 17.1),
        (3.81e-03, 29.9, 7.01e-05, 24.0, 3.72e-05, 21.4),
        (5.08e-03, 27.9, 1.46e-04, 29.0, 8.20e-05, 28.3),
        (5.08e-03, 22.9, 2.81e-04, 36.0, 1.71e-04, 39.0),
        (6.66e-03, 17.7, 7.03e-04, 37.9, 4.40e-04, 45.4),
        (1.10e-02, 9.0, 3.95e-03, 27.6, 2.96e-03, 39.2),
    ),
}
"""Dimension -> eighths of the seeds, few neighbours first: share of rows at `LAW_LT` and its decay
with the threshold, of prefix bounds, code bounds and scores. `python -m benchmarks.search_scale
--law` prints them: 65,536 rows and 1,024 seeds of the law, a prefix of 64, between LT 0.8 and 0.9.
"""
