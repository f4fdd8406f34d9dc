"""Labelled clips with their vectors and out-of-sample predictions: what growth learns from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lsb.ids import IdArray, from_arrow, require_unique
from lsb.store import Store

UNLABELLED = -1
"""Stands for "no label" in int8 label arrays; null in tables."""

LABEL = "label_"
PROBABILITY = "probability_"


@dataclass(frozen=True)
class Labelled:
    """M labelled clips.

    Attributes:
        ids: (M,) S16, unique.
        keys: M clip keys.
        vectors: (M, D) float32 of norm 1, from the kind of store that is searched.
        labels: task -> (M,) int8: 0, 1, or `UNLABELLED`.
        probabilities: task -> (M,) float64 in [0, 1], predicted by a model that was not trained on
            the clip (held-out gold data, or out of fold).
        operating_thresholds: task -> probability from which the model says "positive", chosen on
            validation data.
    """

    ids: IdArray
    keys: Sequence[str]
    vectors: npt.NDArray[np.float32]
    labels: Mapping[str, npt.NDArray[np.int8]]
    probabilities: Mapping[str, npt.NDArray[np.float64]]
    operating_thresholds: Mapping[str, float]

    def __post_init__(self) -> None:
        require_unique(self.ids, self.keys)
        if not set(self.labels) == set(self.probabilities) == set(self.operating_thresholds):
            raise ValueError(
                f"labels are of tasks {sorted(self.labels)}, probabilities of "
                f"{sorted(self.probabilities)}, operating thresholds of "
                f"{sorted(self.operating_thresholds)}: give all three for the same tasks"
            )
        count = len(self.ids)
        lengths = {"keys": len(self.keys), "vectors": len(self.vectors)}
        for task in self.tasks:
            lengths |= {f"labels of {task}": len(self.labels[task])}
            lengths |= {f"probabilities of {task}": len(self.probabilities[task])}
        for name, length in lengths.items():
            if length != count:
                raise ValueError(
                    f"{count} labelled ids but {length} {name}: give one for each clip"
                )
        for task in self.tasks:
            label, probability = self.labels[task], self.probabilities[task]
            strange = ~np.isin(label, (UNLABELLED, 0, 1))
            if strange.any():
                raise ValueError(
                    f"task {task!r} has label {int(label[strange][0])}: labels are 0, 1 or "
                    f"{UNLABELLED} (none)"
                )
            bad = (label != UNLABELLED) & ~((probability >= 0) & (probability <= 1))
            if bad.any():
                raise ValueError(
                    f"{int(bad.sum())} labelled clips have no probability in [0, 1] of task "
                    f"{task!r}, first {self.keys[int(np.flatnonzero(bad)[0])]!r}: score them with "
                    "the held-out model before expanding"
                )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names, sorted."""
        return tuple(sorted(self.labels))

    @classmethod
    def from_table(
        cls,
        table: pa.Table,
        vectors_MD: npt.NDArray[np.float32],
        operating_thresholds: Mapping[str, float],
    ) -> Labelled:
        """From columns id, key, `label_<task>` (int8, null for none) and `probability_<task>`.

        The tasks are those of `operating_thresholds`.
        """
        labels, probabilities = {}, {}
        for task in sorted(operating_thresholds):
            for column in (LABEL + task, PROBABILITY + task):
                if column not in table.column_names:
                    raise ValueError(
                        f"labelled clips have no column {column!r}, only {table.column_names}"
                    )
            labels[task] = label_array(table, task)
            probabilities[task] = np.asarray(table[PROBABILITY + task].to_numpy(), dtype=np.float64)
        return cls(
            ids=from_arrow(table["id"]),
            keys=[str(key) for key in table["key"].to_pylist()],
            vectors=vectors_MD,
            labels=labels,
            probabilities=probabilities,
            operating_thresholds=dict(operating_thresholds),
        )


def label_array(table: pa.Table, task: str) -> npt.NDArray[np.int8]:
    """Column `label_<task>` of a table of N clips, (N,) int8; null becomes `UNLABELLED`."""
    values = [UNLABELLED if v is None else v for v in table[LABEL + task].to_pylist()]
    return np.asarray(values, dtype=np.int8)


def with_probabilities(labels: pa.Table, scored: Store, tasks: Iterable[str]) -> pa.Table:
    """A table of labelled clips with `probability_<task>`, float64, of a store that holds them."""
    columns = [PROBABILITY + task for task in tasks]
    found = scored.take(from_arrow(labels["id"]), columns)
    for name in columns:
        labels = labels.append_column(name, found[name].cast(pa.float64()))
    return labels
