"""How a sweep chooses its points and judges them: the group `sweep` of conf/launch_sweep.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

GRID, OPTUNA = "grid", "optuna"
MAXIMIZE, MINIMIZE = "maximize", "minimize"


@dataclass(frozen=True)
class SweepConfig:
    """Fields are the keys of the group.

    Attributes:
        metric: what points are compared by, see `launch.sweeping.metric`.
        direction: "maximize" or "minimize".
        sampler: "grid" trains every point of the product; "optuna" asks Optuna for them.
        trials: points that Optuna is asked for; null for 20.
        batch: of them at a time, trained side by side; null for 4.
        seed: of Optuna's sampler; null for 0.
    """

    metric: str = "val/ap"
    direction: str = MAXIMIZE
    sampler: str = GRID
    trials: int | None = None
    batch: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("direction", (MAXIMIZE, MINIMIZE)), ("sampler", (GRID, OPTUNA))):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"sweep.{name} is {value!r}: use {' or '.join(allowed)}")
        for name, least in (("trials", 1), ("batch", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"sweep.{name} is {value}: give at least {least}")

    @property
    def without_effect(self) -> Iterator[str]:
        """Keys that are set and change nothing."""
        if self.sampler == GRID:
            for name in ("trials", "batch", "seed"):
                if getattr(self, name) is not None:
                    yield f"sweep.{name}"

    @property
    def maximized(self) -> bool:
        """Whether more is better."""
        return self.direction == MAXIMIZE
