"""A round keeps LT of each of its tasks, once and for all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_ledger import chosen, labels

from lsb.ledger import Ledger, Round, TaskThreshold
from lsb.selection import CHOSEN

CALIBRATED = TaskThreshold("x", "audio+image", "calibrated", 2.3456789012345, 0.53, 60, 21)
REFUSED = TaskThreshold("y", "image", "refused", refusal="no similarity reaches it")
NO_POSITIVE = TaskThreshold("z", "", "none", refusal="0 labelled clips are positive")
ROUND = Round(1, "lsb_lt", "c", "s", task_thresholds=(CALIBRATED, REFUSED, NO_POSITIVE))


def test_they_are_given_back_by_round_and_task(ledger_location: str) -> None:
    later = replace(ROUND, round=2, task_thresholds=(replace(CALIBRATED, value=-0.5),))
    with Ledger.open(ledger_location) as ledger:
        for one in (Round(0, "first", "", ""), ROUND, later):
            assert ledger.record_round(one, CHOSEN.empty_table(), None)
    with Ledger.open(ledger_location, create=False) as ledger:
        assert ledger.rounds() == [Round(0, "first", "", ""), ROUND, later]


def test_writing_them_again_changes_nothing_and_others_are_refused(ledger_location: str) -> None:
    table, answers = chosen("a"), labels({("a", "x"): 1})
    with Ledger.open(ledger_location) as ledger:
        assert ledger.record_round(ROUND, table, answers)
        shuffled = replace(ROUND, task_thresholds=(NO_POSITIVE, CALIBRATED, REFUSED))
        assert not ledger.record_round(shuffled, table, answers)
        other = replace(
            ROUND, task_thresholds=(replace(CALIBRATED, value=2.0), *(REFUSED, NO_POSITIVE))
        )
        with pytest.raises(
            ValueError, match=r"task_thresholds\.value of task 'x' is 2\.345.* 2\.0 now"
        ):
            ledger.record_round(other, table, answers)
        fewer = replace(ROUND, task_thresholds=(CALIBRATED,))
        with pytest.raises(ValueError, match="3 task_thresholds there, 1 now"):
            ledger.record_round(fewer, table, answers)
        assert ledger.rounds() == [ROUND]


def test_a_round_that_is_refused_is_given_none(ledger_location: str) -> None:
    with Ledger.open(ledger_location) as ledger:
        ledger.record_round(replace(ROUND, task_thresholds=()), chosen("a"), None)
        with pytest.raises(ValueError, match="1 candidates there, 0 now"):
            ledger.record_round(ROUND, CHOSEN.empty_table(), None)
        assert ledger.rounds()[0].task_thresholds == ()


def test_a_task_has_one(ledger_location: str) -> None:
    twice = replace(ROUND, task_thresholds=(CALIBRATED, CALIBRATED))
    with (
        Ledger.open(ledger_location) as ledger,
        pytest.raises(ValueError, match="round 1 has two LT of task 'x': give one for each task"),
    ):
        ledger.record_round(twice, CHOSEN.empty_table(), None)
