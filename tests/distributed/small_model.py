"""A small model on made-up tokens, trained by the real trainer, loader and objective.

What makes ranks disagree is all there: labels missing unevenly, clips without sound that meet on
one rank, a partly frozen encoder behind the cut, accumulation, clipping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from plain_suffix import TransformerSuffix
from torch import Tensor, nn

from lsb.ids import sample_id
from vlmae.backbones.suffix import Suffix
from vlmae.data.batches import CachedClips
from vlmae.data.loader import ClipLoader
from vlmae.data.order import BatchOrder, OrderConfig
from vlmae.data.token_table import Rows
from vlmae.fusion import CrossAttentionFusion
from vlmae.model import VlmaeModel
from vlmae.module import VlmaeModule
from vlmae.objectives import MultiTaskBinary
from vlmae.optimizers import OptimizerConfig
from vlmae.ranks import Ranks
from vlmae.strategy import StrategyConfig
from vlmae.tokens import Tokens, pad
from vlmae.trainer import TrainConfig, build_trainer

CLIPS, EPOCHS, STEPS = 32, 5, 20
TASKS = ["relevance", "clickbait", "unsafe"]
STREAMS = {"vl": {"image": 12, "text": 10}, "audio": {"audio": 8}}
# Micro-batches of 2 clips; in step 0 the second of two ranks has numbers 1 and 3.
SILENT = (1, 3)


class Block(nn.Module):
    """One head of attention and an MLP, called as encoders' blocks are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.query_key_value(self.first(hidden)).chunk(3, dim=-1)
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5 + mask[:, 0]
        hidden = hidden + self.out(scores.softmax(dim=-1) @ value)
        return hidden + self.mlp(self.second(hidden))


class Table:
    """A `TokenTable` of random tokens; some clips have no sound."""

    streams = STREAMS
    identities: Mapping[str, Any] = {}

    def __init__(self, silent: set[int]) -> None:
        rng = np.random.default_rng(5)
        keys = [f"clip-{number}" for number in range(CLIPS)]
        self.rows = pa.table({"id": pa.array([sample_id(k) for k in keys], pa.binary(16))})
        self._tokens: dict[str, list[Tensor]] = {}
        for name, width in (("image", 12), ("text", 10), ("audio", 8)):
            lengths = rng.integers(1, 6, CLIPS)
            if name == "audio":
                lengths[sorted(silent)] = 0
            self._tokens[name] = [
                torch.from_numpy(rng.normal(0, 1, (length, width)).astype(np.float32))
                for length in lengths
            ]

    def batch(self, rows: Rows, stream: str) -> Tokens:
        tokens = self._tokens[stream]
        return pad([tokens[row] for row in rows], tokens[0].shape[1])


def labels() -> np.ndarray:
    """(CLIPS, 3): 1, 0 or missing; the second task is labelled for few clips, the last for most."""
    rng = np.random.default_rng(9)
    values = rng.integers(0, 2, (CLIPS, len(TASKS))).astype(np.int8)
    missing = rng.random((CLIPS, len(TASKS))) < np.array([0.4, 0.8, 0.1])
    values[missing] = -1
    return values


def suffix() -> Suffix:
    """Two blocks behind the cut of the audio stream, the first of them as it was loaded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(77)
        layers = nn.ModuleDict({"2": Block(8), "3": Block(8)})
        whole = Suffix({"audio": TransformerSuffix(layers, nn.LayerNorm(8), 2, 8)})
    layers["2"].requires_grad_(False)
    return whole


def build(dropout: float = 0.0) -> VlmaeModel:
    """The model before its first step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        fusion = CrossAttentionFusion(width=16, heads=2, layers=1, dropout=0.0)
        model = VlmaeModel(STREAMS, 6, fusion, TASKS, dropout, suffix())
    generator = torch.Generator().manual_seed(4)
    model.set_whitening(
        {
            name: (
                torch.randn(width, generator=generator),
                torch.randn(width, 6, generator=generator) / 3,
            )
            for streams in STREAMS.values()
            for name, width in streams.items()
        }
    )
    return model


@dataclass(frozen=True)
class Case:
    """One way to train it.

    Attributes:
        strategy: how the ranks share the work.
        batch_size: clips a rank and micro-batch.
        accumulate: micro-batches a step.
        precision: see `TrainConfig`.
        checkpointing: recompute blocks.
        naive: average the means of micro-batches instead of counting labels over the step.
        rate: learning rate.
        dropout: in the heads.
        adam: AdamW instead of SGD with momentum.
    """

    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    batch_size: int = 2
    accumulate: int = 2
    precision: str = "32-true"
    checkpointing: bool = False
    naive: bool = False
    rate: float = 0.1
    dropout: float = 0.0
    adam: bool = False
    epochs: int = EPOCHS


class Sgd(VlmaeModule):
    """Steps are proportional to gradients: AdamW would hide a wrong factor."""

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, lr=self.optimizer_config.learning_rate, momentum=0.9)


class Watch(Callback):
    """Losses of micro-batches, ids, and the gradient's norm before it is clipped."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.ids: list[list[str]] = []
        self.norms: list[float] = []
        self.rates: list[list[float]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))
        self.ids.append([bytes(i).hex() for i in batch.ids])
        groups = trainer.optimizers[0].param_groups
        self.rates.append([value for g in groups for value in (g["lr"], g["weight_decay"])])

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if gradients:
            self.norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))


def make(
    case: Case,
    ranks: Ranks,
    folder: Path,
    watch: Callback,
) -> tuple[Callable[[Sequence[Callback]], Trainer], VlmaeModule, ClipLoader]:
    """Of a case on one rank: a function from more callbacks to the trainer, module and loader."""
    torch.set_num_threads(1)
    config = TrainConfig(
        seed=1,
        epochs=case.epochs,
        batch_size=case.batch_size,
        accelerator="cpu",
        threads=1,
        target_precision=0.8,
        inputs="both",
        accumulate=case.accumulate,
        precision=case.precision,
        checkpoint_blocks=case.checkpointing,
    )
    objective = MultiTaskBinary(TASKS, {"unsafe": 2.0})
    small = BatchOrder(CLIPS, world=2, config=OrderConfig(2, seed=6, accumulate=2))
    silent = {int(row) for number in SILENT for row in small.batch(0, number)}
    order = BatchOrder(
        CLIPS,
        world=ranks.size,
        config=OrderConfig(case.batch_size, seed=6, accumulate=case.accumulate),
    )
    clips = CachedClips(Table(silent), np.arange(CLIPS), labels())
    loader = ClipLoader(
        clips,
        order,
        rank=ranks.rank,
        data="small",
        terms=None if case.naive else objective.terms(torch.from_numpy(labels())).numpy(),
    )
    kind = VlmaeModule if case.adam else Sgd
    module = kind(
        lambda: build(case.dropout),
        objective,
        OptimizerConfig(case.rate, 0.1, 0.1, 0.5),
        case.epochs * order.steps() // case.accumulate,
        seed=1,
        share=order.per_step,
        checkpoint_blocks=case.checkpointing,
    )

    def make_trainer(more: Sequence[Callback]) -> Trainer:
        return build_trainer(
            config, case.strategy, ranks, clip_norm=0.5, callbacks=[watch, *more], folder=folder
        )

    return make_trainer, module, loader
