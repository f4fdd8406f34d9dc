"""What is said where a training goes on with steps of another size."""

from __future__ import annotations

import pytest

from vlmae.fitting import step_changed
from vlmae.saves import Moment


def moment(ranks: int, accumulate: int) -> Moment:
    return Moment("this", 8, ranks, accumulate, "ddp")


@pytest.mark.parametrize(
    ("before", "now", "accumulate"),
    [((2, 2), (1, 2), 4), ((4, 3), (6, 3), 2), ((1, 1), (1, 2), 1), ((8, 1), (2, 1), 4)],
)
def test_what_keeps_a_step_is_named(
    before: tuple[int, int], now: tuple[int, int], accumulate: int
) -> None:
    told = step_changed(moment(*before), moment(*now))
    assert told is not None
    assert f"trainer.accumulate={accumulate} keeps them as they were" in told
    assert now[0] * accumulate == before[0] * before[1]


@pytest.mark.parametrize(("before", "now"), [((2, 1), (4, 1)), ((4, 1), (3, 1)), ((3, 3), (2, 4))])
def test_nothing_that_does_not_keep_a_step_is_named(
    before: tuple[int, int], now: tuple[int, int]
) -> None:
    told = step_changed(moment(*before), moment(*now))
    batches = before[0] * before[1]
    assert told is not None
    assert f"no trainer.accumulate makes {batches} of them on {now[0]} ranks" in told
    assert f"a number of ranks that divides {batches}" in told
    assert "trainer.accumulate=" not in told


def test_equal_steps_need_no_word() -> None:
    assert step_changed(moment(2, 2), moment(1, 4)) is None
