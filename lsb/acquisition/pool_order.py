"""The order in which an acquisition asks for a pool's clips, as far as it is wanted.

Scores of single clips are made while the rows of the store pass by, and the best are kept.
Diversity compares clips with each other, which no pass can do: it chooses among candidates, by
chance (a fair sample of the pool) or, for BADGE, those with the longest gradients, which are the
likeliest to be drawn; clips that are no candidates follow in the order of the same rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, softmax

from lsb.acquisition.badge import badge, gradient_coefficients, gradient_length
from lsb.acquisition.config import DIVERSE, OF_CLASSES, STOCHASTIC, AcquisitionConfig
from lsb.acquisition.core_set import k_centre
from lsb.acquisition.random import random_key, uniform
from lsb.acquisition.ranking import FloatArray, PoolBlock, PoolRanking, Ranked, rank_pool
from lsb.acquisition.scores import (
    disagreement,
    in_turn,
    least_confidence,
    margin,
    multiclass_entropy,
    multiclass_least_confidence,
    multiclass_margin,
    require_probabilities,
    top_score,
)
from lsb.acquisition.stochastic import (
    bald,
    dropout_variance,
    multiclass_bald,
    multiclass_variance,
)
from lsb.acquisition.typiclust import typiclust
from lsb.acquisition.uncertainty import binary_entropy, normalised_weights
from lsb.ids import IdArray, from_arrow
from lsb.labelled import PROBABILITY
from lsb.order import IndexArray
from lsb.store import Store

VL_PROBABILITY = f"vl_{PROBABILITY}"
AUDIO_PROBABILITY = f"audio_{PROBABILITY}"
DROPOUT_LOGIT = "dropout_logit_"

OF_PROBABILITY: dict[str, Callable[[FloatArray], FloatArray]] = {
    "entropy": binary_entropy,
    "least_confidence": least_confidence,
    "margin": margin,
    "top_score": top_score,
}
OF_PASSES: dict[str, Callable[[FloatArray], FloatArray]] = {
    "dropout_variance": dropout_variance,
    "bald": bald,
}
OF_CLASS_PROBABILITIES: dict[str, Callable[[FloatArray], FloatArray]] = {
    "entropy": multiclass_entropy,
    "least_confidence": multiclass_least_confidence,
    "margin": multiclass_margin,
}
OF_CLASS_PASSES: dict[str, Callable[[FloatArray], FloatArray]] = {
    "dropout_variance": multiclass_variance,
    "bald": multiclass_bald,
}


@dataclass(frozen=True)
class PoolOrder:
    """The first clips of an order.

    Attributes:
        ids: (K,) S16 in the order of asking; excluded clips are not among them.
        excluded: excluded clips that the pool holds.
        complete: whether these are all clips that may be asked for.
    """

    ids: IdArray
    excluded: int
    complete: bool


def pool_order(
    store: Store,
    config: AcquisitionConfig,
    count: int,
    *,
    budget: int,
    round: int,
    exclude: IdArray,
) -> PoolOrder:
    """The first `count` clips in the order of an acquisition.

    They are the first of any longer order, and do not depend on the number, size or order of the
    store's parts. Memory is bounded by a block of rows, `count` and `config.candidates`.

    Args:
        store: the pool.
        config: see `AcquisitionConfig`.
        count: clips wanted.
        budget: clips that will be chosen, which sets the number of clusters of "typiclust".
        round: of data growth; changes what chance draws.
        exclude: ids to leave out. Those that the store holds count as labelled for "core_set" and
            "typiclust".

    Raises:
        ValueError: the store lacks a column; says how to embed it. A probability is NaN or outside
            [0, 1]; names the task and the first clip.
    """
    columns = _require_columns(store, config)
    wanted = max(count, config.candidates) if config.name in DIVERSE else count
    found = rank_pool(
        store, columns, lambda block: pool_score(block, config, round), wanted, exclude
    )
    ids = found.best.ids
    if config.name in DIVERSE:
        candidates = found.best[: config.candidates]
        chosen = _diverse(store, config, candidates, found, count, budget=budget, round=round)
        ids = np.concatenate([candidates.ids[chosen], ids[len(candidates.ids) :]])
    return PoolOrder(ids[:count], len(found.excluded), count >= found.free)


def columns_of(config: AcquisitionConfig) -> list[str]:
    """Columns of the rows that an acquisition reads, beside ids."""
    if config.name in ("random", "core_set", "typiclust"):
        return []
    shares, groups = _weighed(config)
    tasks = [*shares, *(task for members, _ in groups for task in members)]
    if config.name in STOCHASTIC:
        passes = range(config.dropout_samples)
        return [_pass_column(task, number) for task in tasks for number in passes]
    if config.name == "disagreement":
        return [head + task for task in tasks for head in (VL_PROBABILITY, AUDIO_PROBABILITY)]
    return [PROBABILITY + task for task in tasks]


def pool_score(block: PoolBlock, config: AcquisitionConfig, round: int) -> FloatArray:
    """What ranks the clips of a block, (n,) float64: the weighted mean over tasks, or chance.

    Tasks that exclude each other are one question, see `AcquisitionConfig.groups`.

    For "badge" it is the length of the gradient, for "core_set" and "typiclust" chance: the order
    in which clips become candidates.

    Raises:
        ValueError: a probability is NaN or outside [0, 1]; names the task and the first clip.
    """
    if config.name == "random":
        return random_key(block.ids, config.seed, round)
    if config.name in ("core_set", "typiclust"):
        return uniform(block.ids, "candidates", config.seed, round)
    if config.name == "badge":
        weights = normalised_weights(config.task_weights)
        return gradient_length(_coefficients(block.ids, block.columns, weights))
    shares, groups = _weighed(config)
    scores = [share * _task_score(block, config, task) for task, share in shares.items()]
    scores += [share * _class_score(block, config, tasks) for tasks, share in groups]
    return in_turn(np.stack(scores))


def _weighed(
    config: AcquisitionConfig,
) -> tuple[dict[str, float], list[tuple[tuple[str, ...], float]]]:
    """Shares of the tasks that are scored by themselves, and groups with the sums of theirs."""
    shares = normalised_weights(config.task_weights)
    if config.name not in OF_CLASSES:
        return shares, []
    groups = []
    for name in sorted(config.groups):
        members = tuple(config.groups[name])
        share = sum(shares.pop(task, 0.0) for task in members)
        if share:
            groups.append((members, share))
    return shares, groups


def _class_score(block: PoolBlock, config: AcquisitionConfig, tasks: tuple[str, ...]) -> FloatArray:
    """Of tasks that exclude each other."""
    if config.name in OF_CLASS_PASSES:
        logits_SNC = np.stack(
            [
                np.stack([block.columns[_pass_column(task, n)] for task in tasks], axis=-1)
                for n in range(config.dropout_samples)
            ]
        )
        return OF_CLASS_PASSES[config.name](softmax(logits_SNC.astype(np.float64), axis=-1))
    columns = [_checked(block.ids, block.columns, PROBABILITY + task) for task in tasks]
    return OF_CLASS_PROBABILITIES[config.name](np.stack(columns, axis=-1))


def _task_score(block: PoolBlock, config: AcquisitionConfig, task: str) -> FloatArray:
    if config.name in OF_PASSES:
        logits_SN = np.stack(
            [block.columns[_pass_column(task, n)] for n in range(config.dropout_samples)]
        )
        passes_NS = require_probabilities(
            expit(logits_SN.T), f"dropout passes of task {task!r}", block.ids
        )
        return OF_PASSES[config.name](np.ascontiguousarray(passes_NS.T))
    if config.name == "disagreement":
        heads = (VL_PROBABILITY, AUDIO_PROBABILITY)
        vl, audio = (_checked(block.ids, block.columns, head + task) for head in heads)
        return disagreement(vl, audio)
    return OF_PROBABILITY[config.name](_checked(block.ids, block.columns, PROBABILITY + task))


def _coefficients(
    ids: IdArray, columns: Mapping[str, FloatArray], shares: Mapping[str, float]
) -> FloatArray:
    """(n, T) of the clips' gradients."""
    values = [_checked(ids, columns, PROBABILITY + task) for task in shares]
    return gradient_coefficients(np.stack(values, axis=1), np.asarray(list(shares.values())))


