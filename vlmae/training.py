"""The training stage: labels and cached tokens in, a checkpoint out."""

from __future__ import annotations

import csv
import logging
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from lsb import ids as sample_ids
from lsb.artifact import Counts, Part, Stage, run_stage
from vlmae.checkpoint import build_model, save_checkpoint
from vlmae.data.batches import INPUTS, CachedClips
from vlmae.data.labels import label_matrix, labels_fingerprint
from vlmae.data.prefix_cache import PrefixCache
from vlmae.data.whitening import read_whitening
from vlmae.metrics import choose_threshold
from vlmae.module import OptimizerConfig, VlmaeModule
from vlmae.objectives import MultiTaskBinary
from vlmae.prediction import predict

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class TrainConfig:
    """How long and on what a model is trained.

    Attributes:
        seed: of weights, batch order and dropout.
        epochs: passes over the labels.
        batch_size: clips a step.
        accelerator: "cpu" or "gpu" (one device); results are promised equal on equal hardware.
        threads: torch threads on CPU.
        target_precision: the operating thresholds are chosen for it on validation labels.
        inputs: "both", or a control: "vl", "audio", "shuffled_audio".
    """

    seed: int
    epochs: int
    batch_size: int
    accelerator: str
    threads: int
    target_precision: float
    inputs: str

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.threads < 1:
            raise ValueError(
                f"trainer has epochs {self.epochs}, batch_size {self.batch_size}, threads "
                f"{self.threads}: give at least 1 each"
            )
        if self.accelerator not in ("cpu", "gpu"):
            raise ValueError(f"trainer.accelerator is {self.accelerator!r}: use cpu or gpu")
        if not 0 < self.target_precision <= 1:
            raise ValueError(
                f"trainer.target_precision is {self.target_precision}: give one in (0, 1]"
            )
        if self.inputs not in INPUTS:
            raise ValueError(f"trainer.inputs is {self.inputs!r}: use one of {', '.join(INPUTS)}")


def train(
    root: Path,
    cache: PrefixCache,
    whitened: Stage,
    *,
    labelled: pa.Table,
    validation: pa.Table,
    model: Mapping[str, Any],
    task_weights: Mapping[str, float],
    optimizer: OptimizerConfig,
    config: TrainConfig,
) -> Stage:
    """Train, or reuse the checkpoint of an equal training.

    Args:
        root: folder of all stages.
        cache: tokens of all clips.
        whitened: a finished `whiten` stage of this cache.
        labelled: training set, see `vlmae.data.labels`; clips that the cache skipped are left out.
        validation: labels that only choose the operating thresholds.
        model: "fusion", "tasks", "dropout", see `vlmae.checkpoint.build_model`.
        task_weights: of the objective.
        optimizer: its settings.
        config: everything else.

    Returns:
        A stage with checkpoint.safetensors, training_set.parquet, validation.parquet (the
        validation clips with their predictions) and history.csv.

    Raises:
        ValueError: no labelled clip is in the cache.
    """
    tasks = list(model["tasks"])
    return run_stage(
        root,
        "train",
        config={
            "model": dict(model),
            "task_weights": dict(task_weights),
            "optimizer": asdict(optimizer),
            "train": asdict(config),
        },
        inputs={
            "cache": cache.stage.content,
            "whitening": whitened.content,
            "labels": labels_fingerprint(labelled, tasks),
            "validation": labels_fingerprint(validation, tasks),
        },
        parts=[
            Part(
                "model",
                (CHECKPOINT, "training_set.parquet", "validation.parquet", "history.csv"),
                partial(
                    _fit,
                    cache,
                    whitened,
                    labelled,
                    validation,
                    model,
                    task_weights,
                    optimizer,
                    config,
                ),
            )
        ],
    )


def cached(table: pa.Table, cache: PrefixCache) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """The rows of a label table whose clips are in the cache, in id order, and their cache rows."""
    ids = sample_ids.from_arrow(table["id"])
    order = np.argsort(ids, kind="stable")
    rows = cache.rows_of(ids[order])
    kept = rows >= 0
    return table.take(order[kept]), rows[kept]


