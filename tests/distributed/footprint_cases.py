"""Trains the small model and counts what is alive before the second step; run by torchrun.

python footprint_cases.py <folder>
"""

from __future__ import annotations

import gc
import json
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from communication_cases import STRATEGIES
from small_model import Case, Watch, make
from torch import Tensor

from vlmae.ranks import Ranks
from vlmae.strategy import process_group

CASES = {
    **{
        name: Case(strategy, accumulate=1, epochs=1, adam=True)
        for name, strategy in {
            **STRATEGIES,
            "hpz": replace(STRATEGIES["zero3"], hpz_ranks=2),
        }.items()
    },
    **{
        f"{name}, accumulated": Case(STRATEGIES[name], accumulate=2, epochs=1, adam=True)
        for name in ("zero1", "zero2")
    },
}


LOOKS, PAUSE_S = 5, 0.2


class Alive(Watch):
    """Bytes before the second step, when gradients and the optimiser's state are there."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = {}

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 2:  # the third of an epoch, the first of a step where two are accumulated
            gradients = [p.grad for p in pl_module.model.parameters() if p.grad is not None]
            self.bytes["gradients"] = sum(storages(gradients).values())

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step != 1:
            return
        parameters = list(pl_module.model.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        inner = getattr(optimizer, "optimizer", optimizer)
        state = [t for held in inner.state.values() for t in held.values() if t.numel() > 1]
        self.bytes |= {
            "all": min(self._all(gradients) for _ in range(LOOKS)),
            "weights": sum(storages(parameters).values()),
            "optimiser": sum(storages(state).values()),
        }

    def _all(self, gradients: list[Tensor]) -> int:
        """Bytes of all that is alive now.

        Buckets that were given back may be a part of cycles, or still in the hands of the thread
        that has sent them, where a machine is busy.
        """
        time.sleep(PAUSE_S)
        gc.collect()
        return sum(storages([*gradients, *python_tensors()]).values())


def python_tensors() -> list[Tensor]:
    """All that are alive and known to Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old names of modules are asked for their class, too
        return [held for held in gc.get_objects() if isinstance(held, Tensor)]


def storages(tensors: list[Tensor]) -> dict[int, int]:
    """Address -> bytes of each storage, once."""
    held = (tensor.untyped_storage() for tensor in tensors if not tensor.is_meta)
    return {storage.data_ptr(): storage.nbytes() for storage in held}


def main(folder: Path) -> None:
    ranks = Ranks.from_environment()
    with ranks.together():
        for name, case in CASES.items():
            watch = Alive()
            make_trainer, module, loader = make(case, ranks, folder / "lightning", watch)
            # Held until the case has ended, so that what was there before stays.
            standing = python_tensors()
            with process_group(case.strategy):
                make_trainer([]).fit(module, loader)
            if ranks.first:
                watch.bytes["all"] -= sum(storages(standing).values())
                (folder / f"{name}.json").write_text(json.dumps(watch.bytes))
            del standing


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