def _checked(ids: IdArray, columns: Mapping[str, FloatArray], name: str) -> FloatArray:
    return require_probabilities(columns[name], name, ids)


def _pass_column(task: str, number: int) -> str:
    return f"{DROPOUT_LOGIT}{task}_{number}"


def _require_columns(store: Store, config: AcquisitionConfig) -> list[str]:
    """Columns to read, all of which the store has."""
    columns = columns_of(config)
    absent = [name for name in columns if name not in store.columns]
    if not absent:
        return columns
    remedy = "embed it with this task's head (a store of kind 'fused') or set the weight to 0"
    if config.name in STOCHASTIC:
        remedy = f"embed it with scoring.dropout_samples={config.dropout_samples} or more"
    raise ValueError(
        f"the pool has no column {absent[0]!r}, which acquisition {config.name!r} reads, only "
        f"{', '.join(store.columns)}: {remedy}"
    )


def _diverse(
    store: Store,
    config: AcquisitionConfig,
    candidates: Ranked,
    found: PoolRanking,
    count: int,
    *,
    budget: int,
    round: int,
) -> IndexArray:
    """Rows of the candidates in the order of choice: `count`, or all of them."""
    vectors_ND = store.take_vectors(candidates.row)
    if config.name == "badge":
        shares = normalised_weights(config.task_weights)
        names = [PROBABILITY + task for task in shares]
        rows = store.take_rows(candidates.row, names)
        values = {name: np.asarray(rows[name].to_numpy(), dtype=np.float64) for name in names}
        coefficients_NT = _coefficients(candidates.ids, values, shares)
        return badge(
            candidates.ids, vectors_ND, coefficients_NT, count, seed=config.seed, round=round
        )
    covered_ids = from_arrow(store.take_rows(found.excluded, ["id"])["id"])
    covered_MD = store.take_vectors(found.excluded)
    if config.name == "core_set":
        return k_centre(
            candidates.ids,
            vectors_ND,
            count,
            covered_ids=covered_ids,
            covered_MD=covered_MD,
            seed=config.seed,
            round=round,
        )
    return typiclust(
        candidates.ids,
        vectors_ND,
        budget,
        covered_ids=covered_ids,
        covered_MD=covered_MD,
        seed=config.seed,
        round=round,
    )
