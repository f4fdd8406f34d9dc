"""AnchorAL: neighbours of a few diverse labelled clips of each class are the pool of a round.

Source: Lesci and Vlachos 2024 (arXiv 2404.05623): 10 anchors of each class, 50 neighbours of each,
ranked by their mean similarity to the anchors that found them, at most 10,000. Anchors are drawn
anew each round by k-means++. With several tasks, each task has its anchors, which is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lsb.acquisition.plus_plus import plus_plus
from lsb.acquisition.random import uniform
from lsb.ids import IdArray, from_arrow
from lsb.order import IndexArray, descending, id_words
from lsb.search.exact import SearchConfig, search
from lsb.shortlist.known import Known
from lsb.shortlist.table import brought
from lsb.store import Store


def anchoral(
    store: Store,
    known: Known,
    tasks: Sequence[str],
    *,
    anchors: int,
    neighbours: int,
    count: int,
    exclude: IdArray,
    seed: int,
    round: int,
    threads: int = 1,
) -> pa.Table:
    """The clips most similar to anchors of every class.

    Args:
        store: pooled vectors of the pool.
        known: the labelled clips.
        tasks: whose classes have anchors.
        anchors: of each class of a task; fewer where a class has fewer clips.
        neighbours: of each anchor.
        count: most clips wanted.
        exclude: ids to leave out.
        seed: of chance.
        round: of data growth; other rounds draw other anchors.
        threads: of the search; changes no result.

    Returns:
        Schema `lsb.shortlist.table.SHORTLIST` by (-mean similarity, id); `seed_id` is the anchor
        that is nearest.
    """
    order = np.argsort(known.ids, kind="stable")
    labelled_ids, vectors_MD = known.ids[order], np.asarray(known.vectors[order], np.float32)
    rows = [
        _drawn(labelled_ids, vectors_MD, members, anchors, (seed, round, task, label))
        for task in sorted(tasks)
        for label in (0, 1)
        if len(members := np.flatnonzero(known.labels[task][order] == label))
    ]
    chosen = np.unique(np.concatenate([np.empty(0, np.intp), *rows]))
    hits = search(
        labelled_ids[chosen],
        vectors_MD[chosen],
        store,
        SearchConfig(neighbours, neighbours, threads=threads),
        lookalike_threshold=None,
        exclude=exclude,
    ).table
    ids, similarity = from_arrow(hits["id"]), np.asarray(hits["similarity"].to_numpy(), np.float64)
    seed_high, seed_low = id_words(from_arrow(hits["seed_id"]))
    high, low = id_words(ids)
    by_clip = np.lexsort((seed_low, seed_high, -similarity, low, high))
    unique, first, found = np.unique(ids[by_clip], return_index=True, return_counts=True)
    # Each clip's sum runs in the order of its anchors, so that no order of rows shows.
    total = np.add.reduceat(similarity[by_clip], first) if len(first) else np.empty(0)
    ranked = descending(total / found, unique)[:count]
    return brought(store, hits, by_clip[first[ranked]], known, "anchoral")


def _drawn(
    ids: IdArray,
    vectors_MD: npt.NDArray[np.float32],
    members: IndexArray,
    count: int,
    salt: tuple[str | int, ...],
) -> IndexArray:
    """Rows of `count` clips of one class, far from each other, the first by chance."""
    first = int(descending(uniform(ids[members], "first anchor", *salt), ids[members])[0])
    coefficients = np.ones((len(members), 1))
    return members[plus_plus(vectors_MD[members], coefficients, count, first=first, salt=salt)]
