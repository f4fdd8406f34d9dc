"""The checkpoint has the weights of the epoch that was best on the validation clips."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from vlmae.best import KeepBest
from vlmae.checkpoint import CHECKPOINT, load_checkpoint
from vlmae.data.labels import label_matrix
from vlmae.loggers import LoggerConfig
from vlmae.metrics import average_precision
from vlmae.trainer import TrainConfig

TASKS = ["relevance", "unsafe"]
BASE: dict[str, Any] = {
    "seed": 0,
    "epochs": 6,
    "batch_size": 8,
    "accelerator": "cpu",
    "threads": 1,
    "target_precision": 0.8,
    "inputs": "both",
    "validate_every": 1,
}


def logged(logs: Path) -> dict[int, float]:
    """Epoch -> val/ap."""
    (path,) = logs.glob("train-*/version_0/metrics.csv")
    with open(path, newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {int(row["epoch"]): float(row["val/ap"]) for row in rows if row["val/ap"]}


def mean_average_precision(stage: Any) -> float:
    """Of the predictions that the checkpoint's thresholds were chosen on."""
    table = pq.read_table(stage.path / "validation.parquet")
    labels = label_matrix(table, TASKS)
    values = [
        average_precision(
            table[f"probability_{task}"].to_numpy()[labels[:, column] >= 0],
            labels[labels[:, column] >= 0, column] == 1,
        )
        for column, task in enumerate(TASKS)
    ]
    return float(np.nanmean(values))


def test_best_is_the_first_of_the_highest_and_its_weights_are_kept(
    tmp_path: Path, train_in: Any
) -> None:
    stages = {}
    for keep in ("best", "last"):
        stages[keep] = train_in(
            tmp_path / keep,
            config=TrainConfig(**BASE, keep=keep),
            learning_rate=0.03,
            logs=tmp_path / f"logs-{keep}",
            logger=LoggerConfig(1),
        )
    values = logged(tmp_path / "logs-best")
    assert values == logged(tmp_path / "logs-last")
    assert sorted(values) == list(range(6))
    best = max(values.values())
    first = min(epoch for epoch, value in values.items() if value == best)
    assert first < 5, "else this test could not fail"
    assert stages["best"].counts["best epoch"] == first
    assert mean_average_precision(stages["best"]) == pytest.approx(best, abs=1e-6)
    assert mean_average_precision(stages["last"]) == pytest.approx(values[5], abs=1e-6)
    assert stages["best"].content != stages["last"].content


def test_without_any_positive_best_is_refused(
    tmp_path: Path, train_in: Any, labels_of: Any
) -> None:
    with pytest.raises(ValueError, match=r"no validation clip has a positive.*keep=last"):
        train_in(
            tmp_path,
            config=TrainConfig(**{**BASE, "epochs": 1}, keep="best"),
            validation=labels_of("gold", blank=("relevance", "unsafe")),
        )


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"keep is best and validate_every 0 of 6"):
        TrainConfig(**{**BASE, "validate_every": 0}, keep="best")
    with pytest.raises(ValueError, match=r"keep 'newest'"):
        TrainConfig(**BASE, keep="newest")


def test_best_weights_that_lie_elsewhere_are_missed(tmp_path: Path) -> None:
    callback = KeepBest(tmp_path / "best.safetensors")
    callback.load_state_dict({"value": 0.5, "epoch": 3})
    with pytest.raises(ValueError, match=r"epoch 3 was the best.*start anew"):
        callback.on_train_start(None, None)  # type: ignore[arg-type]
    assert not math.isinf(callback.value)


def test_without_calibration_temperatures_are_one(tmp_path: Path, train_in: Any) -> None:
    few = {**BASE, "epochs": 1, "validate_every": 0}
    temperatures = [
        load_checkpoint(
            train_in(tmp_path / str(on), config=TrainConfig(**few, calibrate=on)).path / CHECKPOINT
        ).temperatures
        for on in (False, True)
    ]
    assert set(temperatures[0].values()) == {1.0}
    assert set(temperatures[0]) == set(TASKS)
