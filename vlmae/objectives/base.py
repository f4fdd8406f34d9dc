"""The objective seam: logits and labels to a loss, and logits to probabilities."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

MISSING = -1
"""Label of a task that nobody has labelled."""


class Objective(nn.Module, ABC):
    """A loss over several tasks, of which any clip may lack labels.

    The loss of a step is a sum over present labels divided by their number, over all ranks and all
    accumulated micro-batches: averaging the means of micro-batches would weigh a label by how many
    others happen to stand beside it.
    """

    @abstractmethod
    def terms(self, labels: Tensor) -> Tensor:
        """How many loss terms of each kind every clip has.

        Args:
            labels: (B, K) int, 1, 0 or MISSING.

        Returns:
            (B, T) float32; T is the objective's own, one a task for instance.
        """

    @abstractmethod
    def forward(
        self, logits: Tensor, labels: Tensor, totals: Tensor | None = None, share: int = 1
    ) -> Tensor:
        """Scalar loss of a micro-batch, scaled so that its mean over a step is that of the step.

        Args:
            logits: (B, K) float.
            labels: (B, K) int, 1, 0 or MISSING. With none present the loss is 0.
            totals: (T,) sum of `terms` over the whole step; None: of this micro-batch alone, which
                then is a step of its own.
            share: how many micro-batches the step has, over ranks and accumulation. Ranks are
                averaged by DDP and DeepSpeed, accumulated ones by Lightning.
        """

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, K) logits to the probability of every task, in the same float type."""
