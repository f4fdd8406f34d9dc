"""The evaluation stage: R@P, average precision, the chosen threshold and calibration."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lsb import ids as sample_ids
from lsb.artifact import Counts, Part, Stage, read_json, run_stage, write_json
from vlmae.calibration import Calibration
from vlmae.checkpoint import CHECKPOINT, load_checkpoint
from vlmae.data.batches import INPUTS
from vlmae.data.labels import label_matrix, labels_fingerprint
from vlmae.data.token_source import TokenSource, in_source
from vlmae.data.tombstones import without_tombstones
from vlmae.devices import check_accelerator, device_of
from vlmae.metrics import bootstrap_metrics, calibration_error, operating_point
from vlmae.prediction import predict_clips, prediction_columns

REVISION = 2


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured.

    Attributes:
        target_precision: of R@P.
        resamples: bootstrap resamples of the test clips.
        seed: of the resamples and of the audio shuffle.
        inputs: as in `TrainConfig.inputs`; "shuffled_audio" on a model trained with both is the
            control for whether it uses the clip's own sound.
        threads: torch threads on CPU.
        accelerator: "cpu" or "gpu", where blocks behind the cut, fusion and heads run.
    """

    target_precision: float
    resamples: int
    seed: int
    inputs: str
    threads: int
    accelerator: str = "cpu"

    def __post_init__(self) -> None:
        check_accelerator(self.accelerator, "evaluation.accelerator")
        if self.resamples < 1 or self.threads < 1:
            raise ValueError(
                f"evaluation has resamples {self.resamples}, threads {self.threads}: give at least "
                "1 each"
            )
        if not 0 < self.target_precision <= 1:
            raise ValueError(
                f"evaluation.target_precision is {self.target_precision}: give one in (0, 1]"
            )
        if self.inputs not in INPUTS:
            raise ValueError(
                f"evaluation.inputs is {self.inputs!r}: use one of {', '.join(INPUTS)}"
            )


def evaluate(
    root: Path, source: TokenSource, trained: Stage, *, test: pa.Table, config: EvaluateConfig
) -> Stage:
    """Measure a checkpoint on labelled clips, or reuse an equal measurement.

    Args:
        root: folder of all stages.
        source: frozen tokens of the data set.
        trained: a finished `train` stage.
        test: label table (`vlmae.data.labels`) of clips that no training saw.
        config: metrics and controls.

    Returns:
        A stage with metrics.json (read it with `read_metrics`) and predictions.parquet.
    """
    tasks = list(trained.manifest["config"]["model"]["tasks"])
    test = without_tombstones(root, test)
    return run_stage(
        root,
        "evaluate",
        config=_hashed(config),
        inputs={
            **source.inputs,
            "train": trained.content,
            "test": labels_fingerprint(test, tasks),
        },
        parts=[
            Part(
                "metrics",
                ("metrics.json", "predictions.parquet"),
                partial(_measure, source, trained.path / CHECKPOINT, test, config),
            )
        ],
        revision=REVISION,
    )


def _hashed(config: EvaluateConfig) -> dict[str, Any]:
    values = asdict(config)
    if config.accelerator == "cpu":  # as it was before there was a choice
        del values["accelerator"]
    return values


def read_metrics(evaluated: Stage) -> dict[str, dict[str, Any]]:
    """Task -> clips, positives, recall_at_p80, average_precision, at_threshold, calibration_error.

    The last is the expected calibration error "before" and "after" the task's "temperature".
    """
    metrics: dict[str, dict[str, Any]] = read_json(evaluated.path / "metrics.json")
    return metrics


def _measure(
    source: TokenSource, path: Path, test: pa.Table, config: EvaluateConfig, output: Path
) -> Counts:
    torch.set_num_threads(config.threads)
    checkpoint = load_checkpoint(path, source.identities)
    asked = test.num_rows
    test = in_source(test, source)
    ids = sample_ids.from_arrow(test["id"])
    calibration = Calibration.of(checkpoint)
    predictions, found = predict_clips(
        checkpoint.model.to(device_of(config.accelerator, "evaluation.accelerator")),
        source,
        ids,
        inputs=config.inputs,
        seed=config.seed,
        calibration=calibration,
    )
    test = test.take(np.flatnonzero(found))
    tasks = checkpoint.model.tasks
    labels = label_matrix(test, tasks)
    after = predictions.probability
    before = replace(predictions, calibration=calibration.uncalibrated).probability
    metrics = {}
    for column, task in enumerate(tasks):
        truth, threshold = labels[:, column], checkpoint.thresholds[task]
        metrics[task] = {
            **_task_metrics(after[:, column], truth, threshold, config),
            **_calibration_metrics(before[:, column], after[:, column], truth),
            "temperature": checkpoint.temperatures.get(task, 1.0),
        }
    write_json(output / "metrics.json", metrics)
    pq.write_table(prediction_columns(test, tasks, predictions), output / "predictions.parquet")
    return {"clips": test.num_rows, "clips skipped": asked - test.num_rows}


def _task_metrics(
    scores: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    threshold: float,
    config: EvaluateConfig,
) -> dict[str, Any]:
    present = labels >= 0
    scores, truth = scores[present].astype(np.float64), labels[present] == 1
    options: dict[str, Any] = {
        "target": config.target_precision,
        "resamples": config.resamples,
        "seed": config.seed,
    }
    both = ("recall_at_precision", "average_precision")
    found = bootstrap_metrics(both, scores, truth, **options)
    point = operating_point(scores, truth, threshold)
    return {
        "clips": int(present.sum()),
        "positives": int(truth.sum()),
        "recall_at_p80": found["recall_at_precision"].as_dict(),
        "average_precision": found["average_precision"].as_dict(),
        "at_threshold": {name: _or_null(value) for name, value in asdict(point).items()},
    }


def _calibration_metrics(
    before: np.ndarray[Any, Any], after: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]
) -> dict[str, Any]:
    present = labels >= 0
    truth = labels[present] == 1
    return {
        "calibration_error": {
            "before": _or_null(calibration_error(before[present], truth)),
            "after": _or_null(calibration_error(after[present], truth)),
        }
    }


def _or_null(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else value
