"""How fast a training goes and how much memory it takes, step by step."""

from __future__ import annotations

import time
from typing import Any

import psutil
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from vlmae.data.batches import Batch, ClipBatch

GIGABYTE = 1e9


class Pace(Callback):
    """Logs clips and tokens a second, and memory in GB, of the first rank.

    Averages over the steps since the last line; Lightning's ThroughputMonitor would wait for the
    GPU at every step. Tokens are the real ones of all streams; live batches are counted in clips
    alone, their tokens exist on the device only. The rate is that of all ranks, which have equal
    batches.

    Args:
        every: steps of the optimiser between two lines.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._clips, self._tokens = 0, []  # type: int, list[torch.Tensor]
        self._since: float | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time between epochs, for validation for instance, is not a training's."""
        self._restart()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch, and write a line if it is time."""
        if isinstance(batch, Batch):
            self._clips += len(batch.labels)
            # Read when a line is written: reading waits for a GPU.
            self._tokens += [t.mask.sum() for t in batch.streams.values()]
        elif isinstance(batch, ClipBatch):
            self._clips += len(batch.labels)
        whole_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not whole_step or trainer.global_step % self.every or self._since is None:
            return
        device = pl_module.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = max(time.perf_counter() - self._since, 1e-9)
        pace = trainer.world_size * self._clips / seconds
        measured = {"pace/clips_per_s": pace, **memory(device)}
        if self._tokens:
            tokens = sum(int(count) for count in self._tokens)
            measured["pace/tokens_per_s"] = trainer.world_size * tokens / seconds
        for logger in trainer.loggers:
            logger.log_metrics(measured, step=trainer.global_step)
        self._restart()

    def _restart(self) -> None:
        self._clips, self._tokens = 0, []
        self._since = time.perf_counter()


def memory(device: torch.device) -> dict[str, float]:
    """GB that this process holds: resident, and on a GPU allocated now and at most."""
    held = {"memory/resident_gb": psutil.Process().memory_info().rss / GIGABYTE}
    if device.type == "cuda":
        held["memory/gpu_gb"] = torch.cuda.memory_allocated(device) / GIGABYTE
        held["memory/gpu_peak_gb"] = torch.cuda.max_memory_allocated(device) / GIGABYTE
    return held
