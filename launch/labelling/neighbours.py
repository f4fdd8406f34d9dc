"""Labelled clips that resemble the clips of a round, whatever split they are of.

Likeness is that of pooled vectors (`vlmae.embedding.embed_pooled`), made from the cached tokens of
the clips that are compared and of no other. The fused stores of a round lack the clips of the split
first, and within a scoring budget most of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from launch.stages.settings import Settings
from launch.stages.shared import prefix_of
from lsb import ids as sample_ids
from lsb.annotate import PSEUDO, SOURCES
from lsb.artifact import Stage
from lsb.ids import IdArray
from lsb.ledger import Ledger
from lsb.order import descending
from lsb.search.rescore import proposal_error, similarity
from vlmae.data.prefix_cache import find_cache
from vlmae.data.token_source import CachedTokens
from vlmae.embedding import pooled_vectors

TRUSTED = tuple(source for source in SOURCES if source != PSEUDO)
"""Sources of labels that people are shown."""
Labels = Mapping[bytes, dict[str, int]]
"""Id -> task -> label."""


@dataclass(frozen=True)
class Near:
    """A labelled clip, how alike it is (cosine), and its labels by task."""

    clip: bytes
    similarity: float
    labels: dict[str, int]


def trusted_labels(ledger: Ledger, through_round: int) -> dict[bytes, dict[str, int]]:
    """Labels that there are after a round, of anybody but a model.

    People who saw a model's pseudo-label beside what they judge would repeat it.
    """
    labels: dict[bytes, dict[str, int]] = {}
    for (clip, task), row in sorted(ledger.counted(through_round, TRUSTED).items()):
        if row["label"] is not None:
            labels.setdefault(bytes.fromhex(clip), {})[task] = int(row["label"])
    return labels


def nearest_labelled(
    settings: Settings, data: Stage, ids: IdArray, labels: Labels, *, count: int
) -> dict[bytes, list[Near]]:
    """The labelled clips most like each of some clips, by (-similarity, id).

    Args:
        settings: of the arm.
        data: the prepared data set.
        ids: of the clips.
        labels: of the labelled ones; those that were taken down or cannot be decoded are left out.
        count: how many at most.

    Raises:
        ValueError: the tokens are no longer cached.
    """
    clips = sample_ids.to_bytes(ids)
    if not count or not labels:
        return {clip: [] for clip in clips}
    source = _tokens(settings, data)
    known = sample_ids.from_bytes(sorted(labels))
    known = known[np.isin(known, sample_ids.from_arrow(source.index["id"]))]
    every, vectors = pooled_vectors(source, np.union1d(known, ids), settings.train.threads)
    among_LD = vectors[np.isin(every, known)]
    names = every[np.isin(every, known)]
    found: dict[bytes, list[Near]] = {}
    for clip, row in zip(clips, np.searchsorted(every, ids), strict=True):
        taken = min(count, len(names))
        # The float32 product proposes, the rescoring kernel decides.
        rough = among_LD @ vectors[row]
        limit = -np.inf
        if taken:
            limit = np.partition(rough, -taken)[-taken] - 2 * proposal_error(vectors.shape[1])
        rows = np.flatnonzero(rough >= limit)
        exact = similarity(among_LD[rows], vectors[row][None])
        best = descending(exact, names[rows])[:taken]
        found[clip] = [
            Near(name, float(alike), labels[name])
            for name, alike in zip(sample_ids.to_bytes(names[rows[best]]), exact[best], strict=True)
        ]
    return found


def _tokens(settings: Settings, data: Stage) -> CachedTokens:
    """The frozen tokens that the run has trained from."""
    cache = find_cache(settings.stages, prefix_of(settings, data))
    if cache is None:
        raise ValueError(
            f"the frozen tokens of the run are not in {settings.stages}: run launch.round again "
            "with the same config, which makes them anew, or set oracle.neighbours=0"
        )
    return CachedTokens(cache)
