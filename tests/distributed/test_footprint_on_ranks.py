"""What `launch.plan` says of weights, gradients and optimiser is what two ranks hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from footprint_cases import CASES
from small_model import build
from torchrun import ended, start_script

from vlmae.footprint.activations import Activations
from vlmae.footprint.arithmetic import ALWAYS, COPY, Placement, gpu_lines
from vlmae.footprint.size import size_of
from vlmae.optimizers import OptimizerConfig

ADAM = OptimizerConfig(0.1, 0.1, 0.1, 0.5)


@pytest.fixture(scope="module")
def alive(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """Strategy -> bytes that were alive on the first of two ranks before the second step."""
    folder: Path = tmp_path_factory.mktemp("footprint")
    ended(start_script("footprint_cases.py", folder, 2))
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def planned(name: str) -> dict[str, int]:
    """Line -> bytes, of what is there at all times."""
    strategy, accumulate = CASES[name].strategy, CASES[name].accumulate
    placed = Placement(strategy, ADAM, 2, live=False, accumulate=accumulate, overlap=False)
    size = size_of(build(), prefix=0, loaded=0)
    lines = gpu_lines(size, Activations(0, 0, 0, 0), placed)
    return {line.name: line.size for line in lines if line.when == ALWAYS}


@pytest.mark.parametrize("name", CASES)
def test_ranks_hold_what_is_planned(alive: dict[str, dict[str, int]], name: str) -> None:
    lines, held = planned(name), alive[name]
    # Flat groups are padded to equal shards, and moments of single numbers are left out here.
    assert abs(held["optimiser"] - lines["optimiser"]) < 0.005 * lines["optimiser"]
    # DDP's own buckets are not known to Python.
    expected = sum(lines.values()) - (lines["communication buckets"] if name == "ddp" else 0)
    # A batch and counters are alive, too.
    assert expected < held["all"] < 1.03 * expected


def test_strategies_hold_less_and_less(alive: dict[str, dict[str, int]]) -> None:
    assert alive["zero3"]["all"] < alive["zero2"]["all"] < alive["ddp"]["all"]
    assert alive["zero3"]["all"] < alive["zero1"]["all"] < alive["ddp"]["all"]


def test_a_second_copy_is_held_as_planned(alive: dict[str, dict[str, int]]) -> None:
    copy, more = planned("hpz")[COPY], alive["hpz"]["all"] - alive["zero3"]["all"]
    assert copy == planned("zero3")["weights"] - size_of(build(), prefix=0, loaded=0).buffers
    assert abs(more - copy) < 0.05 * copy


def test_zero1_keeps_whole_gradients_between_micro_batches(
    alive: dict[str, dict[str, int]],
) -> None:
    whole = 4 * sum(p.numel() for p in build().parameters() if p.requires_grad)
    assert alive["zero1, accumulated"]["gradients"] == whole
    assert alive["zero2, accumulated"]["gradients"] == 0
