"""A training that two ranks saved goes on with one: the same clips, losses and learning rates."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_model import CLIPS, EPOCHS, STEPS
from torchrun import ended, start_script
from world_cases import SAVED_AT

LEFT = STEPS - SAVED_AT
Result = dict[str, Any]


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder of the results, and what the one rank said."""
    folder = tmp_path_factory.mktemp("worlds")
    ended(start_script("world_cases.py", folder, ranks=2))
    return folder, ended(start_script("world_cases.py", folder))


def result(folder: Path, name: str, ranks: int, rank: int = 0) -> Result:
    loaded: Result = torch.load(folder / f"{name}-{ranks}-{rank}.pt", weights_only=False)
    return loaded


def steps_of(results: list[Result], key: str, micro_batches: int) -> list[Any]:
    """Of each step: the values of all its micro-batches on all ranks."""
    ranks = [one[key] for one in results]
    count = len(ranks[0]) // micro_batches
    return [
        [value for values in ranks for value in values[micro_batches * n : micro_batches * (n + 1)]]
        for n in range(count)
    ]


@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3"])
def test_one_rank_goes_on_as_the_two_did(moved: tuple[Path, str], name: str) -> None:
    folder, _ = moved
    two, one = [result(folder, name, 2, rank) for rank in (0, 1)], [result(folder, name, 1)]
    clips = [sorted(chain(*ids)) for ids in steps_of(two, "ids", 2)]
    assert [sorted(chain(*ids)) for ids in steps_of(one, "ids", 4)] == clips[SAVED_AT:]
    # Lightning divides by the micro-batches of a rank: their sum is the mean over them.
    expected = [sum(losses) / 2 for losses in steps_of(two, "losses", 2)]
    losses = [sum(losses) for losses in steps_of(one, "losses", 4)]
    assert len(losses) == LEFT
    np.testing.assert_allclose(losses, expected[SAVED_AT:], rtol=0, atol=1e-6)
    assert np.mean(losses[-4:]) < np.mean(expected[:4]) - 0.1, "it learns"
    # Rate and decay of every group, with and without decay.
    rates = [values[0] for values in steps_of(two[:1], "rates", 2)][SAVED_AT:]
    np.testing.assert_allclose([v[0] for v in steps_of(one, "rates", 4)], rates, rtol=1e-12)
    assert {0.0, 0.1} < set(rates[0])


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_a_sharded_save_is_converted_beside_itself(moved: tuple[Path, str], name: str) -> None:
    folder, _ = moved
    saves = sorted((folder / f"{name}-2" / "saves").iterdir())
    assert [save.name for save in saves] == [f"step-{n:06d}" for n in (6, 12, 18)]
    assert sorted(p.name for p in saves[0].iterdir()) == ["save.json", "state", "universal"]
    assert sorted(p.name for p in saves[1].iterdir()) == ["save.json", "state"]
    converted = {p.name for p in (saves[0] / "universal").rglob("zero/*") if p.is_dir()}
    assert "model.suffix.audio.layers.3.out.weight" in converted
    assert not [one for one in converted if ".layers.2." in one], "frozen weights are in no save"


def test_smaller_steps_are_dealt_from_the_clips_that_are_left(moved: tuple[Path, str]) -> None:
    folder, said = moved
    name = "ddp, smaller steps"
    two, one = [result(folder, name, 2, rank) for rank in (0, 1)], [result(folder, name, 1)]
    per_epoch = CLIPS // 8
    begun = [clip for ids in steps_of(two, "ids", 2)[per_epoch:SAVED_AT] for clip in chain(*ids)]
    rest = list(chain(*one[0]["ids"]))
    assert len(begun) == CLIPS // 2
    assert len(set(begun + rest[: CLIPS // 2])) == CLIPS, "each clip of the epoch once"
    assert len(rest) == CLIPS // 2 + (EPOCHS - 2) * CLIPS
    assert said.count("note: a step has 2 batches over all ranks now and had 4") == 1
    assert "trainer.accumulate=4 keeps them" in said
