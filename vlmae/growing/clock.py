"""What a learning rate's schedule counts where epochs change their length.

The schedule of a training runs over its epochs: an epoch, however many steps it has, is one of
`epochs` equal shares of it. Where the set does not grow, that is counting steps, to the bit. So the
rate of a step depends on nothing that is found out later: what an expansion brings changes how fine
the curve is walked from there on, never where it ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


class EpochClock:
    """Steps of the optimiser as planned steps: those of a training that does not grow.

    Args:
        steps: of an epoch at the start.
    """

    def __init__(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"an epoch has {steps} steps: give at least 1")
        self.planned = steps
        # First epoch, its first step, steps of an epoch.
        self._pieces: list[tuple[int, int, int]] = [(0, 0, steps)]

    def grow(self, epoch: int, steps: int) -> None:
        """From an epoch on, each has so many steps.

        Raises:
            ValueError: the epoch is not behind the last that was told.
        """
        first, begun, length = self._pieces[-1]
        if epoch <= first or steps < 1:
            raise ValueError(
                f"epoch {epoch} of {steps} steps follows none: epochs grow in their order, after "
                f"{first}, and have at least 1 step"
            )
        self._pieces.append((epoch, begun + (epoch - first) * length, steps))

    @property
    def pieces(self) -> Sequence[tuple[int, int, int]]:
        """(first epoch, its first step, steps of an epoch) of each length, in order."""
        return tuple(self._pieces)

    def planned_step(self, step: int) -> float:
        """Where a step stands in the plan; whole numbers where an epoch is as it was planned."""
        first, begun, length = next(p for p in reversed(self._pieces) if p[1] <= step)
        return first * self.planned + (step - begun) * self.planned / length

    def step_of(self, planned: float) -> int:
        """The first step that stands at `planned` or behind it."""
        epoch = planned / self.planned
        first, begun, length = next(p for p in reversed(self._pieces) if p[0] <= epoch)
        return begun + math.ceil((planned - first * self.planned) * length / self.planned)
