"""Optimisers, their parameter groups and their schedule.

Groups are named, each with its own rate: "model" (projections, fusion, heads), "vl" and "audio"
(what trains behind the cuts), each with and without weight decay, and "objective". The rate of a
tower is that of the model times `tuning.<tower>.learning_rate`.

A tower that is unfrozen later has rate 0 until then and a warm-up of its own after it, rather than
weights that require no gradient: DeepSpeed shards what trains once, at the start, and a schedule
resumes by its step alone. Three things make that equal to a tower that joins at that step:

* At rate 0 no weight moves, bit for bit; decay is multiplied with the rate, too.
* Its gradients are zero until then (`_zero_while_waiting`), so they have no part in the norm that
  is clipped, and no momentum is there when it joins (but that of SGD's weight decay). The model
  trains as beside a frozen tower.
* AdamW's count of steps, by which it undoes the bias of its young averages, runs from step 0 for
  all of them. Uncorrected, a tower that joins late would move up to 6.5 times too far. The rate
  makes up for it (`_young`), so that its steps are those of a new AdamW.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vlmae.growing.clock import EpochClock
from vlmae.tuning import TowerTuning

NAMES = ("adamw", "sgd")
BETAS = (0.9, 0.999)
MODEL, OBJECTIVE = "model", "objective"
NO_DECAY = "/no_decay"


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, or SGD with momentum, with linear warm-up and cosine decay.

    Attributes:
        learning_rate: peak.
        weight_decay: on matrices only; decoupled with AdamW, a part of the gradient with SGD.
        warmup: share of all steps, in [0, 1).
        clip_norm: gradient norm limit.
        name: "adamw" or "sgd".
        momentum: of SGD, in [0, 1).
    """

    learning_rate: float
    weight_decay: float
    warmup: float
    clip_norm: float
    name: str = "adamw"
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or not 0 <= self.warmup < 1 or self.weight_decay < 0:
            raise ValueError(
                f"optimizer has learning_rate {self.learning_rate}, warmup {self.warmup}, "
                f"weight_decay {self.weight_decay}: give a rate above 0, a share in [0, 1) and a "
                "decay of 0 or more"
            )
        if self.name not in NAMES or not 0 <= self.momentum < 1:
            raise ValueError(
                f"optimizer has name {self.name!r}, momentum {self.momentum}: use one of "
                f"{', '.join(NAMES)}, and a momentum in [0, 1)"
            )
        if self.name == "adamw" and self.momentum:
            warnings.warn(
                f"optimizer.momentum {self.momentum} has no effect on adamw", stacklevel=3
            )


def build_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    tuning: Mapping[str, TowerTuning],
    total_steps: int,
    *,
    extra: nn.Module | None = None,
    clock: EpochClock | None = None,
) -> tuple[Optimizer, LambdaLR]:
    """The optimiser over the trainable parameters, and its schedule in steps.

    Groups come in a fixed order, and parameters in that of the model, so that a state is loaded
    into the same places; a group without parameters is left out.

    Args:
        model: a `VlmaeModel`.
        config: rates, decay, warm-up.
        tuning: tower -> how it trains; the model's own rate for a tower that is not named.
        total_steps: of the training, as planned.
        extra: the objective, which may have parameters (learned task weights); never decayed.
        clock: of a training whose epochs change their length; None counts steps.

    Raises:
        ValueError: nothing trains, or a parameter has no dimension.
    """
    groups = _groups(model, config, tuning, extra)
    if config.name == "adamw":
        # One call for all tensors of a group, as torch does it by itself on a GPU alone: the bits
        # are the same, and on a CPU it takes a small model a third of the time.
        optimizer: Optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=BETAS, foreach=True
        )
    else:
        optimizer = torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    warmup = int(config.warmup * total_steps)
    clock = clock or EpochClock(max(1, total_steps))
    scales: list[Callable[[int], float]] = []
    for index, group in enumerate(groups):
        tower = tuning.get(group["name"].removesuffix(NO_DECAY))
        start = int(tower.unfreeze * total_steps) if tower is not None else 0
        young = start > 0 and config.name == "adamw"
        scales.append(_schedule(start, warmup, total_steps, young, clock))
        if start:
            _zero_while_waiting(optimizer, index)
    return optimizer, LambdaLR(optimizer, scales)


