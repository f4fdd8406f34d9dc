"""The training stage: labels and frozen tokens in, a checkpoint out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import Tensor

from lsb import ids as sample_ids
from lsb.artifact import (
    Counts,
    Part,
    Stage,
    fingerprint,
    run_stage,
    scratch,
    stage_directory,
)
from vlmae.best import BEST_FILE, KeepBest
from vlmae.calibration import Calibration, calibrate
from vlmae.callbacks import History, Quarantine, Trace, gather, write_history
from vlmae.checkpoint import CHECKPOINT, build_model, save_checkpoint
from vlmae.data.labels import label_matrix, labels_fingerprint
from vlmae.data.loader import LoaderConfig
from vlmae.data.token_source import LiveTokens, TokenSource, in_source
from vlmae.data.tombstones import without_tombstones
from vlmae.data.whitening import read_whitening
from vlmae.devices import cuda_looked_for_once, device_of
from vlmae.fitting import fit, hint_at_others, resumed_moment
from vlmae.growing.callback import GrowBetweenEpochs
from vlmae.growing.clock import EpochClock
from vlmae.growing.config import Growing
from vlmae.growing.kept import (
    expansion_names,
    keep_expansions,
    remember_rounds,
    require_growable,
)
from vlmae.loggers import LoggerConfig, build_loggers, close_loggers
from vlmae.metrics import choose_threshold
from vlmae.model import VlmaeModel
from vlmae.module import VlmaeModule
from vlmae.objectives import build_objective
from vlmae.optimizers import OptimizerConfig
from vlmae.parameter_counts import part_counts
from vlmae.prediction import predict_clips, prediction_columns
from vlmae.preemption import Preempted, StopFlag
from vlmae.ranks import Ranks
from vlmae.saves import Moment, Saves
from vlmae.strategy import StrategyConfig, process_group, whole_state
from vlmae.towers import build_towers
from vlmae.trainer import TrainConfig, build_trainer
from vlmae.training_data import known_bad, training_loader, training_set, validation_clips
from vlmae.tuning import tuning_config

STAGE = "train"
REVISION = 3
QUARANTINE = "quarantine.parquet"
FILES = (CHECKPOINT, "training_set.parquet", "validation.parquet", QUARANTINE, "history.csv")
# Where a training is written down while it runs: they change no result.
NOT_HASHED = ("save_every_steps", "keep_saves", "resume_from", "trace", "profiler")
# How a training is computed: another value gives the same result up to rounding.
HOW = ("accumulate", "checkpoint_blocks", "threads")


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
        growing: how the training set grows between epochs, or None.
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
    growing: Growing | None = None

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
        predictions), quarantine.parquet and history.csv; and, of a training that grows, the files
        of each expansion (`vlmae.growing.kept`).

    Raises:
        ValueError: no labelled clip can be decoded, too few for one step, or too many are bad.
    """
    config = training.config
    if config.profiler is not None and not training.logger.written:
        raise ValueError(
            f"trainer.profiler is {config.profiler}, whose report lies beside the logs, and "
            "logger=none writes none: set logger=csv, or trainer.profiler=null"
        )
    device_of(config.accelerator, "trainer.accelerator")  # before hours of work, if there is none
    plan = _plan(root, training)
    training, identity = plan.training, plan.identity

    def make(work: Any) -> Stage:
        return run_stage(root, STAGE, **_arguments(plan, work))

    flag = StopFlag()

    def work(output: Path) -> Counts:
        with process_group(training.strategy):
            return _fit(root, training, output, identity, flag)

    # From here until the stage is whole: a signal while models are loaded stops at the first step,
    # one behind the last step is only noted.
    flag.listen()
    try:
        stage = training.ranks.all(make, work)
    except Preempted:
        # The flag listens until the process has ended: torchrun tells the ranks that are left to
        # stop as soon as the first is gone, and their exit code is to be the same.
        raise
    except BaseException:
        flag.ignore()
        raise
    flag.ignore()
    if training.ranks.first:
        remember_rounds(stage, training)
    return stage


def train_directory(root: Path, training: Training) -> Path:
    """Where `train` puts its result, whether it is there or not; `training.ranks` need not be up.

    Args:
        root: folder of all stages.
        training: with the ranks that are to train.
    """
    return stage_directory(root, STAGE, **_arguments(_plan(root, training), _no_work))


@dataclass(frozen=True)
class _Plan:
    """A training without the clips that were taken down, and what its stage is named by."""

    training: Training
    made_of: dict[str, dict[str, Any]]
    identity: str


