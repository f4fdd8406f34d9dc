"""Where the lookalike threshold comes from, and whether it is scaled from seed to seed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MODES = ("fixed", "calibrated", "none")
SCALINGS = ("none", "density")
SCALING_AMONG = ("pool", "labelled")


@dataclass(frozen=True)
class ThresholdConfig:
    """Where LT comes from.

    Attributes:
        mode: "fixed", "calibrated", or "none" (broadening without LT).
        value: of mode "fixed".
        target: wanted lower bound of lookalike precision, of mode "calibrated".
        confidence: level of that bound.
        minimum_pairs: fewest labelled pairs a calibration may rest on.
        lookalike: "error" or "label", see `labelled_pairs`.
        neighbours: nearest labelled clips that are judged for each hard labelled clip.
        band: half width of "unsure" around the operating threshold, a probability.
        fallback: LT to use where calibration is refused; None raises instead.
        scaling: "none", one LT for all seeds, or "density", a higher one where clips lie close
            together, see `lsb.local_scaling`.
        scaling_neighbours: nearest clips whose mean similarity to a seed is its density.
        scaling_among: where these are looked for, in the "pool" or among the "labelled" clips.
    """

    mode: str = "calibrated"
    value: float = 0.8
    target: float = 0.5
    confidence: float = 0.95
    minimum_pairs: int = 30
    lookalike: str = "error"
    neighbours: int = 64
    band: float = 0.1
    fallback: float | None = None
    scaling: str = "none"
    scaling_neighbours: int = 10
    scaling_among: str = "pool"

    def __post_init__(self) -> None:
        choices = {"mode": MODES, "scaling": SCALINGS, "scaling_among": SCALING_AMONG}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"threshold.{name} is {getattr(self, name)!r}: use one of {', '.join(allowed)}"
                )
        if self.scaling_neighbours < 1:
            raise ValueError(
                f"threshold.scaling_neighbours is {self.scaling_neighbours}: give at least 1 clip"
            )
        if self.scaling != "none" and self.mode == "none":
            raise ValueError(
                f"threshold.scaling is {self.scaling!r} but threshold.mode is 'none': there is no "
                "LT to scale; use another mode, or set threshold.scaling=none"
            )

    def identity(self) -> dict[str, Any]:
        """What can change a result: without scaling its settings are left out."""
        values = asdict(self)
        if self.scaling == "none":
            for name in ("scaling", "scaling_neighbours", "scaling_among"):
                del values[name]
        return values
