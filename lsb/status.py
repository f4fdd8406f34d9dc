"""What a ledger holds: `python -m lsb.status LEDGER`.

Rounds with what was asked, labelled and paid, where annotators disagree, and how good they are. A
LEDGER is the path of an SQLite file, or a URL: postgresql+psycopg://user@host/database.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table

from lsb.annotate import PSEUDO, SOURCES
from lsb.console import console
from lsb.ledger import HOURS, AnnotatorQuality, Ledger, Row
from lsb.ledger.quality import current_votes


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
    """All of a ledger in numbers."""

    rounds: list[RoundStatus]
    tasks: list[TaskStatus]
    costs: list[Row]
    quality: list[AnnotatorQuality]


def status(ledger: Ledger) -> Status:
    """Count what a ledger holds."""
    annotations = ledger.annotations()
    return Status(
        _rounds(ledger, annotations),
        _tasks(ledger, annotations),
        ledger.costs(),
        ledger.quality(),
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
    pages = [rounds, tasks]
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


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    texts = ("arm", "task", "payee", "entry", "labeller", "source")
    for column in columns:
        table.add_column(column, justify="left" if column in texts else "right")
    return table


if __name__ == "__main__":
    sys.exit(main())
