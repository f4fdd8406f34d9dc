"""The training stage: labels and frozen tokens in, a checkpoint out."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lsb import ids as sample_ids
from lsb.artifact import Counts, Part, Stage, run_stage, scratch
from lsb.ids import IdArray
from vlmae.callbacks import History, Quarantine, SaveForResume, Trace, write_history
from vlmae.checkpoint import CHECKPOINT, build_model, save_checkpoint
from vlmae.data.batches import CachedClips, LiveClips
from vlmae.data.encode import QUARANTINE_SCHEMA
from vlmae.data.labels import WEIGHT, label_matrix, labels_fingerprint, with_weights
from vlmae.data.loader import ClipLoader, LoaderConfig
from vlmae.data.order import BatchOrder
from vlmae.data.token_source import CachedTokens, LiveTokens, TokenSource, in_source
from vlmae.data.tombstones import without_tombstones
from vlmae.data.whitening import read_whitening
from vlmae.loggers import LoggerConfig, build_loggers, close_loggers
from vlmae.metrics import choose_threshold
from vlmae.model import VlmaeModel
from vlmae.module import VlmaeModule
from vlmae.objectives import Objective
from vlmae.optimizers import OptimizerConfig
from vlmae.prediction import predict_clips, prediction_columns
from vlmae.ranks import Ranks
from vlmae.strategy import StrategyConfig, whole_state
from vlmae.towers import build_towers
from vlmae.trainer import TrainConfig, build_trainer
from vlmae.tuning import tuning_config

QUARANTINE = "quarantine.parquet"
FILES = (CHECKPOINT, "training_set.parquet", "validation.parquet", QUARANTINE, "history.csv")
PLACE = ("split", "shard", "offset", "size", "duration_s")
# Where a training is written down while it runs: they change no result.
NOT_HASHED = ("save_every_steps", "trace", "profiler")


@dataclass(frozen=True)
class Training:
    """One training, ready to run.

    Attributes:
        source: frozen tokens of the data set.
        whitened: a finished `whiten` stage of this source.
        labelled: training set, see `vlmae.data.labels`; clips that cannot be decoded are left out.
        validation: labels that only choose the operating thresholds.
        model: "fusion", "tasks", "dropout", "components" and "tuning", see
            `vlmae.checkpoint.build_model`.
        objective: Hydra node with `_target_` of an `Objective`, called with the tasks.
        optimizer: its settings.
        config: length, seed, device.
        loader: composition of batches.
        strategy: how the ranks share the work.
        skip_limit: largest share of undecodable clips.
        ranks: the processes that train together.
        logs: folder of all logs, or None to write none; changes no result.
        logger: what is logged where.
    """

    source: TokenSource
    whitened: Stage
    labelled: pa.Table
    validation: pa.Table
    model: Mapping[str, Any]
    objective: Mapping[str, Any]
    optimizer: OptimizerConfig
    config: TrainConfig
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    skip_limit: float = 1.0
    ranks: Ranks = field(default_factory=Ranks)
    logs: Path | None = None
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the order of the heads."""
        return list(self.model["tasks"])


def train(root: Path, training: Training) -> Stage:
    """Train, or reuse the checkpoint of an equal training. Collective: all ranks call it.

    Args:
        root: folder of all stages.
        training: what to train on what.

    Returns:
        A stage with checkpoint.safetensors, training_set.parquet (the manifest: ids, labels,
        weights, sources, byte ranges), validation.parquet (the validation clips with their
        predictions), quarantine.parquet and history.csv.

    Raises:
        ValueError: no labelled clip can be decoded, too few for one step, or too many are bad.
    """
    config = training.config
    labelled, validation = (
        without_tombstones(root, table) for table in (training.labelled, training.validation)
    )
    training = replace(training, labelled=labelled, validation=validation)
    weighted = with_weights(
        training.labelled,
        training.tasks,
        positive_weight=training.loader.positive_weight,
        new_weight=training.loader.new_weight,
    )
    settings = {k: v for k, v in asdict(config).items() if k not in NOT_HASHED}

    def make(work: Any) -> Stage:
        return run_stage(
            root,
            "train",
            config={
                "model": dict(training.model),
                "objective": dict(training.objective),
                "strategy": training.strategy.hashed(),
                "optimizer": asdict(training.optimizer),
                "train": settings,
                "loader": training.loader.hashed(),
                "ranks": training.ranks.size,
            },
            inputs={
                **training.source.inputs,
                "whitening": training.whitened.content,
                "labels": labels_fingerprint(weighted, training.tasks),
                "validation": labels_fingerprint(training.validation, training.tasks),
            },
            parts=[Part("model", FILES, work)],
            revision=3,
        )

    def fit(output: Path) -> Counts:
        return _fit(training, weighted, output)

    return training.ranks.all(make, fit)


