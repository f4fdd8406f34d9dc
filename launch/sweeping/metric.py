"""What the points of a sweep are compared by: metrics of the kept weights on validation clips.

val/ap                     average precision, mean over tasks that have a positive; the metric
                           by which trainer.keep=best keeps (`vlmae.validation`)
val/recall_at_p80          recall at 80 % precision, or another, likewise
val/calibration_error      expected calibration error, likewise: sweep.direction=minimize
val/ap/<task>              and so on: of one task
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

AP, RECALL, CALIBRATION = "ap", "recall_at_p", "calibration_error"
_METRIC = re.compile(rf"val/({AP}|{CALIBRATION}|{RECALL}(\d{{1,3}}))(?:/(.+))?")


@dataclass(frozen=True)
class SweepMetric:
    """A metric by its name.

    Attributes:
        name: as `sweep.metric` has it.
        kind: one of those above.
        target: precision of a recall.
        task: whose; None for the mean.
    """

    name: str
    kind: str
    target: float
    task: str | None

    @classmethod
    def parse(cls, name: str) -> SweepMetric:
        """A metric by its name.

        Raises:
            ValueError: there is none of this name.
        """
        found = _METRIC.fullmatch(name)
        target = int(found.group(2) or 100) / 100 if found else 0.0
        if found is None or not 0 < target <= 1:
            raise ValueError(
                f"sweep.metric is {name!r}: use val/ap, val/recall_at_p80 (or another percentage "
                "from 1 to 100), val/calibration_error, or one of these with /<task> behind it"
            )
        return cls(name, re.sub(r"\d+$", "", found.group(1)), target, found.group(3))

    def require_known(self, tasks: Sequence[str]) -> None:
        """Refuse a task that a training does not have.

        Raises:
            ValueError: names it.
        """
        if self.task is not None and self.task not in tasks:
            raise ValueError(
                f"sweep.metric is {self.name!r}, and the tasks are {', '.join(tasks)}: name one "
                "of them"
            )

    def of(self, stage: Path) -> float | None:
        """Its value for a finished training; None where it is undefined.

        Args:
            stage: directory of the `train` stage.
        """
        # Here: they take seconds, which a command that only looks need not spend.
        from vlmae.data.labels import label_matrix

        table = pq.read_table(stage / "validation.parquet")
        prefix = "probability_"
        tasks = [
            name.removeprefix(prefix) for name in table.column_names if name.startswith(prefix)
        ]
        values = []
        for task in tasks if self.task is None else [self.task]:
            labels = label_matrix(table, [task])[:, 0]
            present = labels >= 0
            scores = table[prefix + task].to_numpy()[present].astype(np.float64)
            values.append(self._value(scores, labels[present] == 1))
        defined = [value for value in values if not np.isnan(value)]
        return float(np.mean(defined)) if defined else None

    def _value(self, scores: np.ndarray, truth: np.ndarray) -> float:
        from vlmae.metrics import average_precision, calibration_error, recall_at_precision

        if self.kind == CALIBRATION:
            return calibration_error(scores, truth)
        if self.kind == AP:
            return average_precision(scores, truth)
        return recall_at_precision(scores, truth, self.target)
