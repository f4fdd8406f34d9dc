"""SEALS: the neighbours of all labelled clips are the pool of a round.

Source: Coleman et al. 2022 (arXiv 2007.00077), k = 100 neighbours of each labelled clip. Where a
scoring budget holds fewer, nearer ones by rank go first; that cut is ours.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lsb.ids import IdArray, from_arrow
from lsb.order import id_words
from lsb.search.exact import SearchConfig, search
from lsb.shortlist.known import Known
from lsb.shortlist.table import brought
from lsb.store import Store


def seals(
    store: Store,
    known: Known,
    neighbours: int,
    count: int,
    *,
    exclude: IdArray,
    threads: int = 1,
) -> pa.Table:
    """The nearest unlabelled neighbours of labelled clips.

    Args:
        store: pooled vectors of the pool.
        known: the labelled clips.
        neighbours: of each labelled clip.
        count: most clips wanted.
        exclude: ids to leave out.
        threads: of the search; changes no result.

    Returns:
        Schema `lsb.shortlist.table.SHORTLIST`, each clip once, in the order of the smallest rank
        that it has in any list, then of similarity, then of id.
    """
    hits = search(
        known.ids,
        known.vectors,
        store,
        SearchConfig(neighbours, neighbours, threads=threads),
        lookalike_threshold=None,
        exclude=exclude,
    ).table
    ids = from_arrow(hits["id"])
    rank = np.asarray(hits["rank"].to_numpy(), dtype=np.int64)
    similarity = np.asarray(hits["similarity"].to_numpy(), dtype=np.float64)
    seed_high, seed_low = id_words(from_arrow(hits["seed_id"]))
    high, low = id_words(ids)
    order = np.lexsort((seed_low, seed_high, low, high, -similarity, rank))
    _, first = np.unique(ids[order], return_index=True)
    return brought(store, hits, order[np.sort(first)][:count], known, "seals")
