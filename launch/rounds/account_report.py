"""The account for people: one table, one picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from launch.rounds.report import COLOURS
from launch.rounds.summary import number_table
from lsb.labels_saved import monotone
from vlmae.metrics import percentage_interval

NOT_REACHED = "not reached"
BARS = {
    "found": ("found by asking", "#2a6f4e"),
    "fixed": ("fixed on test", "#8fbf9f"),
    "new": ("new on test", "#d9a441"),
}


def account_table(account: Mapping[str, Any]) -> Table:
    """One row a round and task."""
    percent = f"{100 * account['target_precision']:.0f}"
    recall = f"R@P{percent} 95 %"
    columns = ("round", "labels", "cost", "task", "found", recall, "saved 95 %")
    title = f"account of {account['experiment']}, arm {account['arm']} ({account['evidence']})"
    table = number_table(title, *columns, words=("task",))
    for entry in account["rounds"]:
        cost = entry["cost"]
        for index, (task, found) in enumerate(entry["found"].items()):
            table.add_row(
                str(entry["round"]) if index == 0 else "",
                str(entry["labels"]) if index == 0 else "",
                ("-" if cost is None else f"{cost['all_money']:.2f}") if index == 0 else "",
                task,
                str(found["positives"]),
                percentage_interval(entry["recall"][task]),
                saved_labels(entry["saved"], task),
            )
        table.add_section()
    table.caption = (
        "found: positives among the round's answers; cost: money so far; saved: labels against "
        "random at equal recall, not reached where random never gets there"
    )
    return table


def errors_table(account: Mapping[str, Any]) -> Table:
    """What was found of confident errors, and what became of those on test clips."""
    columns = ("round", "task", "found", "fixed", "new", "left")
    table = number_table("confident errors", *columns, words=("task",))
    for entry in account["rounds"]:
        for index, (task, found) in enumerate(entry["found"].items()):
            change = entry["test"][task] if entry["test"] else {}
            table.add_row(
                str(entry["round"]) if index == 0 else "",
                task,
                _count(found["confident_errors"]),
                *(_count(change.get(name)) for name in ("fixed", "new", "after")),
            )
        table.add_section()
    table.caption = (
        "found: of the model that asked, among the round's answers; fixed, new, left: on test clips"
    )
    return table


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def saved_labels(saved: Mapping[str, Any] | None, task: str) -> str:
    """Labels saved with their interval; an end that random sampling does not reach is open."""
    told = saved[task] if saved else None
    if told is None:
        return "-"
    low, high = ("" if end is None else f"{end:.0f}" for end in told["saved_interval"])
    value = NOT_REACHED if told["saved"] is None else f"{told['saved']:.0f}"
    if told["random_labels"] == told["least_asked"]:
        value = f"<= {value}"
    return f"{value} [{low}..{high}]"


def draw_account(account: Mapping[str, Any]) -> bytes:
    """The picture as PNG: recall against labels beside random sampling, and errors by round."""
    tasks = list(account["rounds"][0]["found"])
    figure, axes = plt.subplots(2, len(tasks), figsize=(4.4 * len(tasks), 7.4), squeeze=False)
    for column, task in enumerate(tasks):
        _recall_panel(axes[0, column], account, task)
        _errors_panel(axes[1, column], account, task)
    cost = account["rounds"][-1]["cost"]
    spent = "no costs recorded" if cost is None else f"cost {cost['all_money']:.2f}"
    figure.suptitle(
        f"{account['experiment']}, arm {account['arm']} ({account['data']})\n"
        f"{account['rounds'][-1]['labels']} labels, {spent}; {account['evidence']}",
        fontsize=10,
    )
    figure.tight_layout()
    buffer = io.BytesIO()
    # Without the version of matplotlib in it, equal numbers give equal bytes.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def _recall_panel(axis: Axes, account: Mapping[str, Any], task: str) -> None:
    labels = [entry["labels"] for entry in account["rounds"]]
    values, errors = _points([entry["recall"][task] for entry in account["rounds"]])
    arm = account["arm"]
    axis.errorbar(
        labels, values, yerr=errors, marker="o", capsize=3, label=arm, color=COLOURS.get(arm)
    )
    curve = account["random"]
    if curve is not None:
        points, _ = _points(curve["recall"][task])
        colour = COLOURS["random"]
        axis.plot(curve["labels"], points, "o", color=colour, label="random")
        axis.plot(curve["labels"], monotone(np.asarray(points)), "--", color=colour)
        for entry in account["rounds"]:
            told = entry["saved"][task] if entry["saved"] else None
            if told is not None and told["random_labels"] is not None:
                ends = (entry["labels"], told["random_labels"])
                axis.plot(ends, [100 * told["value"]] * 2, ":", color="black", linewidth=1)
    percent = f"{100 * account['target_precision']:.0f}"
    axis.set(title=task, xlabel="labels", ylabel=f"recall at {percent} % precision, %")
    axis.set_ylim(0, min(102, max(20, 1.15 * axis.get_ylim()[1])))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _points(metrics: list[Mapping[str, float | None]]) -> tuple[list[float], list[list[float]]]:
    """Values in percent, and how far their intervals reach below and above; 0 for undefined."""
    values, low, high = (
        [100 * (m[name] or 0.0) for m in metrics] for name in ("value", "low", "high")
    )
    below = [max(0.0, v - b) for v, b in zip(values, low, strict=True)]
    above = [max(0.0, b - v) for v, b in zip(values, high, strict=True)]
    return values, [below, above]


def _errors_panel(axis: Axes, account: Mapping[str, Any], task: str) -> None:
    entries = account["rounds"][1:]
    width = 0.8 / len(BARS)
    for place, (name, (label, colour)) in enumerate(BARS.items()):
        values = [
            (entry["found"][task]["confident_errors"] or 0)
            if name == "found"
            else entry["test"][task][name]
            for entry in entries
        ]
        axis.bar(
            [entry["round"] + (place - 1) * width for entry in entries],
            values,
            width,
            label=label,
            color=colour,
        )
    axis.set_ylim(0, max(1.0, axis.get_ylim()[1]))
    axis.set_xticks([entry["round"] for entry in entries])
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="round", ylabel=f"confident errors (>= {account['confidence']:g})")
    axis.grid(alpha=0.3, axis="y")
    axis.legend(fontsize=8)
