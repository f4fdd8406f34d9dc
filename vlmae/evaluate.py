"""Measure a checkpoint: `python -m vlmae.evaluate checkpoint=<train stage> labels=<file> data=...`.

The table of labels is one as `vlmae.train` reads, of clips that no training saw. Prints recall at
the target precision and average precision of every task with bootstrap intervals; the stage holds
them as metrics.json beside the predictions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from lsb.artifact import open_stage
from lsb.kept import keep
from vlmae.config import as_dict, build, checked, command
from vlmae.data.labels import read_labels
from vlmae.data.token_source import open_source
from vlmae.evaluation import EvaluateConfig, evaluate, read_metrics
from vlmae.settings import prefix_of, prepared_data


def tabulate(metrics: Mapping[str, Mapping[str, Any]], target: float) -> Table:
    """Metrics of every task in percent, for people."""
    table = Table(title="in % of the labelled clips")
    for name in ("task", "clips", "positive", f"R@P{100 * target:.0f} 95 %", "AP 95 %"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for task, found in metrics.items():
        cells = (_interval(found[name]) for name in ("recall_at_p80", "average_precision"))
        table.add_row(task, str(found["clips"]), str(found["positives"]), *cells)
    return table


def _interval(metric: Mapping[str, float | None]) -> str:
    value, low, high = (metric[name] for name in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "-"
    return f"{100 * value:.1f} [{100 * low:.0f},{100 * high:.0f}]"


@command("evaluate")
def main(config: DictConfig) -> None:
    """Make or reuse a measurement and print it."""
    values = cast(dict[str, Any], as_dict(config))
    root = Path(config.runs) / "stages"
    console = Console(log_path=False)
    folder = checked("checkpoint", str | None, values["checkpoint"])
    if not folder:
        raise ValueError("checkpoint is not set: give the folder of a finished train stage")
    trained = open_stage(Path(folder))
    tasks = list(trained.manifest["config"]["model"]["tasks"])
    labels = read_labels(checked("labels", str | None, values["labels"]), "labels", tasks)
    settings = build("evaluation", EvaluateConfig, values["evaluation"])
    source = open_source(root, prefix_of(values, prepared_data(values, root)), console.log)
    stage = keep(
        root, evaluate(root, source, trained, test=labels, config=settings), "vlmae.evaluate"
    )
    console.print(tabulate(read_metrics(stage), settings.target_precision))
    console.print(
        f"{stage.path}: {'reused' if stage.reused else 'made'}, {stage.counts['clips']} clips, "
        f"{stage.counts['clips skipped']} skipped",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
