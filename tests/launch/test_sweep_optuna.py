"""Points that Optuna chooses: a study that goes on wherever it was killed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from launch.jobs.executor import JobError, JobUntriedError
from launch.sweeping.config import SweepConfig
from launch.sweeping.optuna import Trials, train_trials
from launch.sweeping.points import Point
from launch.sweeping.space import Space, read_space
from launch.sweeping.table import FINISHED, WAITING, Outcome

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


class Ends:
    """A sweep whose batches end as a script says: the state of each point, and an error."""

    def __init__(self, run: Path, *ends: tuple[str, JobError | None]) -> None:
        run.mkdir(exist_ok=True)
        self.run, self.ends = run, list(ends)
        self.trained: list[list[int]] = []
        self.states: dict[int, str] = {}

    def train(self, points: Sequence[Point]) -> list[JobError]:
        if not points:
            return []
        states, error = self.ends.pop(0)
        self.trained.append([point.number for point in points])
        self.states.update(zip(self.trained[-1], states.split(), strict=True))
        return [error] if error else []

    def record(self, points: Sequence[Point]) -> SimpleNamespace:
        outcomes = []
        for one in points:
            state = self.states.get(one.number, WAITING)
            metric = 0.5 if state == FINISHED else None
            outcomes.append(Outcome(one.number, one.choice, one.stage, state, metric))
        return SimpleNamespace(points=outcomes)


def point(number: int, choice: dict[str, str]) -> Point:
    return Point(number, choice, f"train-{number}", cast(Any, None))


def train(sweep: Ends, space: Space, trials: int, batch: int) -> list[JobError]:
    """Train by a sweep of so many trials; returns what was wrong with points."""
    config = replace(CONFIG, trials=trials, batch=batch)
    planner = SimpleNamespace(point=point)
    return train_trials(cast(Any, sweep), cast(Any, planner), space, config)[1]


@pytest.mark.parametrize(
    ("states", "error"),
    [
        ("running running failed running", JobUntriedError("sbatch refused 002.sh")),
        ("finished finished failed finished", JobUntriedError("task 2 was cancelled")),
        ("running running failed running", JobError("another command has it under way")),
    ],
)
def test_what_runs_or_was_not_tried_is_no_failure(
    tmp_path: Path, space: Space, states: str, error: JobError
) -> None:
    run = tmp_path / "a"
    with pytest.raises(JobError, match=str(error)):
        train(Ends(run, (states, error)), space, 4, 4)
    assert Trials(run, space, CONFIG).open() == [0, 1, 2, 3]
    # The next command asks for the same points, by which it finds their job.
    failed = JobError("task 2 failed")
    again = Ends(run, ("finished finished failed finished", failed))
    assert train(again, space, 4, 4) == [failed]
    assert again.trained == [[0, 1, 2, 3]]
    assert Trials(run, space, CONFIG).open() == []


def test_a_point_that_cannot_be_trained_blocks_no_study(tmp_path: Path, space: Space) -> None:
    run, failed = tmp_path / "a", JobError("task 0 failed")
    # While nothing has finished it may be that nothing can be trained.
    with pytest.raises(JobError, match="task 0 failed"):
        train(Ends(run, ("failed", failed)), space, 3, 1)
    assert Trials(run, space, CONFIG).open() == [0]
    mended = Ends(run, ("finished", None), ("failed", failed), ("finished", None))
    assert train(mended, space, 3, 1) == [failed]
    assert mended.trained == [[0], [1], [2]]
    again = Ends(run, ("finished", None))
    assert train(again, space, 4, 1) == []
    assert again.trained == [[3]]
