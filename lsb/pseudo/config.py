"""When a model's own prediction may train the next model."""

from __future__ import annotations

from dataclasses import dataclass

MODES = ("none", "agreed")


@dataclass(frozen=True)
class PseudoConfig:
    """The group `pseudo`.

    Attributes:
        mode: "none", or "agreed": confident, and the labelled neighbours agree.
        target: wanted lower bound of the precision of pseudo-labels, measured on gold clips. A
            label whose rule of the last round falls below it is switched off.
        confidence: one-sided level of that bound.
        minimum_gold: fewest gold clips a bound may rest on.
        neighbours: nearest labelled clips that are asked.
        agreeing: how many of them must have the label; 0 asks none.
        similarity: smallest similarity of a neighbour that counts; None takes LT of the round, or
            none where the round has no LT.
        share: largest share of the training set's clips.
        balanced: whether the share of positives is kept.
        positives: that share, in (0, 1); None takes the one among people's labels of the task.
        weight: how often such a clip comes in an epoch; one that people labelled comes once.
    """

    mode: str = "none"
    target: float = 0.9
    confidence: float = 0.95
    minimum_gold: int = 30
    neighbours: int = 5
    agreeing: int = 4
    similarity: float | None = None
    share: float = 0.2
    balanced: bool = True
    positives: float | None = None
    weight: float = 0.5

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"pseudo.mode is {self.mode!r}: use one of {', '.join(MODES)}")
        for name in ("target", "confidence", "share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"pseudo.{name} is {getattr(self, name)}: give one in (0, 1)")
        if self.minimum_gold < 1:
            raise ValueError(f"pseudo.minimum_gold is {self.minimum_gold}: give 1 or more")
        if not 0 <= self.agreeing <= self.neighbours or self.neighbours < 1:
            raise ValueError(
                f"pseudo.agreeing is {self.agreeing} and pseudo.neighbours {self.neighbours}: need "
                "0 <= agreeing <= neighbours, and 1 neighbour or more"
            )
        if self.similarity is not None and not -1 <= self.similarity <= 1:
            raise ValueError(
                f"pseudo.similarity is {self.similarity}: give a cosine similarity in [-1, 1], or "
                "null for LT"
            )
        if self.positives is not None:
            if not 0 < self.positives < 1:
                raise ValueError(
                    f"pseudo.positives is {self.positives}: give a share in (0, 1), or null"
                )
            if not self.balanced:
                raise ValueError(
                    f"pseudo.positives is {self.positives} and has no effect: set "
                    "pseudo.balanced=true, or pseudo.positives=null"
                )
        if not 0 < self.weight <= 1:
            raise ValueError(
                f"pseudo.weight is {self.weight}: give one in (0, 1]; pseudo.mode=none switches "
                "pseudo-labels off"
            )
