"""Encoders of the transformer kind as streams that can be cut before any block, or at their inputs.

A `StreamEncoder` is one encoder taken apart: how a clip becomes inputs (its processor), how inputs
become hidden states (`embedding`), its numbered blocks (`layers`) and what follows the last one
(`norm` and pooling). A cut makes two of it that share these modules: the prefix half has the
embedding and the first blocks, the suffix half the last blocks and the end. Both run the same code,
so what is cached at a cut and what trains behind it cannot drift apart.

A `StreamTower` is a backbone made of such streams. A new one is a subclass of `StreamEncoder` that
implements `inputs`, `embed`, `call` and `finish`, and a constructor that loads its modules.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlmae.backbones.base import Backbone, FrozenIdentity, weights_sha256
from vlmae.backbones.suffix import Between, StreamSuffix, without_masked
from vlmae.data.decode import Clip
from vlmae.tokens import Tokens, pad

ALL = "all"
"""Cut at the inputs: every block trains, and the embedding with them; nothing can be cached."""
Tuned = int | Literal["all"]
CLIPS_AT_A_TIME = 16


class StreamEncoder(StreamSuffix):
    """One encoder, whole or one half of it.

    Hidden states between blocks are (B, T, hidden_width), whatever a block itself wants: `call`
    reshapes where every frame or window is a sequence of its own.

    Args:
        embedding: inputs to hidden states before the first block.
        layers: the blocks, in order.
        norm: what follows the last block; `nn.Identity` for nothing.
        input_width: of the inputs, e.g. 3 for pixels, 80 for mel bands, 1 for token ids.
        hidden_width: of the hidden states.
        out_width: of the tokens that the model reads.
        processor: turns media into inputs (tokenizer, image processor, mel spectrogram, ...).

    Attributes:
        total: blocks of the whole encoder.
        checkpointing: recompute blocks in the backward pass instead of keeping activations.
    """

    def __init__(
        self,
        embedding: nn.Module,
        layers: Sequence[nn.Module],
        norm: nn.Module,
        *,
        input_width: int,
        hidden_width: int,
        out_width: int,
        processor: Any = None,
    ) -> None:
        super().__init__()
        self.embedding: nn.Module | None = embedding
        self.layers = nn.ModuleDict({str(number): layer for number, layer in enumerate(layers)})
        self.norm: nn.Module | None = norm
        self.input_width, self.hidden_width = input_width, hidden_width
        self.out_width = out_width
        self.processor = processor
        self.total = len(self.layers)
        self.checkpointing = False

    @abstractmethod
    def inputs(self, clips: Sequence[Clip]) -> list[Tensor]:
        """Of every clip (T_i, input_width) float32 on the CPU; T_i is 0 where it lacks them."""

    def count(self, clip: Clip) -> int:
        """How many inputs a clip has."""
        return len(self.inputs([clip])[0])

    @abstractmethod
    def embed(self, inputs: Tokens) -> Tokens:
        """Inputs (B, T, input_width) to hidden states (B, T', hidden_width) before block 0.

        What stands under the mask has no influence.
        """

    @property
    def apart(self) -> tuple[nn.Module, ...]:
        """Modules that it uses and that are no submodules."""
        return ()

    @abstractmethod
    def call(self, layer: nn.Module, hidden: Tensor, mask: Tensor, context: Any) -> Tensor:
        """One block.

        Args:
            layer: the block.
            hidden: (B, T, hidden_width).
            mask: (B, T) bool, True where real.
            context: what `context` returned.
        """

    @abstractmethod
    def finish(self, hidden: Tokens) -> Tokens:
        """Hidden states behind the last block to the tokens that the model reads.

        Applies `norm` and pools. A pooled token is real if any of its positions is.
        """

    def context(self, hidden: Tokens) -> Any:
        """What all blocks of one call share: an additive mask, rotary embeddings; None by default.

        Args:
            hidden: at the first block of this half.
        """
        return None

    @property
    def width(self) -> int:  # type: ignore[override]
        """Of the tokens this half reads."""
        return self.hidden_width if self.embedding is None else self.input_width

    @property
    def blocks(self) -> int:  # type: ignore[override]
        """How many blocks this half holds."""
        return len(self.layers)

    def forward(self, tokens: Tokens, between: Between | None = None) -> Tokens:
        """See `StreamSuffix.forward`."""
        if self.embedding is not None:
            tokens = self.embed(tokens)
        tokens = Tokens(without_masked(tokens), tokens.mask)
        context = self.context(tokens)
        for number, layer in self.layers.items():
            if between is not None:
                tokens = between(int(number), tokens)
            tokens = Tokens(self._block(layer, tokens, context), tokens.mask)
        return self.finish(tokens) if self.norm is not None else tokens

    def cut(self, tuned: Tuned) -> tuple[StreamEncoder | None, StreamEncoder | None]:
        """The prefix half and the suffix half; None for a half without modules.

        Args:
            tuned: how many of the last blocks are behind the cut, or "all".

        Raises:
            ValueError: there are not that many.
        """
        if tuned == ALL:
            return None, self._half(self.embedding, 0, self.total, self.norm)
        if isinstance(tuned, bool) or not isinstance(tuned, int) or not 0 <= tuned <= self.total:
            raise ValueError(
                f"tuned_blocks must be from 0 to {self.total}, or {ALL!r}, got {tuned!r}"
            )
        if tuned == 0:
            return self, None
        at = self.total - tuned
        return (
            self._half(self.embedding, 0, at, None),
            self._half(None, at, self.total, self.norm),
        )

    def _half(
        self, embedding: nn.Module | None, start: int, stop: int, norm: nn.Module | None
    ) -> StreamEncoder:
        half = copy.copy(self)
        # A shallow copy shares the dict of modules, which differs here.
        half._modules = dict(self._modules)
        half.embedding, half.norm = embedding, norm
        half.layers = nn.ModuleDict({str(n): self.layers[str(n)] for n in range(start, stop)})
        half.processor = None
        return half

    def _block(self, layer: nn.Module, tokens: Tokens, context: Any) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            result: Tensor = checkpoint(
                self.call, layer, tokens.values, tokens.mask, context, use_reentrant=False
            )
            return result
        return self.call(layer, tokens.values, tokens.mask, context)


class Cuttable(Protocol):
    """What a tower needs of an encoder: a `StreamEncoder`, or one of convolutions."""

    @property
    def out_width(self) -> int:
        """Of the tokens that the model reads."""

    @property
    def total(self) -> int:
        """Blocks of the whole encoder."""

    def inputs(self, clips: Sequence[Clip]) -> list[Tensor]:
        """See `StreamEncoder.inputs`."""

    def count(self, clip: Clip) -> int:
        """See `StreamEncoder.count`."""

    def cut(self, tuned: Tuned) -> tuple[StreamSuffix | None, StreamSuffix | None]:
        """See `StreamEncoder.cut`."""


class StreamTower(Backbone):
    """A tower of streams, each cut where its configuration says.

    Args:
        encoders: stream -> its whole encoder.
        tuned_blocks: how many last blocks are behind the cut, of every stream or by stream: a
            number, or "all" for a cut at the inputs.
        name: hub id or folder name of the weights.
        revision: of them.
        options: settings that change the tokens, for the identity.
        sample_rate: of the sound it reads, in Hz; 0 for none.
    """

    def __init__(
        self,
        encoders: Mapping[str, Cuttable],
        *,
        tuned_blocks: Tuned | Mapping[str, Tuned] = 0,
        name: str,
        revision: str,
        options: Mapping[str, Any],
        sample_rate: int = 0,
    ) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.streams = {stream: encoder.out_width for stream, encoder in encoders.items()}
        self.blocks = {stream: encoder.total for stream, encoder in encoders.items()}
        self._inputs: dict[str, Callable[[Sequence[Clip]], list[Tensor]]] = {
            stream: encoder.inputs for stream, encoder in encoders.items()
        }
        self._counts = {stream: encoder.count for stream, encoder in encoders.items()}
        self.prefixes = nn.ModuleDict()
        for stream, tuned in tuned_by_stream(tuned_blocks, list(encoders)).items():
            before, behind = encoders[stream].cut(tuned)
            if before is not None:
                self.prefixes[stream] = before
            if behind is not None:
                # What trains keeps float32, whatever the frozen half is loaded in.
                self.tail[stream] = behind.float()
        self._identity = (name, revision, dict(options))
        self.freeze()

    @torch.inference_mode()
    def prefix(self, clips: Sequence[Clip]) -> dict[str, list[Tensor]]:
        """See `Backbone.prefix`."""
        return {stream: self._run(stream, read(clips)) for stream, read in self._inputs.items()}

    def _run(self, stream: str, inputs: list[Tensor]) -> list[Tensor]:
        """Clips with equally many inputs run together, so that nothing is padded."""
        if stream not in self.prefixes:
            return inputs
        encoder: Any = self.prefixes[stream]
        nothing = torch.zeros(0, self.prefix_streams[stream])
        tokens = [nothing] * len(inputs)
        for length in sorted({len(values) for values in inputs} - {0}):
            rows = [row for row, values in enumerate(inputs) if len(values) == length]
            for start in range(0, len(rows), CLIPS_AT_A_TIME):
                some = rows[start : start + CLIPS_AT_A_TIME]
                batch = pad([inputs[row] for row in some], encoder.width).to(self.device)
                result: Tokens = encoder(batch)
                values, mask = result.values.float().cpu(), result.mask.cpu()
                for place, row in enumerate(some):
                    tokens[row] = values[place][mask[place]]
        return tokens

    @torch.inference_mode()
    def lengths(self, clip: Clip) -> dict[str, int]:
        """Stream -> how many tokens `prefix` makes of a clip, also by a tower without weights."""
        lengths = {stream: count(clip) for stream, count in self._counts.items()}
        for stream, prefix in self.prefixes.items():
            encoder: Any = prefix
            device = next(encoder.parameters()).device
            values = torch.zeros(1, lengths[stream], encoder.width, device=device)
            real = torch.ones(1, lengths[stream], dtype=torch.bool, device=device)
            result: Tokens = encoder(Tokens(values, real))
            lengths[stream] = result.mask.shape[1]
        return lengths

    def identity(self) -> FrozenIdentity:
        """See `Backbone.identity`."""
        name, revision, options = self._identity
        return FrozenIdentity(
            name=name,
            revision=revision,
            sha256=weights_sha256(self.prefixes),
            options={**options, **self.cut_options()},
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))


def tuned_by_stream(tuned: Tuned | Mapping[str, Tuned], streams: Sequence[str]) -> dict[str, Tuned]:
    """Stream -> its blocks behind the cut, from one number for all or a mapping; 0 if not named.

    Raises:
        ValueError: a name is not one of `streams`.
    """
    if not isinstance(tuned, Mapping):
        return dict.fromkeys(streams, tuned)
    unknown = sorted(set(tuned) - set(streams))
    if unknown:
        raise ValueError(f"tuned_blocks names {unknown}, the tower has streams {list(streams)}")
    return {stream: tuned.get(stream, 0) for stream in streams}
