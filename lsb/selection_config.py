"""How the budget is spent: limits, the order of neighbours, and what counts as a copy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

RANKS = ("similarity", "diversity", "expected_value")


@dataclass(frozen=True)
class SelectionConfig:
    """How the budget is spent. docs/broadening.md says when to use which.

    Attributes:
        budget: clips to choose.
        per_seed_cap: most neighbours chosen for one seed.
        near_duplicate: clips at least this similar to a chosen one are dropped; None keeps them.
        rank: "similarity": seeds take turns, each with its nearest neighbour; "diversity": the
            neighbour farthest from all seeds and all that are chosen; "expected_value": the largest
            chance of a lookalike, times the seed's weight.
        per_cluster_cap: most neighbours chosen of one cluster of neighbours; None for no clusters.
        clusters: of k-means over the neighbours, where `per_cluster_cap` is set.
        candidates: neighbours that are compared with each other, for clusters and diversity: those
            most similar to a seed. Memory is 4 D bytes for each.
        media_hashes: whether clips of equal media are near duplicates, whatever their vectors.
        carry_labels: whether a label goes on to the near duplicates of its clip.
    """

    budget: int = 200
    per_seed_cap: int = 10
    near_duplicate: float | None = None
    rank: str = "similarity"
    per_cluster_cap: int | None = None
    clusters: int = 20
    candidates: int = 20_000
    media_hashes: bool = False
    carry_labels: bool = False

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"selection.budget is {self.budget}: give at least 1 clip")
        if self.per_seed_cap < 0:
            raise ValueError(f"selection.per_seed_cap is {self.per_seed_cap}: give 0 or more")
        if self.near_duplicate is not None and not 0 < self.near_duplicate <= 1:
            raise ValueError(
                f"selection.near_duplicate is {self.near_duplicate}: give a cosine similarity in "
                "(0, 1], or null to keep near duplicates"
            )
        if self.rank not in RANKS:
            raise ValueError(f"selection.rank is {self.rank!r}: use one of {', '.join(RANKS)}")
        if self.per_cluster_cap is not None and self.per_cluster_cap < 0:
            raise ValueError(
                f"selection.per_cluster_cap is {self.per_cluster_cap}: give 0 or more, or null for "
                "no clusters"
            )
        for name in ("clusters", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"selection.{name} is {getattr(self, name)}: give at least 1")
        if self.carry_labels and self.near_duplicate is None and not self.media_hashes:
            raise ValueError(
                "selection.carry_labels is true but no clip is a near duplicate: set "
                "selection.near_duplicate or selection.media_hashes"
            )

    @property
    def compares(self) -> bool:
        """Whether neighbours are compared with each other."""
        return self.rank == "diversity" or self.per_cluster_cap is not None

    def identity(self) -> dict[str, Any]:
        """What can change a result: settings that came later count where they are used."""
        values = asdict(self)
        if self.rank == "similarity":
            del values["rank"]
        if self.per_cluster_cap is None:
            del values["per_cluster_cap"], values["clusters"]
        if not self.compares:
            del values["candidates"]
        for name in ("media_hashes", "carry_labels"):
            if not values[name]:
                del values[name]
        return values
