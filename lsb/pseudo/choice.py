"""Which clips of a pool the model labels itself: those it can be believed on, few and balanced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from lsb.acquisition.ranking import BLOCK_ROWS, Best, Ranked
from lsb.ids import ID_TYPE, IdArray, from_arrow, to_arrow
from lsb.labelled import PROBABILITY, UNLABELLED, Labelled
from lsb.order import member
from lsb.pseudo.agreement import LabelledClips, neighbour_labels
from lsb.pseudo.config import PseudoConfig
from lsb.pseudo.rule import Cuts, LabelRule, find_rules, predicted
from lsb.store import Store

PSEUDO_FIELDS: dict[str, pa.DataType] = {
    "id": ID_TYPE,
    "key": pa.string(),
    "task": pa.string(),
    "label": pa.int8(),
    "probability": pa.float32(),
    "confidence": pa.float64(),
    "agreeing": pa.int32(),
    "neighbours": pa.int32(),
}
PSEUDO_LABELS = pa.schema(PSEUDO_FIELDS)
CLIPS_AT_A_TIME = 1024
FIRST_CLIPS, MOST_CLIPS = 65_536, 1_048_576
"""Confident clips of a rule that a pass over the pool keeps, the first and any later one; multiples
of `CLIPS_AT_A_TIME`. Later ones are needed where neighbours agree on few."""


@dataclass(frozen=True)
class PseudoLabels:
    """What a model labels in one round.

    Attributes:
        table: schema `PSEUDO_LABELS`, ordered by (id, task): probability of the label by the model,
            its calibrated confidence (`LabelRule.confidence`), how many of the labelled neighbours
            that were asked have the label, and how many these were.
        rules: of every (task, label).
        counts: `<task>=<label> confident` (pool clips at or above the cut) and `... labelled`.
    """

    table: pa.Table
    rules: list[LabelRule]
    counts: dict[str, int]

    @property
    def lines(self) -> list[str]:
        """One line for every label that is off, and why."""
        return [rule.off for rule in self.rules if rule.off is not None]


def pseudo_label(
    store: Store,
    gold: Labelled,
    labelled: LabelledClips,
    config: PseudoConfig,
    *,
    lookalike_threshold: float | None,
    exclude: IdArray,
    earlier: Cuts,
) -> PseudoLabels:
    """Label pool clips by the model that scored the pool.

    A clip is labelled where its probability reaches the cut that gold clips allow, and enough of
    its nearest labelled clips have that label, too. The likeliest come first, ties by id. Neither
    the parts of the store nor the order of anything shows in the result. Memory does not grow with
    the pool: a pass keeps the likeliest clips of each rule, and another one follows where
    neighbours do not agree on enough of them.

    Args:
        store: the pool, of kind "fused".
        gold: gold clips with vectors and predictions of the same checkpoint.
        labelled: the training set that people labelled, with vectors of the same checkpoint.
        config: see `PseudoConfig`.
        lookalike_threshold: LT of the round; used where `config.similarity` is None.
        exclude: ids that must not get one: all that people have labelled or know. Those of `gold`
            and `labelled` are added.
        earlier: cuts of the last round's rules; empty in the first.

    Raises:
        ValueError: the store has no probabilities, or of other tasks.
    """
    similarity = lookalike_threshold if config.similarity is None else config.similarity
    rules = find_rules(gold, labelled, config, similarity=similarity, earlier=earlier)
    excluded = np.unique(np.concatenate([exclude, gold.ids, labelled.ids]))
    used = [rule for rule in rules if rule.off is None]
    thresholds = gold.operating_thresholds
    found = _confident(store, used, thresholds, excluded, FIRST_CLIPS)
    counts: dict[str, int] = {}
    for rule in rules:
        counts |= {
            f"{rule.task}={rule.label} confident": 0,
            f"{rule.task}={rule.label} labelled": 0,
        }
    # Tasks share the clips that there may be; one clip in two tasks leaves some of them unused.
    tasks = sorted({rule.task for rule in used})
    quota = int(config.share / (1 - config.share) * len(labelled.ids) / max(1, len(tasks)))
    pieces = [PSEUDO_LABELS.empty_table()]
    for task in tasks:
        agreed = {
            rule.label: _agreed(
                store,
                _likeliest(store, rule, thresholds, excluded, clips),
                rule,
                labelled,
                config,
                similarity,
                quota,
            )
            for rule, clips in zip(used, found, strict=True)
            if rule.task == task
        }
        kept = balanced_counts(
            {label: table.num_rows for label, table in agreed.items()},
            quota,
            _positives(labelled, task, config),
        )
        for label, table in agreed.items():
            counts[f"{task}={label} labelled"] = kept[label]
            pieces.append(table.slice(0, kept[label]))
    for rule, clips in zip(used, found, strict=True):
        counts[f"{rule.task}={rule.label} confident"] = clips.count
    table = pa.concat_tables(pieces)
    order = np.argsort(from_arrow(table["id"]), kind="stable")  # tasks are in order
    return PseudoLabels(table.take(order).combine_chunks(), rules, counts)


def balanced_counts(
    available: Mapping[int, int], quota: int, positives: float | None
) -> dict[int, int]:
    """How many clips of each label to take.

    Args:
        available: label -> clips; a label that is off is absent.
        quota: most clips in all.
        positives: share of positives to keep; None takes what there is, positives first, as they
            are the rarer.
    """
    held = {label: available.get(label, 0) for label in (0, 1)}
    if positives is None:
        first = min(held[1], quota)
        return {0: min(held[0], quota - first), 1: first}
    shares = {0: 1 - positives, 1: positives}
    total = min([quota, *(held[label] / share for label, share in shares.items() if share > 0)])
    return {label: int(total * share + 1e-9) for label, share in shares.items()}


@dataclass(frozen=True)
class _Confident:
    """Pool clips to which one rule may give its label.

    Attributes:
        best: the likeliest of them.
        count: all of them.
    """

    best: Ranked
    count: int


def _confident(
    store: Store,
    rules: Sequence[LabelRule],
    thresholds: Mapping[str, float],
    excluded: IdArray,
    most: int,
    behind: Ranked | None = None,
) -> list[_Confident]:
    """Clips at or above the cut of each rule, found while the rows of the store pass by.

    Args:
        store: the pool.
        rules: with a cut.
        thresholds: task -> operating threshold.
        excluded: ids that get no label, ascending.
        most: clips to keep of each rule.
        behind: only clips that come after the last of these in the order (-probability, id).
    """
    if not rules:
        return []
    columns = [PROBABILITY + task for task in sorted({rule.task for rule in rules})]
    store.require_columns(columns)
    best, count = [Best(most) for _ in rules], [0] * len(rules)
    for part in store.parts:
        row = part.first_row
        for batch in part.row_blocks(["id", *columns], BLOCK_ROWS):
            ids = from_arrow(batch.column("id"))
            free = ~member(ids, excluded)
            for place, rule in enumerate(rules):
                values = batch.column(PROBABILITY + rule.task).to_numpy()
                says, probability = predicted(values, thresholds[rule.task], rule.label)
                assert rule.cut is not None, "a rule without a cut is off"
                wanted = free & says & (probability >= np.float32(rule.cut))
                if behind is not None:
                    last, name = behind.score[-1], behind.ids[-1]
                    wanted &= (probability < last) | ((probability == last) & (ids > name))
                at = np.flatnonzero(wanted)
                count[place] += len(at)
                # Of float32 no bit is lost in the float64 of a score.
                best[place].add(Ranked(ids[at], probability[at].astype(np.float64), row + at))
            row += len(ids)
    return [_Confident(kept.ranked(), held) for kept, held in zip(best, count, strict=True)]


def _likeliest(
    store: Store,
    rule: LabelRule,
    thresholds: Mapping[str, float],
    excluded: IdArray,
    found: _Confident,
) -> Iterator[Ranked]:
    """All clips of a rule, the likeliest first, some at a time: a pass over the store for each but
    the first, which is `found`."""
    while len(found.best.ids):
        for start in range(0, len(found.best.ids), CLIPS_AT_A_TIME):
            yield found.best[start : start + CLIPS_AT_A_TIME]
        if len(found.best.ids) == found.count:
            return
        (found,) = _confident(store, [rule], thresholds, excluded, MOST_CLIPS, found.best)


def _agreed(
    store: Store,
    likeliest: Iterator[Ranked],
    rule: LabelRule,
    labelled: LabelledClips,
    config: PseudoConfig,
    similarity: float | None,
    wanted: int,
) -> pa.Table:
    """The first clips on which enough labelled neighbours agree, schema `PSEUDO_LABELS`."""
    taken = [PSEUDO_LABELS.empty_table()]
    while wanted > 0:
        some = next(likeliest, None)
        if some is None:
            break
        probability = some.score.astype(np.float32)
        counts = neighbour_labels(
            some.ids,
            store.take_vectors(some.row),
            labelled,
            rule.task,
            neighbours=config.neighbours,
            similarity=similarity,
        )
        at = np.flatnonzero(counts[:, rule.label] >= config.agreeing)[:wanted]
        wanted -= len(at)
        columns = [
            to_arrow(some.ids[at]),
            store.take_rows(some.row[at], ["key"])["key"].combine_chunks(),
            [rule.task] * len(at),
            [rule.label] * len(at),
            probability[at],
            rule.confidence(probability[at]),
            counts[at, rule.label].astype(np.int32),
            counts[at].sum(axis=1).astype(np.int32),
        ]
        taken.append(pa.table(columns, schema=PSEUDO_LABELS))
    return pa.concat_tables(taken)


def _positives(labelled: LabelledClips, task: str, config: PseudoConfig) -> float | None:
    """Share of positives to keep in a task, None for any."""
    if not config.balanced or config.positives is not None:
        return config.positives
    labels = labelled.labels[task]
    return float((labels == 1).sum() / max(1, (labels != UNLABELLED).sum()))
