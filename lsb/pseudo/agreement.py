"""Whether the labelled neighbours of a clip have the label that the model gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lsb.ids import IdArray, from_arrow, require_unique
from lsb.labelled import UNLABELLED
from lsb.search.config import SearchConfig
from lsb.search.exact import nearest

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelledClips:
    """M clips that people labelled, with their place in the model's latent space.

    Attributes:
        ids: (M,) S16, unique.
        vectors: (M, D) float32 of norm 1, of the checkpoint that predicts.
        labels: task -> (M,) int8: 0, 1, or `UNLABELLED`.
    """

    ids: IdArray
    vectors: npt.NDArray[np.float32]
    labels: Mapping[str, npt.NDArray[np.int8]]

    def __post_init__(self) -> None:
        require_unique(self.ids)
        lengths = {"vectors": len(self.vectors)}
        lengths |= {f"labels of {task}": len(values) for task, values in self.labels.items()}
        for name, length in lengths.items():
            if length != len(self.ids):
                raise ValueError(
                    f"{len(self.ids)} labelled ids but {length} {name}: give one for each clip"
                )

    def of_task(self, task: str) -> tuple[IdArray, npt.NDArray[np.float32], npt.NDArray[np.int8]]:
        """Ids, vectors and labels of the clips with a label of a task, by id.

        Raises:
            ValueError: there is no such task.
        """
        if task not in self.labels:
            raise ValueError(
                f"labelled clips have no labels of task {task!r}, only of {sorted(self.labels)}: "
                "give labels of every task that the model predicts"
            )
        rows = np.flatnonzero(self.labels[task] != UNLABELLED)
        rows = rows[np.argsort(self.ids[rows])]
        return self.ids[rows], self.vectors[rows], self.labels[task][rows]


def neighbour_labels(
    ids: IdArray,
    vectors_ND: npt.NDArray[np.float32],
    labelled: LabelledClips,
    task: str,
    *,
    neighbours: int,
    similarity: float | None,
) -> Counts:
    """How many of the nearest labelled clips have which label.

    Args:
        ids: (N,) S16, unique. A clip is never its own neighbour.
        vectors_ND: (N, D) float32 of norm 1.
        labelled: whose labels are counted: those with a label of the task.
        task: the task.
        neighbours: nearest clips that are asked.
        similarity: those with a smaller one are not; None for no limit.

    Returns:
        (N, 2) neighbours with label 0 and with label 1.
    """
    counts = np.zeros((len(ids), 2), dtype=np.int64)
    held, held_MD, label_M = labelled.of_task(task)
    if not len(ids) or not len(held):
        return counts
    hits = nearest(
        ids,
        vectors_ND,
        lambda: [(held, held_MD)],
        SearchConfig(neighbours, neighbours),
        lookalike_threshold=similarity,
        exclude=held[:0],
        rows=len(held),
    ).table
    order = np.argsort(ids)
    clip_H = order[np.searchsorted(ids[order], from_arrow(hits["seed_id"]))]
    label_H = label_M[np.searchsorted(held, from_arrow(hits["id"]))]
    np.add.at(counts, (clip_H, label_H.astype(np.intp)), 1)
    return counts
