"""One round of data growth as a pure function: acquisition, seeds, LT, search, selection.

Source: Sun et al. 2025, Latent Space Broadening with a lookalike threshold, as we reconstruct it
(docs/methods.md, section 1). Nothing is read but the arguments and nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lsb.acquisition.config import AcquisitionConfig
from lsb.acquisition.pool_order import pool_order
from lsb.acquisition.seeds import SEEDS, BroadeningConfig, choose_seeds, hard_seeds
from lsb.acquisition.uncertainty import normalised_weights
from lsb.ids import IdArray, from_arrow, to_bytes
from lsb.labelled import PROBABILITY, Labelled
from lsb.order import member
from lsb.search.exact import HITS, Hits, SearchConfig, nearest, search
from lsb.search.faiss_config import FaissConfig
from lsb.search.faiss_index import FaissIndex
from lsb.search.faiss_search import ApproximateHits, search_with_index
from lsb.selection import Selection, SelectionConfig, select
from lsb.store import Store
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

__all__ = ["AcquisitionConfig", "ExpandConfig", "Expansion", "expand"]

Find = Callable[..., Hits]
"""Called as `lsb.search.exact.search`."""
SPARE_CLIPS = 256
"""Clips of the order that are fetched beyond the budget, for near duplicates among them."""


@dataclass(frozen=True)
class ExpandConfig:
    """All of one round. Fields are the config groups of the same names; a `FaissConfig` as `search`
    makes the search approximate."""

    acquisition: AcquisitionConfig = field(default_factory=AcquisitionConfig)
    broadening: BroadeningConfig = field(default_factory=BroadeningConfig)
    threshold: ThresholdConfig = field(default_factory=ThresholdConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)


@dataclass(frozen=True)
class Expansion:
    """What a round asks for, and why.

    Attributes:
        candidates: schema `lsb.selection.CHOSEN`.
        seeds: schema `lsb.acquisition.seeds.SEEDS`.
        hits: schema `lsb.search.exact.HITS`.
        dropped: schema `lsb.selection.DROPPED`.
        threshold: LT, or None without broadening or without LT.
        refusal: why calibration was refused, where a fallback was used instead.
        curve: schema `lsb.threshold.CURVE`, lookalike precision against similarity; empty where
            LT is not calibrated.
        approximate: the hits of an approximate search with their measured recall; None for exact.
        counts: pool, excluded, seeds_<kind>, hits, asked_again, saturated, and those of
            `lsb.selection.Selection`.
    """

    candidates: pa.Table
    seeds: pa.Table
    hits: pa.Table
    dropped: pa.Table
    threshold: LookalikeThreshold | None
    refusal: str | None
    counts: dict[str, int]
    approximate: ApproximateHits | None = None
    curve: pa.Table = field(default_factory=CURVE.empty_table)


def expand(
    store: Store,
    labelled: Labelled | None,
    config: ExpandConfig,
    *,
    round: int,
    exclude: IdArray,
    index: FaissIndex | None = None,
    find: Find = search,
) -> Expansion:
    """Choose the clips to annotate in one round.

    Args:
        store: the pool.
        labelled: gold or held-out clips with out-of-sample predictions and vectors of the store's
            kind; needed for confident errors and to calibrate LT. Never test data.
        config: see `ExpandConfig`. `broadening` without seeds gives the plain acquisition arm.
        round: number of the round; changes what chance draws.
        exclude: ids that may not be chosen (all that are labelled, and test clips). The ids of
            `labelled` are added.
        index: of the pool, where the search is approximate.
        find: the exact search: in this process, or
            `lsb.search.collective.search_collective`, which makes this function collective.

    Raises:
        ValueError: LT cannot be calibrated and there is no fallback, the search is approximate and
            has no index or misses its recall, or inputs do not fit.
    """
    if labelled is not None:
        exclude = np.concatenate([exclude, labelled.ids])
    exclude = np.unique(exclude)
    seeds = _seeds(store, labelled, config, round, exclude)
    threshold, refusal, curve = None, None, CURVE.empty_table()
    hits = Hits(HITS.empty_table(), 0, 0)
    if seeds.num_rows:
        threshold, refusal, curve = _threshold(labelled, config)
        seed_ids, vectors_QD = _seed_vectors(seeds, store, labelled)
        value = None if threshold is None else threshold.value
        hits = _search(seed_ids, vectors_QD, store, index, config.search, value, exclude, find)
    selection, excluded = _selected(
        store, seeds, hits.table, threshold, config, round=round, exclude=exclude
    )
    counts = {"pool": len(store), "excluded": excluded}
    kinds = seeds["kind"].to_pylist()
    for kind in ("entropy", "confident_error", "random"):
        counts[f"seeds_{kind}"] = kinds.count(kind)
    counts |= {
        "hits": hits.table.num_rows,
        "asked_again": hits.asked_again,
        "saturated": hits.saturated,
    }
    return Expansion(
        candidates=selection.chosen,
        seeds=seeds,
        hits=hits.table,
        dropped=selection.dropped,
        threshold=threshold,
        refusal=refusal,
        counts=counts | selection.counts,
        approximate=hits if isinstance(hits, ApproximateHits) else None,
        curve=curve,
    )


def _search(
    seed_ids: IdArray,
    seeds_QD: npt.NDArray[np.float32],
    store: Store,
    index: FaissIndex | None,
    config: SearchConfig,
    lookalike_threshold: float | None,
    exclude: IdArray,
    find: Find,
) -> Hits:
    """Hits of the exact search, or of the approximate one where the config is of that."""
    if not isinstance(config, FaissConfig):
        return find(
            seed_ids,
            seeds_QD,
            store,
            config,
            lookalike_threshold=lookalike_threshold,
            exclude=exclude,
        )
    if index is None:
        raise ValueError(
            "search=faiss needs an index of the pool: give the one of "
            "lsb.search.faiss_index.open_index, or set search=exact"
        )
    return search_with_index(
        seed_ids,
        seeds_QD,
        store,
        index,
        config,
        lookalike_threshold=lookalike_threshold,
        exclude=exclude,
    )


def _seeds(
    store: Store, labelled: Labelled | None, config: ExpandConfig, round: int, exclude: IdArray
) -> pa.Table:
    """Seeds by the config's mix; of the pool only the columns that they read."""
    broadening, weights = config.broadening, config.acquisition.task_weights
    if not broadening.total:
        return SEEDS.empty_table()
    columns = ["id", "key"]
    if broadening.entropy:
        columns += [PROBABILITY + task for task in normalised_weights(weights)]
    return choose_seeds(
        store.rows(columns),
        labelled,
        broadening,
        task_weights=weights,
        seed=config.acquisition.seed,
        round=round,
        exclude=exclude,
    )


