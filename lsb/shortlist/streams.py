"""Lookalikes of labelled positives, compared stream by stream, as a shortlist.

For each task every view (`lsb.views`) is judged on the labelled clips alone: how often are the
nearest labelled neighbours of its positives positive, too? The view with the best lower bound is
searched in the pool, and LT is calibrated on the same pairs. Clips come by how much nearer they are
to positives than to the labelled negatives that are easiest to take for one: the difference of
log sum exp(sharpness x similarity) over each, a ratio of two Parzen windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.special import logsumexp

from lsb.acquisition.ranking import BLOCK_ROWS, PoolBlock, rank_pool
from lsb.acquisition.uncertainty import normalised_weights
from lsb.ids import IdArray, to_arrow
from lsb.order import descending
from lsb.shortlist.config import ShortlistConfig
from lsb.shortlist.known import Known
from lsb.shortlist.table import SHORTLIST
from lsb.store import Store, VectorArray
from lsb.threshold import (
    CURVE,
    LookalikeThreshold,
    ThresholdConfig,
    choose,
    precision_bound,
    precision_curve,
)
from lsb.views import FloatArray, View, Views

SPARE = 256
"""Clips of the float32 order that are compared again in float64 beyond those wanted."""
ROUNDING = 1e-3
"""Standard deviations by which a float32 similarity may be too low: those near LT are decided in
float64."""
PAIRS = 2**24
"""Similarities that are held at a time: 64 MiB in float32, and a few such arrays."""
LEAST_ROWS = 256
LEAST = 0.01
"""Precision that a view is taken to have at least; the bound of a few pairs is near none."""
KIND = "positive"


@dataclass(frozen=True)
class TaskView:
    """In which view the lookalikes of a task were searched, and why.

    Attributes:
        task: of the seeds.
        view: streams; empty where the task has too few positives, and nothing was searched.
        bounds: view, joined by "+" -> lower bound of the precision of its nearest labelled pairs.
        seeds: labelled positives.
        threshold: LT in standard deviations; None for none.
        refusal: why LT could not be calibrated; None if it was, or was not wanted.
        curve: schema `lsb.threshold.CURVE`, of the view.
    """

    task: str
    view: View
    bounds: dict[str, float]
    seeds: int
    threshold: LookalikeThreshold | None
    refusal: str | None
    curve: pa.Table

    def as_dict(self) -> dict[str, Any]:
        """Everything but the curve."""
        lt = None if self.threshold is None else vars(self.threshold)
        return {
            "task": self.task,
            "view": list(self.view),
            "bounds": self.bounds,
            "seeds": self.seeds,
            "threshold": lt,
            "refusal": self.refusal,
        }


def stream_lookalikes(
    store: Store,
    views: Views,
    known: Known,
    held_out: Known,
    threshold: ThresholdConfig,
    config: ShortlistConfig,
    *,
    count: int,
    task_weights: Mapping[str, float],
    exclude: IdArray,
) -> tuple[pa.Table, list[TaskView]]:
    """The clips of a pool that are most like labelled positives.

    Args:
        store: pooled vectors of the pool.
        views: fitted on it.
        known: the training set, in pooled space.
        held_out: gold clips, in pooled space.
        threshold: how LT is set for each task; its `lookalike` is label agreement here. Where a
            calibration is refused nothing is cut: the order of the neighbours stays.
        config: sharpness and depth.
        count: most clips wanted; fewer where LT leaves fewer.
        task_weights: task -> weight >= 0. Tasks take turns so that their positives, had and
            expected, grow in proportion: one whose lookalikes are sure to be positive, of which
            more labels teach little, gets few.
        exclude: ids to leave out.

    Returns:
        Schema `lsb.shortlist.table.SHORTLIST`, each clip once, and a view for each task.
    """
    exclude = np.unique(np.concatenate([exclude, known.ids, held_out.ids]))
    shares = normalised_weights(task_weights)
    queues: dict[str, pa.Table] = {}
    told = []
    for task in sorted(shares):
        labelled = _labelled(known, held_out, task)
        depth = shares[task] * count / max(len(store), 1)
        chosen = best_view(views, labelled, task, threshold, depth)
        told.append(chosen)
        if chosen.view:
            queues[task] = _nearest(store, views, labelled, chosen, config, count, exclude)
    return _in_turns(queues, told, shares, count), told


@dataclass(frozen=True)
class LabelledClips:
    """Clips with a label of one task, by id.

    Attributes:
        ids: (M,) S16.
        keys: M clip keys.
        vectors: (M, D) float32, pooled.
        positive: (M,) bool.
    """

    ids: IdArray
    keys: list[str]
    vectors: npt.NDArray[np.float32]
    positive: npt.NDArray[np.bool_]


def _labelled(known: Known, held_out: Known, task: str) -> LabelledClips:
    """Training and gold clips with a label of a task, by id."""
    ids = np.concatenate([known.ids, held_out.ids])
    keys = [*known.keys, *held_out.keys]
    labels = np.concatenate([known.labels[task], held_out.labels[task]])
    unique, first = np.unique(ids, return_index=True)
    kept = labels[first] >= 0
    rows = first[kept]
    vectors = np.concatenate([known.vectors, held_out.vectors])[rows]
    return LabelledClips(unique[kept], [keys[row] for row in rows], vectors, labels[rows] == 1)


def best_view(
    views: Views, labelled: LabelledClips, task: str, threshold: ThresholdConfig, depth: float
) -> TaskView:
    """The view in which the nearest labelled neighbours of positives are most surely positive.

    Args:
        views: of the pool.
        labelled: clips with ids, vectors and positive.
        task: of the labels.
        threshold: how LT is set in that view.
        depth: share of all pairs that is judged, nearest first: that of the pool to be scored.
    """
    seeds = np.flatnonzero(labelled.positive)
    if len(seeds) < 2:
        refusal = f"{len(seeds)} labelled clips are positive: lookalikes need two"
        return TaskView(task, (), {}, len(seeds), None, refusal, CURVE.empty_table())
    in_stream = {
        name: views.similarity(views.queries(labelled.vectors[seeds], (name,)), labelled.vectors)
        for name in views.streams
    }
    bounds, pairs = {}, {}
    for view in views.all:
        least = np.minimum.reduce([in_stream[name] for name in view])
        similarity = least.astype(np.float32)
        similarity[np.arange(len(seeds)), seeds] = -np.inf  # a clip is no neighbour of itself
        wanted = max(threshold.minimum_pairs, round(depth * similarity.size))
        seed_P, clip_P = _largest(similarity, min(wanted, similarity.size - len(seeds)))
        alike = labelled.positive[clip_P]
        bounds["+".join(view)] = precision_bound(alike, seed_P, threshold.confidence)
        pairs["+".join(view)] = (view, similarity)
    name = max(bounds, key=lambda one: (bounds[one], -len(pairs[one][0]), one))
    view, similarity = pairs[name]
    lt, refused, curve = _threshold(similarity, labelled.positive, threshold)
    return TaskView(task, view, bounds, len(seeds), lt, refused, curve)


def _largest(
    similarity_QM: npt.NDArray[np.float32], count: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows and columns of the largest entries."""
    flat = np.argsort(-similarity_QM, axis=None, kind="stable")[:count]
    row, column = np.unravel_index(flat, similarity_QM.shape)
    return row, column


