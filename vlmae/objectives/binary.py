"""Binary cross-entropy over several tasks, missing labels masked."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

MISSING = -1


class MultiTaskBinary(nn.Module):
    """Sum over present labels divided by their count, each task weighted.

    Args:
        tasks: task names in the order of the logits' columns.
        weights: weight of each task's terms; tasks not named weigh 1.
    """

    def __init__(self, tasks: list[str], weights: dict[str, float]) -> None:
        super().__init__()
        unknown = sorted(set(weights) - set(tasks))
        if unknown:
            raise ValueError(f"objective.weights names {unknown}, the tasks are {tasks}")
        self.register_buffer("weights", torch.tensor([weights.get(task, 1.0) for task in tasks]))
        self.weights: Tensor

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss.

        Args:
            logits: (B, K) float.
            labels: (B, K) int, 1, 0 or MISSING (-1). With none present the loss is 0.
        """
        present = (labels != MISSING).to(logits.dtype)
        targets = labels.clamp_min(0).to(logits.dtype)
        losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return (losses * present * self.weights).sum() / present.sum().clamp_min(1.0)