def _plan(root: Path, training: Training) -> _Plan:
    config = training.config
    labelled, validation = (
        without_tombstones(root, table) for table in (training.labelled, training.validation)
    )
    training = replace(training, labelled=labelled, validation=validation)
    weighted = training.loader.weighted(training.labelled, training.tasks)
    settings = {k: v for k, v in asdict(config).items() if k not in NOT_HASHED}
    if config.keep == "last":  # then validation is only looked at
        del settings["validate_every"]
    made_of: dict[str, dict[str, Any]] = {
        "config": {
            "model": dict(training.model),
            "objective": dict(training.objective),
            "strategy": training.strategy.hashed(),
            "optimizer": asdict(training.optimizer),
            "train": settings,
            "loader": training.loader.hashed(),
        },
        "inputs": {
            **training.source.inputs,
            "whitening": training.whitened.content,
            "labels": labels_fingerprint(weighted, training.tasks),
            "validation": labels_fingerprint(training.validation, training.tasks),
        },
    }
    if training.growing is not None:
        require_growable(training)
        made_of["config"]["growing"] = training.growing.hashed()
    return _Plan(training, made_of, _identity(made_of))


def _arguments(plan: _Plan, work: Callable[[Path], Counts]) -> dict[str, Any]:
    """Of the stage."""
    training, config = plan.training, plan.made_of["config"]
    resumed = resumed_moment(training.config.resume_from, plan.identity)
    return {
        "config": {
            **config,
            "ranks": training.ranks.size,
            **({} if resumed is None else {"resumed": asdict(resumed)}),
        },
        "inputs": plan.made_of["inputs"],
        "parts": [Part("model", (*FILES, *expansion_names(training)), work)],
        "revision": REVISION,
    }


def _no_work(output: Path) -> Counts:
    raise AssertionError(f"nothing is to be put into {output}")


def _identity(made_of: Mapping[str, Any]) -> str:
    """Of a training on whatever number of ranks: what its saves are known by.

    Settings that say how the same sums are made are left out.
    """
    train = {k: v for k, v in made_of["config"]["train"].items() if k not in HOW}
    kept = ("name", "communication_data_type")
    strategy = {k: v for k, v in made_of["config"]["strategy"].items() if k in kept}
    config = {**made_of["config"], "train": train, "strategy": strategy}
    return fingerprint({**made_of, "config": config})


def _best(training: Training, output: Path) -> KeepBest | None:
    """What keeps the best weights, if they are wanted.

    Raises:
        ValueError: nothing can say which are best.
    """
    if training.config.keep != "best":
        return None
    validation = in_source(training.validation, training.source)
    if not (label_matrix(validation, training.tasks) == 1).any():
        raise ValueError(
            "trainer.keep is best, and no validation clip has a positive label: give such clips, "
            "or set trainer.keep=last"
        )
    return KeepBest(scratch(output) / BEST_FILE, training.config.resume_from)


def _require_agreement(identity: str) -> None:
    """Refuse, on all ranks, to train on what only some of them see. Collective.

    Raises:
        ValueError: labels, tokens or settings differ from rank to rank.
    """
    seen = gather(identity)
    if len(set(seen)) > 1:
        others = [rank for rank, one in enumerate(seen) if one != seen[0]]
        raise ValueError(
            f"ranks {others} see other labels, tokens, tombstones or settings than rank 0: a cache "
            "or a takedown may have been finished while they started; start them again"
        )


