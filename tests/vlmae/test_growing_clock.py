"""The schedule of a training that grows: counted in epochs, and in steps where they stay equal."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from vlmae.growing.clock import EpochClock
from vlmae.optimizers import OptimizerConfig, build_optimizer
from vlmae.tuning import TowerTuning

EPOCHS, STEPS = 6, 7
CONFIG = OptimizerConfig(learning_rate=0.1, weight_decay=0.0, warmup=0.3, clip_norm=1.0)


class Streams(nn.Module):
    """Has a tower that joins late, as `VlmaeModel` may."""

    def __init__(self) -> None:
        super().__init__()
        self.streams = {"vl": {"image": 4}}
        self.suffix = nn.ModuleDict({"image": nn.Linear(2, 2)})
        self.head = nn.Linear(2, 1)


def rates(clock: EpochClock | None, steps: int) -> list[list[float]]:
    """Of each step: the rate of every group."""
    late = {"vl": TowerTuning(mode="full", unfreeze=0.5)}
    optimizer, schedule = build_optimizer(Streams(), CONFIG, late, EPOCHS * STEPS, clock=clock)
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return found


def test_without_growth_rates_are_those_of_steps_to_the_bit() -> None:
    torch.manual_seed(0)
    assert rates(EpochClock(STEPS), EPOCHS * STEPS) == rates(None, EPOCHS * STEPS)


def test_an_epoch_is_an_equal_share_of_the_schedule_however_long() -> None:
    clock = EpochClock(STEPS)
    clock.grow(2, 10)
    clock.grow(4, 15)
    plain, grown = rates(None, EPOCHS * STEPS), rates(clock, 2 * 7 + 2 * 10 + 2 * 15)
    starts = [0, 7, 14, 24, 34, 49]
    # The tower that joins in epoch 3 has its first step there; its correction counts real steps.
    assert [grown[start][-1] for start in starts] != [plain[STEPS * e][-1] for e in range(EPOCHS)]
    model = [name_rates[0] for name_rates in grown]
    assert [model[start] for start in starts] == [plain[STEPS * e][0] for e in range(EPOCHS)]
    warm = int(CONFIG.warmup * EPOCHS * STEPS)
    falling = model[next(s for s in range(len(model)) if clock.planned_step(s) >= warm) :]
    assert all(a > b for a, b in pairwise(falling))
    assert 0 < model[-1] < 0.01 * CONFIG.learning_rate
    waiting = [step for step, values in enumerate(grown) if values[-1] == 0.0]
    assert waiting == list(range(24)), "half of all epochs, not of all steps"


def test_steps_and_planned_steps_are_inverse() -> None:
    clock = EpochClock(4)
    clock.grow(3, 9)
    clock.grow(5, 10)
    assert clock.pieces == ((0, 0, 4), (3, 12, 9), (5, 30, 10))
    assert [clock.planned_step(step) for step in (0, 11, 12, 21, 30, 40)] == [0, 11, 12, 16, 20, 24]
    for planned in range(24):
        step = clock.step_of(planned)
        assert clock.planned_step(step) >= planned
        assert step == 0 or clock.planned_step(step - 1) < planned


@pytest.mark.parametrize(("epoch", "steps"), [(0, 5), (2, 5), (3, 0)])
def test_epochs_grow_in_their_order(epoch: int, steps: int) -> None:
    clock = EpochClock(4)
    clock.grow(2, 5)
    with pytest.raises(ValueError, match="follows none"):
        clock.grow(epoch, steps)
    with pytest.raises(ValueError, match="give at least 1"):
        EpochClock(0)
