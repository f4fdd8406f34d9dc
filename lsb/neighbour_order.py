"""The order in which neighbours of seeds are offered to the budget: three ways.

`in_turn`, seeds one after the other, each with its nearest neighbour; `by_diversity`, greedy
k-centre (Sener and Savarese 2018, see `lsb.acquisition.core_set`) around the seeds; `by_value`, the
largest chance of a lookalike times the seed's weight (ours). Caps hold for all of them.

Clusters, whose share in the budget may be capped, come from k-means over the neighbours' vectors:
connected groups would not do, since above an LT that finds anything most neighbours hang together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lsb.basket import Basket, Offer, Pool, Reach, Source
from lsb.ids import IdArray, from_arrow, from_bytes, to_bytes
from lsb.lookalike_chance import any_lookalike
from lsb.media_hashes import UNKNOWN
from lsb.order import IndexArray, descending
from lsb.selection_config import SelectionConfig

VALUE_CHUNK = 256


@dataclass(frozen=True)
class Reached:
    """Clips that seeds reach, and by which; H hits of C clips.

    Attributes:
        ids: (C,) S16, ascending.
        clip: (H,) number of each hit's clip; hits are ordered by (clip, seed).
        source: (H,) number of its seed among the sources.
        similarity: (H,) float32.
        chance: (H,) float64 of a lookalike, None where nobody can tell.
    """

    ids: IdArray
    clip: npt.NDArray[np.intp]
    source: npt.NDArray[np.intp]
    similarity: npt.NDArray[np.float32]
    chance: npt.NDArray[np.float64] | None

    def best(self) -> npt.NDArray[np.float32]:
        """Similarity of each clip to the seed it is most similar to, (C,)."""
        best = np.full(len(self.ids), -np.inf, dtype=np.float32)
        np.maximum.at(best, self.clip, self.similarity)
        return best

    def keep(self, wanted_C: npt.NDArray[np.bool_]) -> Reached:
        """Some of the clips."""
        number = np.cumsum(wanted_C) - 1
        kept = wanted_C[self.clip]
        return Reached(
            self.ids[wanted_C],
            number[self.clip[kept]],
            self.source[kept],
            self.similarity[kept],
            None if self.chance is None else self.chance[kept],
        )


def reached(
    sources: Sequence[Source], hits: pa.Table, chance_H: npt.NDArray[np.float64] | None
) -> Reached:
    """What the seeds reach.

    Args:
        sources: seeds, each once.
        hits: schema `lsb.search.exact.HITS`; those of other seeds are left out.
        chance_H: (H,) of each row of `hits`, or None.
    """
    hit_seed, hit_id = from_arrow(hits["seed_id"]), from_arrow(hits["id"])
    near = np.asarray(hits["similarity"].to_numpy(), dtype=np.float32)
    seed_ids = from_bytes([source.id for source in sources])
    by_id = np.argsort(seed_ids)
    place = np.minimum(np.searchsorted(seed_ids[by_id], hit_seed), len(by_id) - 1)
    known = np.flatnonzero(seed_ids[by_id][place] == hit_seed)
    ids, clip = np.unique(hit_id[known], return_inverse=True)
    source = by_id[place[known]]
    # Sources are by (-weight, id), so that their numbers order seeds whatever the rows' order.
    order = np.lexsort((source, clip))
    return Reached(
        ids,
        clip[order],
        source[order],
        near[known][order],
        None if chance_H is None else chance_H[known][order],
    )


def clusters_of(
    found: Reached, vectors_CD: npt.NDArray[np.float32], config: SelectionConfig
) -> dict[bytes, int]:
    """Cluster of every clip, by k-means; empty without a cap."""
    if config.per_cluster_cap is None or not len(found.ids):
        return {}
    from lsb.acquisition.typiclust import cluster  # faiss is loaded only where clusters are capped

    count = min(config.clusters, len(found.ids))
    number = cluster(found.ids, vectors_CD, count, seed=0, round=0)
    return dict(zip(to_bytes(found.ids), number.tolist(), strict=True))


def in_turn(sources: Sequence[Source], basket: Basket, clusters: dict[bytes, int] | None) -> None:
    """Seeds take turns, by (-weight, id), each with its nearest clip that may still be chosen.

    Args:
        sources: with their neighbours, nearest first.
        basket: to fill.
        clusters: of all clips that may be offered; None where clusters are not capped.
    """
    active = list(sources)
    while active and basket.has_room():
        offers = []
        for source in active:
            place = _next_place(source, basket, clusters)
            if place is not None:
                name = source.ids[place]
                reach = (Reach(source, float(source.similarity[place])),)
                number = None if clusters is None else clusters[name]
                offers.append(Offer(name, "lookalike", reach, number))
        basket.offer(offers)
        cap = basket.config.per_seed_cap
        active = [offer.reach[0].source for offer in offers if offer.reach[0].source.chosen < cap]


def _next_place(source: Source, basket: Basket, clusters: dict[bytes, int] | None) -> int | None:
    """Where the source's next neighbour stands that is undecided and in no full cluster."""
    while source.place < len(source.ids):
        name = source.ids[source.place]
        free = clusters is None or (name in clusters and basket.has_cluster_room(clusters[name]))
        if free and name not in basket.decided:
            return source.place
        source.place += 1
    return None


