"""Which clips of the pool the fused model may score in a round, and how many."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

UNSCORED = "pooled"
EVERY = "all"
SHORTLISTS = ("random", "lookalikes", "streams", "seals", "anchoral", "proxy")
"""Orders of a pooled store, the first of which are scored."""
NAMES = (EVERY, UNSCORED, *SHORTLISTS)


@dataclass(frozen=True)
class ShortlistConfig:
    """The scoring budget of a round, and how it is spent.

    Pooled vectors of frozen backbones exist for every clip; running the fused model on all of them
    each round is what costs. A shortlist is chosen on pooled vectors alone and then scored.

    Attributes:
        name: where everything may be scored: "all" does; "pooled" scores nothing and chooses on
            pooled vectors; the others as `limited`.
        limited: where `share` is below 1: "random", "lookalikes" (of seeds, by the arm's broadening
            and LT in pooled space), "streams" (lookalikes of labelled positives, stream by stream),
            "seals", "anchoral", "proxy", or "pooled".
        share: largest share of the pool that is scored in a round, the scoring budget.
        neighbours: of each labelled clip for "seals" (100 in the paper), of each anchor for
            "anchoral" (50).
        anchors: of each class and task for "anchoral".
        subpool: most clips of an "anchoral" shortlist, within the scoring budget, and of one by
            "streams" where everything may be scored.
        per_seed: most lookalikes that one seed brings into a shortlist.
        penalty: of the logistic heads of "proxy".
        whiten: whether the heads of "proxy" are fitted on whitened streams, see `lsb.views`.
        shrinkage: of the streams' covariances for "streams" and `whiten`.
        sharpness: for "streams", how much more the nearest seeds count than all others.
        negatives: for "streams", labelled negatives that clips are compared with, too.
        chance: for "streams", share of the shortlist that is drawn from the whole pool: what no
            labelled positive is like is found there alone.
        seed: of chance.
    """

    name: str = EVERY
    limited: str = "random"
    share: float = 1.0
    neighbours: int = 100
    anchors: int = 10
    subpool: int = 10_000
    per_seed: int = 50
    penalty: float = 1.0
    whiten: bool = False
    shrinkage: float = 0.3
    sharpness: float = 1.0
    negatives: int = 400
    chance: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"shortlist.name is {self.name!r}: use one of {', '.join(NAMES)}")
        if self.limited not in NAMES or self.limited == EVERY:
            raise ValueError(
                f"shortlist.limited is {self.limited!r}: use one of {', '.join(NAMES[1:])}"
            )
        if not 0 < self.share <= 1:
            raise ValueError(
                f"shortlist.share is {self.share}: give a share of the pool in (0, 1], or "
                "shortlist.limited=pooled to score nothing"
            )
        for name in ("neighbours", "anchors", "subpool", "per_seed"):
            if getattr(self, name) < 1:
                raise ValueError(f"shortlist.{name} is {getattr(self, name)}: give at least 1")
        for name in ("penalty", "sharpness"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"shortlist.{name} is {getattr(self, name)}: give a positive number"
                )
        if self.negatives < 0:
            raise ValueError(f"shortlist.negatives is {self.negatives}: give 0 or more")
        if not 0 < self.shrinkage <= 1:
            raise ValueError(f"shortlist.shrinkage is {self.shrinkage}: give one in (0, 1]")
        if not 0 <= self.chance < 1:
            raise ValueError(f"shortlist.chance is {self.chance}: give a share in [0, 1)")

    @property
    def method(self) -> str:
        """What is done: one of `NAMES`."""
        return self.name if self.share == 1 else self.limited

    def clips(self, pool: int, budget: int) -> int:
        """Clips that may be scored.

        Args:
            pool: clips of the pool.
            budget: clips to label: a proxy that chooses alone hands over no more.
        """
        if self.share < 1:
            return max(budget, round(self.share * pool))
        if self.method == "proxy":
            return budget
        return max(budget, min(self.subpool, pool)) if self.method == "streams" else pool

    def identity(self) -> dict[str, Any]:
        """What can change a result: settings that this method does not read are left out."""
        read = {
            "random": ("seed",),
            "lookalikes": ("per_seed", "seed"),
            "seals": ("neighbours",),
            "anchoral": ("neighbours", "anchors", "subpool", "seed"),
            "proxy": ("penalty", "whiten", "shrinkage", "seed") if self.whiten else ("penalty",),
            "streams": ("shrinkage", "sharpness", "negatives", "chance", "seed"),
        }
        values = asdict(self)
        kept = read.get(self.method, ())
        if self.method == "streams" and self.share == 1:
            kept += ("subpool",)
        if self.method == "seals" and self.share < 1:  # chance fills what its neighbours leave
            kept += ("seed",)
        return {"method": self.method, "share": self.share, **{name: values[name] for name in kept}}
