"""Points that Optuna chooses: a study that goes on wherever it was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.sweeping.config import SweepConfig
from launch.sweeping.optuna import Trials
from launch.sweeping.space import Space, read_space

pytest.importorskip("optuna", reason="no Optuna here: pip install 'vlmae[sweep]'")

CONFIG = SweepConfig(sampler="optuna", seed=3)
SPACE = (
    "fusion=late,film,concat",
    "model.dropout=range(0.1,0.55,0.1)",
    "trainer.epochs=range(2,9,2)",
    "optimizer.learning_rate=tag(log,interval(1e-4,1e-2))",
    "model.components=int(interval(4,12))",
)


@pytest.fixture(scope="module")
def space() -> Space:
    return read_space(SPACE)


def value(choice: dict[str, str]) -> float | None:
    """A metric that prefers some points; concat fails."""
    if choice["fusion"] == "concat":
        return None
    return float(choice["model.dropout"]) - 30 * float(choice["optimizer.learning_rate"])


def play(
    run: Path, space: Space, count: int, batch: int, killed_after: int | None = None
) -> list[dict[str, str]]:
    """Ask and tell in batches; stop after so many recordings, as a killed command would."""
    run.mkdir(exist_ok=True)
    trials, written = Trials(run, space, CONFIG), 0

    def write() -> bool:
        nonlocal written
        written += 1
        return written == killed_after

    for start in range(0, count, batch):
        end = min(start + batch, count)
        while len(trials) < end:
            trials.add(trials.ask(), "train-1")
            if write():
                return []
        for number in trials.open():
            trials.tell(number, value(trials.choice(number)))
            if write():
                return []
    return [trials.choice(number) for number in range(len(trials))]


def test_a_study_killed_anywhere_asks_for_the_same_points(tmp_path: Path, space: Space) -> None:
    undisturbed = play(tmp_path / "a", space, 14, 4)
    assert len(undisturbed) == 14
    assert len({tuple(choice.items()) for choice in undisturbed}) > 10
    assert play(tmp_path / "b", space, 14, 4, killed_after=2) == []  # while it asks
    assert play(tmp_path / "b", space, 14, 4, killed_after=4) == []  # while it tells
    assert play(tmp_path / "b", space, 14, 4, killed_after=15) == []  # behind the random ones
    assert play(tmp_path / "b", space, 14, 4) == undisturbed
    assert play(tmp_path / "b", space, 14, 4) == undisturbed  # nothing is left to do


def test_points_are_written_as_the_grid_writes_them(tmp_path: Path, space: Space) -> None:
    listed = {one.key: one.values for one in space.swept}
    for choice in play(tmp_path / "a", space, 12, 4):
        for key in ("fusion", "model.dropout", "trainer.epochs"):
            assert choice[key] in listed[key]
        assert 1e-4 <= float(choice["optimizer.learning_rate"]) <= 1e-2
        assert 4 <= int(choice["model.components"]) <= 12


def test_a_study_of_another_sweep_is_refused(tmp_path: Path, space: Space) -> None:
    play(tmp_path / "a", space, 1, 1)
    other = read_space([*SPACE[:-1], "model.components=int(interval(4,16))"])
    with pytest.raises(ValueError, match=r"study of another sweep \(model.components.*name=<name>"):
        Trials(tmp_path / "a", other, CONFIG)
    with pytest.raises(ValueError, match="seed: 3 -> 0"):
        Trials(tmp_path / "a", space, SweepConfig(sampler="optuna"))