def _fit(training: Training, labelled: pa.Table, output: Path) -> Counts:
    """Train on all ranks; the first writes the files."""
    config, tasks, source = training.config, training.tasks, training.source
    asked = labelled
    labelled = in_source(labelled, source)
    if labelled.num_rows == 0:
        raise ValueError(
            f"none of the {asked.num_rows} labelled clips can be decoded: label clips of this data "
            "set"
        )
    torch.set_num_threads(config.threads)
    lightning.seed_everything(config.seed, verbose=False)
    objective = build_objective(training.objective, tasks)
    manifest = _with_places(labelled, source.index)
    loader = _loader(training, manifest, objective)
    live = isinstance(source, LiveTokens)
    module = VlmaeModule(
        partial(_fresh_model, training),
        objective,
        training.optimizer,
        config.epochs * loader.order.steps() // config.accumulate,
        build_towers(source.towers["vl"], source.towers["audio"]) if live else None,
        config.seed,
        tuning=tuning_config(training.model.get("tuning")),
        share=loader.order.per_step,
    )
    history = History()
    quarantine = Quarantine(labelled.num_rows, training.skip_limit)
    loggers = _loggers(training, output)
    unfinished = scratch(output) / "resume.ckpt"
    callbacks: list[Callback] = [history, quarantine]
    if config.trace:
        callbacks.append(Trace(Path(config.trace)))
    if config.save_every_steps:
        callbacks.append(SaveForResume(unfinished, config.save_every_steps))
    trainer = build_trainer(
        config,
        training.strategy,
        training.ranks,
        clip_norm=training.optimizer.clip_norm,
        callbacks=callbacks,
        folder=output,
        loggers=loggers,
        log_every=training.logger.every_steps,
    )
    resume = unfinished if unfinished.is_file() else None
    try:
        trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
    except SIGTERMException:  # Lightning's has no exit code, so that a killed run looked finished
        print("error: stopped by SIGTERM: run the same command to go on", file=sys.stderr)
        raise SystemExit(143) from None
    finally:
        loader.close()
        close_loggers(loggers)
    bad, losses = quarantine.table(), history.losses()
    state = whole_state(module)
    if not training.ranks.first:
        return {}
    bad = pa.concat_tables([bad, _known_bad(asked, source)])
    write_history(output / "history.csv", losses)
    pq.write_table(bad, output / QUARANTINE)
    pq.write_table(manifest, output / "training_set.parquet")
    model = _fresh_model(training)
    model.load_state_dict(state)
    _write_checkpoint(training, model, labelled, output)
    usable = asked.num_rows - bad.num_rows
    parts = {f"trainable: {part}": count for part, count in model.trainable_parameters().items()}
    return {"labels": usable, "labels skipped": bad.num_rows, **parts}


def _loggers(training: Training, output: Path) -> list[Logger]:
    """Of the first rank, in a folder named as the stage will be."""
    if training.logs is None or not training.ranks.first:
        return []
    name = output.parent.name.split(".")[0]
    settings = {
        "model": training.model,
        "optimizer": asdict(training.optimizer),
        "trainer": asdict(training.config),
        "strategy": training.strategy.hashed(),
    }
    return build_loggers(training.logger, training.logs / name, settings)


