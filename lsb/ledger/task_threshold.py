"""LT of one task in one round, where tasks have their own (docs/lookalike_threshold.md)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from lsb.ledger.database import all_rows, insert_absent
from lsb.ledger.rows import by_text, require_equal
from lsb.ledger.tables import TASK_THRESHOLDS, Row

REFUSED, NONE = "refused", "none"
"""Modes without an LT: it could not be calibrated, or none was wanted."""


@dataclass(frozen=True)
class TaskThreshold:
    """Where the lookalikes of a task were cut, and on what evidence.

    Attributes:
        task: the task.
        view: what its clips were compared by: streams joined by "+"; "" where the task had too few
            positives for any comparison.
        mode: "calibrated", "fixed", `REFUSED` or `NONE`.
        value: LT, in the units of the view; None for none.
        precision: lower bound of lookalike precision at LT; None where it was not calibrated.
        pairs: labelled pairs that the bound rests on; None without LT.
        seeds: labelled positives of those pairs; None without LT.
        refusal: why there is no LT, where one was wanted.
    """

    task: str
    view: str
    mode: str
    value: float | None = None
    precision: float | None = None
    pairs: int | None = None
    seeds: int | None = None
    refusal: str | None = None


def threshold_rows(number: int, thresholds: Iterable[TaskThreshold]) -> list[Row]:
    """Rows of `task_thresholds`, by task.

    Args:
        number: of the round.
        thresholds: each of another task.

    Raises:
        ValueError: two are of one task.
    """
    rows = [{"round": number, **vars(one)} for one in thresholds]
    rows.sort(key=lambda row: row["task"])
    tasks = [row["task"] for row in rows]
    twice = sorted({task for task in tasks if tasks.count(task) > 1})
    if twice:
        raise ValueError(f"round {number} has two LT of task {twice[0]!r}: give one for each task")
    return rows


def complete_thresholds(connection: sa.Connection, number: int, rows: list[Row]) -> None:
    """Give a recorded round its rows where it has none: releases before version 3 kept none.

    Args:
        connection: in a writing transaction.
        number: of the round.
        rows: see `threshold_rows`.

    Raises:
        ValueError: it has others.
    """
    held = sa.select(TASK_THRESHOLDS.c.task).where(TASK_THRESHOLDS.c.round == number)
    if connection.execute(held).first() is None:
        insert_absent(connection, TASK_THRESHOLDS, rows)
    require_equal(connection, TASK_THRESHOLDS, number, rows)


def read_thresholds(connection: sa.Connection) -> dict[int, tuple[TaskThreshold, ...]]:
    """Of each round that has any, by task."""
    found: dict[int, tuple[TaskThreshold, ...]] = {}
    for row in by_text(all_rows(connection, sa.select(TASK_THRESHOLDS)), "round", "task"):
        number = row.pop("round")
        found[number] = (*found.get(number, ()), TaskThreshold(**row))
    return found