def prediction_columns(table: pa.Table, tasks: list[str], predictions: Any) -> pa.Table:
    """A table of clips with the probabilities of all three heads appended."""
    for prefix in ("probability", "vl_probability", "audio_probability"):
        values = getattr(predictions, prefix)
        for column, task in enumerate(tasks):
            table = table.append_column(
                f"{prefix}_{task}", pa.array(values[:, column], pa.float32())
            )
    return table


def _fit(
    cache: PrefixCache,
    whitened: Stage,
    labelled: pa.Table,
    validation: pa.Table,
    model_config: Mapping[str, Any],
    task_weights: Mapping[str, float],
    optimizer: OptimizerConfig,
    config: TrainConfig,
    output: Path,
) -> Counts:
    tasks = list(model_config["tasks"])
    asked = labelled.num_rows
    labelled, rows = cached(labelled, cache)
    if len(rows) == 0:
        raise ValueError(
            f"none of the {asked} labelled clips is in the cache {cache.stage.path}: label clips "
            "of this data set"
        )
    torch.set_num_threads(config.threads)
    lightning.seed_everything(config.seed, verbose=False)
    clips = CachedClips(cache, rows, label_matrix(labelled, tasks), config.inputs, config.seed)
    fresh = build_model(model_config, cache.streams)
    fresh.set_whitening(read_whitening(whitened))
    module = VlmaeModule(
        fresh,
        MultiTaskBinary(tasks, dict(task_weights)),
        optimizer,
    )
    history = _History()
    trainer = _trainer(config, optimizer, history, output)
    loader = DataLoader(
        clips,
        batch_size=config.batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(config.seed),
        collate_fn=clips.collate,
    )
    try:
        trainer.fit(module, loader)
    except SIGTERMException:  # Lightning's has no exit code, so that a killed run looked finished
        print("error: stopped by SIGTERM: run the same command to go on", file=sys.stderr)
        raise SystemExit(143) from None
    history.write(output / "history.csv")
    validation, validation_rows = cached(validation, cache)
    model = module.model.to("cpu")
    predictions = predict(model, cache, validation_rows, inputs=config.inputs, seed=config.seed)
    labels = label_matrix(validation, tasks)
    thresholds = {}
    for column, task in enumerate(tasks):
        present = labels[:, column] >= 0
        scores = predictions.probability[present, column]
        truth = labels[present, column] == 1
        thresholds[task] = choose_threshold(scores, truth, config.target_precision)
    save_checkpoint(
        output / CHECKPOINT,
        model,
        model_config=model_config,
        frozen=cache.identities,
        training_set=labels_fingerprint(labelled, tasks),
        thresholds=thresholds,
    )
    pq.write_table(labelled, output / "training_set.parquet")
    pq.write_table(
        prediction_columns(validation, tasks, predictions), output / "validation.parquet"
    )
    return {"labels": len(rows), "labels skipped": asked - len(rows), **_parameters(module)}


def _parameters(module: VlmaeModule) -> Counts:
    parts = module.model.trainable_parameters()
    return {f"trainable: {part}": count for part, count in parts.items()}


def _trainer(
    config: TrainConfig, optimizer: OptimizerConfig, history: Callback, folder: Path
) -> Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Raised inside Lightning 2.6 about its own use of torch; nothing here can change it.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
    return Trainer(
        max_epochs=config.epochs,
        # Inside a SLURM job Lightning would requeue by itself and start from checkpoints that it
        # finds in the current folder: only `launch` requeues (design, contract 9).
        plugins=[LightningEnvironment()],
        default_root_dir=folder,
        accelerator=config.accelerator,
        devices=1,
        deterministic=True,
        gradient_clip_val=optimizer.clip_norm,
        # A bar is for a terminal; a log file gets the lines that `launch` writes.
        enable_progress_bar=sys.stderr.isatty(),
        callbacks=[history, *([TQDMProgressBar(leave=False)] if sys.stderr.isatty() else [])],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )


class _History(Callback):
    """Training loss by epoch."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.losses.append(float(trainer.callback_metrics["loss"]))

    def write(self, path: Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as stream:
            rows = csv.writer(stream)
            rows.writerow(["epoch", "loss"])
            rows.writerows(enumerate(self.losses))
