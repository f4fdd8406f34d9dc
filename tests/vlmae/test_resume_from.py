"""Going on, on purpose, from a save that other ranks or smaller steps have made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lsb.artifact import Stage
from vlmae.module import VlmaeModule
from vlmae.saves import Save, saves_below
from vlmae.trainer import TrainConfig

TrainIn = Callable[..., Stage]
CONFIG = TrainConfig(0, 2, 4, "cpu", 1, 0.8, "both", save_every_steps=1)


@pytest.fixture
def save(tmp_path: Path, train_in: TrainIn, monkeypatch: pytest.MonkeyPatch) -> Save:
    """Of a training that failed after three steps."""
    step = VlmaeModule.training_step

    def failing(self: VlmaeModule, batch: Any, number: int) -> Any:
        if number == 3:
            raise OSError("the machine is gone")
        return step(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(VlmaeModule, "training_step", failing)
        with pytest.raises(OSError, match="the machine is gone"):
            train_in(tmp_path, config=CONFIG)
    (found,) = saves_below(tmp_path)
    assert found.moment.step == 3
    return found


def test_it_goes_on_where_it_was_asked_to_and_the_stage_says_so(
    tmp_path: Path, train_in: TrainIn, save: Save, capfd: pytest.CaptureFixture[str]
) -> None:
    # One rank and two micro-batches a step: as two ranks would see it.
    config = replace(CONFIG, accumulate=2)
    fresh = train_in(tmp_path, config=config)
    assert f"trainer.resume_from={save.path} goes on from it" in capfd.readouterr().err
    assert "resumed" not in fresh.manifest["config"]
    trace = str(tmp_path / "trace")
    stage = train_in(tmp_path, config=replace(config, resume_from=str(save.path), trace=trace))
    said = capfd.readouterr().err
    assert "a step has 2 batches over all ranks now and had 1" in said
    assert stage.path != fresh.path
    assert stage.content != fresh.content
    assert stage.manifest["config"]["resumed"]["step"] == 3
    lines = (tmp_path / "trace" / "rank-0.csv").read_text().splitlines()
    batches = [tuple(line.split(",")[:2]) for line in lines]
    # Three micro-batches were done: Lightning counts from the whole step before.
    assert batches[0] == ("0", "2")
    assert train_in(tmp_path, config=replace(config, resume_from=str(save.path))).reused


def test_a_save_of_another_training_is_refused(
    tmp_path: Path, train_in: TrainIn, save: Save
) -> None:
    other = replace(CONFIG, seed=1, resume_from=str(save.path))
    with pytest.raises(ValueError, match=r"step-000003 is of a training with other labels or sett"):
        train_in(tmp_path, config=other)
    with pytest.raises(ValueError, match=r"nowhere holds no finished save"):
        train_in(tmp_path, config=replace(CONFIG, resume_from=str(tmp_path / "nowhere")))
