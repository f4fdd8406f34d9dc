"""How good annotators are: their answers on clips whose label is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lsb.annotate.carried import representative_of
from lsb.ledger.tables import Row

Item = tuple[str, str]
"""Clip id, 32 hexadecimal digits, and task."""
Votes = dict[Item, dict[str, Row]]
"""Item -> labeller -> the annotation that counts, the one of its last round."""

CONFIDENCE = 0.95


@dataclass(frozen=True)
class AnnotatorQuality:
    """One labeller's answers in one task.

    Attributes:
        labeller: its name.
        task: the task.
        source: of its labels.
        annotations: items it labelled.
        gold: those whose label is known.
        correct: those of them that it labelled so.
        low: Wilson interval of its accuracy at 95 %; None without gold items.
        high: see above.
    """

    labeller: str
    task: str
    source: str
    annotations: int
    gold: int
    correct: int
    low: float | None
    high: float | None

    @property
    def accuracy(self) -> float | None:
        """Share of gold items labelled as known, None without any."""
        return self.correct / self.gold if self.gold else None


def current_votes(annotations: Iterable[Row], sources: Iterable[str]) -> Votes:
    """The last answer of every labeller to every item, of the given sources.

    Labels carried from another clip are nobody's answer.
    """
    wanted = set(sources)
    votes: Votes = {}
    for row in annotations:
        if row["source"] in wanted and representative_of(row["labeller"]) is None:
            held = votes.setdefault((row["clip_id"], row["task"]), {})
            if row["labeller"] not in held or held[row["labeller"]]["round"] < row["round"]:
                held[row["labeller"]] = row
    return votes


def annotator_quality(votes: Votes, known: Mapping[Item, int]) -> list[AnnotatorQuality]:
    """Quality of every (labeller, task), ordered by both.

    Args:
        votes: see `current_votes`.
        known: item -> its label.
    """
    answered: Counter[tuple[str, str]] = Counter()
    checked: Counter[tuple[str, str]] = Counter()
    correct: Counter[tuple[str, str]] = Counter()
    sources: dict[tuple[str, str], str] = {}
    for item, answers in votes.items():
        for labeller, row in answers.items():
            place = (labeller, item[1])
            answered[place] += 1
            sources[place] = row["source"]
            if item in known:
                checked[place] += 1
                correct[place] += row["label"] == known[item]
    return [
        AnnotatorQuality(
            *place,
            sources[place],
            answered[place],
            checked[place],
            correct[place],
            *_wilson(correct[place], checked[place]),
        )
        for place in sorted(answered)
    ]


def _wilson(correct: int, count: int) -> tuple[float | None, float | None]:
    if not count:
        return None, None
    from scipy.stats import binomtest  # half a second, and few commands need it

    interval = binomtest(correct, count).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)
