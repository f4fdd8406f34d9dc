"""Measure a checkpoint: `python -m vlmae.evaluate checkpoint=<train stage> labels=<file> data=...`.

The table of labels is one as `vlmae.train` reads, of clips that no training saw. Prints, for every
task, recall at the target precision and average precision with bootstrap intervals, what the
threshold chosen on validation gives, and the calibration error before and after the temperature;
the stage holds them as metrics.json beside the predictions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table

from lsb.artifact import open_stage
from lsb.kept import keep
from vlmae.config import as_dict, build, checked, command
from vlmae.data.labels import read_labels
from vlmae.data.token_source import open_source
from vlmae.evaluation import EvaluateConfig, evaluate, read_metrics
from vlmae.metrics import percentage, percentage_interval
from vlmae.settings import prefix_of, prepared_data


def tabulate(metrics: Mapping[str, Mapping[str, Any]], target: float) -> Table:
    """Metrics of every task in percent, for people; it fits 80 characters."""
    table = Table(
        title="in % of the labelled clips",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=0,  # the box has a space between columns
    )
    percent = f"{100 * target:.0f}"
    table.add_column("task", no_wrap=True)
    numbers = ("clips", "pos", f"R@P{percent} 95 %", "AP 95 %", "prec", "recall", "raw ECE", "ECE")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for task, found in metrics.items():
        point, error = found["at_threshold"], found["calibration_error"]
        table.add_row(
            task,
            str(found["clips"]),
            str(found["positives"]),
            *(percentage_interval(found[name]) for name in ("recall_at_p80", "average_precision")),
            *(percentage(point[name]) for name in ("precision", "recall")),
            *(percentage(error[name]) for name in ("before", "after")),
        )
    table.caption = (
        f"R@P{percent}: best threshold of these clips; prec, recall: at the one that validation "
        "chose, as in use; raw ECE, ECE: calibration error without and with the temperature"
    )
    table.caption_justify = "left"
    return table


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
