"""Settings of strategies: what each file says, and what is refused with the remedy."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from vlmae.config import build, compose_config
from vlmae.ranks import Ranks
from vlmae.strategy import NAMES, StrategyConfig, build_strategy
from vlmae.trainer import TrainConfig
from vlmae.zero import ZeroStrategy, deepspeed_config

TRAIN = TrainConfig(0, 1, 8, "cpu", 1, 0.8, "both", accumulate=4)
GPU = replace(TRAIN, accelerator="gpu")
FILES = ("ddp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")


def composed(name: str) -> StrategyConfig:
    values: Any = compose_config("train", [f"strategy={name}"])
    return build("strategy", StrategyConfig, dict(values["strategy"]))


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_a_strategy(name: str) -> None:
    config = composed(name)
    assert config.name == name.removesuffix("_offload")
    assert config.offload_optimizer == name.endswith("_offload")
    assert config.offload_parameters == (name == "zero3_offload")


def test_deepspeed_gets_the_stage_and_what_lightning_does_not_know() -> None:
    for stage in (1, 2, 3):
        settings = deepspeed_config(composed(f"zero{stage}"), TRAIN)
        assert settings["zero_optimization"]["stage"] == stage
        assert settings["train_micro_batch_size_per_gpu"] == 8
        assert settings["zero_allow_untested_optimizer"]
        assert "gradient_accumulation_steps" not in settings, "Lightning refuses it"
        assert "bf16" not in settings
    zero = deepspeed_config(composed("zero3_offload"), GPU)["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == zero["offload_param"]["device"] == "cpu"
    assert deepspeed_config(composed("zero2"), GPU)["zero_optimization"]["overlap_comm"]
    mixed = deepspeed_config(composed("zero2"), replace(TRAIN, precision="bf16-mixed"))
    assert mixed["torch_autocast"]["dtype"] == "bfloat16"
    hpz = deepspeed_config(StrategyConfig("zero3", hpz_ranks=8), GPU)["zero_optimization"]
    assert hpz["zero_hpz_partition_size"] == 8


def test_the_strategy_is_chosen_by_name_and_ranks() -> None:
    assert build_strategy(StrategyConfig(), TRAIN, Ranks()) == "auto"
    assert type(build_strategy(StrategyConfig(), TRAIN, Ranks(0, 2, 2))).__name__ == "DDPStrategy"
    for name in ("zero1", "zero2", "zero3"):
        assert isinstance(build_strategy(StrategyConfig(name), TRAIN, Ranks()), ZeroStrategy)


def test_only_what_changes_results_names_a_stage() -> None:
    assert StrategyConfig().hashed() == {"name": "ddp"}
    hashes = [str(composed(name).hashed()) for name in FILES]
    assert len(set(hashes)) == len(FILES)
    # Byte for byte what earlier versions hashed.
    assert composed("zero2").hashed() == {
        "name": "zero2",
        "offload_optimizer": False,
        "bucket_size": 50_000_000,
        "hpz_ranks": 1,
    }


def test_rounded_gradients_name_another_stage() -> None:
    for name in ("ddp", "zero1", "zero3"):
        plain, rounded = StrategyConfig(name), StrategyConfig(name, communication_data_type="bf16")
        assert rounded.hashed() == {**plain.hashed(), "communication_data_type": "bf16"}


def test_bf16_gradients_reach_deepspeed_and_ddp(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("fp32", "bf16"):
        settings = deepspeed_config(StrategyConfig("zero3", communication_data_type=kind), GPU)
        assert settings["communication_data_type"] == kind
    config = StrategyConfig(communication_data_type="bf16")
    strategy = build_strategy(config, TRAIN, Ranks(0, 2, 2))
    assert isinstance(strategy, DDPStrategy)
    assert type(strategy) is not DDPStrategy
    with pytest.warns(UserWarning, match="bf16 has no effect on one rank"):
        assert build_strategy(config, TRAIN, Ranks()) == "auto"
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match=r"built without CUDA.* use strategy=zero1"):
        build_strategy(config, TRAIN, Ranks(0, 2, 2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "fsdp"}, f"strategy.name is 'fsdp': use one of {', '.join(NAMES)}"),
        ({"name": "zero2", "offload_parameters": True}, "offload_parameters needs sharded weights"),
        ({"name": "ddp", "offload_optimizer": True}, "offload_optimizer needs a sharded optimiser"),
        ({"name": "zero1", "hpz_ranks": 2}, "strategy.hpz_ranks needs sharded weights: use"),
        ({"name": "zero3", "hpz_ranks": 0}, "hpz_ranks 0: give at least"),
        ({"name": "zero3", "bucket_size": 0}, "bucket_size 0"),
        (
            {"communication_data_type": "fp16"},
            "strategy.communication_data_type is 'fp16': use one of fp32, bf16",
        ),
        ({"bucket": 3}, "strategy has no key 'bucket'"),
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build("strategy", StrategyConfig, values)


def test_offload_needs_a_gpu_and_hpz_whole_machines() -> None:
    for name in ("zero2_offload", "zero3_offload"):
        with pytest.raises(ValueError, match=r"no GPU: use strategy=zero\d, or trainer=gpu"):
            build_strategy(composed(name), TRAIN, Ranks())
        composed(name).check("gpu", Ranks(0, 8, 8))
    with pytest.raises(ValueError, match=r"hpz_ranks is 3 and a machine has 8 ranks: give a div"):
        StrategyConfig("zero3", hpz_ranks=3).check("gpu", Ranks(0, 16, 8))
