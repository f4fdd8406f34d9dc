"""DeepSpeed's ZeRO through Lightning, with the arithmetic of DDP, also on CPU ranks.

Every override says which habit of Lightning 2.6 or DeepSpeed 0.19 it mends.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor

from vlmae.universal import TAG, is_universal, mend_optimizer

if TYPE_CHECKING:
    from vlmae.strategy import StrategyConfig
    from vlmae.trainer import TrainConfig

STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}


class ZeroPrecision(DeepSpeedPrecision):
    """What computes in bfloat16 is said in DeepSpeed's settings."""

    def convert_input(self, data: Any) -> Any:
        """Batches stay as they are, with float32 tokens."""
        return data


class ZeroStrategy(DeepSpeedStrategy):
    """Lightning's DeepSpeed strategy, also on CPU ranks, with the arithmetic of DDP.

    Args:
        config: stage, buckets, offload.
        train: batch size, precision, accelerator.
    """

    def __init__(self, config: StrategyConfig, train: TrainConfig) -> None:
        if train.accelerator == "cpu":  # DeepSpeed takes a GPU where there is one
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        # On CPU it would compile a shared-memory all-reduce for inference at its first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        _see_inside_dataclasses()
        _send_as_configured()
        super().__init__(
            config=deepspeed_config(config, train),
            # Frozen weights are never saved (contract 7).
            exclude_frozen_parameters=True,
            logging_level=logging.ERROR,
        )

    def setup_environment(self) -> None:
        """Lightning refuses anything but CUDA here, though nothing later depends on it."""
        if not isinstance(self.accelerator, CPUAccelerator):
            super().setup_environment()
            return
        # The index of a device has to be the local rank; Lightning's CPU devices have none.
        count = len(self.parallel_devices or [])  # type: ignore[has-type]
        self.parallel_devices = [torch.device("cpu", index) for index in range(count)]
        DDPStrategy.setup_environment(self)

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Lightning has divided the loss by accumulate_grad_batches: DeepSpeed must not again.

        AdamW would hide it; clipping and SGD do not.
        """
        kwargs.setdefault("scale_wrt_gas", False)
        super().backward(closure_loss, optimizer, *args, **kwargs)

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Build whole, then shard weight by weight before anything moves to a device.

        `zero.Init` would shard every module as it is built: a parent that then writes into a
        child's weight (a zero-initialised gate, a copied block) writes into nothing, unnoticed.
        """
        import deepspeed

        self._init_config_if_needed()
        yield
        if self.zero_stage_3:
            deepspeed.zero.Init(module=self.lightning_module, config_dict_or_path=self.config)

    def _format_config(self) -> None:
        """The batch size and precision are already there."""
        self._format_batch_size_and_grad_accum_config()

    def optimizer_state(self, optimizer: Any) -> dict[str, Tensor]:
        """DeepSpeed saves it by itself: Lightning would hold a second copy."""
        return {}

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Weights and optimiser from a save of DeepSpeed, of these ranks or universal.

        Returns:
            Everything else that Lightning saved.
        """
        folder = Path(checkpoint_path)
        engine: Any = self.deepspeed_engine
        engine._config.load_universal_checkpoint = is_universal(folder)
        try:
            _, state = engine.load_checkpoint(
                str(folder),
                tag=TAG,
                load_lr_scheduler_states=False,
                # Frozen weights are not in it; trained ones come from the shards.
                load_module_strict=False,
            )
        finally:
            engine._config.load_universal_checkpoint = False
        if state is None:
            raise ValueError(f"{folder} is not a save of DeepSpeed: delete it and run again")
        if is_universal(folder):
            mend_optimizer(engine.optimizer.optimizer, folder)
        loaded: dict[str, Any] = state
        return loaded


def deepspeed_config(config: StrategyConfig, train: TrainConfig) -> dict[str, Any]:
    """DeepSpeed's settings; Lightning adds accumulation and clipping."""
    stage = STAGES[config.name]
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": train.accelerator == "gpu",
        "reduce_scatter": True,
        "reduce_bucket_size": config.bucket_size,
        "allgather_bucket_size": config.bucket_size,
    }
    if stage == 3:
        zero |= {
            "stage3_param_persistence_threshold": config.persist_below,
            "stage3_prefetch_bucket_size": config.bucket_size,
            "zero_hpz_partition_size": config.hpz_ranks,
        }
    pinned = {"device": "cpu", "pin_memory": True}
    if config.offload_optimizer:
        zero["offload_optimizer"] = pinned
    if config.offload_parameters:
        zero["offload_param"] = pinned
    values: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": train.batch_size,
        "zero_optimization": zero,
        "communication_data_type": config.communication_data_type,
        "zero_allow_untested_optimizer": True,
        # torch's optimisers step on the host, too; DeepSpeed's need a compiler.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }
    if train.precision == "bf16-mixed":
        # No module's weights are gathered in bfloat16, as with DDP.
        values["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        }
    return values


def _see_inside_dataclasses() -> None:
    """Let ZeRO-3 find the tensors of modules that take and return `Tokens`.

    It gathers a module's weights for the backward pass when the gradient of its output arrives, and
    looks for outputs in tuples, lists and dicts only: with `Tokens` it would use released weights.
    """
    from deepspeed.runtime.zero import parameter_offload, utils

    original = utils.apply_to_tensors_only
    if getattr(original, "sees_dataclasses", False):
        return

    def apply(function: Callable[[Tensor], Tensor], value: Any, warning_msg_fn: Any = None) -> Any:
        if type(value) is dict:  # a new one: the original writes into the batch
            return {key: apply(function, held) for key, held in value.items()}
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            return original(function, value, warning_msg_fn)
        tensors = {
            field.name: function(held)
            for field in dataclasses.fields(value)
            if isinstance(held := getattr(value, field.name), Tensor) and held.is_floating_point()
        }
        return dataclasses.replace(value, **tensors)

    apply.sees_dataclasses = True  # type: ignore[attr-defined]
    utils.apply_to_tensors_only = apply  # the original calls itself by this name
    parameter_offload.apply_to_tensors_only = apply


def _send_as_configured() -> None:
    """Let gradients travel in `communication_data_type` also under autocast.

    With `torch_autocast`, and in all later trainings of the process, DeepSpeed takes the type of
    each parameter instead, which is float32 here. Nothing else in these modules asks but the scaler
    of float16, which has no use here.
    """
    from deepspeed.runtime import base_optimizer
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    for module in (base_optimizer, stage3, stage_1_and_2):
        module.is_autocast_initialized = lambda: False
