"""Tables of labels: one row a clip, one nullable int8 column a task.

Columns: id (16 fixed bytes), key, source, and `label_<task>`; a training set may also have `round`,
in which a clip was labelled, and `weight`, how often it comes in an epoch. A training set is such a
table in id order; its fingerprint is part of the checkpoint (design, contract 6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from lsb import ids as sample_ids
from lsb.artifact import fingerprint
from lsb.labelled import LABEL
from vlmae.objectives import MISSING

WEIGHT = "weight"


def label_matrix(table: pa.Table, tasks: Sequence[str]) -> npt.NDArray[np.int8]:
    """(N, K) int8 in {1, 0, -1}, one column a task; -1 where the label is missing.

    Raises:
        ValueError: a task has no column, or a label is neither 0 nor 1.
    """
    absent = [task for task in tasks if LABEL + task not in table.column_names]
    if absent:
        raise ValueError(f"no label column for tasks {absent}: the table has {table.column_names}")
    columns = [
        table[LABEL + task].cast(pa.int8()).fill_null(pa.scalar(MISSING, pa.int8())).to_numpy()
        for task in tasks
    ]
    matrix = np.stack(columns, axis=1).astype(np.int8)
    strange = set(np.unique(matrix).tolist()) - {1, 0, MISSING}
    if strange:
        raise ValueError(f"labels must be 0, 1 or missing, found {sorted(strange)}")
    return matrix


def labels_fingerprint(table: pa.Table, tasks: Sequence[str]) -> str:
    """Hash over the ids, labels and sources of a table, whatever its row order."""
    ids = sample_ids.from_arrow(table["id"])
    order = np.argsort(ids, kind="stable")
    return fingerprint(
        {
            "tasks": list(tasks),
            "ids": sample_ids.to_hex(ids[order]),
            "labels": label_matrix(table, tasks)[order].tolist(),
            "sources": table.take(order)["source"].to_pylist(),
            "weights": table.take(order)[WEIGHT].to_pylist()
            if WEIGHT in table.column_names
            else None,
        }
    )


def with_weights(
    table: pa.Table,
    tasks: Sequence[str],
    *,
    positive_weight: Mapping[str, float],
    new_weight: float,
) -> pa.Table:
    """The same table with a column `weight`: expected draws of each clip in an epoch.

    Args:
        table: training set; its own `weight`, where there is one, is multiplied.
        tasks: names of the tasks.
        positive_weight: task -> factor for clips with a positive label; the largest counts.
        new_weight: factor for clips of the last round, where the table has rounds after 0.

    Raises:
        ValueError: a weight is for an unknown task.
    """
    unknown = sorted(set(positive_weight) - set(tasks))
    if unknown:
        raise ValueError(f"loader.positive_weight names {unknown}, the tasks are {list(tasks)}")
    weights = np.ones(table.num_rows)
    labels = label_matrix(table, tasks)
    for task, weight in positive_weight.items():
        positive = labels[:, list(tasks).index(task)] == 1
        weights[positive] = np.maximum(weights[positive], weight)
    if "round" in table.column_names and table.num_rows:
        rounds = table["round"].cast(pa.int64()).fill_null(pa.scalar(0, pa.int64())).to_numpy()
        weights[(rounds == rounds.max()) & (rounds > 0)] *= new_weight
    if WEIGHT in table.column_names:
        # No weight is the usual one.
        own = table[WEIGHT].cast(pa.float64()).fill_null(pa.scalar(1.0, pa.float64()))
        weights = weights * own.to_numpy()
        table = table.drop_columns([WEIGHT])
    return table.append_column(WEIGHT, pa.array(weights, pa.float64()))


def read_labels(path: str | None, key: str, tasks: list[str]) -> pa.Table:
    """A table of labels as `vlmae.data.labels` wants it.

    Args:
        path: parquet or CSV.
        key: of the config, for messages.
        tasks: whose labels are wanted.

    Raises:
        ValueError: the file is absent, has no `key`, names a clip twice, or a label is not 0 or 1.
    """
    if not path or not Path(path).is_file():
        raise ValueError(f"{key} is {path}, which is no file: give a parquet or CSV with labels")
    if path.endswith(".parquet"):
        table = pq.read_table(path)
    else:  # 0001 is a key, and no number
        options = pcsv.ConvertOptions(column_types={"key": pa.string()})
        table = pcsv.read_csv(path, convert_options=options)
    if "key" not in table.column_names:
        raise ValueError(f"{path} has columns {table.column_names}, none is 'key'")
    keys = [str(name) for name in table["key"].to_pylist()]
    ids = sample_ids.sample_ids(keys)
    sample_ids.require_unique(ids, keys)
    columns: dict[str, Any] = {"id": sample_ids.to_arrow(ids), "key": pa.array(keys, pa.string())}
    for name in ("round", "weight"):
        if name in table.column_names:
            columns[name] = table[name].combine_chunks()
    for task in tasks:
        if LABEL + task not in table.column_names:
            raise ValueError(f"{path} has no column {LABEL + task!r}: add it, or name other tasks")
        columns[LABEL + task] = table[LABEL + task].cast(pa.int8()).combine_chunks()
    human = pa.array(["human"] * len(keys), pa.string())
    given = "source" in table.column_names
    columns["source"] = table["source"].cast(pa.string()).combine_chunks() if given else human
    labels = pa.table(columns)
    label_matrix(labels, tasks)
    return labels
