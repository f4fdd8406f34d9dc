"""The basket: clips chosen so far, and whether another may still be chosen.

A clip is decided once: chosen, or dropped as a copy of a chosen or labelled one. Caps turn it down
without deciding it: the order of the acquisition may bring it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lsb.ids import ID_TYPE, IdArray, from_bytes, to_bytes
from lsb.media_hashes import UNKNOWN, MediaHashes
from lsb.order import descending
from lsb.search.rescore import proposal_error, similarity
from lsb.selection_config import SelectionConfig

CHOSEN_FIELDS: dict[str, pa.DataType] = {
    "id": ID_TYPE,
    "key": pa.string(),
    "seed_id": ID_TYPE,
    "seed_key": pa.string(),
    "kind": pa.string(),
    "task": pa.string(),
    "similarity": pa.float32(),
    "lookalike_threshold": pa.float64(),
    "rank": pa.int32(),
    "reason": pa.string(),
}
CHOSEN = pa.schema(CHOSEN_FIELDS)
DROPPED_FIELDS: dict[str, pa.DataType] = {
    "id": ID_TYPE,
    "representative_id": ID_TYPE,
    "similarity": pa.float32(),
}
DROPPED = pa.schema(DROPPED_FIELDS)
"""`similarity` is null where both clips have the same media."""
REASONS = ("seed", "lookalike", "fill", "acquisition")


class Pool(Protocol):
    """What selection needs of a store; `lsb.store.Store` is one."""

    dimension: int

    def keys(self, ids: IdArray) -> list[str]:
        """Keys of clips."""
        ...

    def vectors(self, ids: IdArray) -> npt.NDArray[np.float32]:
        """Vectors of clips, (len(ids), D) float32 of norm 1."""
        ...


@dataclass
class Source:
    """A seed, its neighbours, nearest first, and how many of them are chosen."""

    id: bytes
    key: str
    kind: str
    task: str | None
    weight: float
    in_pool: bool
    ids: list[bytes]
    similarity: npt.NDArray[np.float32]
    place: int = 0
    chosen: int = 0


@dataclass(frozen=True)
class Reach:
    """A seed that reaches a clip, and their similarity."""

    source: Source
    similarity: float


@dataclass(frozen=True)
class Offer:
    """A clip that may be chosen.

    Attributes:
        id: of the clip.
        reason: one of `REASONS`.
        reach: seeds that bring it; a lookalike is credited to the first with room below its cap.
        cluster: of a lookalike, where clusters are capped.
    """

    id: bytes
    reason: str
    reach: tuple[Reach, ...] = ()
    cluster: int | None = None


class Basket:
    """Chosen and dropped clips.

    Args:
        pool: keys and vectors of pool clips.
        config: budget and limits.
        excluded: ascending ids that may not be chosen.
        media: groups of clips with equal media, None where they are not looked at.
    """

    def __init__(
        self,
        pool: Pool,
        config: SelectionConfig,
        excluded: IdArray,
        media: MediaHashes | None = None,
    ):
        self.pool, self.config, self.media = pool, config, media
        self.decided = set(to_bytes(excluded))
        self.taken: list[tuple[Offer, Reach | None]] = []
        self.dropped: list[dict[str, Any]] = []
        self._clusters: Counter[int] = Counter()
        rows = config.budget if config.near_duplicate is not None else 0
        self._vectors = np.empty((rows, pool.dimension), dtype=np.float32)
        self._media: dict[int, bytes] = {}
        if media is not None:
            names = to_bytes(excluded)
            groups, first = np.unique(media.groups(excluded), return_index=True)
            self._media = {int(group): names[row] for group, row in zip(groups, first, strict=True)}

    def has_room(self) -> bool:
        """Whether the budget is not spent."""
        return len(self.taken) < self.config.budget

    def has_cluster_room(self, cluster: int | None) -> bool:
        """Whether a cluster is below its cap."""
        cap = self.config.per_cluster_cap
        return cap is None or cluster is None or self._clusters[cluster] < cap

    def offer(self, offers: Sequence[Offer]) -> None:
        """Take or drop each offer in turn while there is room."""
        offers = [offer for offer in offers if offer.id not in self.decided]
        if not offers or not self.has_room():
            return
        ids = from_bytes([offer.id for offer in offers])
        vectors = None if self.config.near_duplicate is None else self.pool.vectors(ids)
        groups = None if self.media is None else self.media.groups(ids)
        for index, offer in enumerate(offers):
            if not self.has_room():
                return
            vector = None if vectors is None else vectors[index]
            self.take(offer, vector, UNKNOWN if groups is None else int(groups[index]))

    def take(self, offer: Offer, vector_D: npt.NDArray[np.float32] | None, group: int) -> bool:
        """Choose one clip, drop it as a copy, or turn it down.

        Args:
            offer: the clip; there must be room.
            vector_D: its vector where near duplicates are dropped.
            group: of its media, `UNKNOWN` for none.

        Returns:
            Whether it was chosen.
        """
        if offer.id in self.decided:
            return False
        credited = offer.reach[0] if offer.reach else None
        if offer.reason == "lookalike":
            cap = self.config.per_seed_cap
            credited = next((r for r in offer.reach if r.source.chosen < cap), None)
            if credited is None or not self.has_cluster_room(offer.cluster):
                return False
        self.decided.add(offer.id)
        if group != UNKNOWN and group in self._media:
            self._drop(offer.id, self._media[group], None)
            return False
        if self.config.near_duplicate is not None:
            assert vector_D is not None
            if self._resembles(offer.id, vector_D):
                return False
            self._vectors[len(self.taken)] = vector_D
        if group != UNKNOWN:
            self._media[group] = offer.id
        self.taken.append((offer, credited))
        if offer.reason == "lookalike" and credited is not None:
            credited.source.chosen += 1
            if offer.cluster is not None:
                self._clusters[offer.cluster] += 1
        return True

    def _resembles(self, name: bytes, vector_D: npt.NDArray[np.float32]) -> bool:
        """Whether a clip is a near duplicate of a chosen one; drops it then."""
        limit = self.config.near_duplicate
        assert limit is not None
        chosen_BD = self._vectors[: len(self.taken)]
        # The float32 product only proposes; the rescoring kernel decides.
        near = np.flatnonzero(chosen_BD @ vector_D >= limit - proposal_error(len(vector_D)))
        exact = similarity(chosen_BD[near], vector_D[None])
        passed = exact.astype(np.float64) >= limit
        near, exact = near[passed], exact[passed]
        if near.size == 0:
            return False
        ids = from_bytes([self.taken[row][0].id for row in near])
        best = int(descending(exact, ids)[0])
        self._drop(name, to_bytes(ids[best : best + 1])[0], float(exact[best]))
        return True

    def _drop(self, name: bytes, representative: bytes, near: float | None) -> None:
        self.dropped.append({"id": name, "representative_id": representative, "similarity": near})

    def tables(
        self, threshold: float | None, of_seed: Mapping[bytes, float]
    ) -> tuple[pa.Table, pa.Table]:
        """Schemas `CHOSEN`, in order of choice, and `DROPPED`, by id.

        Args:
            threshold: LT that lookalikes passed, None for none.
            of_seed: LT of single seeds, where it is scaled.
        """
        keys = self.pool.keys(from_bytes([offer.id for offer, _ in self.taken]))
        rows = []
        for rank, ((offer, reach), key) in enumerate(zip(self.taken, keys, strict=True), start=1):
            source = None if reach is None else reach.source
            limit = None
            if source is not None and offer.reason == "lookalike":
                limit = of_seed.get(source.id, threshold)
            rows.append(
                {
                    "id": offer.id,
                    "key": key,
                    "seed_id": source.id if source else None,
                    "seed_key": source.key if source else None,
                    "kind": source.kind if source else None,
                    "task": source.task if source else None,
                    "similarity": None if reach is None else reach.similarity,
                    "lookalike_threshold": limit,
                    "rank": rank,
                    "reason": offer.reason,
                }
            )
        dropped = sorted(self.dropped, key=lambda row: row["id"])
        return (
            pa.Table.from_pylist(rows, schema=CHOSEN),
            pa.Table.from_pylist(dropped, schema=DROPPED),
        )

    def counts(self) -> dict[str, int]:
        """See `lsb.selection.Selection`."""
        counts = dict.fromkeys(REASONS, 0)
        for offer, _ in self.taken:
            counts[offer.reason] += 1
        counts["chosen"] = len(self.taken)
        counts["near_duplicates"] = len(self.dropped)
        counts["short"] = self.config.budget - len(self.taken)
        if self.media is not None:
            counts["same_media"] = sum(row["similarity"] is None for row in self.dropped)
        return counts
