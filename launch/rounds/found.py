"""What asking found in a round: positives, and confident errors of the model that asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def answers_by_round(ledger: Ledger, rounds: int) -> list[dict[Item, int]]:
    """Round -> (clip, task) -> label, of what was first answered in it, for rounds 0, 1, ..."""
    first: dict[Item, int] = {}
    for row in ledger.annotations():  # by round
        # A label carried from a copy was neither asked for nor paid.
        if row["source"] in ASKED and representative_of(row["labeller"]) is None:
            first.setdefault((row["clip_id"], row["task"]), row["round"])
    return [
        {
            item: int(row["label"])
            for item, row in ledger.counted(number, ASKED).items()
            if first.get(item) == number and row["label"] is not None
        }
        for number in range(rounds)
    ]


def found_in_round(
    answers: Mapping[Item, int],
    before: GrowthRound | None,
    pool: Store | None,
    tasks: Sequence[str],
    confidence: float,
) -> dict[str, dict[str, int | None]]:
    """Positives among a round's answers, and confident errors of the model that asked for them.

    Args:
        answers: see `answers_by_round`.
        before: the round whose model asked; None for the first labels.
        pool: clips as that model scores them; None where nobody knows.
        tasks: to count in.
        confidence: smallest probability of the wrong class for a confident error.

    Returns:
        Task -> answers, positives, scored (of the answers) and confident_errors, the last two None
        where nobody knows.
    """
    # Without them nobody chose what was asked, or the round is history.
    scores = None if pool is None or before is None else _scores(pool, answers, tasks)
    found: dict[str, dict[str, int | None]] = {}
    for task in tasks:
        labels = {clip: label for (clip, name), label in answers.items() if name == task}
        found[task] = {
            "answers": len(labels),
            "positives": sum(label == 1 for label in labels.values()),
            "scored": None,
            "confident_errors": None,
        }
        if before is None or scores is None:
            continue
        scored = [clip for clip in labels if clip in scores]
        probability = np.array([scores[clip][task] for clip in scored], dtype=np.float64)
        label_N = np.array([labels[clip] for clip in scored], dtype=np.int8)
        threshold = operating_threshold(before, task)
        wrong = confident_errors(probability, label_N, threshold, confidence)
        found[task] |= {"scored": len(scored), "confident_errors": int(wrong.sum())}
    return found


def _scores(
    pool: Store, answers: Mapping[Item, int], tasks: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Clip -> task -> probability, of the answered clips that the pool holds; read once."""
    ids = sample_ids.from_hex(sorted({clip for clip, _ in answers}))
    ids = ids[np.isin(ids, pool.ids)]
    columns = pool.take(ids, [PROBABILITY + task for task in tasks]).to_pylist()
    return {
        clip: {task: row[PROBABILITY + task] for task in tasks}
        for clip, row in zip(sample_ids.to_hex(ids), columns, strict=True)
    }


def scored_pool(entry: GrowthRound) -> Store | None:
    """The pool, or what was scored of it, as the model of a round scored it; None for nothing."""
    for stage in entry.stages.get("embed", []):
        if stage.manifest["config"]["split"] == "pool":
            return Store.open(stage.path)
    return None


def operating_threshold(entry: GrowthRound, task: str) -> float:
    """Probability from which the model of a round says "positive"."""
    return float(entry.thresholds[task])
