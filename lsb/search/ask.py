"""Asking seeds for neighbours until none is cut short: saturation, and the table of hits.

A seed that has more neighbours at or above LT than it asked for is saturated: it is asked again,
four times wider, until it has all of them or as many as the config allows. Who gathers neighbours
(one process, many tasks, many ranks) stands behind `Gather`, so all of them ask alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from lsb.ids import ID_TYPE, IdArray, require_unique, to_arrow
from lsb.order import IndexArray
from lsb.search.lists import FloatArray, NeighbourLists, RowArray, rank_in_run
from lsb.search.scan import Seeds
from lsb.store import require_unit

HITS_FIELDS: dict[str, pa.DataType] = {
    "seed_id": ID_TYPE,
    "id": ID_TYPE,
    "similarity": pa.float32(),
    "rank": pa.int32(),
    "saturated": pa.bool_(),
}
HITS = pa.schema(HITS_FIELDS)
WIDENING = 4

Gather = Callable[[Seeds, int, float], NeighbourLists]
"""(seeds, limit, floor) -> the best `limit` neighbours of each with a score of at least `floor`."""


@dataclass(frozen=True)
class Hits:
    """Neighbours of all seeds.

    Attributes:
        table: schema `HITS`, ordered by (seed_id, rank). `similarity` comes from the rescoring
            kernel, `rank` starts at 1. `saturated` marks every hit of a seed that has more than
            `max_neighbours` clips at or above LT; false where there is no LT.
        asked_again: seeds whose first ask was too narrow.
        saturated: seeds that were still saturated at `max_neighbours`; 0 where there is no LT.
        row: (hits,) int64, where each neighbour stands in the store that was searched.
    """

    table: pa.Table
    asked_again: int
    saturated: int
    row: RowArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))


def seeds_of(seed_ids: IdArray, seeds_QD: FloatArray) -> Seeds:
    """Seeds in the order of their ids.

    Raises:
        ValueError: an id occurs twice, or a vector is not of norm 1.
    """
    require_unique(seed_ids)
    seeds_QD = np.ascontiguousarray(seeds_QD, dtype=np.float32)
    require_unit(seeds_QD, "seeds")
    return Seeds(seed_ids, seeds_QD).take(np.argsort(seed_ids))


def ask(
    seeds: Seeds,
    gather: Gather,
    *,
    neighbours: int,
    max_neighbours: int,
    lookalike_threshold: float | None,
) -> Hits:
    """Ask all seeds, and those that are cut short again.

    Args:
        seeds: what `seeds_of` returned.
        gather: called once a wave, with the seeds that are left.
        neighbours: how many a seed asks for at first.
        max_neighbours: how many it may get.
        lookalike_threshold: smallest similarity of a hit; None takes the nearest `max_neighbours`.
    """
    floor = -np.inf if lookalike_threshold is None else lookalike_threshold
    pending: IndexArray = np.arange(len(seeds))
    # Without LT every seed wants all it may get, so asking for fewer first is of no use.
    first = max_neighbours if lookalike_threshold is None else neighbours
    width = first
    pieces: list[NeighbourLists] = []
    asked_again, saturated = 0, pending[:0]
    while pending.size:
        # One more than wanted: whether it exists says whether the list was cut.
        lists = gather(seeds.take(pending), width + 1, floor)
        cut = lists.is_full()
        finished = ~cut
        if width == max_neighbours:
            finished[:] = True
            if lookalike_threshold is not None:
                saturated = pending[cut]
        pieces.append(lists.finished(finished, width, pending, len(seeds)))
        pending = pending[~finished]
        if width == first:
            asked_again = len(pending)
        width = min(width * WIDENING, max_neighbours)
    return _hits(pieces, seeds.ids, asked_again, saturated)


def _hits(
    pieces: list[NeighbourLists], seed_ids: IdArray, asked_again: int, saturated: IndexArray
) -> Hits:
    if not pieces:
        return Hits(HITS.empty_table(), 0, 0)
    query = np.concatenate([piece.query for piece in pieces])
    order = np.argsort(query, kind="stable")  # a query is in one piece, in order already
    query = query[order]
    columns = [
        to_arrow(seed_ids[query]),
        to_arrow(np.concatenate([piece.id for piece in pieces])[order]),
        pa.array(np.concatenate([piece.score for piece in pieces])[order]),
        pa.array((rank_in_run(query) + 1).astype(np.int32)),
        pa.array(np.isin(query, saturated)),
    ]
    row = np.concatenate([piece.row for piece in pieces])[order]
    return Hits(pa.table(columns, schema=HITS), asked_again, len(saturated), row)
