"""Trains the small model in every way that a test compares; run by torchrun or alone.

    python strategy_cases.py <folder>

One start for all cases: importing torch and DeepSpeed takes longer than the trainings.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from small_model import Case, Watch, make, suffix

from vlmae.ranks import Ranks
from vlmae.strategy import StrategyConfig, process_group, verify_pretrained, whole_state

# As little as possible in one message and nothing kept whole: all paths are taken.
SHARDS = {"bucket_size": 2000, "persist_below": 0}


def zero(stage: int) -> StrategyConfig:
    return StrategyConfig(f"zero{stage}", **SHARDS)  # type: ignore[arg-type]


WHOLE: dict[str, Case] = {
    "whole": Case(batch_size=8, accumulate=1),
    "short whole": Case(batch_size=8, accumulate=1, epochs=1),
    "short whole zero3": Case(zero(3), batch_size=8, accumulate=1, epochs=1),
    "short whole bf16": Case(batch_size=8, accumulate=1, epochs=1, precision="bf16-mixed"),
}
SPLIT: dict[str, Case] = {
    "ddp": Case(),
    "zero1": Case(zero(1)),
    "zero2": Case(zero(2)),
    "zero3": Case(zero(3)),
    "short ddp, recomputed": Case(checkpointing=True, epochs=1),
    "short zero3, recomputed": Case(zero(3), checkpointing=True, epochs=1),
    "short ddp, naive mean": Case(naive=True, epochs=1),
    "short ddp bf16": Case(precision="bf16-mixed", epochs=1),
    "short zero3 bf16": Case(zero(3), precision="bf16-mixed", epochs=1),
}


class Loaded:
    """Stands for towers: what was loaded behind the cut."""

    def suffix_modules(self) -> Any:
        return suffix()


class Damaged(Loaded):
    """As if one tensor had not arrived."""

    def suffix_modules(self) -> Any:
        modules = suffix()
        with torch.no_grad():
            modules["audio"].layers["2"].out.weight[3, 1] += 1e-3
        return modules


class Verify(Watch):
    """Compares the blocks behind the cut with what was loaded, before the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.compared, self.refused = 0, ""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.compared = verify_pretrained(pl_module, Loaded())  # type: ignore[arg-type]
        try:
            verify_pretrained(pl_module, Damaged())  # type: ignore[arg-type]
        except ValueError as error:
            self.refused = str(error)
        self.sharded = sum(p.numel() == 0 for p in pl_module.model.parameters())


def main(folder: Path) -> None:
    ranks = Ranks.from_environment()
    with ranks.together():
        for name, case in (WHOLE if ranks.size == 1 else SPLIT).items():
            watch, started = Verify(), time.monotonic()
            make_trainer, module, loader = make(case, ranks, folder / "lightning", watch)
            with process_group(case.strategy):
                make_trainer([]).fit(module, loader)
                state = whole_state(module)
            print(f"{name}: {time.monotonic() - started:.1f} s")
            result = {
                "state": state,
                "losses": watch.losses,
                "ids": watch.ids,
                "norms": watch.norms,
                "compared": watch.compared,
                "refused": watch.refused,
                "sharded": watch.sharded,
            }
            torch.save(result, folder / f"{name}-{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
