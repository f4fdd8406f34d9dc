"""One entry to all shortlists: which clips of a pooled store are scored in a round."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lsb.acquisition.random import uniform
from lsb.acquisition.ranking import PoolBlock, rank_pool
from lsb.ids import IdArray, from_arrow
from lsb.shortlist.anchoral import anchoral
from lsb.shortlist.config import ShortlistConfig
from lsb.shortlist.known import Known
from lsb.shortlist.proxy import by_proxy
from lsb.shortlist.seals import seals
from lsb.shortlist.table import unbrought
from lsb.store import Store
from lsb.views import Views


def shortlist(
    store: Store,
    known: Known,
    config: ShortlistConfig,
    *,
    count: int,
    task_weights: Mapping[str, float],
    exclude: IdArray,
    round: int,
    views: Views | None = None,
) -> pa.Table:
    """The clips to score: those of the method, then others by chance up to the scoring budget.

    SEALS and AnchorAL restrict the pool by design; where there is no scoring budget nothing is
    added to theirs.

    Args:
        store: pooled vectors of the pool.
        known: labelled clips.
        config: of one of the methods that need no model; see `lsb.shortlist.lookalikes` for the
            other.
        count: most clips that may be scored.
        task_weights: task -> weight >= 0.
        exclude: ids to leave out: labelled and gold clips.
        round: of data growth; changes what chance draws.
        views: of the pool, where `config.whiten` is set.

    Returns:
        Schema `lsb.shortlist.table.SHORTLIST`, each clip once.
    """
    exclude = np.unique(np.concatenate([exclude, known.ids]))
    if config.method == "seals":
        neighbours = config.neighbours
        table = seals(store, known, neighbours, count, exclude=exclude)
    elif config.method == "anchoral":
        table = anchoral(
            store,
            known,
            [task for task, weight in task_weights.items() if weight > 0],
            anchors=config.anchors,
            neighbours=config.neighbours,
            count=min(count, config.subpool),
            exclude=exclude,
            seed=config.seed,
            round=round,
        )
    elif config.method == "proxy":
        table = by_proxy(
            store,
            known.ids,
            known.vectors,
            known.labels,
            task_weights,
            count,
            penalty=config.penalty,
            exclude=exclude,
            views=views if config.whiten else None,
        )
    elif config.method == "random":
        table = unbrought(store, np.empty(0, "S16"), "random")
    else:
        raise ValueError(f"shortlist method {config.method!r} makes no shortlist of its own")
    if config.share == 1 and config.method in ("seals", "anchoral"):
        return table
    return filled(store, table, count, exclude=exclude, seed=config.seed, round=round)


def filled(
    store: Store, table: pa.Table, count: int, *, exclude: IdArray, seed: int, round: int
) -> pa.Table:
    """A shortlist with clips by chance behind it, up to `count`.

    Args:
        store: pooled vectors of the pool.
        table: schema `lsb.shortlist.table.SHORTLIST`.
        count: clips wanted.
        exclude: ids to leave out.
        seed: of chance.
        round: of data growth.
    """
    missing = count - table.num_rows
    if missing <= 0:
        return table.slice(0, count)

    def chance(block: PoolBlock) -> npt.NDArray[np.float64]:
        return uniform(block.ids, "shortlist", seed, round)

    taken = np.unique(np.concatenate([exclude, from_arrow(table["id"])]))
    drawn = rank_pool(store, [], chance, missing, taken).best.ids
    return pa.concat_tables([table, unbrought(store, drawn, "random")])
