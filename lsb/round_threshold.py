"""LT of one round: fixed or calibrated on labelled pairs, one for all seeds or scaled for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lsb.acquisition.seeds import hard_seeds
from lsb.ids import IdArray, from_arrow
from lsb.labelled import Labelled
from lsb.local_scaling import LocalScaling
from lsb.lookalike_chance import LookalikeChance, fit_chance
from lsb.order import member
from lsb.search.exact import SearchConfig, nearest
from lsb.threshold import (
    CURVE,
    LabelledPairs,
    LookalikeThreshold,
    ThresholdConfig,
    choose,
    fixed,
    labelled_pairs,
    precision_curve,
)

Seen = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
"""Vectors (Q, D) of seeds -> the same as a search sees them, see `lsb.decorrelation`."""
Density = Callable[[IdArray, npt.NDArray[np.float32]], npt.NDArray[np.float64]]
"""(ids (Q,) ascending, vectors (Q, D)) -> density of each, see `lsb.local_scaling`."""


@dataclass(frozen=True)
class RoundThreshold:
    """LT and what it rests on.

    Attributes:
        threshold: None for none.
        refusal: why the calibration was refused, or the chance could not be told, where something
            else is used instead.
        curve: schema `lsb.threshold.CURVE`; empty where LT is not calibrated.
        scaling: how similarities are shifted from seed to seed; None for one LT for all.
        chance: of a lookalike at a (scaled) similarity, where it was wanted.
    """

    threshold: LookalikeThreshold | None = None
    refusal: str | None = None
    curve: pa.Table = field(default_factory=CURVE.empty_table)
    scaling: LocalScaling | None = None
    chance: LookalikeChance | None = None


def round_threshold(
    labelled: Labelled | None,
    config: ThresholdConfig,
    *,
    task_weights: Mapping[str, float],
    density_Q: npt.NDArray[np.float64],
    density_of: Density,
    want_chance: bool = False,
    seen: Seen | None = None,
) -> RoundThreshold:
    """LT, and where it is wanted the chance of a lookalike.

    A fallback is one LT for all seeds: there is no evidence to scale it by.

    Args:
        labelled: gold or held-out clips.
        config: mode and settings.
        task_weights: tasks of weight 0 are left out.
        density_Q: (Q,) of the seeds of the round; read where a fixed LT is scaled.
        density_of: of labelled clips; called where LT is scaled and pairs are judged.
        want_chance: whether to fit `lsb.lookalike_chance`.
        seen: what seeds are made of before a search; None leaves them as they are.

    Raises:
        ValueError: LT cannot be calibrated, or the chance not be told, and there is no fallback.
    """
    refusals: list[str] = []
    threshold, scaling, chance = None, None, None
    curve = CURVE.empty_table()
    pairs: _Judged | None = None
    if config.mode == "calibrated" or want_chance:
        with _refused(refusals, config):
            pairs = _judged(labelled, config, task_weights, density_of, seen)
    if config.scaling == "density":
        calibrated = config.mode == "calibrated" and pairs is not None
        centre = pairs.centre if calibrated and pairs is not None else _mean(density_Q)
        scaling = LocalScaling(centre, config.scaling_neighbours, config.scaling_among)
    if config.mode == "fixed":
        threshold = fixed(config.value)
    elif config.mode == "calibrated":
        if pairs is not None:
            with _refused(refusals, config):
                curve = pairs.curve(scaling, config)
                threshold = choose(
                    curve,
                    config.target,
                    labelled=len(pairs.pairs.similarity),
                    confidence=config.confidence,
                    minimum_pairs=config.minimum_pairs,
                )
        if threshold is None:
            assert config.fallback is not None, "else the refusal was raised"
            threshold, scaling = fixed(config.fallback, "fallback"), None
    if want_chance and pairs is not None:
        with _refused(refusals, config):
            similarity, alike = pairs.similarity(scaling), pairs.pairs.lookalike
            chance = fit_chance(similarity, alike, minimum_pairs=config.minimum_pairs)
    return RoundThreshold(threshold, "; ".join(refusals) or None, curve, scaling, chance)


@contextmanager
def _refused(refusals: list[str], config: ThresholdConfig) -> Iterator[None]:
    """What is refused inside is kept as text where there is a fallback."""
    try:
        yield
    except ValueError as error:
        if config.fallback is None:
            raise
        refusals.append(str(error))


@dataclass(frozen=True)
class _Judged:
    """Labelled pairs, the density of the seed of each (NaN without scaling), and its mean."""

    pairs: LabelledPairs
    density: npt.NDArray[np.float64]
    centre: float

    def similarity(self, scaling: LocalScaling | None) -> npt.NDArray[np.float32]:
        if scaling is None:
            return self.pairs.similarity
        return scaling.scaled(self.pairs.similarity, self.density)

    def curve(self, scaling: LocalScaling | None, config: ThresholdConfig) -> pa.Table:
        return precision_curve(
            self.similarity(scaling),
            self.pairs.lookalike,
            self.pairs.seed,
            confidence=config.confidence,
            minimum_pairs=config.minimum_pairs,
        )


def _judged(
    labelled: Labelled | None,
    config: ThresholdConfig,
    task_weights: Mapping[str, float],
    density_of: Density,
    seen: Seen | None,
) -> _Judged:
    """Hard labelled clips and their labelled neighbours."""
    if labelled is None:
        what = "threshold.mode is 'calibrated'"
        if config.mode != "calibrated":
            what = "selection.rank is 'expected_value'"
        raise ValueError(
            f"{what} but there are no labelled clips: give some, or set "
            + ("threshold.mode=fixed" if config.mode == "calibrated" else "another selection.rank")
        )
    seeds = hard_seeds(labelled, task_weights, config.band)
    rows = np.flatnonzero(member(labelled.ids, np.unique(from_arrow(seeds["id"]))))
    vectors_QD = labelled.vectors[rows] if seen is None else seen(labelled.vectors[rows])
    hits = nearest(
        labelled.ids[rows],
        vectors_QD,
        lambda: [(labelled.ids, labelled.vectors)],
        SearchConfig(config.neighbours, config.neighbours),
        lookalike_threshold=None,
        exclude=labelled.ids[:0],
        rows=len(labelled.ids),
    )
    pairs = labelled_pairs(
        hits.table, seeds, labelled, lookalike=config.lookalike, band=config.band
    )
    density_P: npt.NDArray[np.float64] = np.full(len(pairs.seed), np.nan)
    centre = 0.0
    if config.scaling == "density":
        order = np.argsort(labelled.ids[rows])
        rows = rows[order]
        density_M = density_of(labelled.ids[rows], vectors_QD[order])
        centre = _mean(density_M)
        # Pairs number their seeds among those that have a neighbour.
        found = member(labelled.ids[rows], np.unique(from_arrow(hits.table["seed_id"])))
        density_P = density_M[found][pairs.seed]
    return _Judged(pairs, density_P, centre)


def _mean(density_Q: npt.NDArray[np.float64]) -> float:
    known = density_Q[~np.isnan(density_Q)]
    return float(known.mean()) if len(known) else 0.0
