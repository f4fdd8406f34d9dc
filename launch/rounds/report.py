"""The report's picture: recall at the target precision against labels, and what audio is worth."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from lsb.artifact import write_bytes

COLOURS = {"random": "#888888", "entropy": "#1f77b4", "lsb_lt": "#d62728"}
CONTROL_COLOURS = ("#2a6f4e", "#8fbf9f", "#d9a441", "#c9c9c9")


def draw_report(summary: Mapping[str, Any], path: Path) -> None:
    """Write the PNG: one panel a task for the arms, one for the controls if there are any."""
    tasks = list(summary["rounds"][-1]["tasks"])
    panels = len(tasks) + bool(summary["controls"])
    columns = 2 if panels in (2, 4) else min(panels, 3)
    rows = -(-panels // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.6 * columns, 4.0 * rows + 0.5), squeeze=False
    )
    for axis in axes.flat[panels:]:
        axis.set_axis_off()
    for axis, task in zip(axes.flat, tasks, strict=False):
        _arms_panel(axis, summary, task)
    if summary["controls"]:
        _controls_panel(axes.flat[panels - 1], summary, tasks)
    data = summary["data"]
    figure.suptitle(
        f"{summary['experiment']}: {data['name']} ({data['media']})\n{summary['evidence']}",
        fontsize=10,
    )
    figure.tight_layout()
    buffer = io.BytesIO()
    # Without the version of matplotlib in it, equal numbers give equal bytes.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    write_bytes(path, buffer.getvalue())


def _arms_panel(axis: Axes, summary: Mapping[str, Any], task: str) -> None:
    width = 0.0
    for number, (arm, entry) in enumerate(summary["arms"].items()):
        labels = [round_["labels"] for round_ in entry["rounds"]]
        metrics = [round_["tasks"][task] for round_ in entry["rounds"]]
        values = [100 * (m["recall_at_p80"] or 0.0) for m in metrics]
        bounds = [m["recall_at_p80_interval"] for m in metrics]
        low = [v - 100 * (b[0] or 0.0) for v, b in zip(values, bounds, strict=True)]
        high = [100 * (b[1] or 0.0) - v for v, b in zip(values, bounds, strict=True)]
        # Arms are drawn a little apart, so that their intervals can be told apart.
        width = width or 0.012 * (max(labels) - min(labels) or 1)
        shifted = [count + (number - 1) * width for count in labels]
        errors = [[max(0.0, e) for e in low], [max(0.0, e) for e in high]]
        axis.errorbar(
            shifted, values, yerr=errors, marker="o", capsize=3, label=arm, color=COLOURS.get(arm)
        )
    percent = f"{100 * summary['target_precision']:.0f}"
    axis.set(title=task, xlabel="labels", ylabel=f"recall at {percent} % precision, %")
    axis.set_ylim(0, min(102, max(20, 1.15 * axis.get_ylim()[1])))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _controls_panel(axis: Axes, summary: Mapping[str, Any], tasks: list[str]) -> None:
    controls = summary["controls"]
    height = 0.8 / len(controls)
    for number, (name, metrics) in enumerate(controls.items()):
        values = [100 * (metrics[task]["average_precision"] or 0.0) for task in tasks]
        places = [index + number * height for index in range(len(tasks))]
        bounds = [metrics[task]["average_precision_interval"] for task in tasks]
        low = [max(0.0, v - 100 * (b[0] or 0.0)) for v, b in zip(values, bounds, strict=True)]
        high = [max(0.0, 100 * (b[1] or 0.0) - v) for v, b in zip(values, bounds, strict=True)]
        colour = CONTROL_COLOURS[number % len(CONTROL_COLOURS)]
        axis.barh(places, values, height, xerr=[low, high], capsize=2, label=name, color=colour)
    axis.set_yticks([index + 0.3 for index in range(len(tasks))], tasks)
    axis.invert_yaxis()
    axis.set(title="what audio is worth", xlabel="average precision, %", xlim=(0, 102))
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
