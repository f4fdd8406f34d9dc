"""The blocks of a language model as a stream that can be cut: causal, with rotary positions.

A token at the cut has to know its rotary position, which in Qwen's models is no index: a frame's
tokens share one position in time and count on in height and width. So positions travel with the
hidden states, each as two columns of whole numbers below 128, which float16 and bfloat16 keep
exactly; an int8 cache, with one scale a token, does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlmae.backbones.generative.family import LanguageModel, VisionLanguage
from vlmae.backbones.generative.titles import Titles
from vlmae.backbones.stream import ALL, StreamEncoder, Tuned
from vlmae.backbones.suffix import MASKED_SCORE, Between, mean_of_groups, without_masked
from vlmae.data.decode import Clip
from vlmae.tokens import Tokens

BASE = 128
MOST_POSITIONS = BASE**2


class DecoderStream(StreamEncoder):
    """Title and frames of a clip in one prompt, read at hidden states of the language model.

    Inputs are what the first block reads: hidden states, visual features that are added behind
    early blocks (`VisionLanguage.late`, often none), and columns of positions. At a cut: hidden
    states and columns. The vision tower and the token embeddings run in `inputs`, since their own
    inputs, pixels and words, have no common width, and stay frozen at every cut.

    Args:
        before: the model up to its first block.
        decoder: its blocks, as many as are read.
        titles: makes the words of a prompt.
        pool: positions averaged into one token; 1 for none.
    """

    def __init__(
        self, before: VisionLanguage, decoder: LanguageModel, titles: Titles, pool: int
    ) -> None:
        self.axes, self.late, self.pool = before.axes, before.late, pool
        hidden_width = decoder.hidden_width
        super().__init__(
            before,
            decoder.layers,
            decoder.norm,
            input_width=hidden_width * (1 + self.late) + 2 * self.axes,
            hidden_width=hidden_width,
            out_width=decoder.out_width,
            processor=titles,
        )
        self.longest = min(decoder.longest, MOST_POSITIONS)
        # Not a submodule: a cast of all weights to bfloat16 would take its frequencies with it.
        self._rotary = (decoder.rotary,)

    @property
    def width(self) -> int:  # type: ignore[override]
        """See `StreamEncoder.width`; positions are behind the hidden states."""
        return super().width + (2 * self.axes if self.embedding is None else 0)

    @property
    def apart(self) -> tuple[nn.Module, ...]:
        """See `StreamEncoder.apart`."""
        return tuple(module for module in self._rotary if module is not None)

    def cut(self, tuned: Tuned) -> tuple[StreamEncoder | None, StreamEncoder | None]:
        """See `StreamEncoder.cut`.

        Raises:
            ValueError: there are not that many blocks, or the cut is before blocks that take in
                visual features, or at the inputs.
        """
        if tuned == ALL:
            raise ValueError(
                "tuned_blocks 'all' would train the vision tower and the token embeddings, which "
                f"stay frozen in a generative model: give at most {self.total - self.late}"
            )
        if isinstance(tuned, int) and self.total - self.late < tuned <= self.total:
            raise ValueError(
                f"tuned_blocks is {tuned}: the first {self.late} of {self.total} blocks take in "
                "visual features that no cache holds, so the cut must be behind them: give at "
                f"most {self.total - self.late}"
            )
        return super().cut(tuned)

    @torch.inference_mode()
    def inputs(self, clips: Sequence[Clip]) -> list[Tensor]:
        """See `StreamEncoder.inputs`; clips run one by one. Neither frames nor title: T is 0.

        Raises:
            ValueError: a prompt longer than the language model was built for.
        """
        return [self._inputs_of(clip) for clip in clips]

    def count(self, clip: Clip) -> int:
        """See `StreamEncoder.count`; nothing but the processor runs."""
        prompt = self._prompt(clip)
        return 0 if prompt is None else prompt["input_ids"].shape[1]

    def _prompt(self, clip: Clip) -> dict[str, Tensor] | None:
        """What the processor makes of a clip; None of one with neither frames nor title."""
        words = self.processor.words(clip.title)
        if not len(clip.frames) and not words:
            return None
        before: Any = self.embedding
        frames = torch.from_numpy(np.ascontiguousarray(clip.frames)).permute(0, 3, 1, 2)
        prompt: dict[str, Tensor] = before.prompt(frames, words)
        return prompt

    def _inputs_of(self, clip: Clip) -> Tensor:
        prompt = self._prompt(clip)
        if prompt is None:
            return torch.zeros(0, self.input_width)
        before: Any = self.embedding
        length = prompt["input_ids"].shape[1]
        if length > self.longest:
            raise ValueError(
                f"{len(clip.frames)} frames and a title are {length} tokens, the language model "
                f"has {self.longest} positions: read fewer frames or set a smaller image_size"
            )
        device = next(before.parameters()).device
        seen = before({name: values.to(device) for name, values in prompt.items()})
        parts = [seen.hidden, *seen.late, position_columns(seen.positions)]
        return torch.cat([part.float().cpu() for part in parts], dim=-1)

    def embed(self, inputs: Tokens) -> Tokens:
        """(B, T, input_width) to hidden states before block 0, in the type of the weights."""
        before: Any = self.embedding
        values = inputs.values[..., : self.hidden_width]
        return Tokens(values.to(before.word_embedding().weight.dtype), inputs.mask)

    def forward(self, tokens: Tokens, between: Between | None = None) -> Tokens:
        """See `StreamSuffix.forward`; `between` sees hidden states only."""
        mask, clean = tokens.mask, Tokens(without_masked(tokens), tokens.mask)
        columns = clean.values[..., clean.values.shape[-1] - 2 * self.axes :]
        if self.embedding is not None:
            late = clean.values[..., self.hidden_width : self.hidden_width * (1 + self.late)]
            added = late.chunk(self.late, dim=-1) if self.late else ()
            hidden = self.embed(clean)
        else:
            added, hidden = (), Tokens(clean.values[..., : self.hidden_width], mask)
        context = self._shared(hidden, columns)
        for number, layer in self.layers.items():
            if between is not None:
                hidden = between(int(number), hidden)
            values = self._block(layer, hidden, context)
            if int(number) < len(added):
                values = values + added[int(number)].to(values.dtype)
            hidden = Tokens(values, mask)
        if self.norm is not None:
            return self.finish(hidden)
        return Tokens(torch.cat([hidden.values.float(), columns.float()], dim=-1), mask)

    def _shared(self, hidden: Tokens, columns: Tensor) -> Any:
        """An additive mask (B, 1, T, T), and cosines and sines of the positions if any."""
        length, values = hidden.mask.shape[1], hidden.values
        causal = torch.ones(length, length, dtype=torch.bool, device=values.device).tril()
        allowed = causal & hidden.mask[:, None, None, :]
        bias = torch.zeros_like(allowed, dtype=values.dtype).masked_fill(~allowed, MASKED_SCORE)
        (rotary,) = self._rotary
        if rotary is None:
            return bias, {}
        index = torch.arange(length, device=values.device)[None]
        positions = positions_from(columns) if self.axes else index
        return bias, {"position_embeddings": rotary(values, positions)}

    def call(self, layer: nn.Module, hidden: Tensor, mask: Tensor, context: Any) -> Tensor:
        """See `StreamEncoder.call`."""
        bias, positions = context
        output = layer(hidden, attention_mask=bias, **positions)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def finish(self, hidden: Tokens) -> Tokens:
        """See `StreamEncoder.finish`."""
        assert self.norm is not None
        values = self.norm(hidden.values)
        if self.embedding is not None:
            # Frozen to the end: a mean of bfloat16 values would lose half of their digits.
            values = values.float()
        return mean_of_groups(Tokens(values, hidden.mask), self.pool)


def position_columns(positions: Tensor) -> Tensor:
    """(axes, T) positions below 16,384 to (T, 2 axes) columns: of each its 128s and the rest."""
    high, low = positions // BASE, positions % BASE
    return torch.stack([high, low], dim=-1).permute(1, 0, 2).flatten(1)


def positions_from(columns: Tensor) -> Tensor:
    """(B, T, 2 axes) columns to (axes, B, T) int64 positions; inverse of `position_columns`."""
    whole = columns.float().round().long()
    return (whole[..., 0::2] * BASE + whole[..., 1::2]).permute(2, 0, 1)
