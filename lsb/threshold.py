"""Lookalike threshold: the similarity below which a neighbour is no longer like its seed.

Source: Sun et al. 2025 name the threshold; the calibration below is ours (docs/methods.md).

Pairs of one seed are correlated: a seed in a pure region makes all its pairs lookalikes. The bound
therefore counts effective pairs, as Korn and Graubard (1998, Survey Methodology 24) do for
clustered samples: pairs are divided by the design effect that the seeds' rates show, then bounded
by Clopper-Pearson. Two imagined seeds of average size, one without and one with lookalikes only,
are added when the design effect is estimated, because few seeds, or none that fails, make it look
smaller than it is. Simulated with 10-100 seeds of 1-30 pairs and intra-seed correlation 0-0.6, the
nominal 95 % bound holds in 92-100 % of cases; plain Clopper-Pearson holds in 66-98 %. Choosing the
smallest similarity that qualifies leaves the true precision below the target in 1-7 % of cases.
Seeds count as independent of each other: where many seeds share their neighbours, it is optimistic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import stats

from lsb.acquisition.confident_errors import hard
from lsb.ids import IdArray, from_arrow, to_hex
from lsb.labelled import UNLABELLED, Labelled
from lsb.threshold_config import ThresholdConfig

__all__ = [
    "CURVE",
    "LOOKALIKES",
    "LabelledPairs",
    "LookalikeThreshold",
    "ThresholdConfig",
    "calibrate",
    "choose",
    "fixed",
    "labelled_pairs",
    "precision_bound",
    "precision_curve",
]

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
LOOKALIKES = ("error", "label")


@dataclass(frozen=True)
class LookalikeThreshold:
    """A cosine similarity in [-1, 1] and the evidence it was set on.

    Attributes:
        value: a neighbour with at least this similarity is taken for a lookalike; with local
            scaling at least this scaled similarity, which may leave [-1, 1].
        precision: lower confidence bound of lookalike precision at `value`; None if it was fixed.
        pairs: labelled (seed, neighbour) pairs at or above `value` that the bound rests on.
        seeds: seeds of those pairs.
        mode: "fixed", "calibrated", or "fallback" (calibration refused, a fixed value was used).
    """

    value: float
    precision: float | None = None
    pairs: int = 0
    seeds: int = 0
    mode: str = "fixed"


CURVE_FIELDS: dict[str, pa.DataType] = {
    "similarity": pa.float32(),
    "pairs": pa.int64(),
    "seeds": pa.int64(),
    "lookalikes": pa.int64(),
    "precision": pa.float64(),
    "bound": pa.float64(),
}
CURVE = pa.schema(CURVE_FIELDS)
"""Of `precision_curve`."""


@dataclass(frozen=True)
class LabelledPairs:
    """P pairs of a labelled seed and a labelled neighbour.

    Attributes:
        similarity: (P,) float32, from the rescoring kernel.
        lookalike: (P,) bool.
        seed: (P,) int64, equal for pairs of the same seed: its place among the ascending ids of
            all seeds that have a neighbour.
    """

    similarity: npt.NDArray[np.float32]
    lookalike: BoolArray
    seed: npt.NDArray[np.int64]


def fixed(value: float, mode: str = "fixed") -> LookalikeThreshold:
    """A threshold that the user gives, a cosine similarity.

    Args:
        value: in [-1, 1].
        mode: "fixed" or "fallback".

    Raises:
        ValueError: it is out of range.
    """
    if not -1 <= value <= 1:
        raise ValueError(f"lookalike threshold is {value}: give a cosine similarity in [-1, 1]")
    return LookalikeThreshold(value, mode=mode)


def calibrate(
    similarity_P: FloatArray,
    lookalike_P: BoolArray,
    target: float,
    seed_P: npt.NDArray[np.integer[Any]] | None = None,
    *,
    confidence: float = 0.95,
    minimum_pairs: int = 30,
) -> LookalikeThreshold:
    """Smallest similarity at which neighbours are lookalikes at rate `target`.

    Args:
        similarity_P: (P,) cosine similarity of each labelled pair, float32.
        lookalike_P: (P,) whether the neighbour shares its seed's error.
        target: wanted lower bound of precision, in (0, 1).
        seed_P: (P,) seed of each pair; without it pairs count as independent.
        confidence: one-sided level of the bound.
        minimum_pairs: similarities with fewer pairs at or above them are not considered.

    Raises:
        ValueError: no similarity reaches `target`; the message gives the best bound, where it is
            reached, and the pair count.
    """
    curve = precision_curve(
        similarity_P, lookalike_P, seed_P, confidence=confidence, minimum_pairs=minimum_pairs
    )
    return choose(
        curve,
        target,
        labelled=len(similarity_P),
        confidence=confidence,
        minimum_pairs=minimum_pairs,
    )


def precision_curve(
    similarity_P: FloatArray,
    lookalike_P: BoolArray,
    seed_P: npt.NDArray[np.integer[Any]] | None = None,
    *,
    confidence: float = 0.95,
    minimum_pairs: int = 30,
) -> pa.Table:
    """Lookalike precision of the pairs at or above each similarity, and its lower bound.

    Pairs of equal similarity stay together: each distinct similarity s is judged by all pairs with
    similarity >= s.

    Args:
        similarity_P: see `calibrate`.
        lookalike_P: see `calibrate`.
        seed_P: see `calibrate`.
        confidence: one-sided level of the bound.
        minimum_pairs: similarities with fewer pairs at or above them are left out.

    Returns:
        Schema `CURVE`, by falling similarity: pairs at or above it, their seeds, lookalikes among
        them, precision and its bound.

    Raises:
        ValueError: a similarity is not finite, or `confidence` is no level.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"threshold.confidence is {confidence}: give a level in (0, 1)")
    if not np.isfinite(similarity_P).all():
        raise ValueError("pairs with NaN similarity: rescore them from stored vectors")
    order = np.argsort(-similarity_P, kind="stable")
    similarity_P, lookalike_P = similarity_P[order], lookalike_P[order]
    seed_P = np.arange(len(order)) if seed_P is None else seed_P[order]
    # Cumulative sums are complete only at the last pair of a run of equal similarities.
    ends = np.flatnonzero(np.r_[similarity_P[1:] != similarity_P[:-1], True][: len(order)])
    ends = ends[ends + 1 >= max(minimum_pairs, 1)]
    if not len(ends):
        return CURVE.empty_table()
    counts = _cumulative(lookalike_P, seed_P)[:, ends]
    pairs, lookalikes, seeds = counts[:3]
    columns = [
        similarity_P[ends].astype(np.float32),
        pairs.astype(np.int64),
        seeds.astype(np.int64),
        lookalikes.astype(np.int64),
        lookalikes / pairs,
        _lower_bound(counts, confidence),
    ]
    return pa.table(columns, schema=CURVE)


