"""Simulated annotators and a ledger: what others are asked about, and what their work costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from lsb.files import fingerprint
from lsb.ledger.adjudications import open_after
from lsb.ledger.ledger import Ledger
from lsb.ledger.merge import MergeConfig
from lsb.ledger.quality import Item
from lsb.ledger.tables import HOURS, Row


@dataclass(frozen=True)
class Undecided:
    """What the answers of a round leave open; an `lsb.annotate.simulated.OpenItems`.

    Attributes:
        number: of the round, which need not be recorded yet.
        before: annotations of earlier rounds that weigh its annotators.
        config: the policy.
    """

    number: int
    before: Sequence[Row]
    config: MergeConfig

    @classmethod
    def of(cls, ledger: Ledger, number: int, config: MergeConfig) -> Undecided:
        """By what a ledger holds of earlier rounds."""
        weighed = config.policy != "majority"
        rows = [row for row in ledger.annotations() if row["round"] < number] if weighed else []
        return cls(number, rows, config)

    def __call__(self, annotations: pa.Table) -> set[Item]:
        """Items of these answers that have no label yet."""
        return open_after(annotations, self.number, self.before, self.config)

    @property
    def identity(self) -> str:
        """What of it decides who is asked again."""
        told = [
            {name: value for name, value in row.items() if name != "labelled_at"}
            for row in self.before
        ]
        return fingerprint({"policy": self.config.name, "before": told})


def record_judgements(ledger: Ledger, number: int, costs: pa.Table) -> None:
    """Record the costs of a round; doing it again changes nothing.

    Args:
        ledger: that holds the round.
        number: of the round.
        costs: schema `lsb.annotate.simulated.COSTS`.

    Raises:
        ValueError: the ledger holds other costs of the round, see `Ledger.record_cost`.
    """
    for row in costs.to_pylist():
        payee, count = row["labeller"], row["judgements"]
        ledger.record_cost(number, payee, row["unit_price"], count, entry="judgements")
        if row["seconds"]:
            ledger.record_cost(number, payee, row["seconds"] / 3600 / count, count, entry=HOURS)
