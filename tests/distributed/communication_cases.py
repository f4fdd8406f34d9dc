"""Trains the small model with gradients sent in float32 and in bfloat16; run by torchrun.

    python communication_cases.py <folder>

One epoch without accumulation, so that a gradient is what one exchange has left.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_grad
from small_model import Case, Watch, make
from torch import Tensor

from vlmae.ranks import Ranks
from vlmae.strategy import StrategyConfig, process_group, whole_state

# As little as possible in one message and nothing kept whole: all paths are taken.
SHARDS: dict[str, Any] = {"bucket_size": 2000, "persist_below": 0}
STRATEGIES = {
    "ddp": StrategyConfig(),
    "zero1": StrategyConfig("zero1", **SHARDS),
    "zero2": StrategyConfig("zero2", **SHARDS),
    "zero3": StrategyConfig("zero3", **SHARDS),
}
MIXED = "zero2 bf16-mixed"
TWO = {
    **{name: Case(strategy, accumulate=1, epochs=1) for name, strategy in STRATEGIES.items()},
    MIXED: Case(STRATEGIES["zero2"], accumulate=1, epochs=1, precision="bf16-mixed"),
}
FOUR = {
    "zero3 on four": Case(STRATEGIES["zero3"], batch_size=1, accumulate=1, epochs=1),
    "hpz": Case(replace(STRATEGIES["zero3"], hpz_ranks=2), batch_size=1, accumulate=1, epochs=1),
}


class Gradients(Watch):
    """Gradients of the first step as the optimiser sees them, before they are clipped."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients: dict[str, Tensor] = {}
        self.copies: dict[str, tuple[int, int]] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self.gradients:
            return
        for name, parameter in pl_module.model.named_parameters():
            second = getattr(parameter, "ds_secondary_tensor", None)
            if second is not None:
                self.copies[name] = (second.numel(), parameter.ds_tensor.numel())
            if parameter.requires_grad:
                sharded = hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id")
                gradient = safe_get_full_grad(parameter) if sharded else parameter.grad
                self.gradients[name] = gradient.detach().clone()


def main(folder: Path) -> None:
    ranks = Ranks.from_environment()
    cases: dict[str, Case] = dict(FOUR if ranks.size == 4 else TWO)
    if ranks.size == 2:
        for name, case in TWO.items():
            strategy = replace(case.strategy, communication_data_type="bf16")
            cases[f"{name}, sent in bf16"] = replace(case, strategy=strategy)
    with ranks.together():
        for name, case in cases.items():
            watch = Gradients()
            make_trainer, module, loader = make(case, ranks, folder / "lightning", watch)
            with process_group(case.strategy):
                make_trainer([]).fit(module, loader)
                state = whole_state(module)
            if ranks.first:
                result = {"state": state, "gradients": watch.gradients, "copies": watch.copies}
                torch.save(result, folder / f"{name}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
