"""How the ranks of a training share its work: DDP, or DeepSpeed's ZeRO 1, 2 and 3.

All of them reach the weights of one process that sees the whole batch (tests/distributed); what
Lightning and DeepSpeed need for that is in `vlmae.zero`.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from vlmae.ranks import Ranks
from vlmae.zero import STAGES, ZeroPrecision, ZeroStrategy

if TYPE_CHECKING:
    from vlmae.module import VlmaeModule
    from vlmae.towers import Towers
    from vlmae.trainer import TrainConfig

NAMES = ("ddp", *STAGES)
COMMUNICATION = ("fp32", "bf16")


@dataclass(frozen=True)
class StrategyConfig:
    """How the ranks share the work.

    Attributes:
        name: "ddp" (weights, gradients and optimiser whole on every rank), "zero1" (optimiser state
            sharded), "zero2" (gradients, too) or "zero3" (weights, too).
        offload_optimizer: keep the optimiser's shard in the host's memory and step there.
        offload_parameters: keep the weights' shard there; zero3 only.
        bucket_size: elements that are reduced or gathered in one message.
        persist_below: zero3 keeps weights with fewer elements whole on every rank.
        hpz_ranks: zero3 keeps a second copy of the weights sharded over so many neighbouring ranks,
            so that the backward pass gathers within a machine; 1 keeps none.
        communication_data_type: "fp32", or "bf16" to send and sum gradients in bfloat16, which
            halves their traffic and rounds every sum; weights and optimiser stay in float32.
    """

    name: str = "ddp"
    offload_optimizer: bool = False
    offload_parameters: bool = False
    bucket_size: int = 50_000_000
    persist_below: int = 100_000
    hpz_ranks: int = 1
    communication_data_type: str = "fp32"

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"strategy.name is {self.name!r}: use one of {', '.join(NAMES)}")
        if self.bucket_size < 1 or self.persist_below < 0 or self.hpz_ranks < 1:
            raise ValueError(
                f"strategy has bucket_size {self.bucket_size}, persist_below {self.persist_below}, "
                f"hpz_ranks {self.hpz_ranks}: give at least 1, 0 and 1"
            )
        if self.communication_data_type not in COMMUNICATION:
            raise ValueError(
                f"strategy.communication_data_type is {self.communication_data_type!r}: use one of "
                f"{', '.join(COMMUNICATION)}"
            )
        if self.offload_optimizer and not self.sharded:
            raise ValueError(
                "strategy.offload_optimizer needs a sharded optimiser: use strategy=zero2_offload "
                "or leave it out with ddp"
            )
        if self.name != "zero3" and (self.offload_parameters or self.hpz_ranks > 1):
            option = "offload_parameters" if self.offload_parameters else "hpz_ranks"
            raise ValueError(
                f"strategy.{option} needs sharded weights: use strategy=zero3, or leave it out "
                f"with {self.name}"
            )

    @property
    def sharded(self) -> bool:
        """Whether DeepSpeed does it."""
        return self.name in STAGES

    def hashed(self) -> dict[str, Any]:
        """What changes results; nothing of what was added later while it is at its default."""
        if not self.sharded:
            return {"name": self.name, **self.rounding()}
        left_out = {"communication_data_type"}
        if self.name != "zero3":
            left_out |= {"offload_parameters", "persist_below"}
        kept = {name: value for name, value in asdict(self).items() if name not in left_out}
        return {**kept, **self.rounding()}

    def rounding(self) -> dict[str, str]:
        """The part of `hashed` that says how gradients are rounded on their way; {} for float32."""
        if self.communication_data_type == "fp32":
            return {}
        return {"communication_data_type": self.communication_data_type}

    def check(self, accelerator: str, ranks: Ranks) -> None:
        """Refuse what cannot work on these ranks.

        Raises:
            ValueError: names the setting and the remedy.
        """
        if accelerator == "cpu" and (self.offload_optimizer or self.offload_parameters):
            option = "offload_optimizer" if self.offload_optimizer else "offload_parameters"
            raise ValueError(
                f"strategy.{option} moves memory from a GPU to the host, and "
                f"trainer.accelerator=cpu has no GPU: use strategy={self.name}, or trainer=gpu"
            )
        if ranks.local_size % self.hpz_ranks:
            raise ValueError(
                f"strategy.hpz_ranks is {self.hpz_ranks} and a machine has {ranks.local_size} "
                "ranks: give a divisor of them"
            )
        if self.communication_data_type == "bf16" and not self.sharded:
            if ranks.size == 1:
                warnings.warn(
                    "strategy.communication_data_type bf16 has no effect on one rank",
                    stacklevel=3,
                )
            elif torch.version.cuda is None:
                raise ValueError(
                    f"strategy.communication_data_type is bf16 and torch {torch.__version__} was "
                    "built without CUDA, for which its DDP refuses bfloat16: use strategy=zero1, "
                    "install a CUDA build, or leave it at fp32"
                )


def build_strategy(config: StrategyConfig, train: TrainConfig, ranks: Ranks) -> Any:
    """The Lightning strategy.

    Raises:
        ValueError: see `StrategyConfig.check`.
    """
    config.check(train.accelerator, ranks)
    if config.sharded:
        return ZeroStrategy(config, train)
    # Every rank runs every branch (contract 8), so that no parameter is ever left without a
    # gradient and DDP need not look for such.
    if ranks.size == 1:
        return "auto"
    kind = _Bf16Ddp if config.communication_data_type == "bf16" else DDPStrategy
    return kind(find_unused_parameters=False)


class _Bf16Ddp(DDPStrategy):
    """DDP that sums gradients in bfloat16, by torch's own hook."""

    def _register_ddp_hooks(self) -> None:
        """Lightning would register a hook on GPUs only, and say nothing elsewhere."""
        model: Any = self.model
        model.register_comm_hook(None, bf16_compress_hook)


