"""One process of test_ledger_writers: imports a share of the annotations, a batch at a time.

Arguments: ledger, number of this writer, writers, annotations in all, size of a batch, and the
batch in whose transaction it kills itself (-1 for none).
"""

from __future__ import annotations

import os
import signal
import sys

import pyarrow as pa
import sqlalchemy as sa

from lsb.annotate import ANNOTATIONS
from lsb.ids import sample_ids, to_bytes
from lsb.ledger import Ledger


def label_of(number: int) -> int:
    return number * 7919 % 13 % 2


def labeller_of(number: int) -> str:
    return f"annotator-{number % 5}"


def batch(numbers: range) -> pa.Table:
    keys = [f"clip-{number:06d}" for number in numbers]
    columns = {
        "id": to_bytes(sample_ids(keys)),
        "key": keys,
        "task": ["x"] * len(keys),
        "label": [label_of(number) for number in numbers],
        "source": ["human"] * len(keys),
        "labeller": [labeller_of(number) for number in numbers],
    }
    return pa.table(columns, schema=ANNOTATIONS)


def main() -> None:
    location = sys.argv[1]
    writer, writers, total, size, fatal = map(int, sys.argv[2:])
    share = total // writers
    # Its own share and its neighbour's, in turns: two writers insert the same rows at one time.
    own = range(writer * share, (writer + 1) * share)
    other = range((writer + 1) % writers * share, ((writer + 1) % writers + 1) * share)
    added = 0
    with Ledger.open(location, create=False) as ledger:
        print("ready", flush=True)
        sys.stdin.readline()
        batches = [numbers[i : i + size] for i in range(0, share, size) for numbers in (own, other)]
        for index, numbers in enumerate(batches):
            if index == fatal:

                @sa.event.listens_for(ledger.engine, "commit")
                def kill(connection: sa.Connection) -> None:
                    os.kill(os.getpid(), signal.SIGKILL)

            added += ledger.import_annotations(1, batch(numbers))
    print(added, flush=True)


if __name__ == "__main__":
    main()