def _schedule(
    start: int, warmup: int, total: int, young: bool, clock: EpochClock
) -> Callable[[int], float]:
    """Factor of a group's rate in each step: warm-up from `start`, and a cosine over all steps.

    All but the step itself is in planned steps.
    """

    def scale(count: int) -> float:
        step = clock.planned_step(count)
        age = step - start
        if age < 0:
            return 0.0
        value = (age + 1) / (warmup + 1) if age < warmup else 1.0
        if step >= warmup:
            value *= 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
        # Averages count real steps.
        return value * _young(count - clock.step_of(start) + 1, count + 1) if young else value

    return scale


def _young(age: int, step: int) -> float:
    """AdamW's correction of averages `age` steps old, over that of averages `step` steps old."""
    first, second = BETAS

    def correction(count: int) -> float:
        return math.sqrt(1 - second**count) / (1 - first**count)

    return correction(age) / correction(step)


def _zero_while_waiting(optimizer: Optimizer, index: int) -> None:
    """Gradients of a group are zero as long as its rate is.

    On the tensors themselves, before anything else sees a gradient: DDP's and DeepSpeed's own hooks
    come after them, so the ranks still exchange what they expect to.
    """

    def gate(gradient: Tensor) -> Tensor:
        # By way of the optimiser: loading a state makes new groups.
        waiting = optimizer.param_groups[index]["lr"] == 0.0
        return torch.zeros_like(gradient) if waiting else gradient

    for parameter in optimizer.param_groups[index]["params"]:
        parameter.register_hook(gate)


def _groups(
    model: nn.Module,
    config: OptimizerConfig,
    tuning: Mapping[str, TowerTuning],
    extra: nn.Module | None,
) -> list[dict[str, Any]]:
    """Parameter groups with "name", "lr" and "weight_decay"."""
    streams: Mapping[str, Mapping[str, int]] = getattr(model, "streams", {})
    tower_of = {stream: tower for tower, names in streams.items() for stream in names}
    rates = {MODEL: 1.0}
    for tower in streams:
        rates[tower] = tuning[tower].learning_rate if tower in tuning else 1.0
    members: dict[str, list[nn.Parameter]] = {}
    for name, parameter in _trainable(model):
        parts = name.split(".")
        owner = tower_of[parts[1]] if parts[0] == "suffix" else MODEL
        ending = "" if len(_shape(parameter)) > 1 else NO_DECAY
        members.setdefault(owner + ending, []).append(parameter)
    groups = [
        {
            "name": owner + ending,
            "params": members[owner + ending],
            "lr": config.learning_rate * rate,
            "weight_decay": 0.0 if ending else config.weight_decay,
        }
        for owner, rate in rates.items()
        for ending in ("", NO_DECAY)
        if owner + ending in members
    ]
    objective = [parameter for _, parameter in _trainable(extra)] if extra is not None else []
    if objective:
        groups.append(
            {
                "name": OBJECTIVE,
                "params": objective,
                "lr": config.learning_rate,
                "weight_decay": 0.0,
            }
        )
    if not groups:
        raise ValueError("no parameter of the model requires a gradient: nothing can be trained")
    return groups


def _trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    found = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    for name, parameter in found:
        if not _shape(parameter):
            raise ValueError(
                f"parameter {name!r} has no dimension, which DeepSpeed cannot shard: give it the "
                "shape (1,)"
            )
    return found


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Of the whole tensor: ZeRO-3 keeps an empty one in its place, and the shape beside it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
