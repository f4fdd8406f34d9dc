"""Simulated annotator: answers from a table of the truth, with a given rate of wrong answers."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from lsb.acquisition.random import uniform
from lsb.annotate import annotation_table
from lsb.ids import IdArray, from_arrow, require_unique, to_bytes
from lsb.labelled import LABEL


class Oracle:
    """Annotator that knows the truth.

    Args:
        truth: id, and `label_<task>` (0, 1, or null for not judged) for every task.
        noise: share of answers that are flipped, in [0, 1). Which ones depends on (seed, id, task)
            alone, so that asking again gives the same answer.
        seed: of the noise.
    """

    source = "oracle"

    def __init__(self, truth: pa.Table, *, noise: float = 0.0, seed: int = 0):
        if not 0 <= noise < 1:
            raise ValueError(f"oracle.noise is {noise}: give a share in [0, 1)")
        ids = from_arrow(truth["id"])
        require_unique(ids)
        self.noise = float(noise)
        self.seed = seed
        self._row = {name: row for row, name in enumerate(to_bytes(ids))}
        self._truth = truth

    @property
    def name(self) -> str:
        """Labeller name; the seed is part of it where it matters."""
        return f"oracle:noise={self.noise}" + (f",seed={self.seed}" if self.noise else "")

    def annotate(self, ids: IdArray, keys: Sequence[str], tasks: Sequence[str]) -> pa.Table:
        """Labels of clips; see `lsb.annotate.Annotator`.

        Raises:
            ValueError: a clip or a task is not in the truth table.
        """
        names = to_bytes(ids)
        for name, key in zip(names, keys, strict=True):
            if name not in self._row:
                raise ValueError(
                    f"clip {key!r} is not in the oracle's truth table of {len(self._row)} clips: "
                    "give it the truth of the whole pool"
                )
        for task in tasks:
            if LABEL + task not in self._truth.column_names:
                raise ValueError(
                    f"the oracle's truth table has no column {LABEL + task!r}, only "
                    f"{self._truth.column_names}"
                )
        truth = {task: self._truth[LABEL + task].to_pylist() for task in tasks}
        flipped = {task: uniform(ids, "noise", self.seed, task) < self.noise for task in tasks}
        answers = []
        for index in sorted(range(len(names)), key=names.__getitem__):
            for task in sorted(tasks):
                label = truth[task][self._row[names[index]]]
                if label is not None:
                    label = 1 - label if flipped[task][index] else label
                    answers.append((names[index], keys[index], task, label))
        columns = list(zip(*answers, strict=True)) if answers else [(), (), (), ()]
        return annotation_table(*columns, source=self.source, labeller=self.name)
