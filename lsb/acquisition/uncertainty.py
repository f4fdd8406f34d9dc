"""Binary entropy of predictions, and its combination over tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lsb.ids import IdArray, to_hex

FloatArray = npt.NDArray[np.float64]


def binary_entropy(probability_N: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """Entropy in bits of Bernoulli variables: 1 at 0.5, 0 at 0 and 1.

    Args:
        probability_N: (N,) in [0, 1].

    Raises:
        ValueError: some are NaN or outside [0, 1]; says how many.
    """
    probability = np.asarray(probability_N, dtype=np.float64)
    bad = int(np.count_nonzero(~((probability >= 0) & (probability <= 1))))
    if bad:
        raise ValueError(
            f"{bad} of {probability.size} probabilities are NaN or outside [0, 1]: embed the pool "
            "again with a checkpoint that did not diverge"
        )
    other = 1.0 - probability
    logarithm = np.log2(probability, out=np.zeros_like(probability), where=probability > 0)
    logarithm_other = np.log2(other, out=np.zeros_like(other), where=other > 0)
    return -(probability * logarithm + other * logarithm_other) + 0.0


def task_entropies(
    probabilities: Mapping[str, npt.NDArray[np.floating[Any]]], ids: IdArray
) -> dict[str, FloatArray]:
    """Binary entropy of each task, (N,) bits.

    Raises:
        ValueError: names the task, the number of bad probabilities, and the first clip's id.
    """
    entropies = {}
    for task, probability_N in probabilities.items():
        try:
            entropies[task] = binary_entropy(probability_N)
        except ValueError as error:
            bad = np.flatnonzero(~((probability_N >= 0) & (probability_N <= 1)))
            first = to_hex(ids[bad[:1]])[0]
            raise ValueError(f"task {task!r}, first clip {first}: {error}") from error
    return entropies


def normalised_weights(tasks: Mapping[str, float]) -> dict[str, float]:
    """Task weights that sum to 1, tasks of weight 0 left out, in name order.

    Raises:
        ValueError: a weight is negative or not finite, or none is positive.
    """
    for task, weight in tasks.items():
        if not (np.isfinite(weight) and weight >= 0):
            raise ValueError(f"weight of task {task!r} is {weight}: give a number >= 0")
    total = sum(tasks[task] for task in sorted(tasks))
    if total <= 0:
        raise ValueError(
            f"task weights are {dict(tasks)}: give at least one task a positive weight"
        )
    return {task: tasks[task] / total for task in sorted(tasks) if tasks[task] > 0}


def combined_entropy(
    probabilities: Mapping[str, npt.NDArray[np.floating[Any]]],
    weights: Mapping[str, float],
    ids: IdArray,
) -> tuple[FloatArray, npt.NDArray[np.intp], tuple[str, ...]]:
    """Weighted mean of the tasks' binary entropies.

    Args:
        probabilities: task -> (N,) in [0, 1].
        weights: task -> weight >= 0; normalised to sum 1.
        ids: (N,) S16, for the error message.

    Returns:
        (N,) bits in [0, 1]; (N,) the index of the task that adds most; the tasks it indexes.
    """
    shares = normalised_weights(weights)
    absent = [task for task in shares if task not in probabilities]
    if absent:
        raise ValueError(
            f"no probabilities of task {absent[0]!r}, only of {sorted(probabilities)}: embed the "
            "pool with this task's head or set its weight to 0"
        )
    entropies = task_entropies({task: probabilities[task] for task in shares}, ids)
    added_TN = np.stack([share * entropies[task] for task, share in shares.items()])
    return added_TN.sum(axis=0), np.argmax(added_TN, axis=0), tuple(shares)
