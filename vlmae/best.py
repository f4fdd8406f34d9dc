"""The weights of the best epoch, kept beside the training while it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlmae.module import VlmaeModule
from vlmae.strategy import whole_state
from vlmae.validation import BEST


class KeepBest(Callback):
    """Writes the model whenever a validation is better than all before; the first of equals stays.

    A resumed training repeats the epochs since its last save and finds the same best one.

    Args:
        path: of the safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.value, self.epoch = float("-inf"), -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to go on where the best weights so far are not.

        Raises:
            ValueError: the save is of a training that kept them elsewhere.
        """
        if self.epoch >= 0 and not self.path.is_file():
            raise ValueError(
                f"epoch {self.epoch} was the best so far, and its weights are not here: they lie "
                "with the training that trainer.resume_from is of; resume on as many ranks as it "
                "had, or set trainer.keep=last"
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
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)
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