def choose(
    curve: pa.Table, target: float, *, labelled: int, confidence: float, minimum_pairs: int
) -> LookalikeThreshold:
    """Smallest similarity of a curve whose bound reaches `target`.

    Args:
        curve: see `precision_curve`.
        target: in (0, 1).
        labelled: all pairs there were.
        confidence: of the curve, for the message.
        minimum_pairs: of the curve, for the message.

    Raises:
        ValueError: see `calibrate`.
    """
    if not 0 < target < 1:
        raise ValueError(f"threshold.target is {target}: give a precision in (0, 1)")
    if labelled < max(minimum_pairs, 1):
        raise ValueError(
            f"{labelled} labelled pairs, threshold.minimum_pairs is {minimum_pairs}: "
            "label more clips, or set threshold.mode=fixed or threshold.fallback"
        )
    bound_E = curve["bound"].to_numpy()
    qualified = np.flatnonzero(bound_E >= target)
    if qualified.size == 0:
        best = int(np.argmax(bound_E))
        at = curve.slice(best, 1).to_pylist()[0]
        raise ValueError(
            f"no similarity has lookalike precision >= {target} at {confidence:.0%} confidence: "
            f"the best lower bound is {at['bound']:.3f} at similarity {at['similarity']:.4f} "
            f"({at['pairs']} of {labelled} pairs): label more clips, lower threshold.target, or "
            "set threshold.mode=fixed or threshold.fallback"
        )
    at = curve.slice(int(qualified[-1]), 1).to_pylist()[0]
    return LookalikeThreshold(
        value=at["similarity"],
        precision=at["bound"],
        pairs=at["pairs"],
        seeds=at["seeds"],
        mode="calibrated",
    )


def precision_bound(
    lookalike_P: BoolArray,
    seed_P: npt.NDArray[np.integer[Any]] | None = None,
    confidence: float = 0.95,
) -> float:
    """Lower one-sided bound of the lookalike rate of some pairs; 0 for no pairs."""
    if len(lookalike_P) == 0:
        return 0.0
    seeds = np.arange(len(lookalike_P)) if seed_P is None else seed_P
    return float(_lower_bound(_cumulative(lookalike_P, seeds)[:, -1:], confidence)[0])


