"""The Lightning trainer of a training: length, precision, strategy, callbacks."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.profilers import (
    AdvancedProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)

from vlmae.data.batches import INPUTS
from vlmae.devices import check_accelerator
from vlmae.pace import Pace
from vlmae.preemption import NoSignals
from vlmae.ranks import Ranks
from vlmae.strategy import StrategyConfig, build_precision, build_strategy

PRECISIONS = ("32-true", "bf16-mixed")
PROFILERS = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}


@dataclass(frozen=True)
class TrainConfig:
    """How long and on what a model is trained.

    Attributes:
        seed: of weights, batch order and dropout.
        epochs: passes over the labels.
        batch_size: clips a step and rank.
        accelerator: "cpu" or "gpu"; results are promised equal on equal hardware.
        threads: torch threads on CPU.
        target_precision: the operating thresholds are chosen for it on validation labels.
        inputs: "both", or a control: "vl", "audio", "shuffled_audio".
        accumulate: batches of every rank in a step of the optimiser.
        precision: "32-true" or "bf16-mixed".
        checkpoint_blocks: recompute the tuned blocks in the backward pass instead of keeping their
            activations.
        save_every_steps: a killed training goes on from the last save; 0 saves only when a signal
            asks the training to stop.
        calibrate: fit a temperature a task on the validation labels (`vlmae.calibration`).
        validate_every: epochs between two measurements on the validation clips; 0 never measures.
        keep: whose weights the checkpoint has: "last", or "best", of the epoch with the highest
            mean average precision on the validation clips.
        keep_saves: how many of the latest saves are kept.
        resume_from: folder of a save, of this training on another number of ranks; null goes on
            only from its own.
        trace: folder to write the ids of every step to, or None.
        profiler: "simple", "advanced" or "pytorch" (Lightning's), or None; its report goes to the
            logs.
    """

    seed: int
    epochs: int
    batch_size: int
    accelerator: str
    threads: int
    target_precision: float
    inputs: str
    accumulate: int = 1
    precision: str = "32-true"
    checkpoint_blocks: bool = False
    save_every_steps: int = 200
    trace: str | None = None
    calibrate: bool = True
    validate_every: int = 5
    keep: str = "last"
    keep_saves: int = 1
    resume_from: str | None = None
    profiler: str | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.threads < 1 or self.save_every_steps < 0:
            raise ValueError(
                f"trainer has epochs {self.epochs}, batch_size {self.batch_size}, threads "
                f"{self.threads}, save_every_steps {self.save_every_steps}: give at least 1 each, "
                "or 0 of the last"
            )
        check_accelerator(self.accelerator, "trainer.accelerator")
        if not 0 < self.target_precision <= 1:
            raise ValueError(
                f"trainer.target_precision is {self.target_precision}: give one in (0, 1]"
            )
        if self.accumulate < 1 or self.precision not in PRECISIONS:
            raise ValueError(
                f"trainer has accumulate {self.accumulate}, precision {self.precision!r}: give at "
                f"least 1, and one of {', '.join(PRECISIONS)}"
            )
        if self.validate_every < 0 or self.keep not in ("last", "best"):
            raise ValueError(
                f"trainer has validate_every {self.validate_every}, keep {self.keep!r}: give 0 or "
                "more epochs, and last or best"
            )
        if self.keep == "best" and not 1 <= self.validate_every <= self.epochs:
            raise ValueError(
                f"trainer.keep is best and validate_every {self.validate_every} of {self.epochs} "
                "epochs: nothing says which epoch is best; validate more often, or keep last"
            )
        if self.keep_saves < 1:
            raise ValueError(f"trainer.keep_saves is {self.keep_saves}: keep at least 1")
        if self.profiler is not None and self.profiler not in PROFILERS:
            raise ValueError(
                f"trainer.profiler is {self.profiler!r}: use one of {', '.join(PROFILERS)}, or null"
            )
        if self.inputs not in INPUTS:
            raise ValueError(f"trainer.inputs is {self.inputs!r}: use one of {', '.join(INPUTS)}")


def build_trainer(
    config: TrainConfig,
    strategy: StrategyConfig,
    ranks: Ranks,
    *,
    clip_norm: float,
    callbacks: Sequence[Callback],
    folder: Path,
    loggers: Sequence[Logger] = (),
    log_every: int = 10,
) -> Trainer:
    """The trainer of one rank.

    Args:
        config: length, device, precision.
        strategy: how the ranks share the work.
        ranks: the processes that train together.
        clip_norm: gradient norm limit.
        callbacks: of the training.
        folder: that Lightning may write to.
        loggers: of the first rank; the others have none.
        log_every: steps between two lines of the logs.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Raised inside Lightning 2.6 about its own use of torch; nothing here can change it.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
    # A module whose suffix keeps its batch norms in evaluation mode does so on purpose.
    warnings.filterwarnings("ignore", message=".*module.* in eval mode at the start of training")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*have no `val_dataloader`.*")  # on purpose
    # A single process on a machine that has SLURM is one on purpose; ranks are started by srun.
    warnings.filterwarnings("ignore", message=".*The `srun` command is available on your system.*")
    bar = sys.stderr.isatty() and ranks.first
    trainer = Trainer(
        max_epochs=config.epochs,
        # Inside a SLURM job Lightning would requeue by itself and start from checkpoints that it
        # finds in the current folder: only `launch` requeues (design, contract 9).
        plugins=[
            TorchElasticEnvironment() if ranks.size > 1 else LightningEnvironment(),
            build_precision(strategy, config),
        ],
        default_root_dir=folder,
        accelerator=config.accelerator,
        devices=ranks.local_size,
        num_nodes=ranks.size // ranks.local_size,
        strategy=build_strategy(strategy, config, ranks),
        accumulate_grad_batches=config.accumulate,
        check_val_every_n_epoch=max(1, config.validate_every),
        limit_val_batches=None if config.validate_every else 0,
        num_sanity_val_steps=0,
        # Batches are dealt to ranks by `vlmae.data.order`.
        use_distributed_sampler=False,
        deterministic=True,
        gradient_clip_val=clip_norm,
        # A bar is for a terminal; a log file gets the lines that `launch` writes.
        enable_progress_bar=bar,
        callbacks=[
            *callbacks,
            *([Pace(log_every), LearningRateMonitor("step")] if loggers else []),
            *([TQDMProgressBar(leave=False)] if bar else []),
        ],
        logger=list(loggers) or False,
        log_every_n_steps=log_every,
        profiler=_profiler(config, loggers),
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer._signal_connector = NoSignals(trainer)
    return trainer


def _profiler(config: TrainConfig, loggers: Sequence[Logger]) -> Profiler | None:
    """Of the ranks that have logs to write its report to."""
    if config.profiler is None or not loggers:
        return None
    kind = PROFILERS[config.profiler]
    profiler: Profiler = kind(dirpath=loggers[0].log_dir, filename="profile")
    return profiler
