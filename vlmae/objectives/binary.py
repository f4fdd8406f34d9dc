"""Binary cross-entropy over several tasks, missing labels masked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vlmae.objectives.base import MISSING, Objective
from vlmae.objectives.weighting import build_weighting

ClassWeights = Mapping[str, float | Sequence[float]]


class MultiTaskBinary(Objective):
    """Sum over present labels divided by their count, each task and each class weighted.

    Args:
        tasks: task names in the order of the logits' columns.
        weights: weight of each task's terms; tasks not named weigh 1.
        class_weights: task -> [weight of negatives, weight of positives], or the latter alone; 1
            where not named. Terms are divided by their count, not by their weight, so that a weight
            moves a class against all else.
        weighting: "fixed" or "uncertainty" (`vlmae.objectives.weighting`).

    Raises:
        ValueError: an unknown task, or a weight that cannot be.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        weights: Mapping[str, float],
        class_weights: ClassWeights | None = None,
        weighting: str = "fixed",
    ) -> None:
        kinds = {task: (column,) for column, task in enumerate(tasks)}
        super().__init__(tasks, kinds, build_weighting(weighting, weights, list(tasks)))
        self.register_buffer("class_weights", read_class_weights(tasks, class_weights or {}))
        self.class_weights: Tensor

    def terms(self, labels: Tensor) -> Tensor:
        """See `Objective.terms`: one kind a task."""
        return (labels != MISSING).float()

    def nll(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Objective.nll`."""
        targets = labels.clamp_min(0).to(logits.dtype)
        return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Objective.losses`."""
        negative, positive = self.class_weights.to(logits.dtype)
        return self.nll(logits, labels) * torch.where(labels == 1, positive, negative)

    def probabilities(self, logits: Tensor) -> Tensor:
        """See `Objective.probabilities`."""
        return logits.sigmoid()


def read_class_weights(tasks: Sequence[str], class_weights: ClassWeights) -> Tensor:
    """(2, K) float32 weights of negatives and of positives.

    Raises:
        ValueError: names an unknown task, or values that are no weights.
    """
    unknown = sorted(set(class_weights) - set(tasks))
    if unknown:
        raise ValueError(f"objective.class_weights names {unknown}, the tasks are {list(tasks)}")
    weights = torch.ones(2, len(tasks))
    for task, given in class_weights.items():
        pair = [1.0, given] if isinstance(given, int | float) else list(given)
        if len(pair) != 2 or not all(0 <= weight < float("inf") for weight in pair):
            raise ValueError(
                f"objective.class_weights.{task} is {given}: give the weight of positives, or "
                "[negatives, positives], each 0 or more"
            )
        weights[:, list(tasks).index(task)] = torch.tensor(pair)
    return weights