def _fit(root: Path, training: Training, output: Path, identity: str, flag: StopFlag) -> Counts:
    """Train on all ranks; the first writes the files."""
    config, tasks, source = training.config, training.tasks, training.source
    _require_agreement(identity)
    held = training_set(training, training.labelled)
    torch.set_num_threads(config.threads)
    lightning.seed_everything(config.seed, verbose=False)
    objective = build_objective(training.objective, tasks)
    for table in (held.labelled, training.validation):
        objective.check(torch.from_numpy(label_matrix(table, tasks)))
    loader = training_loader(training, held.manifest, objective)
    # Lightning counts steps of the optimiser, the loader those of micro-batches.
    clock = EpochClock(loader.order.steps() // config.accumulate)
    # Built before the model is: where weights are sharded as they are made, these must not be.
    towers = build_towers(source.towers["vl"], source.towers["audio"])
    module = VlmaeModule(
        partial(_fresh_model, training),
        objective,
        training.optimizer,
        config.epochs * clock.planned,
        towers if isinstance(source, LiveTokens) else None,
        config.seed,
        tuning=tuning_config(training.model.get("tuning")),
        share=loader.order.per_step,
        checkpoint_blocks=config.checkpoint_blocks,
        target_precision=config.target_precision,
        clock=clock,
    )
    history = History()
    quarantine = Quarantine(held.labelled.num_rows, training.skip_limit)
    loggers = _loggers(training, output)
    callbacks: list[Callback] = [history, quarantine]
    best = _best(training, output)
    if best is not None:
        callbacks.append(best)
    if config.trace:
        callbacks.append(Trace(Path(config.trace)))
    grower = None
    if training.growing is not None:
        grower = GrowBetweenEpochs(
            scratch(output) / "growing",
            training,
            identity,
            objective=objective,
            loader=loader,
            clock=clock,
            quarantine=quarantine,
            flag=flag,
            write_checkpoint=partial(_write_grown_checkpoint, training),
        )
        callbacks.append(grower)

    def make_trainer(more: Sequence[Callback]) -> Trainer:
        return build_trainer(
            config,
            training.strategy,
            training.ranks,
            clip_norm=training.optimizer.clip_norm,
            callbacks=[*callbacks, *more],
            folder=output,
            loggers=loggers,
            log_every=training.logger.every_steps,
        )

    saves = Saves(scratch(output) / "saves", config.keep_saves)
    now = Moment(identity, 0, training.ranks.size, config.accumulate, training.strategy.name)
    if config.resume_from is None and grower is None:
        hint_at_others(root, saves, now)
    failed = True
    try:
        with cuda_looked_for_once():
            fit(
                module,
                loader,
                make_trainer,
                validation=validation_clips(training),
                saves=saves,
                flag=flag,
                now=now,
                save_every=config.save_every_steps,
                resume_from=config.resume_from,
                towers=towers if len(towers.suffix_modules()) else None,
                save_also=None if grower is None else grower.follows,
            )
        failed = False
    finally:
        loader.close()
        close_loggers(loggers, "failed" if failed else "success")
    bad, losses = quarantine.table(), history.losses()
    state = whole_state(module)
    if not training.ranks.first:
        return {}
    if best is not None:
        state = best.state()
    if grower is not None:
        held = grower.training_set if best is None else grower.training_set_of(best.epoch)
        keep_expansions(grower.expansions, output)
    bad = pa.concat_tables([bad, known_bad(held.asked, source)])
    write_history(output / "history.csv", losses)
    pq.write_table(bad, output / QUARANTINE)
    pq.write_table(held.manifest, output / "training_set.parquet")
    model = _fresh_model(training)
    model.load_state_dict(state)
    _write_checkpoint(training, model, held.labelled, output)
    usable = held.asked.num_rows - bad.num_rows
    counts = {"labels": usable, "labels skipped": bad.num_rows, **part_counts(model)}
    if grower is not None:
        counts["labels added"] = held.asked.num_rows - training.labelled.num_rows
    return counts if best is None else {**counts, "best epoch": best.epoch}


def _loggers(training: Training, output: Path) -> list[Logger]:
    """Of the first rank, in a folder named as the stage will be."""
    if training.logs is None or not training.logger.written or not training.ranks.first:
        return []
    name = output.parent.name.split(".")[0]
    settings = {
        "model": training.model,
        "optimizer": asdict(training.optimizer),
        "trainer": asdict(training.config),
        "strategy": training.strategy.hashed(),
    }
    return build_loggers(training.logger, training.logs / name, settings)


def _fresh_model(training: Training) -> VlmaeModel:
    """The model before its first step, the same wherever and whenever it is built."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.config.seed)
        model = build_model(training.model, training.source.towers)
    model.set_whitening(read_whitening(training.whitened))
    return model


def _write_grown_checkpoint(
    training: Training, state: Mapping[str, Tensor], labelled: pa.Table, output: Path
) -> None:
    """The checkpoint by which an expansion chooses, see `vlmae.growing.expansion`."""
    model = _fresh_model(training)
    model.load_state_dict(state)
    _write_checkpoint(training, model, training_set(training, labelled).labelled, output)


def _write_checkpoint(
    training: Training, model: VlmaeModel, labelled: pa.Table, output: Path
) -> None:
    """The checkpoint, calibrated, with its operating thresholds, and what they were chosen on."""
    config, tasks, source = training.config, training.tasks, training.source
    validation = in_source(training.validation, source)
    predictions, found = predict_clips(
        model.to(device_of(config.accelerator, "trainer.accelerator")),
        source,
        sample_ids.from_arrow(validation["id"]),
        inputs=config.inputs,
        seed=config.seed,
    )
    validation = validation.take(np.flatnonzero(found))
    labels = label_matrix(validation, tasks)
    objective = build_objective(training.objective, tasks)
    temperatures = calibrate(predictions.logits, labels, objective) if config.calibrate else {}
    calibration = Calibration(tuple(tasks), training.objective, temperatures)
    predictions = replace(predictions, calibration=calibration)
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
        objective=training.objective,
        temperatures=temperatures,
    )
    pq.write_table(
        prediction_columns(validation, tasks, predictions), output / "validation.parquet"
    )
