"""How the losses of several tasks become one: by fixed weights, or by learned uncertainty."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

WEIGHTINGS = ("fixed", "uncertainty")


class TaskWeighting(nn.Module, ABC):
    """Adds up loss terms of T kinds."""

    @abstractmethod
    def forward(self, losses: Tensor, totals: Tensor, share: int, auxiliary: bool) -> Tensor:
        """Scalar loss of a micro-batch, of which the mean over a step is the loss of the step.

        Args:
            losses: (B, T) float, 0 where a clip has no term.
            totals: (T,) float, terms of each kind in the whole step.
            share: micro-batches in the step.
            auxiliary: nothing is learned from these losses here.
        """


class FixedWeights(TaskWeighting):
    """Every term counts alike but for its kind's weight: sum of w * loss over number of terms.

    Args:
        weights: (T,) weight of each kind.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(list(weights), dtype=torch.float32))
        self.weights: Tensor

    def forward(self, losses: Tensor, totals: Tensor, share: int, auxiliary: bool) -> Tensor:
        """See `TaskWeighting.forward`."""
        return (losses * self.weights).sum() * share / totals.sum().clamp_min(1.0)


class UncertaintyWeights(TaskWeighting):
    """Sum over kinds of exp(-s) * mean loss + s / 2, with s a learned log variance a kind.

    Rare and noisy tasks neither drown nor drown the others: s settles at the logarithm of twice the
    kind's mean loss. A kind without a term in the step has no regulariser either, else its variance
    would shrink on nothing.

    Source: Kendall et al. 2018 (arXiv 1705.07115), their term for classification.

    Args:
        kinds: T.
    """

    def __init__(self, kinds: int) -> None:
        super().__init__()
        # One dimension even for one kind: DeepSpeed cannot shard parameters without any.
        self.log_variance = nn.Parameter(torch.zeros(kinds))

    def forward(self, losses: Tensor, totals: Tensor, share: int, auxiliary: bool) -> Tensor:
        """See `TaskWeighting.forward`."""
        means = losses.sum(dim=0) * share / totals.clamp_min(1.0)
        if auxiliary:
            return (torch.exp(-self.log_variance.detach()) * means).sum()
        # The regulariser is the same in every micro-batch: its mean over them is itself.
        loss = torch.exp(-self.log_variance) * means + 0.5 * self.log_variance
        return (loss * (totals > 0)).sum()


def build_weighting(
    name: str, weights: Mapping[str, float], kinds: Sequence[str], named: str = "tasks"
) -> TaskWeighting:
    """The weighting of a config.

    Args:
        name: "fixed" or "uncertainty".
        weights: kind -> fixed weight; those not named weigh 1.
        kinds: names of the T kinds.
        named: what the kinds are called in a message.

    Raises:
        ValueError: an unknown weighting or kind, a weight that is negative, or weights that would
            have no effect.
    """
    if name not in WEIGHTINGS:
        raise ValueError(f"objective.weighting is {name!r}: use one of {', '.join(WEIGHTINGS)}")
    unknown = sorted(set(weights) - set(kinds))
    if unknown:
        raise ValueError(f"objective.weights names {unknown}, the {named} are {list(kinds)}")
    for kind, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise ValueError(f"objective.weights.{kind} is {weight}: give 0 or a positive number")
    if name == "fixed":
        return FixedWeights([weights.get(kind, 1.0) for kind in kinds])
    if weights:
        raise ValueError(
            f"objective.weights is {dict(weights)}, and objective.weighting=uncertainty learns the "
            "weights: leave weights empty, or use weighting=fixed"
        )
    return UncertaintyWeights(len(kinds))
