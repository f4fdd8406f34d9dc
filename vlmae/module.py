"""The LightningModule: frozen towers, the trainable model, the objective and the optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from lsb.artifact import fingerprint
from vlmae.data.batches import Batch, ClipBatch
from vlmae.data.decode import Clip
from vlmae.data.token_table import widths
from vlmae.devices import seed_draws
from vlmae.growing.clock import EpochClock
from vlmae.model import Output, VlmaeModel
from vlmae.objectives import Objective
from vlmae.optimizers import OptimizerConfig, build_optimizer
from vlmae.strategy import checkpoint_blocks
from vlmae.tokens import Tokens, pad
from vlmae.towers import Towers
from vlmae.tuning import TowerTuning
from vlmae.validation import ValidationMetrics


class VlmaeModule(LightningModule):
    """Trains on cached tokens; with `towers` it also reads decoded clips.

    Args:
        model: the trainable part, or a function that builds it: called when the strategy is up, so
            that ZeRO-3 can shard it as it is built.
        objective: loss over (B, K) logits and labels.
        optimizer: its settings.
        total_steps: of the training, over which the learning rate runs. Lightning could count them,
            but would then set the loader up before a resumed loader's state is restored.
        towers: the frozen backbones, for the live path; not needed on cached tokens.
        seed: of dropout, which is drawn anew for every step from (seed, rank, step): a resumed
            training draws what it would have drawn, without a generator's state in a checkpoint.
        tuning: tower -> how it trains.
        share: micro-batches in a step of the optimiser, over ranks and accumulation.
        checkpoint_blocks: recompute the tuned blocks in the backward pass.
        target_precision: of the recall that validation logs.
        clock: of a training that grows (`vlmae.growing`); `total_steps` are those planned.
    """

    def __init__(
        self,
        model: VlmaeModel | Callable[[], VlmaeModel],
        objective: Objective,
        optimizer: OptimizerConfig,
        total_steps: int,
        towers: Towers | None = None,
        seed: int = 0,
        *,
        tuning: Mapping[str, TowerTuning] | None = None,
        share: int = 1,
        checkpoint_blocks: bool = False,
        target_precision: float = 0.8,
        clock: EpochClock | None = None,
    ) -> None:
        super().__init__()
        # Saves lack the frozen weights (contract 7); `on_load_checkpoint` looks for the others.
        self.strict_loading = False
        self.checkpoint_blocks = checkpoint_blocks
        self._build: Callable[[], VlmaeModel] | None = None
        if isinstance(model, VlmaeModel):
            self.model = model
        else:
            self._build = model
        self.objective, self.optimizer_config = objective, optimizer
        self.validation = ValidationMetrics(objective, target_precision)
        self.total_steps, self.seed, self.clock = total_steps, seed, clock
        self.tuning, self.share = dict(tuning or {}), share
        # In a tuple it is no submodule: frozen weights are never saved (contract 7).
        self._towers = (towers,)

    def configure_model(self) -> None:
        """Build the model, once, if a function was given."""
        if self._build is not None:
            self.model, self._build = self._build(), None
        if self.checkpoint_blocks and not checkpoint_blocks(self.model):
            rank_zero_warn(
                "trainer.checkpoint_blocks has no effect: no transformer block trains; tune some "
                "(tuning=last_2), or leave it out"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what does not train (contract 7)."""
        frozen = {name for name, p in self.named_parameters() if not p.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {n: t for n, t in state.items() if n not in frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a save that lacks a weight that trains.

        Raises:
            ValueError: names the first one.
        """
        state = checkpoint.get("state_dict")  # DeepSpeed loads its own
        trained = [name for name, p in self.named_parameters() if p.requires_grad]
        absent = [name for name in trained if state is not None and name not in state]
        if absent:
            raise ValueError(
                f"the save has no {absent[0]}: it is of another model; delete it and run again"
            )

    @property
    def towers(self) -> Towers | None:
        """The frozen backbones, if the module has them."""
        return self._towers[0]

    def forward(self, streams: Mapping[str, Tokens]) -> Output:
        """Logits of frozen tokens, stream name -> (B, T, width)."""
        output: Output = self.model(streams)
        return output

    def encode(self, clips: Sequence[Clip]) -> dict[str, Tokens]:
        """Frozen tokens of decoded clips, on the module's device.

        Raises:
            ValueError: the module was built without towers.
        """
        towers = self.towers
        if towers is None:
            raise ValueError("this module has no towers: give `towers` to read decoded clips")
        # In float32 as in a cache, also where the rest computes in bfloat16.
        with torch.autocast(self.device.type, enabled=False):
            tokens = towers.to(self.device).prefix(clips)
        return {
            name: pad(tokens[name], width).to(self.device)
            for name, width in widths(towers.prefix_streams).items()
        }

    def on_train_batch_start(self, batch: Batch | ClipBatch, batch_idx: int) -> None:
        """Seed what is drawn in this step."""
        step = self.trainer.fit_loop.total_batch_idx
        seed_draws(int(fingerprint([self.seed, self.global_rank, step])[:15], 16), self.device)

    def training_step(self, batch: Batch | ClipBatch, _: int) -> dict[str, Tensor]:
        """Loss of the fused logits plus that of both unimodal heads.

        The unimodal heads' inputs are detached (contract 10), so their loss does not move the rest,
        except under late fusion, where they are the model.

        Returns:
            "loss", their sum, and "fused", of the fused logits alone, detached.
        """
        output = self(self._streams(batch, augment=True))

        def loss_of(logits: Tensor, *, auxiliary: bool = False) -> Tensor:
            value: Tensor = self.objective(
                logits, batch.labels, batch.totals, self.share, auxiliary=auxiliary
            )
            return value

        loss = loss_of(output.logits)
        vl_loss = loss_of(output.vl_logits, auxiliary=True)
        auxiliary = vl_loss + loss_of(output.audio_logits, auxiliary=True)
        self.log("loss", loss.detach(), prog_bar=True, batch_size=len(batch.labels))
        return {"loss": loss + auxiliary, "fused": loss.detach()}

    def validation_step(self, batch: Batch | ClipBatch, _: int) -> None:
        """Keep logits and labels of a batch; every rank has equally many batches."""
        self.validation.update(self(self._streams(batch)).logits, batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Log metrics over the validation clips of all ranks. Collective."""
        self.log_dict(self.validation.compute())
        self.validation.reset()

    def _streams(self, batch: Batch | ClipBatch, *, augment: bool = False) -> Mapping[str, Tokens]:
        if isinstance(batch, Batch):
            return batch.streams
        assert self.towers is not None, "decoded clips need towers"
        self.towers.augment(augment)
        try:
            return self.encode(batch.clips)
        finally:
            self.towers.augment(False)

    def transfer_batch_to_device(
        self, batch: Batch | ClipBatch, device: torch.device, dataloader_idx: int
    ) -> Batch | ClipBatch:
        """Lightning moves only containers that it knows."""
        return batch.to(device)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimiser over the trainable parameters; the schedule counts steps."""
        optimizer, schedule = build_optimizer(
            self.model,
            self.optimizer_config,
            self.tuning,
            self.total_steps,
            extra=self.objective,
            clock=self.clock,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
