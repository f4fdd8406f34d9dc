"""The seed mix: how many seeds of each kind, how much each weighs, and what "confident" means."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

POOL_KINDS = ("entropy", "random")
"""Seeds among the clips of the pool."""
LABELLED_KINDS = ("confident_error", "positive", "unsure")
"""Seeds among labelled clips, in the order in which a clip that is several of them is taken."""
TRAINING_KIND = "training_positive"
"""Seeds of the training set, which the model is not held out from."""
FIRST_KINDS = ("entropy", "confident_error", "random")
"""Kinds of the first release: their settings are part of every identity."""
CONFIDENCES = ("probability", "rank")


@dataclass(frozen=True)
class BroadeningConfig:
    """How many seeds of each kind, and how much each weighs. docs/broadening.md says when.

    Attributes:
        entropy: most uncertain pool clips.
        confident_error: labelled clips that the held-out model gets confidently wrong.
        random: pool clips drawn by chance (separates "neighbours" from "which seeds").
        confidence: least confidence of a confident error, in [0, 1].
        entropy_weight: a seed's weight is this times its score; likewise below.
        confident_error_weight: see above.
        random_weight: see above.
        positive: labelled positives, those the model believes least first.
        unsure: labelled clips near the operating threshold, the nearest first.
        positive_weight: see above.
        unsure_weight: see above.
        unsure_band: farthest distance of an unsure clip from the operating threshold, a
            probability.
        confidence_of: what `confidence` is compared with: "probability" of the predicted class, or
            "rank", the share of the other labelled clips predicted the same class that the model is
            less sure of. Temperatures change probabilities and no rank.
        training_positive: positives of the training set, drawn by chance. They are given beside the
            held-out clips (`lsb.expand.SeedsBeside`), and only by shortlists (docs/shortlists.md).
        training_positive_weight: their weight; they have no score.
        decorrelate: shrinkage in (0, 1] with which seeds are decorrelated before the search
            (`lsb.decorrelation`); None leaves them as they are.
    """

    entropy: int = 100
    confident_error: int = 100
    random: int = 0
    confidence: float = 0.8
    entropy_weight: float = 1.0
    confident_error_weight: float = 1.0
    random_weight: float = 1.0
    positive: int = 0
    unsure: int = 0
    positive_weight: float = 1.0
    unsure_weight: float = 1.0
    unsure_band: float = 0.1
    confidence_of: str = "probability"
    training_positive: int = 0
    training_positive_weight: float = 1.0
    decorrelate: float | None = None

    def __post_init__(self) -> None:
        for kind in (*POOL_KINDS, *LABELLED_KINDS, TRAINING_KIND):
            if self.count(kind) < 0:
                raise ValueError(f"broadening.{kind} is {self.count(kind)}: give 0 or more")
            if not 0 <= self.weight(kind) < float("inf"):
                raise ValueError(
                    f"broadening.{kind}_weight is {self.weight(kind)}: give a number of 0 or more"
                )
        if self.decorrelate is not None and not 0 < self.decorrelate <= 1:
            raise ValueError(
                f"broadening.decorrelate is {self.decorrelate}: give a shrinkage in (0, 1], or "
                "null to leave seeds as they are"
            )
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"broadening.confidence is {self.confidence}: give one in [0, 1]")
        if not 0 <= self.unsure_band <= 1:
            raise ValueError(
                f"broadening.unsure_band is {self.unsure_band}: give a probability in [0, 1]"
            )
        if self.confidence_of not in CONFIDENCES:
            raise ValueError(
                f"broadening.confidence_of is {self.confidence_of!r}: use one of "
                f"{', '.join(CONFIDENCES)}"
            )

    def count(self, kind: str) -> int:
        """Seeds wanted of a kind."""
        return int(getattr(self, kind))

    def weight(self, kind: str) -> float:
        """What a kind's scores are multiplied by."""
        return float(getattr(self, f"{kind}_weight"))

    @property
    def total(self) -> int:
        """Seeds wanted in all; 0 means no broadening."""
        return sum(self.count(kind) for kind in (*POOL_KINDS, *LABELLED_KINDS, TRAINING_KIND))

    @property
    def counted(self) -> tuple[str, ...]:
        """Kinds whose seeds an expansion counts: the first release's, and those that are wanted."""
        every = (*POOL_KINDS, *LABELLED_KINDS, TRAINING_KIND)
        later = [kind for kind in every if kind not in FIRST_KINDS]
        return (*FIRST_KINDS, *(kind for kind in later if self.count(kind)))

    def identity(self) -> dict[str, Any]:
        """What can change a result: settings of kinds that came later count where they are used."""
        values = asdict(self)
        for kind in ("positive", "unsure", TRAINING_KIND):
            if not self.count(kind):
                del values[kind], values[f"{kind}_weight"]
        if not self.unsure:
            del values["unsure_band"]
        if self.confidence_of == "probability":
            del values["confidence_of"]
        if self.decorrelate is None:
            del values["decorrelate"]
        return values
