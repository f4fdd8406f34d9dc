"""What the backward pass of a model keeps, counted on a forward pass without any numbers.

The pass runs on fake tensors (`torch._subclasses.FakeTensorMode`): shapes and types without
storage, so that a model of any size is measured in seconds on any machine. Counted is every tensor
that autograd saves (`torch.autograd.graph.saved_tensors_hooks`), each storage once, weights not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from vlmae.model import VlmaeModel
from vlmae.tokens import Tokens


@dataclass(frozen=True)
class Activations:
    """Bytes that one micro-batch keeps on a rank.

    Attributes:
        saved: for the backward pass, when the forward pass ends.
        recomputed: of the block that keeps most, made again in the backward pass when blocks are
            recomputed; 0 where they are not.
        largest: the largest single tensor of `saved`.
        inputs: the batch itself.
    """

    saved: int
    recomputed: int
    largest: int
    inputs: int

    @property
    def total(self) -> int:
        """An estimate of the peak: gradients of the largest tensor come and go beside all else."""
        return self.inputs + self.saved + self.recomputed + 2 * self.largest


@dataclass
class _Count:
    """Storages that were saved, each once."""

    ignored: set[int]
    sizes: dict[int, int] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    block: str = ""
    kept: list[Tensor] = field(default_factory=list)

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.ignored and key not in self.sizes:
            self.kept.append(tensor)  # lest another storage gets its address
            self.sizes[key] = storage.nbytes()
            self.blocks[self.block] = self.blocks.get(self.block, 0) + storage.nbytes()
        return tensor


def measure(
    model: VlmaeModel,
    streams: Mapping[str, tuple[int, int]],
    batch_size: int,
    *,
    bf16: bool,
    recompute: bool,
) -> Activations:
    """What a training step of a model keeps.

    Attention is counted as PyTorch computes it on a CPU, where its kernel keeps no scores; "math"
    kernels keep (B, heads, T, T) more.

    Args:
        model: on any device, the meta device included; it is not changed.
        streams: stream -> (tokens a clip, width) at the cut.
        batch_size: clips of a micro-batch.
        bf16: under autocast to bfloat16.
        recompute: as `trainer.checkpoint_blocks` does.
    """
    plain = _forward(model, streams, batch_size, bf16=bf16, recompute=False)
    inputs = sum(batch_size * tokens * (4 * width + 1) for tokens, width in streams.values())
    if not recompute:
        return _summary(plain, 0, inputs)
    most = max((size for name, size in plain.blocks.items() if name), default=0)
    return _summary(_forward(model, streams, batch_size, bf16=bf16, recompute=True), most, inputs)


def _summary(count: _Count, recomputed: int, inputs: int) -> Activations:
    sizes = count.sizes.values()
    return Activations(sum(sizes), recomputed, max(sizes, default=0), inputs)


def _forward(
    model: VlmaeModel,
    streams: Mapping[str, tuple[int, int]],
    batch_size: int,
    *,
    bf16: bool,
    recompute: bool,
) -> _Count:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = _fake_copy(model, mode).train()
    with mode:
        batch = {
            name: Tokens(
                torch.empty(batch_size, tokens, width),
                torch.ones(batch_size, tokens, dtype=torch.bool),
            )
            for name, (tokens, width) in streams.items()
        }
        held = [*fake.parameters(), *fake.buffers(), *(t.values for t in batch.values())]
        count = _Count({tensor.untyped_storage()._cdata for tensor in held})
        _watch_blocks(fake, count, recompute)
        with (
            saved_tensors_hooks(count.pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            output = fake(batch)
            # Kept until here: the graph holds what was saved.
            assert output.logits.shape[0] == batch_size
        return count


def _fake_copy(model: VlmaeModel, mode: FakeTensorMode) -> VlmaeModel:
    """A model of the same shape without storage."""
    fakes: dict[int, Any] = {}
    with mode:
        for module in _all_modules(model):
            for parameter in module.parameters(recurse=False):
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                fakes[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
            for buffer in module.buffers(recurse=False):
                fakes[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype)
    # What the memo of a deep copy holds already is taken from there.
    return copy.deepcopy(model, fakes)


def _all_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Also those that streams use and have not registered."""
    for module in model.modules():
        yield module
        for other in getattr(module, "apart", ()):
            yield from other.modules()


def _watch_blocks(model: nn.Module, count: _Count, recompute: bool) -> None:
    """Say in `count` which block runs, and let all of them be recomputed or none."""

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            count.block = name

        return hook

    for path, stream in model.named_modules():
        if hasattr(stream, "checkpointing"):
            stream.checkpointing = recompute
            for number, block in stream.layers.items():
                block.register_forward_pre_hook(enter(f"{path}.{number}"))
                block.register_forward_hook(enter(""))