def build_precision(config: StrategyConfig, train: TrainConfig) -> Precision:
    """32-bit weights in every strategy; "bf16-mixed" computes in bfloat16 where that is safe.

    DeepSpeed's own bf16 keeps bfloat16 weights and rounds whitening maps; ours does what DDP does.
    """
    if config.sharded:
        return ZeroPrecision(train.precision)
    if train.precision == "bf16-mixed":
        device = "cuda" if train.accelerator == "gpu" else "cpu"
        return _Autocast("bf16-mixed", device)
    return Precision()


class _Autocast(MixedPrecision):
    def convert_input(self, data: Any) -> Any:
        """Batches stay as they are: Lightning would take apart what is frozen."""
        return data


@contextmanager
def process_group(config: StrategyConfig) -> Iterator[None]:
    """A process group for a strategy that needs one even where there is one process."""
    if not config.sharded or distributed.is_initialized():
        yield
        return
    before = dict(os.environ)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        # DeepSpeed's own also forgets the groups that it keeps: a round trains several models.
        from deepspeed import comm

        (comm if comm.is_initialized() else distributed).destroy_process_group()
        # Lightning leaves RANK and its companions behind.
        for name in set(os.environ) - set(before):
            del os.environ[name]


def gathered(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which a parameter that ZeRO-3 has sharded is whole. Collective."""
    if not hasattr(tensor, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([tensor])
    return context


def whole_state(module: VlmaeModule, prefix: str = "") -> dict[str, Tensor]:
    """The model's state dict on the CPU: whole on the first rank, empty on the others. Collective.

    Args:
        module: after its `configure_model`.
        prefix: only the tensors whose name begins so.
    """
    state: dict[str, Tensor] = {}
    first = not distributed.is_initialized() or distributed.get_rank() == 0
    for name, tensor in module.model.state_dict(keep_vars=True).items():
        if name.startswith(prefix):
            with gathered(tensor):  # one at a time: all of them may not fit a device
                if first:
                    state[name] = tensor.detach().cpu().clone()
    return state


def verify_pretrained(module: VlmaeModule, towers: Towers, *, frozen_only: bool = False) -> int:
    """Prove that what lies behind the cuts holds the towers' weights. Collective.

    A strategy that shards weights as they are loaded can leave some as they were initialised, and
    a save holds no frozen weights, so that a resumed training has to take them from the towers.

    Args:
        module: after its set-up.
        towers: as they were loaded; adapters have no counterpart there and are not compared.
        frozen_only: compare only what does not train, for a training that is under way.

    Returns:
        How many tensors were compared.

    Raises:
        ValueError: on all ranks; names the first tensor that differs.
    """
    held = whole_state(module, "suffix.")
    compared, wrong = 0, ""
    if held:
        names = {n.removeprefix("suffix.").replace(".base_layer.", "."): n for n in held}
        trains = {n for n, p in module.model.named_parameters() if p.requires_grad}
        for name, loaded in towers.suffix_modules().state_dict().items():
            own = names.get(name, "")
            if frozen_only and own in trains:
                continue
            compared += 1
            same = own in held and torch.equal(held[own], loaded.cpu().to(held[own].dtype))
            if not same:
                wrong = wrong or name
    compared, wrong = _from_first((compared, wrong))
    if wrong:
        raise ValueError(
            f"{wrong} of the model is not what the towers have loaded: the weights were not copied "
            "whole; report it with the backbone and strategy, and train with strategy=ddp"
        )
    return compared


def checkpoint_blocks(model: nn.Module) -> int:
    """Make every stream recompute its blocks in the backward pass; returns how many streams do."""
    streams: list[Any] = [m for m in model.modules() if hasattr(m, "checkpointing")]
    for stream in streams:
        stream.checkpointing = True
    return len(streams)


def _from_first(value: tuple[int, str]) -> tuple[int, str]:
    if not distributed.is_initialized():
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]