def _threshold(
    similarity_QM: npt.NDArray[np.float32],
    positive_M: npt.NDArray[np.bool_],
    config: ThresholdConfig,
) -> tuple[LookalikeThreshold | None, str | None, pa.Table]:
    if config.mode == "none":
        return None, None, CURVE.empty_table()
    if config.mode == "fixed":
        return LookalikeThreshold(config.value), None, CURVE.empty_table()
    count = min(config.neighbours, similarity_QM.shape[1] - 1)
    near = np.argsort(-similarity_QM, axis=1, kind="stable")[:, :count]
    similarity = np.take_along_axis(similarity_QM, near, axis=1).ravel()
    seed = np.repeat(np.arange(len(near)), count)
    curve = precision_curve(
        similarity,
        positive_M[near.ravel()],
        seed,
        confidence=config.confidence,
        minimum_pairs=config.minimum_pairs,
    )
    try:
        chosen = choose(
            curve,
            config.target,
            labelled=len(similarity),
            confidence=config.confidence,
            minimum_pairs=config.minimum_pairs,
        )
    except ValueError as error:
        return None, str(error), curve
    return chosen, None, curve


def hard_negatives(
    views: Views, labelled: LabelledClips, view: View, count: int
) -> npt.NDArray[np.intp]:
    """Rows of the labelled negatives that are most like a positive, the most alike first."""
    negative = np.flatnonzero(~labelled.positive)
    if not count:
        return negative[:0]
    queries = views.queries(labelled.vectors[labelled.positive], view)
    likeness = views.similarity(queries, labelled.vectors[negative]).max(axis=0)
    return negative[descending(likeness.astype(np.float32), labelled.ids[negative])[:count]]


