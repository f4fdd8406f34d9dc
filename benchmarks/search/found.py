"""What a search for lookalikes found, and how it compares with the truth. Needs numpy only.

Also imported by workers in the virtual environments of peers, which have neither torch nor lsb.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

K = 64
LT = 0.8
RECALL = 0.99
TUNING_SEEDS = 500


@dataclass
class Found:
    """The neighbours of each seed, nearest first.

    Attributes:
        row: (Q, K) in the pool, -1 for none.
        score: (Q, K) float32.
        note: what to say of the run.
    """

    row: np.ndarray
    score: np.ndarray
    note: str = ""

    def save(self, path: Path) -> None:
        """Write the arrays as .npz."""
        np.savez(path, row=self.row, score=self.score)

    @classmethod
    def load(cls, path: Path | str) -> Found:
        """What `save` wrote."""
        with np.load(path) as arrays:
            return cls(arrays["row"], arrays["score"])


def tuning_places(count: int) -> slice:
    """Which of `count` seeds search-time parameters are chosen on."""
    return slice(None, None, max(1, count // TUNING_SEEDS))


def above(found: Found) -> Found:
    """Without the neighbours below LT."""
    passed = found.score >= LT
    return Found(np.where(passed, found.row, -1), np.where(passed, found.score, -2))


def merged(a: Found, b: Found) -> Found:
    """The K nearest of two disjoint pools."""
    score = np.concatenate([a.score, b.score], axis=1)
    row = np.concatenate([a.row, b.row], axis=1)
    order = np.argsort(-score, axis=1, kind="stable")[:, :K]
    return Found(np.take_along_axis(row, order, 1), np.take_along_axis(score, order, 1))


def recall(found: Found, truth: Found) -> float:
    """Share of the true pairs above LT that were found."""
    hit = total = 0
    for mine, true in zip(found.row, truth.row, strict=True):
        wanted = true[true >= 0]
        hit += int(np.isin(wanted, mine).sum())
        total += len(wanted)
    return hit / max(1, total)


def differences(found: Found, truth: Found) -> int:
    """Pairs that one has and the other lacks, but for ties in float32 at the edges.

    Two exact searches may round a score differently: pairs within `2e-6` of LT, or of the last
    score of a full list, are not counted.
    """
    count = 0
    for number, (mine, true) in enumerate(zip(found.row, truth.row, strict=True)):
        edge = LT
        if (true >= 0).all():
            edge = max(LT, float(truth.score[number].min()))
        for one, other, score in (
            (true, mine, truth.score[number]),
            (mine, true, found.score[number]),
        ):
            missing = (one >= 0) & ~np.isin(one, other) & (score > edge + 2e-6)
            count += int(missing.sum())
    return count
