"""A small ledger with two rounds, two people, gold labels, an adjudication and costs."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
from test_ledger import chosen, labels, record

from lsb.ids import sample_id
from lsb.ledger import GOLD_LABELS, Ledger, MergeConfig
from lsb.selection import CHOSEN

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def fill(location: str) -> None:
    """Write it.

    Round 0 has a gold annotation of `seed` and an oracle's label of `old`. Round 1 asked for `a`,
    `b`, `c` as lookalikes of `seed`; ann and bob agree on `a` only, `c` is an item of the table
    gold, and of `b` the answers differ. In round 2 a model labelled `p`.
    """
    with Ledger.open(location) as ledger:
        first = pa.concat_tables(
            [
                labels({("seed", "x"): 1}, "gold", "release"),
                labels({("old", "x"): 0, ("old", "y"): 1}),
            ]
        )
        ledger.record_round(record(0, "first"), CHOSEN.empty_table(), first, labelled_at=NOON)
        ledger.record_round(record(1), chosen("a", "b", "c", seed="seed"), None)
        for labeller, given in (
            ("ann", {"a": 1, "b": 1, "c": 1}),
            ("bob", {"a": 1, "b": 0, "c": 0}),
        ):
            answers = labels(
                {(clip, "x"): label for clip, label in given.items()}, "human", labeller
            )
            ledger.import_annotations(1, answers, labelled_at=NOON)
        known = {"id": sample_id("c"), "key": "c", "task": "x", "label": 1}
        ledger.add_gold(pa.Table.from_pylist([known], schema=GOLD_LABELS))
        ledger.record_round(
            record(2), CHOSEN.empty_table(), labels({("p", "x"): 1}, "pseudo", "model"),
            labelled_at=NOON,
        )  # fmt: skip
        ledger.adjudicate(MergeConfig(), at=NOON)
        ledger.record_cost(1, "ann", 0.25, 3)
        ledger.record_cost(1, "bob", 0.5, 3, entry="batch 1")
