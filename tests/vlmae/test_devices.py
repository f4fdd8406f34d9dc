"""Where a command computes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from vlmae.data.prefix_cache import PrefixConfig
from vlmae.devices import cuda_looked_for_once, device_of
from vlmae.embedding import EmbedConfig
from vlmae.evaluation import EvaluateConfig

BUILD: dict[str, Callable[[str], Any]] = {
    "prefix": lambda name: PrefixConfig("float16", 1, 1, 0.5, accelerator=name),
    "embed": lambda name: EmbedConfig("pool", accelerator=name),
    "evaluation": lambda name: EvaluateConfig(0.8, 10, 0, "both", 1, accelerator=name),
}


@pytest.mark.parametrize("group", sorted(BUILD))
def test_what_is_no_accelerator_is_refused(group: str) -> None:
    assert BUILD[group]("gpu").accelerator == "gpu"
    with pytest.raises(ValueError, match=rf"{group}.accelerator is 'tpu': use one of cpu, gpu"):
        BUILD[group]("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: this is about having none")
def test_a_gpu_that_is_not_there_is_one_clear_line() -> None:
    assert device_of("cpu", "embed.accelerator") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"no CUDA device here: use embed.accelerator=cpu"):
        device_of("gpu", "embed.accelerator")


@pytest.mark.parametrize("told", [None, "1"])
def test_a_machine_without_gpus_is_said_to_have_none_for_as_long_as_it_lasts(
    monkeypatch: pytest.MonkeyPatch, told: str | None
) -> None:
    name = "CUDA_VISIBLE_DEVICES"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv(name, raising=False)
    if told is not None:  # what the launcher has said stays
        monkeypatch.setenv(name, told)

    @cuda_looked_for_once()
    def step() -> None:
        assert os.environ[name] == (told or "")
        raise RuntimeError("a step failed")

    with pytest.raises(RuntimeError, match="a step failed"):
        step()
    assert os.environ.get(name) == told


def test_gpus_that_are_there_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with cuda_looked_for_once():
        assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_local_rank_has_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of("gpu", "embed.accelerator").index == 0
    monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count()))
    assert device_of("gpu", "embed.accelerator").index == 0
