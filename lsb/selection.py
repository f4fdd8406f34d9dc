"""Selection: which clips are asked for with this round's budget, and which seed brought each.

First the pool seeds themselves, then neighbours in the order that the config names, then a given
order fills what is left of the budget. Copies of a clip already chosen are dropped and recorded.
Everything is decided by ids and scores; the order of rows in any table does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lsb.basket import CHOSEN, DROPPED, REASONS, Basket, Offer, Pool, Reach, Source
from lsb.ids import IdArray, from_arrow, require_unique, to_bytes
from lsb.media_hashes import MediaHashes
from lsb.neighbour_order import (
    Reached,
    by_diversity,
    by_value,
    clusters_of,
    compared,
    in_turn,
    reached,
)
from lsb.order import descending
from lsb.selection_config import SelectionConfig
from lsb.threshold import LookalikeThreshold

__all__ = [
    "CHOSEN",
    "DROPPED",
    "REASONS",
    "Neighbours",
    "Pool",
    "Selection",
    "SelectionConfig",
    "select",
]

FILL_CHUNK = 256


@dataclass(frozen=True)
class Selection:
    """The chosen clips.

    Attributes:
        chosen: schema `CHOSEN` in order of choice; `rank` starts at 1. `seed_id`, `seed_key`,
            `kind`, `task` and `similarity` are null for clips that no seed brought.
        dropped: schema `DROPPED`, ordered by id: near duplicates and the chosen clip they resemble
            most; copies of the same media and the chosen or excluded clip that has it.
        counts: "chosen", "seed", "lookalike", "fill", "acquisition" (chosen for this reason),
            "near_duplicates" (dropped), "short" (clips missing from the budget because the pool is
            exhausted); with media hashes "same_media" (dropped for it).
    """

    chosen: pa.Table
    dropped: pa.Table
    counts: dict[str, int]

    @property
    def exhausted(self) -> bool:
        """Whether the pool had fewer clips than the budget."""
        return self.counts["short"] > 0


@dataclass(frozen=True)
class Neighbours:
    """What the orders of neighbours need beside the hits.

    Attributes:
        seed_ids: (Q,) S16, ascending, of all seeds; for rank "diversity".
        vectors: (Q, D) float32 of norm 1, theirs.
        chance: (H,) chance that each row of the hits is a lookalike; for rank "expected_value".
        thresholds: LT of single seeds, where it is scaled.
    """

    seed_ids: IdArray
    vectors: npt.NDArray[np.float32]
    chance: npt.NDArray[np.float64] | None = None
    thresholds: Mapping[bytes, float] | None = None


def select(
    seeds: pa.Table,
    hits: pa.Table,
    fill: IdArray,
    pool: Pool,
    config: SelectionConfig,
    *,
    lookalike_threshold: LookalikeThreshold | None,
    exclude: IdArray,
    neighbours: Neighbours | None = None,
    media: MediaHashes | None = None,
) -> Selection:
    """Spend the budget.

    1. Unlabelled seeds, by (-weight, id), similarity 1 to themselves, reason "seed".
    2. Neighbours, reason "lookalike", up to `per_seed_cap` of a seed and `per_cluster_cap` of a
       cluster, in the order of `config.rank`: "similarity": in each turn every seed, by
       (-weight, id), offers its nearest clip that is still undecided; an offer that an earlier
       seed of the turn took, or that is a near duplicate, is lost until the next.
       "diversity" and "expected_value": see `lsb.neighbour_order`.
    3. `fill` in its order, reason "fill", or "acquisition" when there are no seeds at all (arms
       without broadening).

    Args:
        seeds: schema `lsb.acquisition.seeds.SEEDS`. Of rows with the same id the heaviest counts.
        hits: schema `lsb.search.exact.HITS`, neighbours of the seeds in the pool.
        fill: ids of the pool in the order of an acquisition function.
        pool: keys and vectors of pool clips.
        config: budget and limits.
        lookalike_threshold: the one that `hits` passed, recorded with every lookalike.
        exclude: ids that may not be chosen (labelled clips).
        neighbours: vectors of seeds, chances, LT of single seeds, where they are needed.
        media: groups of clips with equal media. Where they are given, a clip with the media of an
            excluded one is dropped, too.

    Returns:
        Exactly `budget` clips, unless the pool has fewer.

    Raises:
        ValueError: the config wants vectors of seeds, chances or media, and there are none.
    """
    value = None if lookalike_threshold is None else lookalike_threshold.value
    require_unique(fill)
    if config.media_hashes and media is None:
        raise ValueError(
            "selection.media_hashes is true but there are no media hashes: give a table of id and "
            "media_hash, or set it to false"
        )
    basket = Basket(pool, config, np.unique(exclude), media if config.media_hashes else None)
    sources = _sources(seeds, hits)
    free = [source for source in sources if source.in_pool]
    for start in range(0, len(free), FILL_CHUNK):
        chunk = free[start : start + FILL_CHUNK]
        basket.offer([Offer(source.id, "seed", (Reach(source, 1.0),)) for source in chunk])
    if sources and config.per_seed_cap:
        _offer_neighbours(sources, hits, basket, neighbours)
    reason = "fill" if sources else "acquisition"
    for start in range(0, len(fill), FILL_CHUNK):
        if not basket.has_room():
            break
        basket.offer([Offer(name, reason) for name in to_bytes(fill[start : start + FILL_CHUNK])])
    of_seed = {} if neighbours is None else neighbours.thresholds or {}
    return Selection(*basket.tables(value, of_seed), basket.counts())


def _offer_neighbours(
    sources: list[Source], hits: pa.Table, basket: Basket, neighbours: Neighbours | None
) -> None:
    config = basket.config
    if config.rank == "similarity" and not config.compares:
        in_turn(sources, basket, None)
        return
    chance = None if neighbours is None else neighbours.chance
    if config.rank == "expected_value" and chance is None:
        raise ValueError(
            "selection.rank is 'expected_value' but nobody told the chance of a lookalike: give "
            "labelled clips, or set selection.rank=similarity"
        )
    found = _undecided(reached(sources, hits, chance), basket)
    vectors_CD = np.empty((0, basket.pool.dimension), dtype=np.float32)
    if config.compares:
        found, vectors_CD = compared(found, basket.pool, config)
    clusters = clusters_of(found, vectors_CD, config)
    if config.rank == "similarity":
        in_turn(sources, basket, clusters)
    elif config.rank == "expected_value":
        by_value(sources, found, basket, clusters)
    else:
        if neighbours is None:
            raise ValueError(
                "selection.rank is 'diversity' but there are no vectors of the seeds: give them, "
                "or set selection.rank=similarity"
            )
        by_diversity(
            sources,
            found,
            vectors_CD,
            neighbours.seed_ids,
            neighbours.vectors,
            basket,
            clusters,
        )


def _undecided(found: Reached, basket: Basket) -> Reached:
    wanted = [name not in basket.decided for name in to_bytes(found.ids)]
    return found.keep(np.asarray(wanted, dtype=np.bool_))


def _sources(seeds: pa.Table, hits: pa.Table) -> list[Source]:
    """Seeds by (-weight, id), one for each id, with their neighbours by rank."""
    if seeds.num_rows == 0:
        return []
    rows = seeds.to_pylist()
    ids = from_arrow(seeds["id"])
    weight = np.asarray(seeds["weight"].to_numpy(), dtype=np.float64)
    by_task = np.argsort([row["task"] or "" for row in rows], kind="stable")
    order = by_task[descending(weight[by_task], ids[by_task])]

    hit_seed, hit_id = from_arrow(hits["seed_id"]), from_arrow(hits["id"])
    near = np.asarray(hits["similarity"].to_numpy(), dtype=np.float32)
    by_seed = np.argsort(hit_seed, kind="stable")
    by_seed = by_seed[descending(near[by_seed], hit_id[by_seed], _runs(hit_seed[by_seed]))]
    hit_seed, hit_id, near = hit_seed[by_seed], hit_id[by_seed], near[by_seed]

    sources: dict[bytes, Source] = {}
    for index in order:
        row = rows[index]
        if row["id"] in sources:
            continue
        start = np.searchsorted(hit_seed, ids[index], side="left")
        end = np.searchsorted(hit_seed, ids[index], side="right")
        sources[row["id"]] = Source(
            id=row["id"],
            key=row["key"],
            kind=row["kind"],
            task=row["task"],
            weight=float(row["weight"]),
            in_pool=row["label"] is None,
            ids=to_bytes(hit_id[start:end]),
            similarity=near[start:end],
        )
    return list(sources.values())


def _runs(sorted_ids: IdArray) -> npt.NDArray[np.intp]:
    return np.asarray(np.cumsum(np.r_[False, sorted_ids[1:] != sorted_ids[:-1]]))[: len(sorted_ids)]
