"""VLMAE: frozen towers, projections into one width, fusion in the middle, an MLP head a task.

Source: Sun et al. 2025 (arXiv 2503.17551) for the shape (pre-trained VL and audio models, learnable
attention between them, an MLP that decides); sizes and losses are our reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlmae.fusion import Fusion, InnerBlocks
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
        modality_dropout: tower -> share of samples that lose it in training, e.g. {"audio": 0.1}. A
            sample never loses both, nor the only one it has. The unimodal heads still see what the
            fusion does not: their inputs are detached, or, under late fusion, they are the model
            and the logits that are averaged are those of the towers that were kept.

    Raises:
        ValueError: a value out of range, or the fusion acts inside VL blocks and none is behind the
            cut.
    """

    def __init__(
        self,
        streams: Mapping[str, Mapping[str, int]],
        components: int,
        fusion: Fusion,
        tasks: Sequence[str],
        dropout: float,
        suffix: nn.Module | None = None,
        *,
        modality_dropout: Mapping[str, float] | None = None,
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
        self.modality_dropout = _checked_rates(modality_dropout or {})
        self.suffix = suffix
        self.fusion = fusion
        if fusion.acts_inside:
            fusion.attach(_inner_blocks(suffix, self.streams["vl"]))
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
        kept = self._kept(streams)
        if not self.fusion.acts_inside:
            vl, audio = self.encode(streams)
            return self.decide(vl, audio, vl.keep(kept["vl"]), audio.keep(kept["audio"]))
        towers = {
            tower: {name: streams[name] for name in names} for tower, names in self.streams.items()
        }
        audio = self._projected("audio", self._behind(towers["audio"]))
        heard = audio.keep(kept["audio"])
        hooks = self.fusion.hooks(heard)
        changed = self._behind(towers["vl"], hooks)
        seen = self._projected("vl", changed).keep(kept["vl"])
        with torch.no_grad():  # the VL head alone reads it, and its input is detached
            alone = self._behind({name: towers["vl"][name] for name in hooks})
            vl = self._projected("vl", {**changed, **alone})
        return self.decide(vl, audio, seen, heard)

    def passes(self, streams: Mapping[str, Tokens]) -> Callable[[], Output]:
        """Forward passes over one batch; what lies in front of all dropout is computed once.

        For passes with dropout, whose cost is mostly that of projecting wide tokens. The model is
        in evaluation mode but for modules that draw at random.

        Args:
            streams: as `forward` wants them.

        Returns:
            What makes a pass: bit for bit `self(streams)`, with the same draws.
        """
        in_front = [self.project] if self.suffix is None else [self.project, self.suffix]
        if self.fusion.acts_inside or any(map(drawing_modules, in_front)):
            return lambda: self(streams)
        streams = {name: tokens.float() for name, tokens in streams.items()}
        kept = self._kept(streams)
        vl, audio = self.encode(streams)
        seen, heard = vl.keep(kept["vl"]), audio.keep(kept["audio"])
        return lambda: self.decide(vl, audio, seen, heard)

    def encode(self, streams: Mapping[str, Tokens]) -> tuple[Tokens, Tokens]:
        """VL and audio tokens (B, T, D) behind the suffix and the projection, before any fusion.

        Args:
            streams: as `forward` wants them, in float32.
        """
        behind = self._behind(streams)
        return self._projected("vl", behind), self._projected("audio", behind)

    def decide(
        self, vl: Tokens, audio: Tokens, seen: Tokens | None = None, heard: Tokens | None = None
    ) -> Output:
        """Fusion and heads: the part that reads projected tokens only.

        Args:
            vl: (B, Tv, D) for the VL head, without any influence of audio.
            audio: (B, Ta, D) for the audio head.
            seen: VL tokens for the fusion; `vl` if None.
            heard: audio tokens for the fusion; `audio` if None.
        """
        seen, heard = vl if seen is None else seen, audio if heard is None else heard
        fused = self.fusion(seen, heard)
        vl_mean, audio_mean = vl.mean(), audio.mean()
        if self.fusion.averages_heads:
            vl_logits, audio_logits = self.vl_head(vl_mean), self.audio_head(audio_mean)
            logits = _mean_of_present(vl_logits, seen.present, audio_logits, heard.present)
        else:
            vl_logits = self.vl_head(vl_mean.detach())
            audio_logits = self.audio_head(audio_mean.detach())
            logits = self.heads(fused.embedding)
        return Output(logits, vl_logits, audio_logits, fused.embedding)

    def _behind(
        self, streams: Mapping[str, Tokens], between: Mapping[str, Any] | None = None
    ) -> Mapping[str, Tokens]:
        """Streams behind the suffix."""
        if self.suffix is None:
            return streams
        behind: Mapping[str, Tokens] = (
            self.suffix(streams, between) if between else self.suffix(streams)
        )
        return behind

    def _projected(self, tower: str, streams: Mapping[str, Tokens]) -> Tokens:
        """All streams of a tower in the model's width, one after the other."""
        return concatenate([self.project[name](streams[name]) for name in self.streams[tower]])

    def _kept(self, streams: Mapping[str, Tokens]) -> dict[str, Tensor]:
        """Tower -> (B,) bool, False where modality dropout takes it away in this forward pass."""
        vl, audio = (
            torch.stack([streams[name].present for name in self.streams[tower]]).any(dim=0)
            for tower in TOWERS
        )
        if not self.training or not any(self.modality_dropout.values()):
            return {"vl": torch.ones_like(vl), "audio": torch.ones_like(audio)}
        # One number decides for both towers: never both, each at its own rate.
        draw = torch.rand(len(vl), device=vl.device)
        both = vl & audio
        vl_rate, audio_rate = (self.modality_dropout.get(tower, 0.0) for tower in TOWERS)
        return {"vl": ~(both & (draw < vl_rate)), "audio": ~(both & (draw >= 1.0 - audio_rate))}

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
    """Frozen tokens of one stream, whitened here unless they are already, to the model's width."""

    mean: Tensor
    map: Tensor

    def __init__(self, stream_width: int, components: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(stream_width))
        self.register_buffer("map", torch.zeros(stream_width, components))
        self.linear = nn.Linear(components, width)

    def forward(self, tokens: Tokens) -> Tokens:
        # Zero under the mask: NaN times a zero weight or gradient would still be NaN.
        whitened = tokens.zero_masked().values
        if not tokens.whitened:
            whitened = (whitened - self.mean) @ self.map
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


def drawing_modules(model: nn.Module) -> list[nn.Module]:
    """Modules that draw at random when they train; attention drops out by a flag of its own."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.Dropout | nn.MultiheadAttention)
    ]


def _checked_rates(rates: Mapping[str, float]) -> dict[str, float]:
    """Modality dropout, if it can be: known towers, shares, and something left to learn from."""
    unknown = sorted(set(rates) - set(TOWERS))
    if unknown:
        raise ValueError(f"model.modality_dropout names {unknown}, the towers are {TOWERS}")
    if any(not 0 <= rate < 1 for rate in rates.values()) or sum(rates.values()) >= 1:
        raise ValueError(
            f"model.modality_dropout is {dict(rates)}: give shares in [0, 1) that add up to less "
            "than 1"
        )
    return {tower: float(rate) for tower, rate in rates.items()}


def _inner_blocks(suffix: nn.Module | None, streams: Mapping[str, int]) -> dict[str, InnerBlocks]:
    """Of the streams that have blocks with hidden states between them behind the cut."""
    modules = dict(suffix.named_children()) if suffix is not None else {}
    found: dict[str, InnerBlocks] = {}
    for name in streams:
        module: Any = modules.get(name)
        if module is not None and module.hidden_width > 0 and len(module.layers):
            numbers = tuple(int(number) for number in module.layers)
            found[name] = InnerBlocks(numbers, module.hidden_width)
    return found


def _mean_of_present(a: Tensor, a_present: Tensor, b: Tensor, b_present: Tensor) -> Tensor:
    """Mean of two logits where both modalities are there, else the one that is; 0 if neither."""
    weight_a, weight_b = a_present[:, None].to(a.dtype), b_present[:, None].to(b.dtype)
    return (a * weight_a + b * weight_b) / (weight_a + weight_b).clamp_min(1.0)
