"""What judgements of simulated annotators cost, as entries of a ledger: money, and hours."""

from __future__ import annotations

import pyarrow as pa

from lsb.ledger.ledger import Ledger
from lsb.ledger.tables import HOURS


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