def _nearest(
    store: Store,
    views: Views,
    labelled: LabelledClips,
    chosen: TaskView,
    config: ShortlistConfig,
    count: int,
    exclude: IdArray,
) -> pa.Table:
    """Up to `count` clips, those that are more like positives first, those below LT left out."""
    seeds = np.flatnonzero(labelled.positive)
    queries = views.queries(labelled.vectors[seeds], chosen.view)
    rivals = hard_negatives(views, labelled, chosen.view, config.negatives)
    against = views.queries(labelled.vectors[rivals], chosen.view)

    def nearness(similarity_QN: FloatArray, vectors_ND: VectorArray) -> npt.NDArray[np.float64]:
        near = logsumexp(config.sharpness * similarity_QN, axis=0)
        if len(rivals):
            other = views.similarity(against, vectors_ND, similarity_QN.dtype.type)
            near = near - logsumexp(config.sharpness * other, axis=0)
        return np.asarray(near, np.float64)

    lt = chosen.threshold.value if chosen.threshold else None

    def roughly(block: PoolBlock) -> npt.NDArray[np.float64]:
        vectors = block.vectors()
        similarity_QN = views.similarity(queries, vectors, np.float32)
        near = nearness(similarity_QN, vectors)
        if lt is not None:
            near[similarity_QN.max(axis=0) < lt - ROUNDING] = -np.inf
        return near

    rows = max(LEAST_ROWS, min(BLOCK_ROWS, PAIRS // max(len(seeds), len(rivals))))
    rough = rank_pool(store, [], roughly, count + SPARE, exclude, block_rows=rows).best
    vectors = store.take_vectors(rough.row)
    similarity_QN = views.similarity(queries, vectors)
    nearest_N = similarity_QN.max(axis=0).astype(np.float32)
    order = descending(nearness(similarity_QN, vectors).astype(np.float32), rough.ids)
    if lt is not None:
        order = order[nearest_N[order] >= np.float32(lt)]
    order = order[:count]
    ids, seed = rough.ids[order], seeds[similarity_QN.argmax(axis=0)[order]]
    return pa.table(
        [
            to_arrow(ids),
            pa.array(store.keys(ids), pa.string()),
            to_arrow(labelled.ids[seed]),
            pa.array([labelled.keys[row] for row in seed], pa.string()),
            pa.array([KIND] * len(ids), pa.string()),
            pa.array([chosen.task] * len(ids), pa.string()),
            pa.array(nearest_N[order]),
            pa.array([lt] * len(ids), pa.float64()),
            pa.array(["lookalike"] * len(ids), pa.string()),
        ],
        schema=SHORTLIST,
    )


def _in_turns(
    queues: Mapping[str, pa.Table],
    told: Sequence[TaskView],
    shares: Mapping[str, float],
    count: int,
) -> pa.Table:
    """The first clips of each task's queue, each clip once.

    The turn is that of the task with the fewest positives for its share: those it has, and those
    its clips so far are bound to be by the precision of its view.
    """
    seeds = {one.task: one.seeds for one in told}
    sure = {one.task: max([LEAST, *one.bounds.values()]) for one in told}

    def positives(task: str) -> float:
        return (seeds[task] + sure[task] * (len(rows[task]) + 1)) / shares[task]

    names = [task for task in sorted(queues) if queues[task].num_rows]
    if not names:
        return SHORTLIST.empty_table()
    place = dict.fromkeys(names, 0)
    taken: set[bytes | None] = set()
    rows: dict[str, list[int]] = {task: [] for task in names}
    order: list[tuple[str, int]] = []
    ids: dict[str, list[bytes | None]] = {task: queues[task]["id"].to_pylist() for task in names}
    while names and len(order) < count:
        task = min(names, key=lambda one: (positives(one), one))
        while place[task] < len(ids[task]) and ids[task][place[task]] in taken:
            place[task] += 1
        if place[task] == len(ids[task]):
            names.remove(task)
            continue
        row = place[task]
        taken.add(ids[task][row])
        order.append((task, len(rows[task])))
        rows[task].append(row)
        place[task] += 1
    starts, start = {}, 0
    pieces = []
    for task in sorted(rows):
        starts[task] = start
        start += len(rows[task])
        pieces.append(queues[task].take(pa.array(rows[task], pa.int64())))  # may be empty
    table = pa.concat_tables(pieces)
    return table.take([starts[task] + row for task, row in order])
