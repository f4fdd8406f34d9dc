"""Seeds: the few hard clips whose neighbourhoods are searched.

Source: Sun et al. 2025 search around hard samples; their seed rule is not published. Ours mixes
uncertain pool clips, confident errors on labelled data, labelled positives, unsure labelled clips,
and (as a control) random pool clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lsb.acquisition.broadening_config import LABELLED_KINDS, BroadeningConfig
from lsb.acquisition.confident_errors import (
    confidence_in,
    confident_errors,
    hard,
    prediction_confidence,
    unsure,
)
from lsb.acquisition.random import uniform
from lsb.acquisition.uncertainty import combined_entropy, normalised_weights
from lsb.ids import ID_TYPE, IdArray, from_arrow, to_arrow
from lsb.labelled import PROBABILITY, Labelled
from lsb.order import IndexArray, descending, member

__all__ = [
    "SEEDS",
    "BroadeningConfig",
    "choose_seeds",
    "could_be_seeds",
    "hard_seeds",
    "pool_probabilities",
]

SEEDS_FIELDS: dict[str, pa.DataType] = {
    "id": ID_TYPE,
    "key": pa.string(),
    "task": pa.string(),
    "kind": pa.string(),
    "weight": pa.float64(),
    "score": pa.float64(),
    "label": pa.int8(),
}
SEEDS = pa.schema(SEEDS_FIELDS)


def choose_seeds(
    pool: pa.Table,
    labelled: Labelled | None,
    config: BroadeningConfig,
    *,
    task_weights: Mapping[str, float],
    seed: int,
    round: int,
    exclude: IdArray,
) -> pa.Table:
    """Choose seeds by the config's mix.

    Args:
        pool: id, key and `probability_<task>` of the pool, rows in any order.
        labelled: gold or held-out clips; needed for confident errors, positives, unsure clips.
        config: numbers and weights by kind.
        task_weights: task -> weight >= 0. Entropy is their weighted mean; labelled seeds of a kind
            are shared between tasks in proportion.
        seed: of chance.
        round: of data growth.
        exclude: ids that may not be pool seeds (labelled clips).

    Returns:
        Schema `SEEDS`, ordered by (-weight, id, task); unique in (id, task). `score` is entropy in
        bits, a random number, the confidence of the error (as `confidence_of` says), the
        probability that a positive is none, or closeness to the operating threshold in
        [0, 1]; `label` is null for pool seeds. Fewer rows than asked where there are no more.

    Raises:
        ValueError: labelled seeds are wanted without labelled clips, or probabilities are bad.
    """
    ids = from_arrow(pool["id"])
    free = np.flatnonzero(~member(ids, np.unique(exclude)))
    tables = []
    if config.entropy:
        probabilities = pool_probabilities(pool, task_weights)
        score_N, task_N, tasks = combined_entropy(probabilities, task_weights, ids)
        chosen = free[descending(score_N[free], ids[free])][: config.entropy]
        names = [tasks[index] for index in task_N[chosen]]
        weight = config.entropy_weight
        tables.append(_pool_seeds(pool, chosen, names, "entropy", score_N[chosen], weight))
        free = np.setdiff1d(free, chosen)
    if config.random:
        score_N = uniform(ids, "seeds", seed, round)
        chosen = free[descending(score_N[free], ids[free])][: config.random]
        none = [None] * len(chosen)
        weight = config.random_weight
        tables.append(_pool_seeds(pool, chosen, none, "random", score_N[chosen], weight))
    taken: set[tuple[str, int]] = set()
    for kind in LABELLED_KINDS:
        if config.count(kind):
            if labelled is None:
                raise ValueError(
                    f"broadening.{kind} is {config.count(kind)} but there are no labelled clips "
                    "with out-of-sample predictions: give some or set it to 0"
                )
            tables.append(_labelled_kind(labelled, kind, config, task_weights, taken))
    if not tables:
        return SEEDS.empty_table()
    seeds = pa.concat_tables(tables)
    task_rank = _text_rank([task or "" for task in seeds["task"].to_pylist()])
    by_task = np.argsort(task_rank, kind="stable")
    seeds = seeds.take(by_task)
    order = descending(seeds["weight"].to_numpy(), from_arrow(seeds["id"]))  # stable: task last
    return seeds.take(order).combine_chunks()


def could_be_seeds(
    pool: pa.Table,
    config: BroadeningConfig,
    *,
    task_weights: Mapping[str, float],
    seed: int,
    round: int,
    exclude: IdArray,
) -> pa.Table:
    """The rows of a piece of the pool that can be seeds of the whole, a few of each kind.

    Which clip comes first depends on that clip alone, so the best of all are among the best of each
    piece: `choose_seeds` gives the same with these rows of all pieces as with the whole pool.

    Args:
        pool: as `choose_seeds` wants it; a piece.
        config, task_weights, seed, round, exclude: see `choose_seeds`.
    """
    of_pool = replace(config, confident_error=0, positive=0, unsure=0)
    best = choose_seeds(
        pool, None, of_pool, task_weights=task_weights, seed=seed, round=round, exclude=exclude
    )
    kept = member(from_arrow(pool["id"]), np.unique(from_arrow(best["id"])))
    return pool.take(np.flatnonzero(kept)).combine_chunks()


def hard_seeds(labelled: Labelled, task_weights: Mapping[str, float], band: float) -> pa.Table:
    """All labelled clips that are hard on a task: the seeds on which LT is calibrated.

    Args:
        labelled: gold or held-out clips.
        task_weights: tasks of weight 0 are left out.
        band: a clip is unsure within this distance of the operating threshold.

    Returns:
        Schema `SEEDS` with kind "hard", ordered by (task, id).
    """
    tables = [SEEDS.empty_table()]
    for task in normalised_weights(task_weights):
        _require_task(labelled, task)
        threshold = labelled.operating_thresholds[task]
        probability, label = labelled.probabilities[task], labelled.labels[task]
        chosen = np.flatnonzero(hard(probability, label, threshold, band))
        chosen = chosen[np.argsort(labelled.ids[chosen])]
        score = prediction_confidence(probability, threshold)[chosen].astype(np.float64)
        tables.append(_labelled_seeds(labelled, chosen, task, "hard", score, 1.0))
    return pa.concat_tables(tables).combine_chunks()


def pool_probabilities(
    pool: pa.Table, task_weights: Mapping[str, float]
) -> dict[str, npt.NDArray[np.float64]]:
    """Task -> (N,) probabilities of the tasks that have a positive weight.

    Raises:
        ValueError: the pool has no such column.
    """
    probabilities = {}
    for task in normalised_weights(task_weights):
        column = PROBABILITY + task
        if column not in pool.column_names:
            raise ValueError(
                f"the pool has no column {column!r}, only {pool.column_names}: embed it with this "
                "task's head (a store of kind 'fused') or set the task's weight to 0"
            )
        probabilities[task] = np.asarray(pool[column].to_numpy(), dtype=np.float64)
    return probabilities


def _labelled_kind(
    labelled: Labelled,
    kind: str,
    config: BroadeningConfig,
    task_weights: Mapping[str, float],
    taken: set[tuple[str, int]],
) -> pa.Table:
    """Seeds of one kind, best first in each task; those of `taken` are left out, new ones added.

    Each task has a share in proportion to its weight, spare places go to others.
    """
    shares = normalised_weights(task_weights)
    ranked: dict[str, IndexArray] = {}
    scores: dict[str, npt.NDArray[np.float64]] = {}
    for task in shares:
        _require_task(labelled, task)
        rows, scores[task] = _scored(labelled, kind, config, task)
        free = [row for row in rows.tolist() if (task, row) not in taken]
        rows = np.asarray(free, dtype=np.intp)
        ranked[task] = rows[descending(scores[task][rows], labelled.ids[rows])]
    given = dict.fromkeys(shares, 0)
    for _ in range(config.count(kind)):
        open_tasks = [task for task in shares if given[task] < len(ranked[task])]
        if not open_tasks:
            break
        # The task that is furthest behind its share gets the next place.
        given[min(open_tasks, key=lambda task: ((given[task] + 1) / shares[task], task))] += 1
    tables = [SEEDS.empty_table()]
    for task in shares:
        rows = ranked[task][: given[task]]
        taken.update((task, row) for row in rows.tolist())
        score = scores[task][rows]
        tables.append(_labelled_seeds(labelled, rows, task, kind, score, config.weight(kind)))
    return pa.concat_tables(tables)


def _scored(
    labelled: Labelled, kind: str, config: BroadeningConfig, task: str
) -> tuple[IndexArray, npt.NDArray[np.float64]]:
    """Rows of the clips of a kind, and the score of every clip, (M,) float64."""
    threshold = labelled.operating_thresholds[task]
    probability, label = labelled.probabilities[task], labelled.labels[task]
    if kind == "confident_error":
        of = config.confidence_of
        score = confidence_in(probability, label, threshold, of)
        chosen = confident_errors(probability, label, threshold, config.confidence, of=of)
    elif kind == "positive":
        score, chosen = 1.0 - probability, label == 1
    else:
        chosen = unsure(probability, label, threshold, config.unsure_band)
        # At a band of 0 all that are within it are at the threshold itself.
        width = config.unsure_band or 1.0
        score = 1.0 - np.abs(probability - threshold) / width
    return np.flatnonzero(chosen), score


def _require_task(labelled: Labelled, task: str) -> None:
    if task not in labelled.labels:
        raise ValueError(
            f"task {task!r} has a weight but no labelled clips, only {labelled.tasks} have: label "
            "some or set its weight to 0"
        )


def _pool_seeds(
    pool: pa.Table,
    rows: IndexArray,
    tasks: list[str] | list[None],
    kind: str,
    score: npt.NDArray[np.float64],
    weight: float,
) -> pa.Table:
    chosen = pool.select(["id", "key"]).take(rows)
    return pa.table(
        [
            chosen["id"].cast(ID_TYPE),
            chosen["key"].cast(pa.string()),
            pa.array(tasks, type=pa.string()),
            pa.array([kind] * len(rows), type=pa.string()),
            pa.array(weight * score),
            pa.array(score),
            pa.nulls(len(rows), pa.int8()),
        ],
        schema=SEEDS,
    )


def _labelled_seeds(
    labelled: Labelled,
    rows: IndexArray,
    task: str,
    kind: str,
    score: npt.NDArray[np.float64],
    weight: float,
) -> pa.Table:
    return pa.table(
        [
            to_arrow(labelled.ids[rows]),
            pa.array([labelled.keys[row] for row in rows], type=pa.string()),
            pa.array([task] * len(rows), type=pa.string()),
            pa.array([kind] * len(rows), type=pa.string()),
            pa.array(weight * score),
            pa.array(score),
            pa.array(labelled.labels[task][rows]),
        ],
        schema=SEEDS,
    )


def _text_rank(values: list[str]) -> npt.NDArray[np.intp]:
    rank = {value: index for index, value in enumerate(sorted(set(values)))}
    return np.asarray([rank[value] for value in values], dtype=np.intp)
