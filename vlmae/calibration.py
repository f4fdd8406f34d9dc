"""Calibration: logits to probabilities that can be believed, by one temperature a task.

Source: temperature scaling, Guo et al. 2017 (arXiv 1706.04599). A temperature divides logits, so it
changes how sure a model is, not which clip it prefers; tasks of one softmax share theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlmae.objectives import Objective, build_objective

if TYPE_CHECKING:
    from vlmae.checkpoint import Checkpoint

FloatArray = npt.NDArray[np.float32]
MIN_LABELS = 10
COLDEST, HOTTEST = 0.1, 10.0
# Each step keeps 0.618 of the bracket in log temperature: 1e-8 of it are left.
STEPS = 40


@dataclass(frozen=True)
class Calibration:
    """How the logits of a checkpoint become probabilities.

    Without anything given it is a sigmoid.

    Attributes:
        tasks: names of the logits' columns.
        objective: Hydra node of the objective, or None for binary tasks.
        temperatures: task -> temperature of its logits; 1 for tasks not named.
    """

    tasks: tuple[str, ...] = ()
    objective: Mapping[str, Any] | None = None
    temperatures: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.temperatures) - set(self.tasks))
        if unknown:
            raise ValueError(f"temperatures are for {unknown}, the tasks are {list(self.tasks)}")
        for task, temperature in self.temperatures.items():
            if not 0 < temperature < float("inf"):
                raise ValueError(
                    f"the temperature of {task!r} is {temperature}: give a positive number"
                )

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Calibration:
        """That of a checkpoint."""
        return cls(tuple(checkpoint.model.tasks), checkpoint.objective, checkpoint.temperatures)

    @cached_property
    def uncalibrated(self) -> Calibration:
        """The same objective at temperature 1."""
        return Calibration(self.tasks, self.objective)

    def probabilities(self, logits: FloatArray) -> FloatArray:
        """(N, K) float32 logits to probabilities."""
        values = torch.from_numpy(logits)
        if self.temperatures:
            values = values / torch.tensor([self.temperatures.get(t, 1.0) for t in self.tasks])
        if self.objective is None:
            return values.sigmoid().numpy()
        with torch.no_grad():
            return self._built.probabilities(values).numpy()

    @cached_property
    def _built(self) -> Objective:
        """Once: building it takes longer than asking it about a shard."""
        assert self.objective is not None, "only what has an objective builds it"
        return build_objective(self.objective, self.tasks)


def calibrate(
    logits: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], objective: Objective
) -> dict[str, float]:
    """The most probable temperatures given validation labels, by golden section.

    The likelihood is that of the probabilities, without class or task weights, and for focal loss
    too: there the temperature makes up for the bias of the loss. Beside it stands a prior, ours:
    log T is normal with deviation 1. It weighs as much as one clip, and decides only where labels
    do not: few labels are often separated without an error, and then their likelihood knows no best
    temperature, only ever colder ones, until probabilities round to 1 and clips that differ are
    ranked alike.

    Args:
        logits: (N, K) of clips that the model was not trained on.
        labels: (N, K) int, 1, 0 or MISSING.
        objective: whose probabilities are calibrated.

    Returns:
        Task -> temperature in [0.1, 10]; 1 where fewer than 10 labels or only one class are known.
    """
    values, truth = torch.from_numpy(logits).double(), torch.from_numpy(labels).long()
    present = objective.terms(truth).double()
    spread = torch.zeros(len(objective.kinds), len(objective.tasks), dtype=torch.float64)
    for kind, columns in enumerate(objective.kinds.values()):
        spread[kind, list(columns)] = 1.0

    def surprise(log_temperature_T: Tensor) -> Tensor:
        """(T,) -log posterior, each a function of its own kind's temperature alone."""
        # The likelihood of whole labels is convex in 1 / T: it has one minimum in log T at most.
        scaled = values / torch.exp(log_temperature_T @ spread)
        nll = (objective.nll(scaled, truth) * present).sum(dim=0)
        return nll + 0.5 * log_temperature_T**2

    with torch.no_grad():
        found = torch.exp(_golden_section(surprise, len(objective.kinds)))
    temperatures = {}
    for kind, columns in enumerate(objective.kinds.values()):
        known = _enough(truth[:, list(columns)])
        for column in columns:
            temperatures[objective.tasks[column]] = float(found[kind]) if known else 1.0
    return {task: temperatures[task] for task in objective.tasks}


def _golden_section(function: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """(count,) arguments between the bounds that minimise `count` functions at once."""
    ratio = (5**0.5 - 1) / 2
    low = torch.full((count,), float(np.log(COLDEST)), dtype=torch.float64)
    high = torch.full((count,), float(np.log(HOTTEST)), dtype=torch.float64)
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(STEPS):
        lower = at_left < at_right
        low, high = torch.where(lower, low, left), torch.where(lower, right, high)
        new = torch.where(lower, high - ratio * (high - low), low + ratio * (high - low))
        at_new = function(new)
        left, right = torch.where(lower, new, right), torch.where(lower, left, new)
        at_left, at_right = (
            torch.where(lower, at_new, at_right),
            torch.where(lower, at_left, at_new),
        )
    return (low + high) / 2


def _enough(labels: Tensor) -> bool:
    """Whether a temperature of these (N, C) columns of one kind can be fitted."""
    if labels.shape[1] == 1:
        classes = [int((labels == value).sum()) for value in (0, 1)]
    else:
        classes = (labels == 1).sum(dim=0).tolist()
    return sum(classes) >= MIN_LABELS and sum(count > 0 for count in classes) > 1
