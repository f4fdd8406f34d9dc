"""The LightningModule: frozen towers, the trainable model, the objective and the optimiser."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from lsb.artifact import fingerprint
from vlmae.data.batches import Batch, ClipBatch
from vlmae.data.decode import Clip
from vlmae.data.token_table import widths
from vlmae.model import Output, VlmaeModel
from vlmae.objectives import MultiTaskBinary
from vlmae.tokens import Tokens, pad
from vlmae.towers import Towers


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


class VlmaeModule(LightningModule):
    """Trains on cached tokens; with `towers` it also reads decoded clips.

    Args:
        model: the trainable part.
        objective: loss over (B, K) logits and labels.
        optimizer: its settings.
        total_steps: of the training, over which the learning rate runs. Lightning could count them,
            but would then set the loader up before a resumed loader's state is restored.
        towers: the frozen backbones, for the live path; not needed on cached tokens.
        seed: of dropout, which is drawn anew for every step from (seed, rank, step): a resumed
            training draws what it would have drawn, without a generator's state in a checkpoint.
    """

    def __init__(
        self,
        model: VlmaeModel,
        objective: MultiTaskBinary,
        optimizer: OptimizerConfig,
        total_steps: int,
        towers: Towers | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.objective, self.optimizer_config = model, objective, optimizer
        self.total_steps, self.seed = total_steps, seed
        # In a tuple it is no submodule: frozen weights are never saved (contract 7).
        self._towers = (towers,)

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
        tokens = towers.to(self.device).prefix(clips)
        return {
            name: pad(tokens[name], width).to(self.device)
            for name, width in widths(towers.prefix_streams).items()
        }

    def on_train_batch_start(self, batch: Batch | ClipBatch, batch_idx: int) -> None:
        """Seed what is drawn in this step."""
        step = self.trainer.fit_loop.total_batch_idx
        torch.manual_seed(int(fingerprint([self.seed, self.global_rank, step])[:15], 16))

    def training_step(self, batch: Batch | ClipBatch, _: int) -> dict[str, Tensor]:
        """Loss of the fused logits plus that of both unimodal heads.

        The unimodal heads' inputs are detached (contract 10), so their loss does not move the rest,
        except under late fusion, where they are the model.

        Returns:
            "loss", their sum, and "fused", of the fused logits alone, detached.
        """
        streams = batch.streams if isinstance(batch, Batch) else self.encode(batch.clips)
        output = self(streams)
        loss: Tensor = self.objective(output.logits, batch.labels)
        auxiliary = self.objective(output.vl_logits, batch.labels) + self.objective(
            output.audio_logits, batch.labels
        )
        self.log("loss", loss.detach(), prog_bar=True, batch_size=len(batch.labels))
        return {"loss": loss + auxiliary, "fused": loss.detach()}

    def transfer_batch_to_device(
        self, batch: Batch | ClipBatch, device: torch.device, dataloader_idx: int
    ) -> Batch | ClipBatch:
        """Lightning moves only containers that it knows."""
        return batch.to(device)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over the trainable parameters; the schedule counts steps."""
        config = self.optimizer_config
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
        total = self.total_steps
        warmup = int(config.warmup * total)

        def scale(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
