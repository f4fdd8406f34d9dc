"""Binary cross-entropy over several tasks, missing labels masked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vlmae.objectives.base import MISSING, Objective


class MultiTaskBinary(Objective):
    """Sum over present labels divided by their count, each task weighted.

    Args:
        tasks: task names in the order of the logits' columns.
        weights: weight of each task's terms; tasks not named weigh 1.
    """

    def __init__(self, tasks: Sequence[str], weights: Mapping[str, float]) -> None:
        super().__init__()
        unknown = sorted(set(weights) - set(tasks))
        if unknown:
            raise ValueError(f"objective.weights names {unknown}, the tasks are {list(tasks)}")
        self.register_buffer("weights", torch.tensor([weights.get(task, 1.0) for task in tasks]))
        self.weights: Tensor

    def terms(self, labels: Tensor) -> Tensor:
        """See `Objective.terms`: one kind a task."""
        return (labels != MISSING).float()

    def forward(
        self, logits: Tensor, labels: Tensor, totals: Tensor | None = None, share: int = 1
    ) -> Tensor:
        """See `Objective.forward`."""
        present = self.terms(labels).to(logits.dtype)
        targets = labels.clamp_min(0).to(logits.dtype)
        losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        summed = (losses * present * self.weights).sum()
        if totals is None:
            return summed / present.sum().clamp_min(1.0)
        return summed * share / totals.sum().clamp_min(1.0)

    def probabilities(self, logits: Tensor) -> Tensor:
        """See `Objective.probabilities`."""
        return logits.sigmoid()
