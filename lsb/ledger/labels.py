"""Which label of a clip counts, where it has several."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pyarrow as pa

from lsb.annotate import SOURCES
from lsb.annotate.carried import representative_of
from lsb.ids import ID_TYPE, from_hex, to_arrow
from lsb.labelled import LABEL
from lsb.ledger.quality import Item
from lsb.ledger.tables import Row


def least_trusted(sources: Iterable[str]) -> str:
    """The last of `SOURCES` among some."""
    return max(sources, key=SOURCES.index)


def counted_labels(
    annotations: Iterable[Row],
    adjudications: Iterable[Row],
    measured: Collection[Item],
) -> dict[Item, Row]:
    """The label of every item.

    Args:
        annotations: rows of `annotations`.
        adjudications: rows of `adjudications` with `evidence` and `sources`, by (round, number).
        measured: items of the table `gold`, which are left out.

    Returns:
        Item -> the row that counts, in no order: a gold annotation; else the last adjudication,
        with its least trusted `source` and the last `round` of its evidence; else the annotation of
        the most trusted source, its own before one carried from another clip, then of the later
        round, then of the labeller first by name. The label is None where an adjudication left it
        open.
    """
    best: dict[Item, Row] = {}
    for row in annotations:
        item = (row["clip_id"], row["task"])
        if item not in measured and (item not in best or _trust(row) < _trust(best[item])):
            best[item] = row
    for row in adjudications:
        item = (row["clip_id"], row["task"])
        if item in best and best[item]["source"] != "gold":
            given = max(number for _, number in row["evidence"])
            best[item] = {**row, "round": given, "source": least_trusted(row["sources"])}
    return best


def training_table(counted: Mapping[Item, Row]) -> pa.Table:
    """Items as one row a clip; see `Ledger.training_set` for the columns."""
    tasks: set[str] = set()
    clips: dict[str, Row] = {}
    for (clip, task), row in counted.items():
        if row["label"] is None:
            continue
        tasks.add(task)
        entry = clips.setdefault(clip, {**row, "labels": {}})
        entry["labels"][task] = row["label"]
        entry["round"] = min(entry["round"], row["round"])
        entry["source"] = least_trusted((entry["source"], row["source"]))
    ordered = [clips[clip] for clip in sorted(clips)]
    fields: dict[str, pa.DataType] = {"id": ID_TYPE, "key": pa.string(), "round": pa.int32()}
    columns: list[Any] = [
        to_arrow(from_hex([row["clip_id"] for row in ordered])),
        [row["key"] for row in ordered],
        [row["round"] for row in ordered],
    ]
    for task in sorted(tasks):
        fields[LABEL + task] = pa.int8()
        columns.append([row["labels"].get(task) for row in ordered])
    fields["source"] = pa.string()
    columns.append([row["source"] for row in ordered])
    return pa.table(columns, schema=pa.schema(fields))


def _trust(row: Row) -> tuple[int, bool, int, str]:
    carried = representative_of(row["labeller"]) is not None
    return SOURCES.index(row["source"]), carried, -row["round"], row["labeller"]
