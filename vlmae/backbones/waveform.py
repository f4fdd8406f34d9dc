"""HuBERT and WavLM: encoders of the waveform itself, without a spectrogram.

Source: Hsu et al. 2021 (arXiv 2106.07447), Chen et al. 2021 (arXiv 2110.13900). Two things differ
from transformers' forward, so that a padded batch gives what each clip gives alone: the first group
norm takes its statistics over real positions, and WavLM's blocks run on their projections as
modules, where transformers reads bare weights and an adapter (LoRA) on them would have no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import HubertModel, Wav2Vec2FeatureExtractor, WavLMModel

from vlmae.backbones.audio_stream import (
    AudioStream,
    AudioTower,
    SoundReader,
    check_pool,
    load_extractor,
)
from vlmae.backbones.pretrained import (
    identity_of,
    load_config,
    load_model,
    processor_sha256,
)
from vlmae.backbones.stream import StreamEncoder, Tuned
from vlmae.backbones.suffix import without_masked
from vlmae.tokens import Tokens

KINDS = {"hubert": HubertModel, "wavlm": WavLMModel}
SAMPLES_AT_A_TIME = 1_000_000
"""Of the convolutions, whose first output is 100 times as large as the sound: 0.4 GB."""
SCORES_AT_A_TIME = 64_000_000
"""Of WavLM's biases, one a clip, head, query and key: 0.26 GB; a longer clip runs alone."""


