"""Focal loss over several tasks: what is already told apart counts little.

Source: Lin et al. 2017 (arXiv 1708.02002), equation 5. They divide by the number of anchors with an
object; here, as for every objective, terms are divided by their count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vlmae.objectives.binary import MultiTaskBinary


class MultiTaskFocal(MultiTaskBinary):
    """-a (1 - p)^gamma log p of the labelled class, masked and weighted as `MultiTaskBinary`.

    Its probabilities are those of a sigmoid, and too timid: the temperature that is fitted on
    validation labels is below 1.

    Args:
        tasks: task names in the order of the logits' columns.
        weights: weight of each task's terms; tasks not named weigh 1.
        gamma: how fast easy clips fade; 0 is cross-entropy.
        alpha: weight of positives, in (0, 1); negatives weigh 1 - alpha. None weighs both 1.
        weighting: "fixed" or "uncertainty" (`vlmae.objectives.weighting`).

    Raises:
        ValueError: gamma or alpha out of range, or as `MultiTaskBinary`.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        weights: Mapping[str, float],
        gamma: float = 2.0,
        alpha: float | None = None,
        weighting: str = "fixed",
    ) -> None:
        if not 0 <= gamma < float("inf"):
            raise ValueError(f"objective.gamma is {gamma}: give 0 or a positive number")
        if alpha is not None and not 0 < alpha < 1:
            raise ValueError(
                f"objective.alpha is {alpha}: give a share in (0, 1), or null for none"
            )
        pair = None if alpha is None else [1 - alpha, alpha]
        super().__init__(tasks, weights, {task: pair for task in tasks if pair}, weighting)
        self.gamma = gamma

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Objective.losses`."""
        # The log probability of the wrong class, never log(1 - p): its power has finite gradients.
        wrong = functional.logsigmoid(torch.where(labels == 1, -logits, logits))
        return super().losses(logits, labels) * torch.exp(self.gamma * wrong)
