"""Labels with their provenance, as parquet: `python -m lsb.export LEDGER OUT.parquet`.

One row for each clip and task, with the label that counts, the annotations behind it, and why the
clip was asked for. A LEDGER is the path of an SQLite file, or a URL:
postgresql+psycopg://user@host/database.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lsb.ids import ID_TYPE
from lsb.ledger import Ledger, Row

VERSION = 1
ANSWER_FIELDS: dict[str, pa.DataType] = {
    "labeller": pa.string(),
    "source": pa.string(),
    "label": pa.int8(),
    "round": pa.int32(),
    "labelled_at": pa.string(),
}
FIELDS: dict[str, pa.DataType] = {
    "id": ID_TYPE,
    "key": pa.string(),
    "task": pa.string(),
    "label": pa.int8(),
    "source": pa.string(),
    "round": pa.int32(),
    "at": pa.string(),
    "labeller": pa.string(),
    "policy": pa.string(),
    "confidence": pa.float64(),
    "gold_label": pa.int8(),
    "annotations": pa.list_(pa.struct(list(ANSWER_FIELDS.items()))),
    "asked_in_round": pa.int32(),
    "arm": pa.string(),
    "reason": pa.string(),
    "seed_key": pa.string(),
    "seed_kind": pa.string(),
    "similarity": pa.float64(),
    "lookalike_threshold": pa.float64(),
    "checkpoint_hash": pa.string(),
    "store_hash": pa.string(),
}
LABELS = pa.schema(FIELDS, metadata={"format": "lsb labels", "version": str(VERSION)})
_CANDIDATE = (
    "arm", "reason", "seed_key", "seed_kind", "similarity", "lookalike_threshold",
    "checkpoint_hash", "store_hash",
)  # fmt: skip


def label_table(ledger: Ledger) -> pa.Table:
    """Every (clip, task) of a ledger that was labelled.

    Returns:
        Schema `LABELS`, ordered by (id, task). `label` is what a training on all sources would use:
        `labeller` gave it, or `policy` decided it from several (null where that is unresolved).
        `gold_label` is set on items that measure annotators, which no training uses; `annotations`
        has all answers, by (round, labeller). `asked_in_round` and what follows describe the last
        time the clip was chosen, no later than its label, and are null if it was labelled unasked.
    """
    answers: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in ledger.annotations():
        answers[row["clip_id"], row["task"]].append(row)
    asked: dict[str, list[Row]] = defaultdict(list)
    for row in ledger.candidacies():
        asked[row["clip_id"]].append(row)
    counted, gold = ledger.counted(), ledger.gold()
    rows = []
    for clip, task in sorted(answers):
        given = answers[clip, task]
        label = counted.get((clip, task), {})
        last = label.get("round", given[-1]["round"])
        chosen = next((row for row in reversed(asked[clip]) if row["round"] <= last), {})
        adjudicated = "policy" in label
        rows.append(
            {
                "id": bytes.fromhex(clip),
                "key": given[0]["key"],
                "task": task,
                **{name: label.get(name) for name in ("label", "source", "round", "labeller")},
                "at": label.get("adjudicated_at" if adjudicated else "labelled_at"),
                "policy": label.get("policy"),
                "confidence": label.get("confidence"),
                "gold_label": gold.get((clip, task)),
                "annotations": [{name: row[name] for name in ANSWER_FIELDS} for row in given],
                "asked_in_round": chosen.get("round"),
                **{name: chosen.get(name) for name in _CANDIDATE},
            }
        )
    return pa.Table.from_pylist(rows, schema=LABELS)


def export(ledger: Ledger, output: Path) -> int:
    """Write `label_table` under a temporary name and rename it; returns the number of rows."""
    table = label_table(ledger)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, temporary)
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return int(table.num_rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry point; returns the exit code: 0, or 2 where something cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m lsb.export", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("ledger", metavar="LEDGER", help="path of an SQLite file, or a URL")
    parser.add_argument("output", metavar="OUT.parquet", type=Path, help="replaced if it exists")
    options = parser.parse_args(arguments)
    try:
        if not options.output.parent.is_dir():
            raise ValueError(f"{options.output.parent} is no folder: make it first")
        with Ledger.open(options.ledger, create=False) as ledger:
            rows = export(ledger, options.output)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.output}: {rows:,} labels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
