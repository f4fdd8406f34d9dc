"""One round of data growth as a pure function: acquisition, seeds, LT, search, selection.

Source: Sun et al. 2025, Latent Space Broadening with a lookalike threshold, as we reconstruct it
(docs/methods.md). Nothing is read but the arguments and nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lsb.acquisition.broadening_config import POOL_KINDS
from lsb.acquisition.config import AcquisitionConfig
from lsb.acquisition.pool_order import pool_order
from lsb.acquisition.seeds import SEEDS, BroadeningConfig, choose_seeds, could_be_seeds
from lsb.acquisition.uncertainty import normalised_weights
from lsb.carried import CARRIED, carried_clips
from lsb.decorrelation import fit_decorrelation
from lsb.ids import IdArray, from_arrow, to_bytes
from lsb.labelled import PROBABILITY, Labelled
from lsb.local_scaling import SEED_THRESHOLDS, LocalScaling, cut, density, seed_thresholds
from lsb.media_hashes import MediaHashes
from lsb.order import member
from lsb.round_threshold import RoundThreshold, round_threshold
from lsb.search.exact import HITS, Hits, SearchConfig, nearest, search
from lsb.search.faiss_config import FaissConfig
from lsb.search.faiss_index import FaissIndex
from lsb.search.faiss_search import ApproximateHits, search_with_index
from lsb.selection import Neighbours, Selection, SelectionConfig, select
from lsb.store import Store
from lsb.threshold import CURVE, LookalikeThreshold, ThresholdConfig

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
class SeedsBeside:
    """Seeds of the training set: neither in the pool nor among the held-out labelled clips.

    Attributes:
        table: schema `lsb.acquisition.seeds.SEEDS`, every label set.
        ids: (M,) S16, ascending and unique: the clips of the table.
        vectors: (M, D) float32 of norm 1, from the kind of store that is searched.
    """

    table: pa.Table
    ids: IdArray
    vectors: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Expansion:
    """What a round asks for, and why.

    Attributes:
        candidates: schema `lsb.selection.CHOSEN`.
        seeds: schema `lsb.acquisition.seeds.SEEDS`.
        hits: schema `lsb.search.exact.HITS`.
        dropped: schema `lsb.selection.DROPPED`.
        threshold: LT, or None without broadening or without LT.
        refusal: why calibration was refused, or the chance of a lookalike could not be told, where
            a fallback was used instead.
        curve: schema `lsb.threshold.CURVE`, lookalike precision against similarity; empty where
            LT is not calibrated.
        approximate: the hits of an approximate search with their measured recall; None for exact.
        counts: pool, excluded, seeds_<kind>, hits, asked_again, saturated, those of
            `lsb.selection.Selection`, and carried where labels are carried.
        scaling: how LT is shifted from seed to seed; None for one LT for all.
        seed_thresholds: schema `lsb.local_scaling.SEED_THRESHOLDS`; empty without scaling.
        carried: schema `lsb.carried.CARRIED`, copies that get their representative's label; empty
            where labels are not carried.
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
    scaling: LocalScaling | None = None
    seed_thresholds: pa.Table = field(default_factory=SEED_THRESHOLDS.empty_table)
    carried: pa.Table = field(default_factory=CARRIED.empty_table)


