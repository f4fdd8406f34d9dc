"""Annotation: one protocol for whoever is asked for labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

from lsb.ids import ID_TYPE, IdArray

SOURCES = ("gold", "human", "oracle", "pseudo")
"""Where a label comes from, most trusted first."""
PSEUDO = SOURCES[-1]
"""Given by a model of this project: it counts in its own round only, and never beside others."""

ANNOTATION_FIELDS: dict[str, pa.DataType] = {
    "id": ID_TYPE,
    "key": pa.string(),
    "task": pa.string(),
    "label": pa.int8(),
    "source": pa.string(),
    "labeller": pa.string(),
}
ANNOTATIONS = pa.schema(ANNOTATION_FIELDS)


class Annotator(Protocol):
    """Gives labels to clips."""

    @property
    def name(self) -> str:
        """Stored with every label as its labeller, e.g. "oracle:noise=0.0"."""
        ...

    @property
    def source(self) -> str:
        """One of `SOURCES`."""
        ...

    def annotate(self, ids: IdArray, keys: Sequence[str], tasks: Sequence[str]) -> pa.Table:
        """Label clips.

        Args:
            ids: (N,) S16.
            keys: their N keys.
            tasks: what to judge.

        Returns:
            Schema `ANNOTATIONS`, ordered by (id, task); pairs without an answer are absent.
        """
        ...


def annotation_table(
    ids: Sequence[bytes],
    keys: Sequence[str],
    tasks: Sequence[str],
    labels: Sequence[int],
    *,
    source: str,
    labeller: str,
) -> pa.Table:
    """Schema `ANNOTATIONS` from N answers of one labeller."""
    if source not in SOURCES:
        raise ValueError(f"source {source!r} is unknown: use one of {', '.join(SOURCES)}")
    count = len(ids)
    columns = [list(ids), list(keys), list(tasks), list(labels), [source] * count]
    return pa.table([*columns, [labeller] * count], schema=ANNOTATIONS)
