"""Validation during training: the clips dealt over the ranks, and metrics over all of them.

Every rank makes the same number of equally large batches, filled up with clips without labels: a
rank that ended early would leave the others waiting (design, contract 8).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Metric
from torchmetrics.functional.classification import (
    binary_average_precision,
    binary_recall_at_fixed_precision,
)
from torchmetrics.utilities.data import dim_zero_cat

from vlmae.data.loader import BatchSource
from vlmae.objectives import MISSING, Objective

Places = npt.NDArray[np.int64]
BEST = "val/ap"
"""Name of the metric that the best checkpoint has most of."""


class ValidationClips:
    """Batches of one rank: all validation clips, each with its labels once over all ranks.

    Args:
        source: makes the batches.
        clips: N, how many there are.
        batch_size: clips a batch.
        rank: whose batches.
        world: ranks.
        workers: processes that make batches; 0 makes them in the trainer's.
        prefetch: batches a worker is ahead.

    Raises:
        ValueError: there is no clip.
    """

    def __init__(
        self,
        source: BatchSource[Any],
        clips: int,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        prefetch: int = 2,
    ) -> None:
        if clips < 1:
            raise ValueError("there is no validation clip: give labelled ones, or do not validate")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}: give one from 0 to {world - 1}")
        self.batch_size = batch_size
        self.batches = _Batches(source, clips, batch_size, rank, world)
        self._workers, self._prefetch = workers, prefetch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(
            DataLoader(
                self.batches,
                batch_size=None,
                num_workers=self._workers,
                prefetch_factor=self._prefetch if self._workers else None,
                # Of its own: an iterator draws a seed, which would move what training draws.
                generator=torch.Generator().manual_seed(0),
            )
        )


class _Batches(Dataset[Any]):
    """Batch number -> batch of one rank; picklable, and called in a worker."""

    def __init__(
        self, source: BatchSource[Any], clips: int, batch_size: int, rank: int, world: int
    ) -> None:
        self.source, self.clips, self.batch_size = source, clips, batch_size
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return -(-self.clips // (self.batch_size * self.world))

    def __getitem__(self, number: int) -> Any:
        if not 0 <= number < len(self):  # what ends iteration over a sequence
            raise IndexError(f"batch {number} of {len(self)}")
        start = (number * self.world + self.rank) * self.batch_size
        places: Places = np.arange(start, start + self.batch_size)
        batch = self.source.batch(places % self.clips, 0)
        repeated = torch.from_numpy(places >= self.clips)[:, None]
        return replace(batch, labels=batch.labels.masked_fill(repeated, MISSING))


class ValidationMetrics(Metric):
    """Loss, average precision and recall at a precision of every task, over all ranks.

    torchmetrics gathers logits and labels of all ranks, so that the values are exact, and computes
    both metrics. It calls average precision and recall 0 where there is no positive, and refuses to
    take none at all; both are undefined here, as in `vlmae.metrics`.

    Args:
        objective: of the training; its loss and its probabilities, without temperature.
        target: precision of the recall, in (0, 1].
    """

    full_state_update = False
    logits: list[Tensor]
    labels: list[Tensor]

    def __init__(self, objective: Objective, target: float) -> None:
        super().__init__()
        # In a tuple it is no submodule: the module that is trained has it already.
        self._objective = (objective,)
        self.target = target
        self.add_state("logits", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch; every rank adds equally many.

        Args:
            logits: (B, K) of the fused model.
            labels: (B, K) int, 1, 0 or MISSING.
        """
        self.logits.append(logits.detach().float())
        self.labels.append(labels.long())

    def compute(self) -> dict[str, float]:
        """Metrics of all clips since `reset`. Collective.

        Returns:
            "val/loss"; "val/ap", the mean over tasks that have a positive; "val/ap/<task>" and
            "val/recall_at_p80/<task>", named by the precision. NaN where undefined.
        """
        objective = self._objective[0]
        tasks = objective.tasks
        recall = f"val/recall_at_p{100 * self.target:.0f}"
        if len(self.logits) == 0:  # a list of batches, or, gathered over ranks, one tensor
            names = ["val/loss", BEST, *(f"{m}/{task}" for m in (BEST, recall) for task in tasks)]
            return dict.fromkeys(names, float("nan"))
        logits, labels = dim_zero_cat(self.logits), dim_zero_cat(self.labels)
        with torch.no_grad():
            loss = objective(logits, labels)
            scores = objective.probabilities(logits)
        precisions: dict[str, float] = {}
        recalls: dict[str, float] = {}
        for column, task in enumerate(tasks):
            present = labels[:, column] != MISSING
            score, truth = scores[present, column], labels[present, column]
            precisions[f"{BEST}/{task}"] = recalls[f"{recall}/{task}"] = float("nan")
            if (truth == 1).any():
                precisions[f"{BEST}/{task}"] = float(binary_average_precision(score, truth))
                found, _ = binary_recall_at_fixed_precision(score, truth, self.target)
                recalls[f"{recall}/{task}"] = float(found)
        defined = [value for value in precisions.values() if not np.isnan(value)]
        mean = float(np.mean(defined)) if defined else float("nan")
        return {"val/loss": float(loss), BEST: mean, **precisions, **recalls}
