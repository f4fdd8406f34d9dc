"""Selection: which clips are asked for with this round's budget, and which seed brought each.

First the pool seeds themselves, then neighbours, one for each seed in turn, then a given order
fills what is left of the budget. Near duplicates of a clip already chosen are dropped and recorded.
Everything is decided by ids and scores; the order of rows in any table does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lsb.ids import ID_TYPE, IdArray, from_arrow, from_bytes, require_unique, to_bytes
from lsb.order import descending
from lsb.search.rescore import proposal_error, similarity
from lsb.threshold import LookalikeThreshold

CHOSEN_FIELDS: dict[str, pa.DataType] = {
    "id": ID_TYPE,
    "key": pa.string(),
    "seed_id": ID_TYPE,
    "seed_key": pa.string(),
    "kind": pa.string(),
    "task": pa.string(),
    "similarity": pa.float32(),
    "lookalike_threshold": pa.float64(),
    "rank": pa.int32(),
    "reason": pa.string(),
}
CHOSEN = pa.schema(CHOSEN_FIELDS)
DROPPED_FIELDS: dict[str, pa.DataType] = {
    "id": ID_TYPE,
    "representative_id": ID_TYPE,
    "similarity": pa.float32(),
}
DROPPED = pa.schema(DROPPED_FIELDS)
REASONS = ("seed", "lookalike", "fill", "acquisition")
FILL_CHUNK = 256


class Pool(Protocol):
    """What selection needs of a store; `lsb.store.Store` is one."""

    dimension: int

    def keys(self, ids: IdArray) -> list[str]:
        """Keys of clips."""
        ...

    def vectors(self, ids: IdArray) -> npt.NDArray[np.float32]:
        """Vectors of clips, (len(ids), D) float32 of norm 1."""
        ...


@dataclass(frozen=True)
class SelectionConfig:
    """How the budget is spent.

    Attributes:
        budget: clips to choose.
        per_seed_cap: most neighbours chosen for one seed.
        near_duplicate: clips at least this similar to a chosen one are dropped; None keeps them.
    """

    budget: int = 200
    per_seed_cap: int = 10
    near_duplicate: float | None = None

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"selection.budget is {self.budget}: give at least 1 clip")
        if self.per_seed_cap < 0:
            raise ValueError(f"selection.per_seed_cap is {self.per_seed_cap}: give 0 or more")
        if self.near_duplicate is not None and not 0 < self.near_duplicate <= 1:
            raise ValueError(
                f"selection.near_duplicate is {self.near_duplicate}: give a cosine similarity in "
                "(0, 1], or null to keep near duplicates"
            )


@dataclass(frozen=True)
class Selection:
    """The chosen clips.

    Attributes:
        chosen: schema `CHOSEN` in order of choice; `rank` starts at 1. `seed_id`, `seed_key`,
            `kind`, `task` and `similarity` are null for clips that no seed brought.
        dropped: schema `DROPPED`, ordered by id: near duplicates and the chosen clip they resemble
            most.
        counts: "chosen", "seed", "lookalike", "fill", "acquisition" (chosen for this reason),
            "near_duplicates" (dropped), "short" (clips missing from the budget because the pool is
            exhausted).
    """

    chosen: pa.Table
    dropped: pa.Table
    counts: dict[str, int]

    @property
    def exhausted(self) -> bool:
        """Whether the pool had fewer clips than the budget."""
        return self.counts["short"] > 0


def select(
    seeds: pa.Table,
    hits: pa.Table,
    fill: IdArray,
    pool: Pool,
    config: SelectionConfig,
    *,
    lookalike_threshold: LookalikeThreshold | None,
    exclude: IdArray,
) -> Selection:
    """Spend the budget.

    1. Unlabelled seeds, by (-weight, id), similarity 1 to themselves, reason "seed".
    2. Neighbours in rounds: in each round every seed, by (-weight, id), offers its nearest clip
       that is still undecided, up to `per_seed_cap` chosen ones. An offer that an earlier seed of
       the round took, or that is a near duplicate, is lost until the next. Reason "lookalike".
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

    Returns:
        Exactly `budget` clips, unless the pool has fewer.
    """
    value = None if lookalike_threshold is None else lookalike_threshold.value
    require_unique(fill)
    basket = _Basket(pool, config, np.unique(exclude))
    sources = _sources(seeds, hits)
    free = [source for source in sources if source.in_pool]
    for start in range(0, len(free), FILL_CHUNK):
        chunk = free[start : start + FILL_CHUNK]
        basket.offer([_Offer(source.id, source, 1.0, None, "seed") for source in chunk])
    active = sources if config.per_seed_cap else []
    while active and basket.has_room():
        offers = []
        for source in active:
            place = source.next_undecided(basket)
            if place is not None:
                near = float(source.similarity[place])
                offers.append(_Offer(source.ids[place], source, near, value, "lookalike"))
        basket.offer(offers)
        active = [
            offer.source
            for offer in offers
            if offer.source is not None and offer.source.chosen < config.per_seed_cap
        ]
    reason = "fill" if sources else "acquisition"
    for start in range(0, len(fill), FILL_CHUNK):
        if not basket.has_room():
            break
        chunk_ids = to_bytes(fill[start : start + FILL_CHUNK])
        basket.offer([_Offer(name, None, None, None, reason) for name in chunk_ids])
    return basket.result()


@dataclass
class _Source:
    """A seed and its neighbours, nearest first."""

    id: bytes
    key: str
    kind: str
    task: str | None
    in_pool: bool
    ids: list[bytes]
    similarity: npt.NDArray[np.float32]
    place: int = 0
    chosen: int = 0

    def next_undecided(self, basket: _Basket) -> int | None:
        while self.place < len(self.ids) and self.ids[self.place] in basket.decided:
            self.place += 1
        return self.place if self.place < len(self.ids) else None


@dataclass(frozen=True)
class _Offer:
    id: bytes
    source: _Source | None
    similarity: float | None
    threshold: float | None
    reason: str


def _sources(seeds: pa.Table, hits: pa.Table) -> list[_Source]:
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

    sources: dict[bytes, _Source] = {}
    for index in order:
        row = rows[index]
        if row["id"] in sources:
            continue
        start = np.searchsorted(hit_seed, ids[index], side="left")
        end = np.searchsorted(hit_seed, ids[index], side="right")
        sources[row["id"]] = _Source(
            id=row["id"],
            key=row["key"],
            kind=row["kind"],
            task=row["task"],
            in_pool=row["label"] is None,
            ids=to_bytes(hit_id[start:end]),
            similarity=near[start:end],
        )
    return list(sources.values())


def _runs(sorted_ids: IdArray) -> npt.NDArray[np.intp]:
    return np.asarray(np.cumsum(np.r_[False, sorted_ids[1:] != sorted_ids[:-1]]))[: len(sorted_ids)]


@dataclass
class _Basket:
    """Chosen clips so far, and the test whether another resembles one of them."""

    pool: Pool
    config: SelectionConfig
    excluded: IdArray
    decided: set[bytes] = field(default_factory=set)
    offers: list[_Offer] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    vectors: npt.NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.decided = set(to_bytes(self.excluded))
        rows = self.config.budget if self.config.near_duplicate is not None else 0
        self.vectors = np.empty((rows, self.pool.dimension), dtype=np.float32)

    def has_room(self) -> bool:
        return len(self.offers) < self.config.budget

    def offer(self, offers: list[_Offer]) -> None:
        """Take or drop each offer in turn while there is room."""
        offers = [offer for offer in offers if offer.id not in self.decided]
        if not offers or not self.has_room():
            return
        vectors = None
        if self.config.near_duplicate is not None:
            vectors = self.pool.vectors(from_bytes([offer.id for offer in offers]))
        for index, offer in enumerate(offers):
            if offer.id in self.decided:
                continue
            if not self.has_room():
                return
            self.decided.add(offer.id)
            if vectors is not None and self._drop(offer.id, vectors[index]):
                continue
            self.offers.append(offer)
            if offer.source is not None and offer.reason == "lookalike":
                offer.source.chosen += 1

    def _drop(self, name: bytes, vector_D: npt.NDArray[np.float32]) -> bool:
        """Record `name` as a near duplicate if it is one, else keep its vector."""
        limit = self.config.near_duplicate
        assert limit is not None
        count = len(self.offers)
        chosen_BD = self.vectors[:count]
        # The float32 product only proposes; the rescoring kernel decides.
        near = np.flatnonzero(chosen_BD @ vector_D >= limit - proposal_error(len(vector_D)))
        exact = similarity(chosen_BD[near], vector_D[None])
        passed = exact.astype(np.float64) >= limit
        near, exact = near[passed], exact[passed]
        if near.size == 0:
            self.vectors[count] = vector_D
            return False
        ids = from_bytes([self.offers[row].id for row in near])
        best = int(descending(exact, ids)[0])
        self.dropped.append(
            {
                "id": name,
                "representative_id": to_bytes(ids[best : best + 1])[0],
                "similarity": float(exact[best]),
            }
        )
        return True

    def result(self) -> Selection:
        keys = self.pool.keys(from_bytes([offer.id for offer in self.offers]))
        rows = []
        for rank, (offer, key) in enumerate(zip(self.offers, keys, strict=True), start=1):
            source = offer.source
            rows.append(
                {
                    "id": offer.id,
                    "key": key,
                    "seed_id": source.id if source else None,
                    "seed_key": source.key if source else None,
                    "kind": source.kind if source else None,
                    "task": source.task if source else None,
                    "similarity": offer.similarity,
                    "lookalike_threshold": offer.threshold,
                    "rank": rank,
                    "reason": offer.reason,
                }
            )
        counts = dict.fromkeys(REASONS, 0)
        for offer in self.offers:
            counts[offer.reason] += 1
        counts["chosen"] = len(self.offers)
        counts["near_duplicates"] = len(self.dropped)
        counts["short"] = self.config.budget - len(self.offers)
        dropped = sorted(self.dropped, key=lambda row: row["id"])
        return Selection(
            pa.Table.from_pylist(rows, schema=CHOSEN),
            pa.Table.from_pylist(dropped, schema=DROPPED),
            counts,
        )
