"""DDP and ZeRO 1, 2, 3 on two ranks reach the weights of one process that sees the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from small_model import CLIPS, SILENT, STEPS, Table, build, labels
from torchrun import ended, start_script

from vlmae.data.order import BatchOrder, OrderConfig

Result = dict[str, Any]
Results = Callable[..., Result]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A function from a case and a rank to what it left."""
    folder = tmp_path_factory.mktemp("strategies")
    for process in [start_script("strategy_cases.py", folder, ranks) for ranks in (1, 2)]:
        ended(process)

    def result(name: str, rank: int = 0) -> Result:
        loaded: Result = torch.load(folder / f"{name}-{rank}.pt", weights_only=False)
        return loaded

    return result


def difference(ours: Result, other: Result) -> float:
    """Largest of all weights and buffers."""
    assert list(ours["state"]) == list(other["state"])
    pairs = [(tensor, other["state"][name]) for name, tensor in ours["state"].items()]
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("name", ["ddp", "zero1", "zero2", "zero3"])
def test_ranks_reach_the_weights_of_one_process(results: Results, name: str) -> None:
    ours, whole = results(name), results("whole")
    assert len(whole["losses"]) == STEPS
    assert len(ours["losses"]) == 2 * STEPS
    fresh = {"state": build().state_dict()}
    assert difference(whole, fresh) > 0.1, "it has gone somewhere"
    assert difference(ours, whole) < 1e-6
    # Lightning has divided those of micro-batches by their number, and ranks are averaged.
    both = np.array([ours["losses"], results(name, 1)["losses"]])
    np.testing.assert_allclose(both.mean(0).reshape(STEPS, 2).sum(1), whole["losses"], atol=2e-6)


def test_the_comparison_is_of_what_makes_ranks_disagree(results: Results) -> None:
    norms = results("whole")["norms"]
    assert len(norms) == STEPS
    assert sum(norm > 0.5 for norm in norms) > STEPS // 4, "clipping is active"
    assert sum(norm < 0.5 for norm in norms) > 0, "and not always"
    present = (labels() >= 0).sum(axis=1)
    order = BatchOrder(CLIPS, world=2, config=OrderConfig(2, seed=6, accumulate=2))
    counts = [present[order.batch(0, number)].sum() for number in range(4)]
    assert len(set(counts)) > 1, f"{counts} labels in the micro-batches of the first step"
    whole = BatchOrder(CLIPS, world=1, config=OrderConfig(8, seed=6))
    for epoch in (0, 3):
        for step in range(4):
            split = [order.batch(epoch, 4 * step + number) for number in range(4)]
            assert np.concatenate(split).tolist() == whole.batch(epoch, step).tolist()
    silent = {int(row) for number in SILENT for row in order.batch(0, number)}
    sound = [Table(silent).batch(order.batch(0, n), "audio").present for n in range(4)]
    assert [bool(heard.any()) for heard in sound] == [True, False, True, False], "rank 1 hears none"
    first, second = results("ddp")["ids"], results("ddp", 1)["ids"]
    steps = [sorted(chain(*first[i : i + 2], *second[i : i + 2])) for i in range(0, 40, 2)]
    assert steps == [sorted(batch) for batch in results("whole")["ids"]]


def test_means_of_means_reach_other_weights(results: Results) -> None:
    assert difference(results("short ddp, naive mean"), results("short whole")) > 1e-3


def test_frozen_parts_stay_and_tuned_ones_move(results: Results) -> None:
    fresh = build().state_dict()
    for name in ("whole", "ddp", "zero1", "zero2", "zero3"):
        state = results(name)["state"]
        for key, tensor in fresh.items():
            frozen = ".layers.2." in key or key.endswith((".mean", ".map"))
            assert torch.equal(tensor, state[key]) == frozen, (name, key)


def test_zero3_shards_and_holds_the_loaded_weights(results: Results) -> None:
    for name in ("ddp", "zero2", "zero3"):
        for rank in (0, 1):
            result = results(name, rank)
            assert result["compared"] == 2 * 12 + 2
            assert "audio.layers.2.out.weight of the model is not what" in result["refused"]
            assert (result["sharded"] > 40) == (name == "zero3")
    assert results("zero3", 1)["state"] == {}, "whole on the first rank only"


def test_zero3_works_on_one_process(results: Results) -> None:
    assert difference(results("short whole zero3"), results("short whole")) < 1e-6


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_recomputed_blocks_have_the_same_gradients(results: Results, strategy: str) -> None:
    assert difference(results(f"short {strategy}, recomputed"), results("short whole")) < 1e-6


def test_bf16_stays_near_fp32_and_is_the_same_in_every_strategy(results: Results) -> None:
    whole, single = results("short whole"), results("short whole bf16")
    assert 1e-5 < difference(single, whole) < 0.02
    assert all(t.dtype == whole["state"][n].dtype for n, t in single["state"].items())
    for name in ("short ddp bf16", "short zero3 bf16"):
        assert 1e-5 < difference(results(name), whole) < 0.02
    assert difference(results("short ddp bf16"), results("short zero3 bf16")) < 1e-6
