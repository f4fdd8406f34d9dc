"""What a ledger holds: `python -m lsb.status LEDGER`.

Rounds with what was asked, labelled and paid, their lookalike thresholds (LT, with the lower bound
of lookalike precision), where annotators disagree, and how good they are. A LEDGER is the path of
an SQLite file, or a URL: postgresql+psycopg://user@host/database.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lsb.annotate import PSEUDO, SOURCES
from lsb.console import console
from lsb.ledger import HOURS, AnnotatorQuality, Ledger, Round, Row, TaskThreshold
from lsb.ledger.quality import current_votes

EVERY_TASK = "all"
"""In place of a task's name, where one LT stands for all of them."""


@dataclass(frozen=True)
class RoundStatus:
    """One round.

    Attributes:
        round: its number.
        arm: its preset.
        asked: clips that were chosen.
        labelled: clips with a label of this round, of any source but a model.
        annotations: labels given to them.
        pseudo: labels that a model gave for this round alone.
        cost: money, price times count, summed, in the units of `Ledger.record_cost`.
    """

    round: int
    arm: str
    asked: int
    labelled: int
    annotations: int
    pseudo: int
    cost: float


@dataclass(frozen=True)
class TaskStatus:
    """One task, over all rounds; pseudo-labels are no answers here.

    Attributes:
        task: the task.
        items: clips that were answered by a person or an oracle, or are known.
        several: those with answers of several annotators.
        disagreed: those of them with different answers.
        resolved: those that a policy has given a label.
        unresolved: those that the last adjudication left open.
        gold: clips whose label is known.
    """

    task: str
    items: int
    several: int
    disagreed: int
    resolved: int
    unresolved: int
    gold: int


@dataclass(frozen=True)
class Status:
    """All of a ledger in numbers.

    Attributes:
        rounds: in order.
        tasks: by name.
        costs: see `Ledger.costs`.
        quality: see `Ledger.quality`.
        thresholds: (round, LT), of each task by name where tasks have their own, else one of task
            `EVERY_TASK`; of rounds that set one.
    """

    rounds: list[RoundStatus]
    tasks: list[TaskStatus]
    costs: list[Row]
    quality: list[AnnotatorQuality]
    thresholds: list[tuple[int, TaskThreshold]]


