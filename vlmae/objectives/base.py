"""The objective seam: logits and labels to a loss, and logits to probabilities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vlmae.objectives.weighting import TaskWeighting

MISSING = -1
"""Label of a task that nobody has labelled."""


class Objective(nn.Module, ABC):
    """A loss over several tasks, of which any clip may lack labels.

    The loss of a step is a sum over present labels divided by their number, over all ranks and all
    accumulated micro-batches: averaging the means of micro-batches would weigh a label by how many
    others happen to stand beside it.

    Args:
        tasks: task names in the order of the logits' columns.
        kinds: name of each kind of loss term -> the columns that it reads; one temperature and one
            weight belong to a kind.
        weighting: how the kinds are added up.
    """

    def __init__(
        self, tasks: Sequence[str], kinds: Mapping[str, Sequence[int]], weighting: TaskWeighting
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.kinds = {name: tuple(columns) for name, columns in kinds.items()}
        self.weighting = weighting

    @abstractmethod
    def terms(self, labels: Tensor) -> Tensor:
        """How many loss terms of each kind every clip has.

        Args:
            labels: (B, K) int, 1, 0 or MISSING.

        Returns:
            (B, T) float32, T the number of `kinds`.
        """

    @abstractmethod
    def nll(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Negative log likelihood of what the labels say under `probabilities`, unweighted.

        Args:
            logits: (B, K) float.
            labels: (B, K) int, 1, 0 or MISSING.

        Returns:
            (B, T) in the logits' type; finite, but without meaning where `terms` is 0.
        """

    @abstractmethod
    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What is trained on: `nll` with class weights, or another loss. Shapes as there."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, K) logits to the probability of every task, in the same float type."""

    def check(self, labels: Tensor) -> None:
        """Refuse labels that contradict each other; call it once, on all (N, K) of a training.

        Raises:
            ValueError: with the number of clips and the remedy.
        """

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        totals: Tensor | None = None,
        share: int = 1,
        *,
        auxiliary: bool = False,
    ) -> Tensor:
        """Scalar loss of a micro-batch, scaled so that its mean over a step is that of the step.

        Args:
            logits: (B, K) float; half precision is computed in float32.
            labels: (B, K) int, 1, 0 or MISSING. With none present in the step the loss is 0.
            totals: (T,) sum of `terms` over the whole step; None: of this micro-batch alone, which
                then is a step of its own.
            share: how many micro-batches the step has, over ranks and accumulation. Ranks are
                averaged by DDP and DeepSpeed, accumulated ones by Lightning.
            auxiliary: the logits are those of a head beside the model: the weighting is used as it
                is and learns nothing from them.
        """
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        present = self.terms(labels).to(logits.dtype)
        losses = self.losses(logits, labels) * present
        if totals is None:
            totals, share = present.sum(dim=0), 1
        loss: Tensor = self.weighting(losses, totals.to(losses.dtype), share, auxiliary)
        return loss
