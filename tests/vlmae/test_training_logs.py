"""What a training logs, where, and that it changes no result."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from lsb.artifact import Stage
from vlmae.config import conf_dir
from vlmae.loggers import LoggerConfig, draw_curves
from vlmae.trainer import TrainConfig

TrainIn = Any
BASE: dict[str, Any] = {
    "seed": 0,
    "epochs": 2,
    "batch_size": 8,
    "accelerator": "cpu",
    "threads": 1,
    "target_precision": 0.8,
    "inputs": "both",
}


def extra(name: str) -> dict[str, Any]:
    """The node of conf/logger/<name>.yaml."""
    file = Path(conf_dir()) / "logger" / f"{name}.yaml"
    node: dict[str, Any] = yaml.safe_load(file.read_text())["extra"]
    return node


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_csv_and_curves_are_always_there(tmp_path: Path, trained: Stage, train_in: TrainIn) -> None:
    logs = tmp_path / "logs"
    config = TrainConfig(**BASE, profiler="simple")
    stage = train_in(tmp_path / "a", logs=logs, logger=LoggerConfig(every_steps=2), config=config)
    assert stage.content == trained.content, "logs and profiler change no byte of the result"
    (folder,) = logs.iterdir()
    assert folder.name == stage.path.name
    rows = rows_of(folder / "version_0" / "metrics.csv")
    by_name = {
        name: [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        for name in rows[0]
        if name not in ("step", "epoch")
    }
    steps = [step for step, _ in by_name["loss"]]
    assert steps == sorted(steps)
    assert len(steps) >= 3
    assert all(0 < loss < 5 for _, loss in by_name["loss"])
    assert all(value > 0 for _, value in by_name["pace/clips_per_s"])
    tokens, clips = by_name["pace/tokens_per_s"], by_name["pace/clips_per_s"]
    # 2 frames, 1 title, up to 4 audio tokens of a 2 s clip.
    assert all(2 < t / c < 20 for (_, t), (_, c) in zip(tokens, clips, strict=True))
    assert all(0.1 < value < 20 for _, value in by_name["memory/resident_gb"])
    rates = [name for name in by_name if name.startswith("lr-")]
    assert rates
    assert max(rate for _, rate in by_name[rates[0]]) <= 3e-3
    picture = np.asarray(Image.open(folder / "version_0" / "curves.png").convert("L"))
    assert picture.shape[0] > 300
    assert picture.std() > 5, "an empty plot"
    (report,) = (folder / "version_0").glob("*profile*")
    assert "run_training_batch" in report.read_text()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_the_other_loggers_write_beside_it(
    tmp_path: Path, train_in: TrainIn, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip({"mlflow": "mlflow"}.get(name, name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logs = tmp_path / "logs"
    train_in(tmp_path / "a", logs=logs, logger=LoggerConfig(2, extra(name)))
    (folder,) = logs.glob("train-*")
    assert rows_of(folder / "version_0" / "metrics.csv")
    pattern = {
        "tensorboard": "version_0/events.out.tfevents.*",
        "wandb": "version_0/wandb/offline-run-*/*.wandb",
        "mlflow": "../mlflow.db",
    }[name]
    (written, *_) = folder.glob(pattern)
    assert written.stat().st_size > 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "logs"], "nothing elsewhere"


def test_curves_of_a_resumed_training_are_one(tmp_path: Path) -> None:
    for version, lines in enumerate((["0,5.0", "10,4.0", "20,9.9"], ["20,3.0", "30,2.0"])):
        (tmp_path / f"version_{version}").mkdir()
        text = "\n".join(["step,loss", *lines]) + "\n"
        (tmp_path / f"version_{version}" / "metrics.csv").write_text(text)
    assert draw_curves(tmp_path) == tmp_path / "version_1" / "curves.png"
    assert draw_curves(tmp_path / "version_0") is None


def test_what_cannot_be_is_refused(tmp_path: Path, train_in: TrainIn) -> None:
    with pytest.raises(ValueError, match=r"every_steps is 0"):
        LoggerConfig(0)
    with pytest.raises(ValueError, match=r"_target_"):
        LoggerConfig(1, {"project": "x"})
    with pytest.raises(ValueError, match=r"profiler is 'fast'.*simple"):
        TrainConfig(**BASE, profiler="fast")


def test_no_logs_change_no_byte_and_have_no_place_for_a_profile(
    tmp_path: Path, trained: Stage, train_in: TrainIn
) -> None:
    nothing = LoggerConfig(written=False)
    stage = train_in(tmp_path / "a", logs=tmp_path / "logs", logger=nothing)
    assert stage.content == trained.content
    assert not (tmp_path / "logs").exists()
    config = TrainConfig(**BASE, profiler="simple")
    with pytest.raises(ValueError, match=r"profiler is simple.*logger=none writes none"):
        train_in(tmp_path / "b", logs=tmp_path / "logs", logger=nothing, config=config)
    assert not list((tmp_path / "b").glob("**/train-*"))