def _selected(
    store: Store,
    seeds: pa.Table,
    hits: pa.Table,
    threshold: LookalikeThreshold | None,
    config: ExpandConfig,
    *,
    round: int,
    exclude: IdArray,
) -> tuple[Selection, int]:
    """The choice, and how many clips of the pool are excluded.

    Of the acquisition order only its first clips are made, more where near duplicates used them up.
    """
    budget = config.selection.budget
    count = budget + SPARE_CLIPS
    while True:
        order = pool_order(
            store, config.acquisition, count, budget=budget, round=round, exclude=exclude
        )
        selection = select(
            seeds,
            hits,
            order.ids,
            store,
            config.selection,
            lookalike_threshold=threshold,
            exclude=exclude,
        )
        if order.complete or not selection.exhausted:
            return selection, order.excluded
        count *= 4


def _threshold(
    labelled: Labelled | None, config: ExpandConfig
) -> tuple[LookalikeThreshold | None, str | None, pa.Table]:
    """LT, why a fallback had to be used, and the evidence of a calibration."""
    threshold, curve = config.threshold, CURVE.empty_table()
    if threshold.mode == "none":
        return None, None, curve
    if threshold.mode == "fixed":
        return fixed(threshold.value), None, curve
    try:
        pairs = _pairs(labelled, config)
        curve = precision_curve(
            pairs.similarity,
            pairs.lookalike,
            pairs.seed,
            confidence=threshold.confidence,
            minimum_pairs=threshold.minimum_pairs,
        )
        chosen = choose(
            curve,
            threshold.target,
            labelled=len(pairs.similarity),
            confidence=threshold.confidence,
            minimum_pairs=threshold.minimum_pairs,
        )
    except ValueError as error:
        if threshold.fallback is None:
            raise
        return LookalikeThreshold(threshold.fallback, mode="fallback"), str(error), curve
    return chosen, None, curve


def _pairs(labelled: Labelled | None, config: ExpandConfig) -> LabelledPairs:
    """Hard labelled clips and their labelled neighbours."""
    if labelled is None:
        raise ValueError(
            "threshold.mode is 'calibrated' but there are no labelled clips: give some, or set "
            "threshold.mode=fixed"
        )
    threshold = config.threshold
    seeds = hard_seeds(labelled, config.acquisition.task_weights, threshold.band)
    rows = np.flatnonzero(member(labelled.ids, np.unique(from_arrow(seeds["id"]))))
    hits = nearest(
        labelled.ids[rows],
        labelled.vectors[rows],
        lambda: [(labelled.ids, labelled.vectors)],
        SearchConfig(threshold.neighbours, threshold.neighbours),
        lookalike_threshold=None,
        exclude=labelled.ids[:0],
        rows=len(labelled.ids),
    )
    return labelled_pairs(
        hits.table, seeds, labelled, lookalike=threshold.lookalike, band=threshold.band
    )


def _seed_vectors(
    seeds: pa.Table, store: Store, labelled: Labelled | None
) -> tuple[IdArray, npt.NDArray[np.float32]]:
    """Each seed once: ids (Q,) and vectors (Q, D), of labelled clips and of pool clips."""
    ids = np.unique(from_arrow(seeds["id"]))
    vectors_QD = np.empty((len(ids), store.dimension), dtype=np.float32)
    gold = np.zeros(len(ids), dtype=np.bool_)
    if labelled is not None:
        if labelled.vectors.shape[1] != store.dimension:
            raise ValueError(
                f"labelled clips have vectors of dimension {labelled.vectors.shape[1]}, store "
                f"{store.place} of {store.dimension}: embed both with the same checkpoint"
            )
        row = {name: index for index, name in enumerate(to_bytes(labelled.ids))}
        gold = np.asarray([name in row for name in to_bytes(ids)], dtype=np.bool_)
        vectors_QD[gold] = labelled.vectors[[row[name] for name in to_bytes(ids[gold])]]
    vectors_QD[~gold] = store.vectors(ids[~gold])
    return ids, vectors_QD
