"""What asking found in a round: positives, and confident errors of the model that asked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from launch.rounds.growth import GrowthRound
from lsb import ids as sample_ids
from lsb.acquisition.confident_errors import confident_errors
from lsb.annotate import PSEUDO, SOURCES
from lsb.annotate.carried import representative_of
from lsb.labelled import PROBABILITY
from lsb.ledger import Ledger
from lsb.store import Store

Item = tuple[str, str]
ASKED = tuple(source for source in SOURCES if source not in ("gold", PSEUDO))


def answers_of(ledger: Ledger, number: int) -> dict[Item, int]:
    """(clip, task) -> label, of what was first answered in a round."""
    first: dict[Item, int] = {}
    for row in ledger.annotations():  # by round
        # A label carried from a copy was neither asked for nor paid.
        if row["source"] in ASKED and representative_of(row["labeller"]) is None:
            first.setdefault((row["clip_id"], row["task"]), row["round"])
    return {
        item: int(row["label"])
        for item, row in ledger.counted(number, ASKED).items()
        if first.get(item) == number and row["label"] is not None
    }


def found_in_round(
    answers: Mapping[Item, int],
    before: GrowthRound | None,
    pool: Store | None,
    task: str,
    confidence: float,
) -> dict[str, int | None]:
    """Positives among a round's answers, and confident errors of the model that asked for them.

    Args:
        answers: see `answers_of`.
        before: the round whose model asked; None for the first labels.
        pool: clips as that model scores them; None where nobody knows.
        task: to count in.
        confidence: smallest probability of the wrong class for a confident error.

    Returns:
        answers, positives, scored (of the answers) and confident_errors, the last two None where
        nobody knows.
    """
    labels = {clip: label for (clip, name), label in sorted(answers.items()) if name == task}
    found: dict[str, int | None] = {
        "answers": len(labels),
        "positives": sum(label == 1 for label in labels.values()),
        "scored": None,
        "confident_errors": None,
    }
    if pool is None or before is None:  # nobody chose them, or the round is history
        return found
    ids = sample_ids.from_hex(list(labels))
    scored = np.isin(ids, pool.ids)
    column = PROBABILITY + task
    probability = pool.take(ids[scored], [column])[column].to_numpy().astype(np.float64)
    label_N = np.asarray(list(labels.values()), dtype=np.int8)[scored]
    wrong = confident_errors(probability, label_N, operating_threshold(before, task), confidence)
    return {**found, "scored": int(scored.sum()), "confident_errors": int(wrong.sum())}


def scored_pool(entry: GrowthRound) -> Store | None:
    """The pool, or what was scored of it, as the model of a round scored it; None for nothing."""
    for stage in entry.stages.get("embed", []):
        if stage.manifest["config"]["split"] == "pool":
            return Store.open(stage.path)
    return None


def operating_threshold(entry: GrowthRound, task: str) -> float:
    """Probability from which the model of a round says "positive"."""
    return float(entry.metrics[task]["at_threshold"]["threshold"])
