"""Merge policies: one label from the answers of several annotators, or none.

An item is a clip in a task. A policy gives every label a share of its answers; the label with the
largest share is taken if the share is above `MergeConfig.agreement`. Other items stay unresolved:
`Ledger.queue` gives them to another annotator. Items whose label is known (gold) are not merged,
and an item with one answer is not either, unless more are demanded or it was decided before: that
answer is its label.

Dawid-Skene: A. P. Dawid and A. M. Skene, Maximum likelihood estimation of observer error-rates
using the EM algorithm, Applied Statistics 28 (1979), in the implementation of crowd-kit.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from lsb.annotate import PSEUDO, SOURCES
from lsb.ledger.quality import Item, Votes, annotator_quality

Shares = dict[Item, dict[int, float]]

FIRST_ROUND = 0
"""Its labels were there before any model."""


@dataclass(frozen=True)
class MergeConfig:
    """How answers become labels; `conf/ledger` has one file a policy.

    Attributes:
        policy: `majority` counts answers; `gold_weighted` weighs each by the smoothed accuracy of
            its annotator on gold items of the task; `dawid_skene` estimates error rates of all
            annotators from their agreement and gold items, and needs crowd-kit.
        sources: whose labels are answers. Pseudo-labels are no second opinion.
        agreement: share in [0, 1) that the winning label must exceed: 0.5 leaves ties of two
            unresolved, 0.99 asks for unanimity.
        minimum_annotators: items with fewer answers stay unresolved. Not those that have answers of
            round 0 alone, where that round has fewer annotators: its labels came with the media.
        smoothing: gold items imagined right, and as many wrong, for every annotator.
        iterations: at most so many of the EM algorithm of Dawid and Skene.
    """

    policy: Literal["majority", "gold_weighted", "dawid_skene"] = "majority"
    sources: tuple[str, ...] = ("human", "oracle")
    agreement: float = 0.5
    minimum_annotators: int = 1
    smoothing: float = 1.0
    iterations: int = 100

    def __post_init__(self) -> None:
        if self.policy not in _SHARES:
            raise ValueError(f"ledger.policy is {self.policy!r}: use one of {', '.join(_SHARES)}")
        # Gold is the measure, not an answer; a model would outvote people, one checkpoint a vote.
        allowed = [source for source in SOURCES[1:] if source != PSEUDO]
        if not self.sources or set(self.sources) - set(allowed):
            raise ValueError(
                f"ledger.sources is {list(self.sources)}: give some of {', '.join(allowed)}"
            )
        if not 0 <= self.agreement < 1:
            raise ValueError(f"ledger.agreement is {self.agreement}: give a share in [0, 1)")
        for name in ("minimum_annotators", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"ledger.{name} is {getattr(self, name)}: give 1 or more")
        if not self.smoothing > 0:
            raise ValueError(f"ledger.smoothing is {self.smoothing}: give more than 0")

    @property
    def name(self) -> str:
        """Stored with every adjudication: the policy and all that can change its outcome."""
        own = {
            "majority": "",
            "gold_weighted": f", smoothing={self.smoothing:g}",
            "dawid_skene": f", iterations={self.iterations}",
        }[self.policy]
        return (
            f"{self.policy}(agreement={self.agreement:g}, "
            f"minimum_annotators={self.minimum_annotators}, sources={'+'.join(self.sources)}{own})"
        )


@dataclass(frozen=True)
class Decision:
    """What a policy says of one item.

    Attributes:
        label: None for unresolved.
        confidence: share of the winning label; the largest share where none wins.
    """

    label: int | None
    confidence: float


def decide(
    votes: Votes,
    known: Mapping[Item, int],
    config: MergeConfig,
    decided: Collection[Item] = (),
) -> dict[Item, Decision]:
    """Merge the answers to all items that need it.

    Args:
        votes: see `lsb.ledger.quality.current_votes`.
        known: item -> gold label.
        config: the policy.
        decided: items with an earlier decision, made perhaps when more answers were demanded.

    Returns:
        Item -> decision, ordered by item, for items with several answers, with too few, or decided
        before.

    Raises:
        ValueError: Dawid-Skene without crowd-kit.
    """
    demand = _demand(votes, config.minimum_annotators)
    wanted = [
        item
        for item in sorted(votes)
        if item not in known and (len(votes[item]) > 1 or demand[item] > 1 or item in decided)
    ]
    if not wanted:
        return {}
    shares = _SHARES[config.policy](votes, known, config)
    decisions = {}
    for item in wanted:
        if len(votes[item]) == demand[item] == 1:  # no policy overrules the only answer
            (answer,) = votes[item].values()
            decisions[item] = Decision(int(answer["label"]), 1.0)
            continue
        # Equal sums of floats may differ in their last bit: that is a tie, too.
        ranked = sorted(((-round(share, 9), label) for label, share in shares[item].items()))
        best, label = ranked[0]
        tied = len(ranked) > 1 and ranked[1][0] == best
        few = len(votes[item]) < demand[item]
        resolved = not few and not tied and -best > config.agreement
        decisions[item] = Decision(int(label) if resolved else None, -best)
    return decisions


def _demand(votes: Votes, minimum: int) -> dict[Item, int]:
    """Item -> answers that it must have."""
    first: dict[str, set[str]] = defaultdict(set)
    for (_, task), answers in votes.items():
        first[task] |= {who for who, row in answers.items() if row["round"] == FIRST_ROUND}
    return {
        item: 1
        if len(first[item[1]]) < minimum
        and all(row["round"] == FIRST_ROUND for row in answers.values())
        else minimum
        for item, answers in votes.items()
    }


def _majority(votes: Votes, known: Mapping[Item, int], config: MergeConfig) -> Shares:
    everybody = {labeller for answers in votes.values() for labeller in answers}
    tasks = {task for _, task in votes}
    return _weighted(votes, {(labeller, task): 1.0 for labeller in everybody for task in tasks})


def _gold_weighted(votes: Votes, known: Mapping[Item, int], config: MergeConfig) -> Shares:
    weights = {
        (found.labeller, found.task): (found.correct + config.smoothing)
        / (found.gold + 2 * config.smoothing)
        for found in annotator_quality(votes, known)
    }
    return _weighted(votes, weights)


def _weighted(votes: Votes, weights: Mapping[tuple[str, str], float]) -> Shares:
    shares: Shares = {}
    for item, answers in votes.items():
        total: dict[int, float] = defaultdict(float)
        for labeller in sorted(answers):
            total[answers[labeller]["label"]] += weights[labeller, item[1]]
        whole = sum(total.values())
        shares[item] = {label: weight / whole for label, weight in total.items()}
    return shares


def _dawid_skene(votes: Votes, known: Mapping[Item, int], config: MergeConfig) -> Shares:
    try:
        import pandas as pd
        from crowdkit.aggregation import DawidSkene
    except ImportError as error:
        raise ValueError(
            f"ledger.policy=dawid_skene needs the package {error.name}: pip install "
            "'vlmae[crowd]', or use ledger.policy=gold_weighted"
        ) from error
    shares: Shares = {}
    for task in sorted({task for _, task in votes}):
        answers = [
            (clip, labeller, votes[clip, task][labeller]["label"])
            for clip in sorted(clip for clip, other in votes if other == task)
            for labeller in sorted(votes[clip, task])
        ]
        frame = pd.DataFrame(answers, columns=["task", "worker", "label"])
        labels = set(frame["label"])
        # A gold label that nobody gave has no column in the model.
        anchors = {
            clip: known[clip, task]
            for clip in frame["task"].unique()
            if known.get((clip, task)) in labels
        }
        with warnings.catch_warnings():
            # crowd-kit 1.4 calls what pandas 3 announces to remove.
            warnings.simplefilter("ignore", DeprecationWarning)
            model = DawidSkene(n_iter=config.iterations).fit(
                frame, pd.Series(anchors, dtype="int64") if anchors else None
            )
        for clip, row in zip(model.probas_.index, model.probas_.to_numpy(), strict=True):
            shares[clip, task] = {
                int(label): float(share)
                for label, share in zip(model.probas_.columns, row, strict=True)
            }
    return shares


_SHARES = {
    "majority": _majority,
    "gold_weighted": _gold_weighted,
    "dawid_skene": _dawid_skene,
}

POLICIES = tuple(_SHARES)
"""Names of all policies."""