class Waveform(AudioTower):
    """The encoder of a HuBERT or WavLM checkpoint, base or large.

    Stream: "audio", 50 tokens a second averaged in groups of `pool`; at a cut all 50, at "all" the
        16,000 normalised samples a second. A sound shorter than the first position sees (25 ms) has
        no token. Layers are never dropped, nor is the sound masked while it trains.

    Args:
        model: hub id or local folder.
        revision: of a hub id.
        pool: positions averaged into one token.
        tuned_blocks: see `StreamTower`.
        max_seconds: a longer clip is cut there: attention costs the square of it.
        decode_rate: sample rate that clips arrive at, resampled on the device; None for the
            model's.
        dtype: of the frozen weights: "float32", "bfloat16" or "float16"; what trains is float32.

    Raises:
        ValueError: it is no such model, its files are not there, or a setting is out of range.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        pool: int = 1,
        tuned_blocks: Tuned | Mapping[str, Tuned] = 0,
        max_seconds: float = 30.0,
        decode_rate: int | None = None,
        dtype: str = "float32",
    ) -> None:
        config = load_config(model, revision, tuple(KINDS), "an encoder of the waveform")
        extractor = load_extractor(Wav2Vec2FeatureExtractor, model, revision)
        for setting in ("add_adapter", "conv_pos_batch_norm"):
            if getattr(config, setting, False):
                raise ValueError(
                    f"{model!r} has {setting}, which this tower does not run: choose a checkpoint "
                    "without it"
                )
        # Only training with transformers' own masks reads the mask's embedding.
        encoder = load_model(
            KINDS[config.model_type], model, revision, dtype, absent=["masked_spec"]
        )
        reader = WaveformReader(extractor, config, max_seconds, decode_rate)
        stream = WavLMStream if config.model_type == "wavlm" else WaveformStream
        name, known = identity_of(model, revision, config)
        super().__init__(
            stream(encoder, reader, pool, extractor),
            reader,
            tuned_blocks=tuned_blocks,
            name=name,
            revision=known,
            options={
                "pool": pool,
                "max_seconds": max_seconds,
                "extractor": processor_sha256(extractor),
            },
        )


class WaveformReader(SoundReader):
    """Samples, normalised to mean 0 and variance 1 where the extractor says so.

    Args:
        extractor: of the model.
        config: of the model.
        max_seconds: what is read of a clip.
        decode_rate: see `SoundReader`.
    """

    def __init__(
        self, extractor: Any, config: Any, max_seconds: float, decode_rate: int | None
    ) -> None:
        super().__init__(
            extractor.sampling_rate,
            1,
            longest=int(max_seconds * extractor.sampling_rate),
            shortest=receptive_field(config.conv_kernel, config.conv_stride),
            decode_rate=decode_rate,
        )
        self.normalise = bool(extractor.do_normalize)

    def features(self, sound: Tensor) -> Tensor:
        """See `SoundReader.features`."""
        if self.normalise:
            variance, mean = torch.var_mean(sound, dim=1, correction=0, keepdim=True)
            sound = (sound - mean) / (variance + 1e-7).sqrt()
        return sound[..., None]


class WaveformStream(AudioStream):
    """The parts of `HubertModel`."""

    def __init__(self, model: Any, reader: WaveformReader, pool: int, processor: Any) -> None:
        encoder, config = model.encoder, model.config
        check_pool(pool, 1, 10**6)
        super().__init__(
            reader,
            pool,
            WaveformEmbedding(model),
            list(encoder.layers),
            # The large flavour normalises behind its blocks, the base flavour before them.
            encoder.layer_norm if config.do_stable_layer_norm else nn.Identity(),
            width=config.hidden_size,
            processor=processor,
        )

    def embed(self, inputs: Tokens) -> Tokens:
        """See `StreamEncoder.embed`."""
        embedding: Any = self.embedding
        sound = self.cast(without_masked(inputs)[..., 0])
        rows = max(1, SAMPLES_AT_A_TIME // sound.shape[1])
        parts = zip(torch.split(sound, rows), torch.split(inputs.mask, rows), strict=True)
        values, mask = zip(*(embedding(part, real) for part, real in parts), strict=True)
        return Tokens(torch.cat(values), torch.cat(mask))


class WaveformEmbedding(nn.Module):
    """Strided convolutions, a projection and convolved positions.

    Args:
        model: `HubertModel` or `WavLMModel`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        config, encoder = model.config, model.encoder
        self.feature_extractor = model.feature_extractor
        self.feature_projection = model.feature_projection
        self.pos_conv_embed = encoder.pos_conv_embed
        stable = config.do_stable_layer_norm
        self.layer_norm = nn.Identity() if stable else encoder.layer_norm
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.shortest = receptive_field(config.conv_kernel, config.conv_stride)
        self.sizes = list(zip(config.conv_kernel, config.conv_stride, strict=True))

    def forward(self, sound: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) samples, zeros under the mask, to hidden states (B, T, width) and their mask."""
        sound = functional.pad(sound, (0, max(0, self.shortest - sound.shape[1])))
        lengths = mask.sum(dim=1)
        hidden = sound[:, None]
        # transformers' own loop asks for a gradient of the sound in training.
        for layer, (kernel, stride) in zip(
            self.feature_extractor.conv_layers, self.sizes, strict=True
        ):
            lengths = ((lengths - kernel).div(stride, rounding_mode="floor") + 1).clamp_min(0)
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                convolved = layer.conv(hidden)
                hidden = layer.activation(_channel_norm(convolved, _real(lengths, convolved), norm))
            else:
                hidden = layer(hidden)
        real = _real(lengths, hidden)
        projected = self.feature_projection(hidden.transpose(1, 2))
        states = projected[0] if isinstance(projected, tuple) else projected
        # Zeros are what the positional convolution pads with.
        states = torch.where(real[..., None], states, 0.0)
        states = self.layer_norm(states + self.pos_conv_embed(states))
        return self.dropout(states), real


class WavLMStream(WaveformStream):
    """The parts of `WavLMModel`, whose blocks share the relative positions of the first one."""

    def __init__(self, model: Any, reader: WaveformReader, pool: int, processor: Any) -> None:
        super().__init__(model, reader, pool, processor)
        self.stable = bool(model.config.do_stable_layer_norm)

    def _half(
        self, embedding: nn.Module | None, start: int, stop: int, norm: nn.Module | None
    ) -> StreamEncoder:
        half = super()._half(embedding, start, stop, norm)
        if start > 0:
            # Trained with the first block, which is frozen here.
            half.positions = _FrozenTable(_attention(self.layers["0"]).rel_attn_embed.weight)
        return half

    def context(self, hidden: Tokens) -> tuple[Tensor, Tensor] | None:
        """Bias of relative positions (heads, T, T) and the mask's scores (B, 1, 1, T)."""
        if not len(self.layers):
            return None
        attention = _attention(next(iter(self.layers.values())))
        shared: Any = attention.rel_attn_embed if "0" in self.layers else self.positions
        place = torch.arange(hidden.mask.shape[1], device=hidden.mask.device)
        buckets = attention._relative_positions_bucket(place[None, :] - place[:, None])
        return functional.embedding(buckets, shared.weight).permute(2, 0, 1), super().context(
            hidden
        )

    def call(self, layer: nn.Module, hidden: Tensor, mask: Tensor, context: Any) -> Tensor:
        """See `StreamEncoder.call`; in the order of `WavLMEncoderLayer` or its stable flavour."""
        block: Any = layer
        read = block.layer_norm(hidden) if self.stable else hidden
        hidden = hidden + block.dropout(wavlm_attention_by_rows(block.attention, read, *context))
        if self.stable:
            result: Tensor = hidden + block.feed_forward(block.final_layer_norm(hidden))
        else:
            hidden = block.layer_norm(hidden)
            result = block.final_layer_norm(hidden + block.feed_forward(hidden))
        return result


