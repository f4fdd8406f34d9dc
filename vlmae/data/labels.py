"""Tables of labels: one row a clip, one nullable int8 column a task.

Columns: id (16 fixed bytes), key, source, and `label_<task>`. A training set is such a table in id
    order; its fingerprint is part of the checkpoint (design, contract 6).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lsb import ids as sample_ids
from lsb.artifact import fingerprint
from lsb.labelled import LABEL
from vlmae.objectives.binary import MISSING


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
        }
    )
