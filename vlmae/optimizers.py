"""Optimisers and their schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vlmae.tuning import TowerTuning


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay.

    Attributes:
        learning_rate: peak.
        weight_decay: decoupled, on matrices only.
        warmup: share of all steps, in [0, 1).
        clip_norm: gradient norm limit.
    """

    learning_rate: float
    weight_decay: float
    warmup: float
    clip_norm: float

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or not 0 <= self.warmup < 1 or self.weight_decay < 0:
            raise ValueError(
                f"optimizer has learning_rate {self.learning_rate}, warmup {self.warmup}, "
                f"weight_decay {self.weight_decay}: give a rate above 0, a share in [0, 1) and a "
                "decay of 0 or more"
            )


def build_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    tuning: Mapping[str, TowerTuning],
    total_steps: int,
) -> tuple[Optimizer, LambdaLR]:
    """The optimiser over the trainable parameters, and its schedule in steps.

    Args:
        model: a `VlmaeModel`.
        config: rates, decay, warm-up.
        tuning: tower -> how it trains.
        total_steps: of the training.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
    warmup = int(config.warmup * total_steps)

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))

    return optimizer, LambdaLR(optimizer, scale)
