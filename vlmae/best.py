"""The weights of the best epoch, kept beside the training while it runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlmae.module import VlmaeModule
from vlmae.strategy import whole_state
from vlmae.validation import BEST

BEST_FILE = "best.safetensors"


class KeepBest(Callback):
    """Writes the model whenever a validation is better than all before; the first of equals stays.

    A resumed training repeats the epochs since its last save and finds the same best one.

    Args:
        path: of the safetensors file.
        resume_from: save of this training on another number of ranks, or None. Its best weights
            are taken over, if they are still those of the save.
    """

    def __init__(self, path: Path, resume_from: str | None = None) -> None:
        self.path, self.resume_from = path, resume_from
        self.value, self.epoch = float("-inf"), -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the best weights so far, where they lie with another training.

        Raises:
            ValueError: they are not there any more.
        """
        if self.epoch < 0 or self.path.is_file():
            return
        # .scratch-model/saves/step-000120, or a folder above it
        place = Path(self.resume_from or "")
        for folder in (place, *place.parents[:2]) if self.resume_from else ():
            found = folder / BEST_FILE
            if found.is_file() and _epoch(found) == self.epoch:
                if trainer.is_global_zero:
                    temporary = self.path.with_name(self.path.name + ".tmp")
                    shutil.copyfile(found, temporary)
                    os.replace(temporary, self.path)
                return
        raise ValueError(
            f"epoch {self.epoch} was the best so far, and its weights are not with the save that "
            "the training goes on from: resume on as many ranks as it had, or start anew"
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the model, if it is the best. Collective."""
        value = float(trainer.callback_metrics[BEST])
        if not value > self.value:  # nor where it is undefined
            return
        self.value, self.epoch = value, trainer.current_epoch
        assert isinstance(pl_module, VlmaeModule)
        state = whole_state(pl_module)
        if trainer.is_global_zero:
            temporary = self.path.with_name(self.path.name + ".tmp")
            tensors = {name: tensor.contiguous() for name, tensor in state.items()}
            save_file(tensors, temporary, metadata={"epoch": str(self.epoch)})
            os.replace(temporary, self.path)

    def state(self) -> dict[str, Tensor]:
        """The best model's.

        Raises:
            ValueError: no validation had a defined mean average precision.
        """
        if self.epoch < 0:
            raise ValueError(
                f"trainer.keep is best, and {BEST} was never defined: give validation clips with "
                "positive labels, or set trainer.keep=last"
            )
        return load_file(self.path)

    def state_dict(self) -> dict[str, Any]:
        """Which epoch was best."""
        return {"value": self.value, "epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.value, self.epoch = float(state_dict["value"]), int(state_dict["epoch"])


def _epoch(path: Path) -> int:
    """Whose weights a file holds."""
    with safe_open(path, framework="pt") as stream:
        return int((stream.metadata() or {}).get("epoch", -1))
