"""Where a training writes down how it goes: CSV always, TensorBoard, W&B or MLflow beside it.

Logs hold times, which no two runs share, so they lie outside the stage, whose bytes are promised.
Every start of a training has a folder of its own, `version_0`, after a resume `version_1`:

    runs/logs/train-<hash>/version_0/metrics.csv
                                     curves.png
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from hydra.utils import get_class
from lightning.pytorch.loggers import CSVLogger, Logger

CURVES = "curves.png"
# What a plot of its own is drawn for: title, and the beginnings of the names of its columns.
PLOTS = (
    ("loss", ("loss", "val/loss")),
    ("validation", ("val/ap", "val/recall")),
    ("learning rate", ("lr-",)),
    ("clips a second", ("pace/clips",)),
    ("tokens a second", ("pace/tokens",)),
    ("memory, GB", ("memory/",)),
)


@dataclass(frozen=True)
class LoggerConfig:
    """What is logged where.

    Attributes:
        every_steps: between two lines of the log.
        extra: node with `_target_` of a Lightning logger beside the CSV one, or None.
        written: False writes no log at all, of trainings that nobody looks at one by one.
    """

    every_steps: int = 10
    extra: dict[str, Any] | None = None
    written: bool = True

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise ValueError(f"logger.every_steps is {self.every_steps}: give at least 1")
        if self.extra is not None and "_target_" not in self.extra:
            raise ValueError(
                f"logger.extra is {self.extra}: give a node with _target_, a Lightning logger"
            )


def build_loggers(config: LoggerConfig, folder: Path, settings: Mapping[str, Any]) -> list[Logger]:
    """The CSV logger, then the other one if there is one.

    Args:
        config: of the loggers.
        folder: of this training's logs.
        settings: logged as hyperparameters, where a logger shows them.

    Raises:
        ValueError: the package of the other logger is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = CSVLogger(folder, name="", flush_logs_every_n_steps=config.every_steps * 10)
    table.log_metrics({})  # makes its folder before another logger can
    loggers: list[Logger] = [table]
    if config.extra is not None:
        loggers.append(_extra(dict(config.extra), folder, table.version))
        loggers[-1].log_hyperparams(dict(settings))
    return loggers


def _extra(node: dict[str, Any], folder: Path, version: int | str) -> Logger:
    kind = get_class(node.pop("_target_"))
    # Each keeps its files beside the CSV, unless it is told otherwise or talks to a server.
    places: dict[str, dict[str, Any]] = {
        "TensorBoardLogger": {"save_dir": folder, "version": f"version_{version}"},
        "WandbLogger": {"save_dir": folder / f"version_{version}", "name": folder.name},
        "MLFlowLogger": {
            "tracking_uri": f"sqlite:///{folder.parent.resolve() / 'mlflow.db'}",
            "artifact_location": (folder.resolve() / f"version_{version}").as_uri(),
            "run_name": folder.name,
        },
    }
    given = {name: value for name, value in node.items() if value is not None}
    options = {**places.get(kind.__name__, {}), **given}
    if kind.__name__ == "WandbLogger":
        Path(options["save_dir"]).mkdir(parents=True, exist_ok=True)
    try:
        logger: Logger = kind(**options)
    except ModuleNotFoundError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{kind.__name__} cannot be used ({reason}): pip install 'vlmae[loggers]', or use "
            "logger=csv"
        ) from error
    return logger


def close_loggers(loggers: Sequence[Logger], status: str) -> None:
    """Write what is left, and draw the learning curves.

    Args:
        loggers: of a training.
        status: "success" or "failed".
    """
    for logger in loggers:
        logger.finalize(status)
        finish = getattr(logger.experiment, "finish", None)  # W&B keeps a run open, for notebooks
        if finish is not None:
            finish()
    if loggers:
        draw_curves(Path(str(loggers[0].log_dir)).parent)


def draw_curves(folder: Path) -> Path | None:
    """Draw all starts of a training as one set of learning curves.

    Where a resume repeated steps, the later values are drawn.

    Args:
        folder: of the training's logs, `runs/logs/<train stage>`.

    Returns:
        curves.png in the folder of the last start; None if nothing was logged.
    """
    starts = sorted(folder.glob("version_*/metrics.csv"), key=_number)
    values: dict[str, dict[int, float]] = {}
    for path in starts:
        with open(path, newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                for name, text in row.items():
                    if text and name not in ("step", "epoch"):
                        values.setdefault(name, {})[int(row["step"])] = float(text)
    if not values:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = [
        (title, [name for name in sorted(values) if name.startswith(beginnings)])
        for title, beginnings in PLOTS
    ]
    drawn = [(title, names) for title, names in drawn if names]
    rows = -(-len(drawn) // 2)
    figure, axes = pyplot.subplots(rows, 2, figsize=(11, 3 * rows), squeeze=False)
    for axis, (title, names) in zip(axes.flat, drawn, strict=False):
        for name in names:
            steps = sorted(values[name])
            points = [values[name][step] for step in steps]
            axis.plot(steps, points, label=name, marker="." if len(steps) < 40 else "", lw=1)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    for axis in list(axes.flat)[len(drawn) :]:
        axis.set_visible(False)
    figure.tight_layout()
    target = starts[-1].parent / CURVES
    figure.savefig(target, dpi=110)
    pyplot.close(figure)
    return target


def _number(path: Path) -> int:
    return int(path.parent.name.removeprefix("version_"))
