"""A training tells which of how many steps it has done, whatever its epochs and its start."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from lsb.acquisition.config import AcquisitionConfig
from lsb.acquisition.seeds import BroadeningConfig
from lsb.annotate.oracle import Oracle
from lsb.artifact import Stage
from lsb.expand import ExpandConfig
from lsb.progress import seconds_left
from lsb.threshold import ThresholdConfig
from vlmae import fitting
from vlmae.growing.config import Growing, GrowingConfig
from vlmae.growing.labels import FromAnnotator
from vlmae.module import VlmaeModule
from vlmae.saves import saves_below
from vlmae.trainer import TrainConfig

TrainIn = Callable[..., Stage]
CONFIG = TrainConfig(0, 3, 4, "cpu", 1, 0.8, "both", save_every_steps=1, validate_every=1)
STEP = re.compile(r"step (\d+) of (\d+)")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What trainings tell, from the next on."""
    lines: list[str] = []
    monkeypatch.setattr(fitting, "progressed", lines.append)
    return lines


def steps_of(lines: list[str]) -> list[tuple[int, int]]:
    """Of the batches of the training set."""
    found = (STEP.match(line) for line in lines if "validation" not in line)
    return [(int(one[1]), int(one[2])) for one in found if one]


def test_steps_and_their_number(tmp_path: Path, train_in: TrainIn, told: list[str]) -> None:
    train_in(tmp_path, config=CONFIG)
    found = steps_of(told)
    count = len(found)
    assert found == [(step, count) for step in range(1, count + 1)]
    assert any(f" of {count} (" in line and "validation batch" in line for line in told)
    assert seconds_left(told[0])
    told.clear()
    train_in(tmp_path, config=replace(CONFIG, accumulate=2))
    found = steps_of(told)
    count = len(found) // 2
    assert found == [(batch // 2, count) for batch in range(1, 2 * count + 1)]
    assert seconds_left(told[0]) is None, "no step is done"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_after_a_save_the_pace_is_that_of_the_steps_since(
    tmp_path: Path,
    train_in: TrainIn,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    accumulate: int,
) -> None:
    step = VlmaeModule.training_step

    def failing(self: VlmaeModule, batch: Any, number: int) -> Any:
        if self.trainer.global_step == 4:
            raise OSError("the machine is gone")
        return step(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(VlmaeModule, "training_step", failing)
        with pytest.raises(OSError, match="the machine is gone"):
            train_in(tmp_path, config=CONFIG)
    (save,) = saves_below(tmp_path)
    ((_, count),) = steps_of(told)[-1:]
    told.clear()
    seconds = iter(range(0, 1000, 5))
    clock = SimpleNamespace(monotonic=lambda: float(next(seconds)))
    monkeypatch.setattr(fitting, "time", clock)
    changed = replace(CONFIG, accumulate=accumulate, resume_from=str(save.path))
    train_in(tmp_path, config=CONFIG if accumulate == 1 else changed)
    found = steps_of(told)
    if accumulate == 1:
        assert found == [(step, count) for step in range(5, count + 1)]
        assert told[0] == f"step 5 of {count} (5.000 s each)"
    else:  # four small steps are done, those that are left are large
        assert {of for _, of in found} == {found[-1][0]}
        assert count / 2 < found[-1][0] < count


def test_the_number_grows_with_the_training_set(
    tmp_path: Path, train_in: TrainIn, told: list[str], labels_of: Callable[..., pa.Table]
) -> None:
    expand = ExpandConfig(
        acquisition=AcquisitionConfig("entropy", {"relevance": 1.0, "unsafe": 1.0}),
        broadening=BroadeningConfig(0, 0),
        threshold=ThresholdConfig("none"),
    )
    every = GrowingConfig(every_epochs=1, rounds=2, budget=3)
    growing = Growing(every, expand, FromAnnotator(Oracle(labels_of("pool")), "truth"))
    train_in(tmp_path, config=replace(CONFIG, epochs=4), growing=growing)
    found = steps_of(told)
    totals = [of for _, of in found]
    assert all(before <= after for before, after in pairwise(totals))
    assert totals[-1] > totals[0]
    assert found[-1][0] == totals[-1], "it ends with the last"
