"""The numbers of a comparison of variants, and the same as a table for people.

An interval is a 95 % percentile bootstrap over test clips and seeds together: a resample draws
clips, the same ones for every seed, and seeds, and averages the metric over the seeds drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table

from launch.stages.settings import Settings
from lsb.artifact import Stage
from vlmae.data.labels import label_matrix
from vlmae.metrics import bootstrap_seeds, percentage_interval
from vlmae.parameter_counts import trainable_count

Results = Mapping[str, Sequence[tuple[Stage, Mapping[str, Stage]]]]


def summarise_variants(
    settings: Settings,
    *,
    points: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Mapping[int, float]],
    chosen: Mapping[str, int],
    results: Results,
    steps: Mapping[str, float],
    clips: Mapping[str, int],
) -> dict[str, Any]:
    """What variants.json holds.

    Args:
        settings: of the comparison.
        points: the grid.
        scores: variant -> grid point -> mean average precision on development clips.
        chosen: variant -> the grid point that it was trained with.
        results: variant -> of every seed the training and its measurements by name.
        steps: variant -> seconds of a step.
        clips: how many were trained on, and how many chose the grid point.
    """
    reference = "late" if "late" in steps else next(iter(steps))
    return {
        "experiment": settings.name,
        "media": settings.data.media,
        "clips": dict(clips),
        "seeds": max(len(entries) for entries in results.values()),
        "target_precision": settings.evaluate.target_precision,
        "step_reference": reference,
        "grid": [dict(point) for point in points],
        "variants": {
            name: {
                "point": chosen[name],
                "development": {str(p): round(v, 4) for p, v in scores[name].items()},
                "parameters": trainable_count(entries[0][0].counts),
                "step_ratio": round(steps[name] / steps[reference], 2),
                "step_ms": round(1e3 * steps[name], 2),
                "tasks": {task: _task(settings, entries, task) for task in settings.tasks},
            }
            for name, entries in results.items()
        },
    }


def _task(
    settings: Settings, entries: Sequence[tuple[Stage, Mapping[str, Stage]]], task: str
) -> dict[str, Any]:
    found = {}
    for name in ("test", "shuffled"):
        if name not in entries[0][1]:
            continue
        files = [measured[name].path / "predictions.parquet" for _, measured in entries]
        tables = [pq.read_table(file) for file in files]
        labels = label_matrix(tables[0], [task])[:, 0]
        present = labels >= 0
        scores = np.stack([t[f"probability_{task}"].to_numpy()[present] for t in tables])
        for metric in ("recall_at_precision", "average_precision"):
            interval = bootstrap_seeds(
                metric,
                scores.astype(np.float64),
                labels[present] == 1,
                target=settings.evaluate.target_precision,
                resamples=settings.evaluate.resamples,
                seed=settings.evaluate.seed,
            )
            found[metric if name == "test" else f"{metric}, {name}"] = interval.as_dict()
    return found


def print_variants(summary: Mapping[str, Any], console: Console) -> None:
    """One table a task, variants as rows, in percent."""
    target = 100 * summary["target_precision"]
    variants: Mapping[str, Any] = summary["variants"]
    for task in next(iter(variants.values()))["tasks"]:
        table = Table(title=f"{task}, {summary['media']}, {summary['seeds']} seeds", box=box.SIMPLE)
        table.add_column("fusion")
        recall = f"R@P{target:.0f} 95 %"
        for name in ("parameters", "step", recall, "AP 95 %", "AP, audio shuffled"):
            table.add_column(name, justify="right")
        for name, entry in variants.items():
            found = entry["tasks"][task]
            table.add_row(
                name,
                f"{entry['parameters']:,}",
                f"{entry['step_ratio']:.2f}x",
                percentage_interval(found["recall_at_precision"]),
                percentage_interval(found["average_precision"]),
                percentage_interval(found.get("average_precision, shuffled")),
            )
        console.print(table)
    console.print(
        f"{summary['clips']['training']} labels; grid point chosen on "
        f"{summary['clips']['development']} development clips; step: against "
        f"{summary['step_reference']}, cached tokens"
    )