def wavlm_attention_by_rows(attention: Any, hidden: Tensor, bias: Tensor, scores: Tensor) -> Tensor:
    """`wavlm_attention` on as many clips at a time as `SCORES_AT_A_TIME` allows, at least one.

    Where that is several parts, gradients recompute each: kept for the backward, the gated biases
    of all parts would be as large together as undivided, also in a block that is itself recomputed.
    """
    rows = max(1, SCORES_AT_A_TIME // max(1, bias.numel()))
    if rows >= len(hidden):
        return wavlm_attention(attention, hidden, bias, scores)
    parts = []
    for some, masked in zip(torch.split(hidden, rows), torch.split(scores, rows), strict=True):
        if torch.is_grad_enabled():
            part: Any = checkpoint(
                wavlm_attention, attention, some, bias, masked, use_reentrant=False
            )
        else:
            part = wavlm_attention(attention, some, bias, masked)
        parts.append(part)
    return torch.cat(parts)


def wavlm_attention(attention: Any, hidden: Tensor, bias: Tensor, scores: Tensor) -> Tensor:
    """`WavLMAttention` on its projections as modules.

    Args:
        attention: the module.
        hidden: (B, T, D).
        bias: (heads, T, T) of relative positions, gated here by what stands at each query.
        scores: (B, 1, 1, T) added for the mask.
    """
    batch, length, _ = hidden.shape

    def by_head(values: Tensor) -> Tensor:
        return values.reshape(batch, length, attention.num_heads, -1).transpose(1, 2)

    gates = attention.gru_rel_pos_linear(by_head(hidden))
    gates = gates.reshape(*gates.shape[:-1], 2, 4).sum(dim=-1).sigmoid()
    gate = gates[..., :1] * (gates[..., 1:] * attention.gru_rel_pos_const - 1.0) + 2.0
    heard = functional.scaled_dot_product_attention(
        by_head(attention.q_proj(hidden)),
        by_head(attention.k_proj(hidden)),
        by_head(attention.v_proj(hidden)),
        attn_mask=gate * bias + scores,
        dropout_p=attention.dropout if attention.training else 0.0,
    )
    result: Tensor = attention.out_proj(heard.transpose(1, 2).flatten(2))
    return result


def receptive_field(kernels: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Samples that one output of stacked convolutions sees."""
    samples = 1
    for kernel, stride in reversed(list(zip(kernels, strides, strict=True))):
        samples = (samples - 1) * stride + kernel
    return int(samples)


class _FrozenTable(nn.Module):
    """A copy that is neither trained nor saved: the prefix has the weight, and its hash."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone(), persistent=False)


def _attention(layer: nn.Module) -> Any:
    return layer.attention


def _real(lengths: Tensor, hidden: Tensor) -> Tensor:
    """(B, T) mask of the first `lengths` positions of (B, C, T)."""
    return torch.arange(hidden.shape[2], device=hidden.device) < lengths[:, None]


def _channel_norm(hidden: Tensor, real: Tensor, norm: nn.GroupNorm) -> Tensor:
    """A group norm with one channel a group, with the statistics of real positions only."""
    weights = real[:, None].float()
    given, hidden = hidden.dtype, hidden.float()
    count = weights.sum(dim=2, keepdim=True).clamp_min(1.0)
    mean = (hidden * weights).sum(dim=2, keepdim=True) / count
    centred = hidden - mean
    variance = (centred.square() * weights).sum(dim=2, keepdim=True) / count
    scaled = (centred * (variance + norm.eps).rsqrt()).to(given)
    return scaled * norm.weight[:, None] + norm.bias[:, None]