def expand(
    store: Store,
    labelled: Labelled | None,
    config: ExpandConfig,
    *,
    round: int,
    exclude: IdArray,
    index: FaissIndex | None = None,
    media: MediaHashes | None = None,
    beside: SeedsBeside | None = None,
    find: Find = search,
) -> Expansion:
    """Choose the clips to annotate in one round.

    Args:
        store: the pool.
        labelled: gold or held-out clips with out-of-sample predictions and vectors of the store's
            kind; needed for labelled seeds and to calibrate LT. Never test data.
        config: see `ExpandConfig`. `broadening` without seeds gives the plain acquisition arm.
        round: number of the round; changes what chance draws.
        exclude: ids that may not be chosen (all that are labelled, and test clips). The ids of
            `labelled` are added.
        index: of the pool, where the search is approximate.
        media: which clips have equal media, where `config.selection.media_hashes` is set.
        beside: more seeds, of neither the pool nor `labelled`.
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
    if beside is not None:
        exclude = np.union1d(exclude, beside.ids)
        seeds = pa.concat_tables([seeds, beside.table])
    found = _Found()
    if seeds.num_rows:
        found = _neighbourhoods(seeds, store, labelled, config, index, exclude, beside, find)
    selection, excluded = _selected(
        store, seeds, found, config, round=round, exclude=exclude, media=media
    )
    counts = {"pool": len(store), "excluded": excluded}
    kinds = seeds["kind"].to_pylist()
    for kind in config.broadening.counted:
        counts[f"seeds_{kind}"] = kinds.count(kind)
    hits = found.hits
    counts |= {
        "hits": hits.table.num_rows,
        "asked_again": hits.asked_again,
        "saturated": hits.saturated,
    }
    counts |= selection.counts
    carried = CARRIED.empty_table()
    if config.selection.carry_labels:
        carried = carried_clips(
            selection.chosen, store, config.selection, config.search, exclude=exclude, media=media
        )
        counts["carried"] = carried.num_rows
    return Expansion(
        candidates=selection.chosen,
        seeds=seeds,
        hits=hits.table,
        dropped=selection.dropped,
        threshold=found.lt.threshold,
        refusal=found.lt.refusal,
        counts=counts,
        approximate=hits if isinstance(hits, ApproximateHits) else None,
        curve=found.lt.curve,
        scaling=found.lt.scaling,
        seed_thresholds=found.seed_thresholds,
        carried=carried,
    )


@dataclass(frozen=True)
class _Found:
    """Hits of the seeds, LT that they passed, and what the orders of neighbours need."""

    hits: Hits = field(default_factory=lambda: Hits(HITS.empty_table(), 0, 0))
    lt: RoundThreshold = field(default_factory=RoundThreshold)
    neighbours: Neighbours | None = None
    seed_thresholds: pa.Table = field(default_factory=SEED_THRESHOLDS.empty_table)


def _neighbourhoods(
    seeds: pa.Table,
    store: Store,
    labelled: Labelled | None,
    config: ExpandConfig,
    index: FaissIndex | None,
    exclude: IdArray,
    beside: SeedsBeside | None,
    find: Find,
) -> _Found:
    """LT, and the neighbours of every seed that reach it."""
    seed_ids, stored_QD = _seed_vectors(seeds, store, labelled, beside)
    seen, vectors_QD = None, stored_QD
    if config.broadening.decorrelate is not None:
        seen = fit_decorrelation(store, shrinkage=config.broadening.decorrelate).seeds
        vectors_QD = seen(stored_QD)
    density_of = partial(_density, store, labelled, config, index, find)
    scaled = config.threshold.scaling == "density"
    density_Q: npt.NDArray[np.float64] = np.full(len(seed_ids), np.nan)
    if scaled:
        density_Q = density_of(seed_ids, vectors_QD)
    lt = round_threshold(
        labelled,
        config.threshold,
        task_weights=config.acquisition.task_weights,
        density_Q=density_Q,
        density_of=density_of,
        want_chance=config.selection.rank == "expected_value",
        seen=seen,
    )
    value = None if lt.threshold is None else lt.threshold.value
    shift_Q = np.zeros(len(seed_ids)) if lt.scaling is None else lt.scaling.shift(density_Q)
    threshold_Q = None
    if value is not None and lt.scaling is not None:
        threshold_Q = value + shift_Q
        value = float(threshold_Q.min())
    hits = _search(seed_ids, vectors_QD, store, index, config.search, value, exclude, find)
    if threshold_Q is not None:
        hits = cut(hits, seed_ids, threshold_Q)
    chance = None
    if lt.chance is not None:
        similarity = np.asarray(hits.table["similarity"].to_numpy(), dtype=np.float32)
        if lt.scaling is not None:
            place = np.searchsorted(seed_ids, from_arrow(hits.table["seed_id"]))
            similarity = lt.scaling.scaled(similarity, density_Q[place])
        chance = lt.chance(similarity)
    of_seed, table = None, SEED_THRESHOLDS.empty_table()
    if scaled and lt.threshold is not None:
        limits = lt.threshold.value + shift_Q
        table = seed_thresholds(seed_ids, density_Q, limits)
        of_seed = dict(zip(to_bytes(seed_ids), limits.tolist(), strict=True))
    return _Found(hits, lt, Neighbours(seed_ids, stored_QD, chance, of_seed), table)


def _density(
    store: Store,
    labelled: Labelled | None,
    config: ExpandConfig,
    index: FaissIndex | None,
    find: Find,
    ids: IdArray,
    vectors_QD: npt.NDArray[np.float32],
) -> npt.NDArray[np.float64]:
    """Mean similarity of clips to their nearest ones; see `lsb.local_scaling`."""
    near = config.threshold.scaling_neighbours
    nobody = ids[:0]
    if config.threshold.scaling_among == "pool":
        width = replace(config.search, neighbours=near, max_neighbours=near)
        hits = _search(ids, vectors_QD, store, index, width, None, nobody, find)
    elif labelled is None:
        raise ValueError(
            "threshold.scaling_among is 'labelled' but there are no labelled clips: give some, or "
            "set it to 'pool'"
        )
    else:
        hits = nearest(
            ids,
            vectors_QD,
            lambda: [(labelled.ids, labelled.vectors)],
            SearchConfig(near, near),
            lookalike_threshold=None,
            exclude=nobody,
            rows=len(labelled.ids),
        )
    return density(hits.table, ids)


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
    """Seeds by the config's mix; the pool is read part by part, and often not at all."""
    broadening, weights = config.broadening, config.acquisition.task_weights
    if not broadening.total:
        return SEEDS.empty_table()
    chance: dict[str, Any] = {
        "task_weights": weights,
        "seed": config.acquisition.seed,
        "round": round,
        "exclude": exclude,
    }
    pool = SEEDS.empty_table().select(["id", "key"])
    if any(broadening.count(kind) for kind in POOL_KINDS):
        columns = ["id", "key"]
        if broadening.entropy:
            columns += [PROBABILITY + task for task in normalised_weights(weights)]
        store.require_columns(columns)
        pool = pa.concat_tables(
            could_be_seeds(part.read_rows(columns), broadening, **chance) for part in store.parts
        )
    return choose_seeds(pool, labelled, broadening, **chance)