def labelled_pairs(
    hits: pa.Table,
    seeds: pa.Table,
    labelled: Labelled,
    *,
    lookalike: str = "error",
    band: float = 0.1,
) -> LabelledPairs:
    """Judge labelled neighbours of labelled seeds.

    Lookalike "error": the neighbour has its seed's label, and the held-out model is wrong on it or
    unsure (within `band` of the operating threshold). Lookalike "label": same label, no more.

    Args:
        hits: schema `lsb.search.exact.HITS`: neighbours of the seeds among the labelled clips. The
            search never returns a seed as its own neighbour.
        seeds: schema `lsb.acquisition.seeds.SEEDS`, every label set.
        labelled: the clips that were searched. Never test data.
        lookalike: "error" or "label".
        band: half width of "unsure", a probability.

    Returns:
        One pair for each (seed, task) and neighbour that has a label of the task, ordered as
        (task, seed id, rank).
    """
    if lookalike not in LOOKALIKES:
        raise ValueError(
            f"threshold.lookalike is {lookalike!r}: use one of {', '.join(LOOKALIKES)}"
        )
    if seeds["label"].null_count:
        raise ValueError(
            f"{seeds['label'].null_count} seeds have no label: calibrate on labelled seeds only"
        )
    hit_seed, hit_id = from_arrow(hits["seed_id"]), from_arrow(hits["id"])
    hit_similarity = np.asarray(hits["similarity"].to_numpy(), dtype=np.float32)
    row_H = _rows_of(hit_id, labelled.ids)
    tasks = np.asarray(seeds["task"].to_pylist(), dtype=object)
    similarity, alike, number = [], [], []
    for task in sorted(set(tasks.tolist())):
        of_task = np.flatnonzero(tasks == task)
        ids = from_arrow(seeds["id"].take(of_task))
        seed_label = np.asarray(seeds["label"].take(of_task).to_numpy(), dtype=np.int8)
        order = np.argsort(ids)
        ids, seed_label = ids[order], seed_label[order]
        place = np.minimum(np.searchsorted(ids, hit_seed), len(ids) - 1)
        label_M = labelled.labels[task]
        used = np.flatnonzero((ids[place] == hit_seed) & (label_M[row_H] != UNLABELLED))
        same = label_M[row_H[used]] == seed_label[place[used]]
        if lookalike == "error":
            threshold = labelled.operating_thresholds[task]
            same &= hard(labelled.probabilities[task], label_M, threshold, band)[row_H[used]]
        similarity.append(hit_similarity[used])
        alike.append(same)
        # A clip that is a seed of two tasks is one cluster: its neighbours are the same clips.
        number.append(_numbered(hit_seed)[used])
    if not similarity:
        none = np.empty(0, dtype=np.int64)
        return LabelledPairs(none.astype(np.float32), none.astype(np.bool_), none)
    return LabelledPairs(np.concatenate(similarity), np.concatenate(alike), np.concatenate(number))


def _numbered(ids: IdArray) -> npt.NDArray[np.int64]:
    _, inverse = np.unique(ids, return_inverse=True)
    return np.asarray(inverse, dtype=np.int64)


def _rows_of(ids: IdArray, among: IdArray) -> npt.NDArray[np.intp]:
    order = np.argsort(among)
    if len(ids) == 0:
        return np.empty(0, dtype=np.intp)
    place = np.minimum(np.searchsorted(among[order], ids), len(among) - 1)
    unknown = np.flatnonzero(among[order][place] != ids)
    if unknown.size:
        raise ValueError(
            f"neighbour {to_hex(ids[unknown[:1]])[0]} is not among the labelled clips: search the "
            "labelled clips to calibrate LT, not the pool"
        )
    return order[place]


def _cumulative(
    lookalike_P: BoolArray, seed_P: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.float64]:
    """Sums over the first 1 ... P pairs, (6, P): pairs n, lookalikes x, seeds, and over seeds i
    the sums of n_i^2, x_i^2 and x_i n_i."""
    pairs = len(lookalike_P)
    hit = lookalike_P.astype(np.float64)
    order = np.argsort(seed_P, kind="stable")
    by_seed = seed_P[order]
    starts = np.flatnonzero(np.r_[True, by_seed[1:] != by_seed[:-1]])
    lengths = np.diff(np.r_[starts, pairs])
    before = np.empty(pairs)  # pairs of the same seed before this one
    before[order] = np.arange(pairs) - np.repeat(starts, lengths)
    running = np.cumsum(hit[order])
    hits_before = np.empty(pairs)  # lookalikes among them
    hits_before[order] = (
        running - hit[order] - np.repeat(running[starts] - hit[order][starts], lengths)
    )
    steps = [
        np.ones(pairs),
        hit,
        before == 0,
        2 * before + 1,
        hit * (2 * hits_before + 1),
        hit * (before + 1) + hits_before,
    ]
    return np.cumsum(np.stack(steps), axis=1)


def _lower_bound(counts: npt.NDArray[np.float64], confidence: float) -> npt.NDArray[np.float64]:
    """Bound for each column of `_cumulative`: Korn-Graubard with two imagined seeds."""
    alpha = 1 - confidence
    pairs, lookalikes, seeds, squares_n, squares_x, products = counts
    if np.array_equal(pairs, seeds):
        effective = pairs  # one pair a seed: plain Clopper-Pearson
    else:
        size = pairs / seeds
        all_pairs, all_seeds = pairs + 2 * size, seeds + 2
        rate = (lookalikes + size) / all_pairs
        spread = (
            (squares_x + size**2)
            - 2 * rate * (products + size**2)
            + rate**2 * (squares_n + 2 * size**2)
        )
        variance = all_seeds / (all_seeds - 1) * spread / all_pairs**2
        design_effect = np.maximum(1.0, variance / (rate * (1 - rate) / all_pairs))
        few = stats.t.ppf(1 - alpha, np.maximum(pairs - 1, 1)) / stats.t.ppf(
            1 - alpha, all_seeds - 1
        )
        effective = pairs / design_effect * np.minimum(1.0, few**2)
    hits = lookalikes / pairs * effective
    bound = stats.beta.ppf(alpha, np.maximum(hits, 1e-12), effective - hits + 1)
    return np.where(hits > 0, bound, 0.0)
