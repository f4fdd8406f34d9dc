"""Which clips may still become gold items for measuring, once rounds have been trained.

An item of the table `gold` trains nothing, and its answers weigh annotators (`gold_weighted`,
`dawid_skene`). An item with a label of a round that the run has gone past would leave that round's
training set, or change weights of what was adjudicated for it: its model would be made anew, and
would ask for other clips than the ledger has.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from lsb.annotate import PSEUDO
from lsb.annotate.carried import representative_of
from lsb.ledger.database import all_rows
from lsb.ledger.quality import Item
from lsb.ledger.tables import ANNOTATED, ROUNDS, Row

_SHOWN = 3


def require_measurable(connection: sa.Connection, rows: Sequence[Row]) -> None:
    """Refuse new gold items that a finished round rests on.

    Items of the last recorded round are free: no later round rests on its model. Labels that were
    carried between copies are not, in whatever round: the round that has them is written as a
    whole, and gold labels go nowhere.

    Args:
        connection: in a transaction.
        rows: of the table `gold` that were not there before.

    Raises:
        ValueError: some are not free; names the first of them and how many there are.
    """
    wanted = {(row["clip_id"], row["task"]): row["key"] for row in rows}
    clips = {clip for clip, _ in wanted}
    last = connection.execute(sa.select(sa.func.max(ROUNDS.c.round))).scalar()
    taken: dict[Item, int] = {}
    for row in all_rows(connection, sa.select(ANNOTATED)) if wanted else ():
        origin = representative_of(row["labeller"])
        items = [(clip, row["task"]) for clip in (row["clip_id"], origin) if clip is not None]
        if origin is None and row["round"] >= last:
            continue
        if row["source"] == PSEUDO and row["clip_id"] in clips:
            # A clip with any gold label gets no pseudo-label in any task.
            items += [item for item in wanted if item[0] == row["clip_id"]]
        for item in items:
            if item in wanted:
                taken[item] = min(row["round"], taken.get(item, row["round"]))
    if taken:
        first = sorted(taken, key=lambda item: (wanted[item], item[1]))[:_SHOWN]
        names = ", ".join(
            f"clip {wanted[item]!r}, task {item[1]!r} (round {taken[item]})" for item in first
        )
        raise ValueError(
            f"{len(taken)} of {len(wanted)} new gold labels are of items that a recorded round "
            f"rests on, e.g. {names}: what it trained with is never changed; leave them out, and "
            "give gold labels for clips of the last round, or for clips without labels"
        )