def build_objective(node: Mapping[str, Any], tasks: list[str]) -> Objective:
    """The objective of a Hydra node, for these tasks."""
    objective: Objective = instantiate(dict(node), tasks=tasks, _convert_="all")
    return objective


def _fresh_model(training: Training) -> VlmaeModel:
    """The model before its first step, the same wherever and whenever it is built."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.config.seed)
        model = build_model(training.model, training.source.towers)
    model.set_whitening(read_whitening(training.whitened))
    return model


def _write_checkpoint(
    training: Training, model: VlmaeModel, labelled: pa.Table, output: Path
) -> None:
    """The checkpoint with its operating thresholds, and the predictions they were chosen on."""
    config, tasks, source = training.config, training.tasks, training.source
    validation = in_source(training.validation, source)
    predictions, found = predict_clips(
        model,
        source,
        sample_ids.from_arrow(validation["id"]),
        inputs=config.inputs,
        seed=config.seed,
    )
    validation = validation.take(np.flatnonzero(found))
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
        model_config=training.model,
        towers=source.towers,
        frozen=source.identities,
        training_set=labels_fingerprint(labelled, tasks),
        thresholds=thresholds,
    )
    pq.write_table(
        prediction_columns(validation, tasks, predictions), output / "validation.parquet"
    )


def _with_places(labelled: pa.Table, index: pa.Table) -> pa.Table:
    """A training set as manifest: where each clip lies is added to it."""
    order = np.argsort(sample_ids.from_arrow(index["id"]), kind="stable")
    ids = sample_ids.from_arrow(index["id"])[order]
    rows = order[np.searchsorted(ids, sample_ids.from_arrow(labelled["id"]))]
    for column in PLACE:
        labelled = labelled.append_column(column, index[column].take(rows))
    return labelled


def _loader(training: Training, manifest: pa.Table, objective: Objective) -> ClipLoader:
    config, source = training.config, training.source
    labels = label_matrix(manifest, training.tasks)
    clips: CachedClips | LiveClips
    if isinstance(source, LiveTokens):
        if config.inputs != "both":
            raise ValueError(
                f"trainer.inputs={config.inputs} needs cached tokens: run python -m vlmae.cache "
                "first"
            )
        towers = build_towers(source.towers["vl"], source.towers["audio"])
        clips = LiveClips(
            source.prefix.data.path,
            manifest,
            labels,
            policy=source.prefix.policy,
            sample_rate=towers.sample_rate,
            storage_options=source.prefix.storage_options,
        )
    elif isinstance(source, CachedTokens):
        rows = source.cache.rows_of(sample_ids.from_arrow(manifest["id"]))
        clips = CachedClips(source.cache, rows, labels, config.inputs, config.seed)
    else:
        raise TypeError(f"no loader for a {type(source).__name__}")
    shards, offsets = np.array(manifest["shard"].to_pylist()), manifest["offset"].to_numpy()
    places = np.empty(len(shards), np.int64)
    places[np.lexsort((offsets, shards))] = np.arange(len(shards))
    order = BatchOrder(
        len(clips),
        world=training.ranks.size,
        config=training.loader.order(config.batch_size, config.seed, config.accumulate),
        weights=manifest[WEIGHT].to_numpy(),
        lengths=manifest["duration_s"].to_numpy(),
        places=places,
    )
    return ClipLoader(
        clips,
        order,
        rank=training.ranks.rank,
        workers=training.loader.workers,
        prefetch=training.loader.prefetch,
        data=labels_fingerprint(manifest, training.tasks),
        terms=objective.terms(torch.from_numpy(labels)).numpy(),
    )


def _known_bad(asked: pa.Table, source: TokenSource) -> pa.Table:
    """Quarantine of the labelled clips that a cache has left out."""
    if not isinstance(source, CachedTokens):
        return QUARANTINE_SCHEMA.empty_table()
    quarantine = source.cache.quarantine()
    ids: IdArray = sample_ids.from_arrow(quarantine["id"])
    held = np.isin(ids, sample_ids.from_arrow(asked["id"]))
    return quarantine.take(np.flatnonzero(held))
