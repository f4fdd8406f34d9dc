"""Tables of frozen tokens: what the model reads, wherever the tokens come from.

Two kinds: `vlmae.data.prefix_cache.PrefixCache` maps them from files, `vlmae.data.encode.
EncodedShard` has just computed them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from lsb.progress import progressed
from vlmae.tokens import Tokens

Rows = npt.NDArray[np.int64]
Streams = Mapping[str, Mapping[str, int]]


class TokenTable(Protocol):
    """Tokens of clips by row number.

    Attributes:
        streams: tower -> stream name -> width of its tokens, as `prefix` returns them.
        identities: tower -> identity of its frozen weights.
        rows: one row a clip: id, key, split, shard, offset, size, duration_s, audio_missing and
            video_missing (why, or null).
    """

    @property
    def streams(self) -> Streams:
        """See the class."""

    @property
    def identities(self) -> Mapping[str, Any]:
        """See the class."""

    @property
    def rows(self) -> pa.Table:
        """See the class."""

    def batch(self, rows: Rows, stream: str) -> Tokens:
        """(B, T, width) tokens of one stream in the dtype they are kept in, padded."""


def widths(streams: Streams) -> dict[str, int]:
    """Stream name -> width, over both towers."""
    return {name: width for tower in streams.values() for name, width in tower.items()}


def frozen_tokens(table: TokenTable, rows: Rows, suffix: nn.Module | None) -> dict[str, Tokens]:
    """Float32 tokens of some clips as the model reads them.

    Args:
        table: of tokens at the cut.
        rows: (B,) row numbers.
        suffix: what lies behind the cut (`vlmae.towers.build_suffix`), or None; in any mode, left
            in evaluation mode, since it may have dropout.

    Raises:
        ValueError: the table has whitened tokens.
    """
    streams = {name: table.batch(rows, name).float() for name in widths(table.streams)}
    if any(tokens.whitened for tokens in streams.values()):
        raise ValueError("whitened tokens are for models: give the cache that they were made of")
    progressed(f"tokens of {len(rows)} clips read")
    if suffix is None:
        return streams
    device = next((parameter.device for parameter in suffix.parameters()), torch.device("cpu"))
    streams = {name: tokens.to(device) for name, tokens in streams.items()}
    suffix.eval()
    with torch.inference_mode():
        behind: dict[str, Tokens] = suffix(streams)
    return behind


class TokenCodec:
    """How tokens are kept: as they are, as float16 or bfloat16, or int8 with one scale a token.

    Args:
        dtype: "float16", "bfloat16", "int8" or "float32".
    """

    DTYPES = ("float16", "bfloat16", "int8", "float32")

    def __init__(self, dtype: str) -> None:
        if dtype not in self.DTYPES:
            raise ValueError(f"prefix.dtype is {dtype!r}: use one of {', '.join(self.DTYPES)}")
        self.dtype = dtype

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the arrays that keep the tokens of one stream."""
        return ("tokens", "scale") if self.dtype == "int8" else ("tokens",)

    @property
    def kept(self) -> npt.DTypeLike:
        """dtype of the array "tokens"; numpy knows no bfloat16, so its bits are kept."""
        if self.dtype == "bfloat16":
            return np.uint16
        return np.dtype(self.dtype)

    def bytes_per_token(self, width: int) -> int:
        """Bytes that one token of a stream takes."""
        return width * np.dtype(self.kept).itemsize + (2 if self.dtype == "int8" else 0)

    def encode(self, values: Tensor) -> dict[str, npt.NDArray[Any]]:
        """(T, D) float32 to the arrays named by `files`, tokens first.

        Raises:
            ValueError: a value is not finite, or does not fit into the dtype.
        """
        if self.dtype == "int8":
            scale = (values.abs().amax(dim=1) / 127).to(torch.float16)
            # A scale that rounds to 0 belongs to a token that is 0 to within 1e-5.
            steps = torch.where(scale > 0, scale.float(), 1.0)[:, None]
            kept = torch.round(values / steps).clamp(-127, 127).to(torch.int8).numpy()
            arrays = {"tokens": kept, "scale": scale.numpy()}
            held = self.decode(arrays)
        elif self.dtype == "bfloat16":
            held = values.to(torch.bfloat16)
            arrays = {"tokens": held.view(torch.uint16).numpy()}
        else:
            held = values.to(torch.float32 if self.dtype == "float32" else torch.float16)
            arrays = {"tokens": held.numpy()}
        if not torch.isfinite(held).all():
            raise ValueError(
                f"tokens up to {float(values.abs().max()):.3g} do not fit into {self.dtype}: use "
                "prefix.dtype=bfloat16, or look for a diverged encoder"
            )
        return arrays

    def decode(self, arrays: Mapping[str, npt.NDArray[Any]]) -> Tensor:
        """Inverse of `encode` on any leading shape: float16, or the float type it is kept in."""
        tokens = torch.from_numpy(arrays["tokens"])
        if self.dtype == "int8":
            return (tokens.float() * torch.from_numpy(arrays["scale"]).float()[..., None]).half()
        return tokens.view(torch.bfloat16) if self.dtype == "bfloat16" else tokens


def pad_spans(
    spans: Sequence[tuple[Mapping[str, npt.NDArray[Any]], int, int]],
    width: int,
    codec: TokenCodec,
) -> Tokens:
    """Copy spans of flat arrays into one padded batch.

    Args:
        spans: of each clip: the arrays of its part by name, first token, number of tokens.
        width: of the stream.
        codec: how the tokens are kept.
    """
    lengths = np.array([length for _, _, length in spans], np.int64)
    longest = max(1, int(lengths.max(initial=0)))
    out: dict[str, npt.NDArray[Any]] = {
        "tokens": np.zeros((len(spans), longest, width), codec.kept)
    }
    if "scale" in codec.files:
        out["scale"] = np.zeros((len(spans), longest), np.float16)
    for row, (arrays, start, length) in enumerate(spans):
        if length:
            for name, kept in out.items():
                kept[row, :length] = arrays[name][start : start + length]
    mask = torch.from_numpy(np.arange(longest) < lengths[:, None])
    return Tokens(codec.decode(out), mask)
