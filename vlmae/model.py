"""VLMAE: frozen towers, projections into one width, fusion in the middle, an MLP head a task.

Source: Sun et al. 2025 (arXiv 2503.17551) for the shape (pre-trained VL and audio models, learnable
attention between them, an MLP that decides); sizes and losses are our reconstruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlmae.fusion import Fusion
from vlmae.tokens import Tokens, concatenate

TOWERS = ("vl", "audio")


@dataclass(frozen=True)
class Output:
    """What the model says of a batch.

    Attributes:
        logits: (B, K) of the fused model, one column a task.
        vl_logits: (B, K) of the head that sees vision and language only.
        audio_logits: (B, K) of the head that sees audio only.
        embedding: (B, D) fused penultimate vector, not normalised.
    """

    logits: Tensor
    vl_logits: Tensor
    audio_logits: Tensor
    embedding: Tensor


class VlmaeModel(nn.Module):
    """The trainable part: from frozen tokens to logits.

    Args:
        streams: tower ("vl", "audio") -> stream name -> width of its frozen tokens.
        components: width of the whitened tokens (`vlmae.data.whitening`); the maps are buffers,
            set by `set_whitening`, saved with the checkpoint and never trained.
        fusion: a variant; its `width` is the width of all projected tokens.
        tasks: one binary head each.
        dropout: in the heads, in [0, 1).
        suffix: what lies behind the cuts of the towers and trains (`vlmae.towers.build_suffix`), or
            None if both are frozen to their ends. `streams` are those behind it.
    """

    def __init__(
        self,
        streams: Mapping[str, Mapping[str, int]],
        components: int,
        fusion: Fusion,
        tasks: Sequence[str],
        dropout: float,
        suffix: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if sorted(streams) != sorted(TOWERS):
            raise ValueError(f"streams must be given for {TOWERS}, got {sorted(streams)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"model.dropout is {dropout}: give a share in [0, 1)")
        if not tasks:
            raise ValueError("tasks is empty: name at least one task")
        self.streams = {tower: dict(streams[tower]) for tower in TOWERS}
        self.tasks = list(tasks)
        self.suffix = suffix
        self.fusion = fusion
        width = fusion.width
        self.project = nn.ModuleDict(
            {
                name: _Projection(stream_width, components, width)
                for tower in TOWERS
                for name, stream_width in self.streams[tower].items()
            }
        )
        self.vl_head = _Heads(width, width, len(tasks), dropout)
        self.audio_head = _Heads(width, width, len(tasks), dropout)
        if not fusion.averages_heads:
            self.heads = _Heads(fusion.embedding_width, width, len(tasks), dropout)

    def forward(self, streams: Mapping[str, Tokens]) -> Output:
        """Logits of one batch.

        Args:
            streams: stream name -> frozen tokens (B, T, width at the cut), in any float type.
        """
        streams = {name: tokens.float() for name, tokens in streams.items()}
        if self.suffix is not None:
            streams = self.suffix(streams)
        vl, audio = (
            concatenate([self.project[name](streams[name]) for name in self.streams[tower]])
            for tower in TOWERS
        )
        fused = self.fusion(vl, audio)
        vl_mean, audio_mean = vl.mean(), audio.mean()
        if self.fusion.averages_heads:
            vl_logits, audio_logits = self.vl_head(vl_mean), self.audio_head(audio_mean)
            logits = _mean_of_present(vl_logits, vl.present, audio_logits, audio.present)
        else:
            vl_logits = self.vl_head(vl_mean.detach())
            audio_logits = self.audio_head(audio_mean.detach())
            logits = self.heads(fused.embedding)
        return Output(logits, vl_logits, audio_logits, fused.embedding)

    def set_whitening(self, maps: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Set every stream's mean (width,) and map (width, components).

        Raises:
            ValueError: a stream is absent, or a shape does not fit.
        """
        if sorted(maps) != sorted(self.project):
            raise ValueError(f"whitening is for streams {sorted(maps)}, not {sorted(self.project)}")
        for name, (mean, mapping) in maps.items():
            projection = self.project[name]
            assert isinstance(projection, _Projection)
            if projection.map.shape != mapping.shape:
                raise ValueError(
                    f"whitening of {name!r} maps {tuple(mapping.shape)}, the model wants "
                    f"{tuple(projection.map.shape)}: fit it with model.components"
                )
            projection.mean.copy_(mean)
            projection.map.copy_(mapping)

    def trainable_parameters(self) -> dict[str, int]:
        """Count of trainable parameters by part."""
        counts: dict[str, int] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                part = name.split(".")[0]
                counts[part] = counts.get(part, 0) + parameter.numel()
        return counts


class _Projection(nn.Module):
    """Frozen tokens of one stream, whitened, to the model's width."""

    mean: Tensor
    map: Tensor

    def __init__(self, stream_width: int, components: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(stream_width))
        self.register_buffer("map", torch.zeros(stream_width, components))
        self.linear = nn.Linear(components, width)

    def forward(self, tokens: Tokens) -> Tokens:
        # Zero under the mask: NaN times a zero weight or gradient would still be NaN.
        values = torch.where(tokens.mask[..., None], tokens.values, 0.0)
        whitened = (values - self.mean) @ self.map
        return Tokens(self.linear(whitened), tokens.mask)


class _Heads(nn.Module):
    """An MLP for every task on a shared vector: (B, D) to (B, K)."""

    def __init__(self, source: int, hidden: int, tasks: int, dropout: float) -> None:
        super().__init__()
        self.tasks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(source, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, 1)
            )
            for _ in range(tasks)
        )

    def forward(self, embedding: Tensor) -> Tensor:
        return torch.cat([head(embedding) for head in self.tasks], dim=-1)


def _mean_of_present(a: Tensor, a_present: Tensor, b: Tensor, b_present: Tensor) -> Tensor:
    """Mean of two logits where both modalities are there, else the one that is; 0 if neither."""
    weight_a, weight_b = a_present[:, None].to(a.dtype), b_present[:, None].to(b.dtype)
    return (a * weight_a + b * weight_b) / (weight_a + weight_b).clamp_min(1.0)
