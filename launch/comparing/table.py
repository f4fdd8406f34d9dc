"""The table of a comparison: arms under both protocols, with intervals over seeds and clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table

from lsb import ids as sample_ids
from lsb.labelled import LABEL, PROBABILITY
from vlmae.metrics import (
    mean_over_seeds,
    metric_means,
    percentage_interval,
    percentile_interval,
)

METRICS = {"recall_at_p80": "recall_at_precision", "average_precision": "average_precision"}
EVERYONE = "all"
SEEN, UNSEEN = "seen", "unseen"
ERRORS = "confident errors"
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Cell:
    """What is measured: a task on the clips of a group of speakers."""

    task: str
    speakers: str

    @property
    def name(self) -> str:
        """Key of a summary."""
        return self.task if self.speakers == EVERYONE else f"{self.task}, {self.speakers}"


@dataclass(frozen=True)
class Measure:
    """How a comparison is summed up.

    Attributes:
        target: precision of R@P.
        resamples: bootstrap resamples of clips and seeds.
        seed: of the resamples.
        speakers: id -> whether the clip's speaker is heard in training; empty for no such groups.
    """

    target: float
    resamples: int
    seed: int
    seen: Mapping[bytes, bool]

    def cells(self, tasks: Sequence[str]) -> list[Cell]:
        """What is measured of tasks. Groups of speakers are told apart where they can matter: in a
        task that the voice decides."""
        groups = (SEEN, UNSEEN) if self.seen else (EVERYONE,)
        return [
            Cell(task, speakers)
            for task in tasks
            for speakers in (groups if task != "unsafe" else (EVERYONE,))
        ]


def summarise_comparison(
    stages: Path,
    results: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]],
    tasks: Sequence[str],
    measure: Measure,
) -> dict[str, Any]:
    """What compare.json holds: of each protocol its arms, each with intervals and counts.

    Args:
        stages: folder of all stages.
        results: (protocol, arm) -> results of its units (`launch.comparing.units.result_of`), one a
            seed.
        tasks: names of the tasks.
        measure: metrics and groups.
    """
    cells = measure.cells(tasks)
    summary: dict[str, Any] = {}
    drawn: dict[tuple[str, str, str], npt.NDArray[np.floating[Any]]] = {}
    for (protocol, arm), units in results.items():
        units = sorted(units, key=lambda unit: int(unit["seed"]))
        last = [unit["rounds"][-1] for unit in units]
        tables = [_predictions(stages, entry["evaluated"]) for entry in last]
        entry: dict[str, Any] = {
            "seeds": [int(unit["seed"]) for unit in units],
            "labels": _mean([one["labels"] for one in last]),
            "positives": {task: _mean([one["positives"][task] for one in last]) for task in tasks},
            "confident_errors": _mean([_confident_errors(unit) for unit in units]),
            "scored": _mean(
                [sum(one["counts"].get("scored", 0) for one in unit["rounds"]) for unit in units]
            ),
            "found": _found(units, tasks, measure),
            "cells": {},
        }
        for cell in cells:
            scores_SN, truth = _scores(tables, cell, measure.seen)
            means = metric_means(
                list(METRICS.values()),
                scores_SN,
                truth,
                target=measure.target,
                resamples=measure.resamples,
                seed=measure.seed,
            )
            values: dict[str, Any] = {
                name: percentile_interval(means[metric]).as_dict()
                for name, metric in METRICS.items()
            }
            drawn[protocol, arm, cell.name] = means[METRICS["recall_at_p80"]]
            values["positives"] = int(truth.sum())
            values["clips"] = len(truth)
            entry["cells"][cell.name] = values
        summary.setdefault(protocol, {})[arm] = entry
    return {
        "arms": summary,
        "cells": [cell.name for cell in cells],
        "winners": {
            protocol: _winner(protocol, list(arms), cells[0], drawn)
            for protocol, arms in summary.items()
        },
        "claims": _claims(cells[0], drawn),
        "target_precision": measure.target,
        "resamples": measure.resamples,
    }


def _found(
    units: Sequence[Mapping[str, Any]], tasks: Sequence[str], measure: Measure
) -> dict[str, Any]:
    """Intervals over seeds of what asking has found: positives of each task, confident errors."""
    by_seed: dict[str, list[float]] = {
        task: [unit["rounds"][-1]["positives"][task] for unit in units] for task in tasks
    }
    by_seed[ERRORS] = [_confident_errors(unit) for unit in units]
    return {
        name: mean_over_seeds(values, measure.resamples, measure.seed).as_dict()
        for name, values in by_seed.items()
    }


def _predictions(stages: Path, evaluated: str) -> pa.Table:
    table = pq.read_table(stages / evaluated / "predictions.parquet")
    return table.take(np.argsort(sample_ids.from_arrow(table["id"]), kind="stable"))


def _scores(
    tables: Sequence[pa.Table], cell: Cell, seen: Mapping[bytes, bool]
) -> tuple[npt.NDArray[np.float64], BoolArray]:
    """(S, N) probabilities of a cell's clips by each seed's model, and (N,) their truth.

    Raises:
        ValueError: the seeds were measured on different clips.
    """
    ids = [sample_ids.from_arrow(table["id"]) for table in tables]
    if any(not np.array_equal(ids[0], other) for other in ids[1:]):
        raise ValueError(
            "the seeds of an arm are measured on different clips: delete the units of the "
            "comparison and run it again"
        )
    kept = tables[0][LABEL + cell.task].is_valid().to_numpy(zero_copy_only=False)
    if cell.speakers != EVERYONE:
        known = np.asarray([seen[name] for name in sample_ids.to_bytes(ids[0])])
        kept &= known if cell.speakers == SEEN else ~known
    rows = np.flatnonzero(kept)
    truth = tables[0][LABEL + cell.task].take(rows).to_numpy() == 1
    column = PROBABILITY + cell.task
    return np.stack([table[column].take(rows).to_numpy() for table in tables]).astype(float), truth


def _winner(
    protocol: str, arms: Sequence[str], cell: Cell, drawn: Mapping[tuple[str, str, str], Any]
) -> dict[str, Any]:
    """The arm of highest R@P in the first cell, and how far the next is behind."""
    ranked = sorted(arms, key=lambda arm: (-drawn[protocol, arm, cell.name][0], arm))
    found: dict[str, Any] = {"arm": ranked[0], "cell": cell.name, "next": None, "ahead": None}
    if len(ranked) > 1:
        first, second = (drawn[protocol, arm, cell.name] for arm in ranked[:2])
        found["next"], found["ahead"] = ranked[1], percentile_interval(first - second).as_dict()
    return found


def _claims(cell: Cell, drawn: Mapping[tuple[str, str, str], Any]) -> dict[str, Any]:
    """What the project hopes for, as differences of R@P with intervals, where the arms were run."""

    def difference(one: tuple[str, str], other: tuple[str, str]) -> dict[str, float | None] | None:
        keys = [(*pair, cell.name) for pair in (one, other)]
        if any(key not in drawn for key in keys):
            return None
        return percentile_interval(drawn[keys[0]] - drawn[keys[1]]).as_dict()

    return {
        "lsb_lt - entropy, equal scoring": difference(
            ("scoring", "lsb_lt"), ("scoring", "entropy")
        ),
        "lsb_lt in the budget - entropy on everything": difference(
            ("scoring", "lsb_lt"), ("labels", "entropy")
        ),
        "lsb_lt - entropy, everything scored": difference(
            ("labels", "lsb_lt"), ("labels", "entropy")
        ),
        "lsb_streams - entropy, everything scored": difference(
            ("labels", "lsb_streams"), ("labels", "entropy")
        ),
        "lsb_lt - lsb, equal scoring": difference(("scoring", "lsb_lt"), ("scoring", "lsb")),
        "lsb_lt - lsb, everything scored": difference(("labels", "lsb_lt"), ("labels", "lsb")),
        "lsb_lt - lsb_random, equal scoring": difference(
            ("scoring", "lsb_lt"), ("scoring", "lsb_random")
        ),
        "lsb_lt - proxy, equal scoring": difference(("scoring", "lsb_lt"), ("scoring", "proxy")),
    }


def _confident_errors(unit: Mapping[str, Any]) -> int:
    """Found by asking, over all rounds and tasks."""
    return sum(
        task["confident_errors"] or 0
        for entry in unit["rounds"]
        for task in entry["found"].values()
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


TITLES = {
    "labels": "equal labels: every arm may score the whole pool",
    "scoring": "equal labels and equal scoring budget",
}


def print_comparison(summary: Mapping[str, Any], console: Console) -> None:
    """Three tables a protocol, the winners, and the claims."""
    percent = f"{100 * summary['target_precision']:.0f}"
    for protocol, arms in summary["arms"].items():
        labels = sorted({f"{entry['labels']:.0f}" for entry in arms.values()})
        seeds = max(len(entry["seeds"]) for entry in arms.values())
        console.print(f"{TITLES[protocol]}; {'/'.join(labels)} labels, {seeds} seeds")
        console.print(_metric_table(summary, arms, "recall_at_p80", f"R@P{percent}"))
        console.print(_metric_table(summary, arms, "average_precision", "AP"))
        console.print(_found_table(arms))
        console.print(_winner_line(summary["winners"][protocol], percent) + "\n", soft_wrap=True)
    for claim, interval in summary["claims"].items():
        if interval is not None:
            console.print(f"{claim}: {percentage_interval(interval)} points", soft_wrap=True)


def _metric_table(
    summary: Mapping[str, Any], arms: Mapping[str, Any], metric: str, title: str
) -> Table:
    """Arms by falling value of a metric in the first cell; it fits 80 characters."""
    table = Table(
        title=f"{title} in %, 95 % intervals",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
    )
    table.add_column("arm", no_wrap=True)
    headers = [cell.replace(", ", ",\n") for cell in summary["cells"]]
    for name in ("scored", "found", "errors", *headers):
        table.add_column(name, justify="right", no_wrap=True)
    first = summary["cells"][0]
    for arm, entry in sorted(
        arms.items(), key=lambda item: -(item[1]["cells"][first][metric]["value"] or 0)
    ):
        found = "+".join(f"{count:.0f}" for count in entry["positives"].values())
        cells = (percentage_interval(entry["cells"][cell][metric]) for cell in summary["cells"])
        numbers = (f"{entry['scored']:.0f}", found, f"{entry['confident_errors']:.0f}")
        table.add_row(arm, *numbers, *cells)
    return table


def _found_table(arms: Mapping[str, Any]) -> Table:
    """What asking found, with intervals over seeds; arms by falling positives of the first task."""
    table = Table(
        title="labels that are positive, and confident errors found; 95 % intervals over seeds",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
    )
    table.add_column("arm", no_wrap=True)
    names = list(next(iter(arms.values()))["found"])
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for arm, entry in sorted(arms.items(), key=lambda item: -item[1]["found"][names[0]]["value"]):
        intervals = (entry["found"][name] for name in names)
        table.add_row(arm, *map(_count, intervals))
    return table


def _count(interval: Mapping[str, float | None]) -> str:
    """A count with its interval, or alone where it is of one seed."""
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    return f"{value:.0f}" if low is None or high is None else f"{value:.0f} [{low:.0f},{high:.0f}]"


def _winner_line(winner: Mapping[str, Any], percent: str) -> str:
    start = f"highest R@P{percent} on {winner['cell']}: {winner['arm']}"
    if winner["ahead"] is None:
        return start
    ahead = f"{percentage_interval(winner['ahead'])} points ahead of {winner['next']}"
    low = winner["ahead"]["low"]
    return f"{start}, {ahead}" + (
        "" if low is not None and low > 0 else ": the interval holds 0, this is no clear win"
    )