def by_diversity(
    sources: Sequence[Source],
    found: Reached,
    vectors_CD: npt.NDArray[np.float32],
    seed_ids: IdArray,
    seeds_QD: npt.NDArray[np.float32],
    basket: Basket,
    clusters: dict[bytes, int],
) -> None:
    """The clip farthest from all seeds and all that are chosen, again and again.

    Args:
        sources: seeds by (-weight, id).
        found: undecided clips that may be offered.
        vectors_CD: of these clips.
        seed_ids: (Q,) S16 of all seeds, which are centres from the start.
        seeds_QD: their vectors.
        basket: to fill. A clip that it turns down is no centre.
        clusters: of these clips; empty where clusters are not capped.
    """
    from lsb.acquisition.core_set import FarthestFirst  # torch is loaded only where it is needed

    # Credit goes to the most similar seed, then to the heavier one.
    order = np.lexsort((found.source, -found.similarity, found.clip))
    offers = list(_offers(sources, found, order, clusters))
    groups = _media_groups(basket, found.ids)
    centres = FarthestFirst(
        found.ids, vectors_CD, covered_ids=seed_ids, covered_MD=seeds_QD, seed=0, round=0
    )
    while basket.has_room() and (row := centres.next()) is not None:
        if basket.take(offers[row], vectors_CD[row], int(groups[row])):
            centres.take(row)
        else:
            centres.leave(row)


def by_value(
    sources: Sequence[Source], found: Reached, basket: Basket, clusters: dict[bytes, int]
) -> None:
    """By (-value, id): the chance that a clip is a lookalike of any seed, times a weight.

    The weight is that of the seed with the largest chance times weight, which is credited.

    Args:
        sources: seeds by (-weight, id).
        found: undecided clips that may be offered, with chances.
        basket: to fill.
        clusters: of these clips; empty where clusters are not capped.
    """
    assert found.chance is not None
    weight_S = np.asarray([source.weight for source in sources], dtype=np.float64)
    share_H = found.chance * weight_S[found.source]
    order = np.lexsort((found.source, -found.similarity, -share_H, found.clip))
    first = order[np.searchsorted(found.clip[order], np.arange(len(found.ids)))]
    chance_C = any_lookalike(found.chance, found.clip, len(found.ids))
    value_C = chance_C * weight_S[found.source[first]]
    offers = list(_offers(sources, found, order, clusters))
    ranked = descending(value_C, found.ids).tolist()
    for start in range(0, len(ranked), VALUE_CHUNK):
        if not basket.has_room():
            return
        basket.offer([offers[row] for row in ranked[start : start + VALUE_CHUNK]])


def _offers(
    sources: Sequence[Source], found: Reached, order: IndexArray, clusters: dict[bytes, int]
) -> Iterator[Offer]:
    """One offer a clip, in the order of ids; `order` sorts hits by clip, then by credit."""
    ends = np.searchsorted(found.clip[order], np.arange(len(found.ids)), side="right").tolist()
    start = 0
    for name, end in zip(to_bytes(found.ids), ends, strict=True):
        reach = tuple(
            Reach(sources[found.source[hit]], float(found.similarity[hit]))
            for hit in order[start:end].tolist()
        )
        yield Offer(name, "lookalike", reach, clusters.get(name))
        start = end


def _media_groups(basket: Basket, ids: IdArray) -> npt.NDArray[np.int64]:
    if basket.media is None:
        return np.full(len(ids), UNKNOWN, dtype=np.int64)
    return basket.media.groups(ids)


def compared(
    found: Reached, pool: Pool, config: SelectionConfig
) -> tuple[Reached, npt.NDArray[np.float32]]:
    """The clips that are compared with each other, those most similar to a seed, and vectors."""
    best = descending(found.best(), found.ids)[: config.candidates]
    wanted = np.zeros(len(found.ids), dtype=np.bool_)
    wanted[best] = True
    kept = found.keep(wanted)
    return kept, pool.vectors(kept.ids)
