"""Trainings that are saved by two ranks and go on elsewhere; run by torchrun or alone.

torchrun --nproc-per-node 2 world_cases.py <folder>     saves, goes on to the end
python world_cases.py <folder>                          goes on from those saves on one rank
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from small_model import Case, Watch, make
from strategy_cases import zero

from vlmae.fitting import fit
from vlmae.preemption import StopFlag
from vlmae.ranks import Ranks
from vlmae.saves import Moment, Saves
from vlmae.strategy import StrategyConfig, process_group, whole_state

SAVED_AT = 6  # of 4 steps an epoch


@dataclass(frozen=True)
class Move:
    """A training on two ranks, and how one goes on with it.

    Attributes:
        before: on two ranks.
        accumulate: on one; twice as much keeps a step as it was.
    """

    before: Case
    accumulate: int = 4


MOVES = {
    "ddp": Move(Case(adam=True, rate=0.01)),
    "zero2": Move(Case(zero(2), adam=True, rate=0.01)),
    "zero3": Move(Case(zero(3), adam=True, rate=0.01)),
    "ddp, smaller steps": Move(Case(StrategyConfig(), adam=True, rate=0.01), accumulate=2),
}


def go(name: str, case: Case, ranks: Ranks, folder: Path, resume_from: str | None) -> None:
    watch = Watch()
    make_trainer, module, loader = make(case, ranks, folder / "lightning", watch)
    with process_group(case.strategy):
        fit(
            module,
            loader,
            make_trainer,
            saves=Saves(folder / f"{name}-{ranks.size}" / "saves", keep=9),
            flag=StopFlag(),
            now=Moment("this", 0, ranks.size, case.accumulate, case.strategy.name),
            save_every=SAVED_AT,
            resume_from=resume_from,
        )
        state = whole_state(module)
    result = {"state": state, "losses": watch.losses, "ids": watch.ids, "rates": watch.rates}
    torch.save(result, folder / f"{name}-{ranks.size}-{ranks.rank}.pt")


def main(folder: Path) -> None:
    ranks = Ranks.from_environment()
    with ranks.together():
        for name, move in MOVES.items():
            case, resume_from = move.before, None
            if ranks.size == 1:
                case = replace(case, accumulate=move.accumulate)
                resume_from = str(folder / f"{name}-2" / "saves" / f"step-{SAVED_AT:06d}")
            go(name, case, ranks, folder, resume_from)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
