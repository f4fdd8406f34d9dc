"""Go or no-go: criteria that were set before the run, each answered with its evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

YES, NO, NOT_MEASURED = "yes", "no", "not measured"
GO, NO_GO, MORE_DATA = "go", "no-go", "more data"


@dataclass(frozen=True)
class Criterion:
    """One condition and its answer.

    Attributes:
        name: what is asked.
        wanted: the condition in words, with its number.
        answer: `YES` where the careful end of the interval meets it, `NO` where it does not,
            `NOT_MEASURED` without evidence.
        open: whether the other end meets it: more data may still turn a no into a yes.
        value: the estimate, None for none.
        low: lower end of its 95 % interval (or one-sided bound).
        high: upper end.
        evidence: what it rests on, in a line.
    """

    name: str
    wanted: str
    answer: str
    open: bool
    value: float | None
    low: float | None
    high: float | None
    evidence: str

    def as_dict(self) -> dict[str, Any]:
        """All fields, as JSON has them."""
        return asdict(self)


def not_measured(name: str, wanted: str, why: str) -> Criterion:
    """A criterion without evidence."""
    return Criterion(name, wanted, NOT_MEASURED, True, None, None, None, why)


def at_least(
    name: str, wanted: str, limit: float, interval: Sequence[float | None], evidence: str
) -> Criterion:
    """A value that must reach a limit: judged by the lower end of its interval.

    Args:
        name: see `Criterion`.
        wanted: see `Criterion`.
        limit: smallest lower end that will do.
        interval: value, low, high; an end that is None is unknown and decides nothing.
        evidence: see `Criterion`.
    """
    value, low, high = interval
    met = low is not None and low >= limit
    could = high is None or high >= limit
    return Criterion(name, wanted, YES if met else NO, met or could, value, low, high, evidence)


def above(
    name: str, wanted: str, limit: float, interval: Sequence[float | None], evidence: str
) -> Criterion:
    """As `at_least`, of a value that must exceed the limit: two models that are both useless differ
    by exactly nothing."""
    value, low, high = interval
    met = low is not None and low > limit
    could = high is None or high > limit
    return Criterion(name, wanted, YES if met else NO, met or could, value, low, high, evidence)


def at_most(
    name: str, wanted: str, limit: float, interval: Sequence[float | None], evidence: str
) -> Criterion:
    """A value that must be below a limit, or at it: judged by the upper end of its interval."""
    value, low, high = interval
    met = high is not None and high <= limit
    could = low is None or low <= limit
    return Criterion(name, wanted, YES if met else NO, met or could, value, low, high, evidence)


def verdict(criteria: Sequence[Criterion]) -> str:
    """`GO` where all are met; `NO_GO` where one fails and more data of the kind would not mend it;
    else `MORE_DATA`.

    Raises:
        ValueError: nothing was asked.
    """
    if not criteria:
        raise ValueError(
            "pilot has no criterion: set one of pilot.lookalike_precision, label_noise, gain, "
            "cost_per_positive"
        )
    if all(criterion.answer == YES for criterion in criteria):
        return GO
    if any(criterion.answer == NO and not criterion.open for criterion in criteria):
        return NO_GO
    return MORE_DATA