def _selected(
    store: Store,
    seeds: pa.Table,
    found: _Found,
    config: ExpandConfig,
    *,
    round: int,
    exclude: IdArray,
    media: MediaHashes | None,
) -> tuple[Selection, int]:
    """The choice, and how many clips of the pool are excluded.

    Of the acquisition order only its first clips are made, more where near duplicates used them up.
    """
    budget, how = config.selection.budget, config.selection
    if how.rank == "expected_value" and found.lt.chance is None:
        how = replace(how, rank="similarity")  # refused, and there is a fallback
    count = budget + SPARE_CLIPS
    while True:
        order = pool_order(
            store, config.acquisition, count, budget=budget, round=round, exclude=exclude
        )
        selection = select(
            seeds,
            found.hits.table,
            order.ids,
            store,
            how,
            lookalike_threshold=found.lt.threshold,
            exclude=exclude,
            neighbours=found.neighbours,
            media=media,
        )
        if order.complete or not selection.exhausted:
            return selection, order.excluded
        count *= 4


def _seed_vectors(
    seeds: pa.Table, store: Store, labelled: Labelled | None, beside: SeedsBeside | None
) -> tuple[IdArray, npt.NDArray[np.float32]]:
    """Each seed once: ids (Q,) and vectors (Q, D), of labelled clips and of pool clips."""
    ids = np.unique(from_arrow(seeds["id"]))
    vectors_QD = np.empty((len(ids), store.dimension), dtype=np.float32)
    known = np.zeros(len(ids), dtype=np.bool_)
    if beside is not None:
        known = member(ids, beside.ids)
        vectors_QD[known] = beside.vectors[np.searchsorted(beside.ids, ids[known])]
    if labelled is not None:
        if labelled.vectors.shape[1] != store.dimension:
            raise ValueError(
                f"labelled clips have vectors of dimension {labelled.vectors.shape[1]}, store "
                f"{store.place} of {store.dimension}: embed both with the same checkpoint"
            )
        row = {name: index for index, name in enumerate(to_bytes(labelled.ids))}
        gold = np.asarray([name in row for name in to_bytes(ids)], dtype=np.bool_)
        vectors_QD[gold] = labelled.vectors[[row[name] for name in to_bytes(ids[gold])]]
        known |= gold
    vectors_QD[~known] = store.vectors(ids[~known])
    return ids, vectors_QD