def status(ledger: Ledger) -> Status:
    """Count what a ledger holds."""
    annotations = ledger.annotations()
    return Status(
        _rounds(ledger, annotations),
        _tasks(ledger, annotations),
        ledger.costs(),
        ledger.quality(),
        [(held.round, one) for held in ledger.rounds() for one in _thresholds(held)],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry point; returns the exit code: 0, or 2 for what is no ledger."""
    parser = argparse.ArgumentParser(
        prog="python -m lsb.status", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("ledger", metavar="LEDGER", help="path of an SQLite file, or a URL")
    options = parser.parse_args(arguments)
    try:
        with Ledger.open(options.ledger, create=False) as ledger:
            found, name = status(ledger), ledger.name
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    out = console()
    out.print(name)
    out.print(_page(found))
    return 0


def _rounds(ledger: Ledger, annotations: Iterable[Row]) -> list[RoundStatus]:
    asked = Counter(row["round"] for row in ledger.candidacies())
    given: Counter[int] = Counter()
    pseudo: Counter[int] = Counter()
    clips: dict[int, set[str]] = defaultdict(set)
    for row in annotations:
        if row["source"] == PSEUDO:
            pseudo[row["round"]] += 1
            continue
        given[row["round"]] += 1
        clips[row["round"]].add(row["clip_id"])
    paid: dict[int, float] = defaultdict(float)
    for row in ledger.costs():
        if not row["entry"].endswith(HOURS):
            paid[row["round"]] += row["unit_price"] * row["count"]
    return [
        RoundStatus(
            held.round,
            held.arm,
            asked[held.round],
            len(clips[held.round]),
            given[held.round],
            pseudo[held.round],
            paid[held.round],
        )
        for held in ledger.rounds()
    ]


def _thresholds(held: Round) -> list[TaskThreshold]:
    """LT of a round's tasks, or the one that stands for all."""
    value, bound, pairs = held.threshold_value, held.threshold_precision, held.threshold_pairs
    if value is None:
        return list(held.task_thresholds)
    # The ledger does not tell a fallback from an LT that was given from the start.
    mode = "given" if bound is None else "calibrated"
    return [TaskThreshold(EVERY_TASK, "", mode, value, bound, pairs), *held.task_thresholds]


def _tasks(ledger: Ledger, annotations: Iterable[Row]) -> list[TaskStatus]:
    votes = current_votes(annotations, [name for name in SOURCES[1:] if name != PSEUDO])
    known = ledger.gold()
    last = {(row["clip_id"], row["task"]): row["label"] for row in ledger.adjudications()}
    again = {(row["id"].hex(), row["task"]) for row in ledger.queue().to_pylist()}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for item in {*votes, *known}:
        answers = votes.get(item, {})
        labels = {row["label"] for row in answers.values()}
        count = counts[item[1]]
        count["items"] += 1
        count["several"] += len(answers) > 1
        count["disagreed"] += len(labels) > 1
        count["resolved"] += last.get(item) is not None
        count["unresolved"] += item in again
        count["gold"] += item in known
    names = ("items", "several", "disagreed", "resolved", "unresolved", "gold")
    return [TaskStatus(task, *(counts[task][name] for name in names)) for task in sorted(counts)]


def _page(found: Status) -> Group:
    rounds = _table("rounds", "round", "arm", "asked", "labelled", "annotations", "pseudo", "cost")
    for one in found.rounds:
        given = (one.asked, one.labelled, one.annotations, one.pseudo)
        rounds.add_row(str(one.round), one.arm, *(f"{n:,}" for n in given), f"{one.cost:,.2f}")
    tasks = _table(
        "tasks", "task", "items", "several answers", "disagree", "resolved", "to ask again", "gold"
    )
    for task in found.tasks:
        numbers = (
            task.items, task.several, task.disagreed, task.resolved, task.unresolved, task.gold,
        )  # fmt: skip
        tasks.add_row(task.task, *(f"{n:,}" for n in numbers))
    pages: list[Table | Text] = [rounds]
    if found.thresholds:
        pages += _threshold_page(found.thresholds)
    pages.append(tasks)
    if found.costs:
        costs = _table("costs", "round", "payee", "entry", "count", "unit price", "cost")
        for row in found.costs:
            amount = f"{row['unit_price'] * row['count']:,.2f}"
            place = (str(row["round"]), row["payee"], row["entry"])
            costs.add_row(*place, f"{row['count']:,}", f"{row['unit_price']:g}", amount)
        pages.append(costs)
    quality = _table(
        "annotators", "labeller", "task", "source", "labels", "on gold", "right", "accuracy (95 %)"
    )
    for answer in found.quality:
        interval = "no gold item"
        if answer.accuracy is not None:
            interval = f"{answer.accuracy:.3f} ({answer.low:.3f} to {answer.high:.3f})"
        answers = (answer.annotations, answer.gold, answer.correct)
        origin = (answer.labeller, answer.task, answer.source)
        quality.add_row(*origin, *(f"{n:,}" for n in answers), interval)
    return Group(*pages, quality)


def _threshold_page(thresholds: Sequence[tuple[int, TaskThreshold]]) -> list[Table | Text]:
    """LT by round and task, and below it why some could not be set."""
    names = ("round", "task", "view", "mode", "LT", "bound", "pairs")
    table = _table("lookalike thresholds", *names)
    refusals: list[Table | Text] = []
    for number, one in thresholds:
        table.add_row(
            str(number),
            one.task,
            one.view or "-",
            one.mode,
            "-" if one.value is None else f"{one.value:.4f}",
            "-" if one.precision is None else f"{one.precision:.3f}",
            f"{one.pairs:,}" if one.pairs else "-",
        )
        if one.refusal is not None:
            refusals.append(Text(f"round {number}, {one.task}: {one.refusal}"))
    return [table, *refusals]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    texts = ("arm", "task", "view", "mode", "payee", "entry", "labeller", "source")
    for column in columns:
        table.add_column(column, justify="left" if column in texts else "right")
    return table


if __name__ == "__main__":
    sys.exit(main())
