"""Features and tokens of audio towers against transformers' own extractors and models."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny_audio_models as tiny
import torch
from audio_towers import Folders, audio, clip_of, close, noise, write_folders
from transformers import (
    ASTFeatureExtractor,
    ASTModel,
    ClapAudioModelWithProjection,
    ClapFeatureExtractor,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    WavLMModel,
    WhisperFeatureExtractor,
    WhisperModel,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder as ReferenceEncoder

from vlmae.backbones.clap import Clap
from vlmae.backbones.spectrogram_transformer import SpectrogramTransformer
from vlmae.backbones.waveform import Waveform
from vlmae.backbones.whisper import Whisper

WAVES = {"hubert": HubertModel, "wavlm": WavLMModel}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return write_folders(tmp_path_factory.mktemp("audio-models"))


# The sound as the model wants it, against its own feature extractor.


def test_whispers_features(folders: Folders) -> None:
    tower = Whisper(folders["whisper"])
    extractor = WhisperFeatureExtractor.from_pretrained(folders["whisper"])
    assert extractor.feature_size == tiny.BANDS, "not the default 80"
    for seconds in (0.3, 1.5):
        sound = noise(seconds, 16_000)
        sound[800:2400] = 0.0  # so far below the loudest that the floor lifts it
        ours = tower.reader.read(torch.from_numpy(sound)[None])[0]
        theirs = extractor(sound, sampling_rate=16_000, return_tensors="pt").input_features[0].T
        assert ours.shape == (100 * seconds, tiny.BANDS)
        # The last frames see reflected sound here, and silence there.
        close(ours[:-3], theirs[: len(ours) - 3])


def test_spectrogram_features_with_padding_and_several_windows(folders: Folders) -> None:
    tower = SpectrogramTransformer(folders["ast"])
    extractor = ASTFeatureExtractor.from_pretrained(folders["ast"])
    sound = noise(2.3, 16_000)
    frames = 1 + (len(sound) - 400) // 160
    ours = tower.reader.read(torch.from_numpy(sound)[None])[0]
    assert len(ours) == 256
    assert frames == 228
    # The extractor cuts at one window: a clip's first one is what it makes of the whole clip.
    close(ours[:128], extractor(sound, 16_000, return_tensors="pt").input_values[0])
    rest = sound[128 * 160 :]
    close(ours[128:], extractor(rest, 16_000, return_tensors="pt").input_values[0])
    assert (ours[frames:] == 7.0 / 6.0).all(), "zeros, normalised"


@pytest.mark.parametrize("family", ["clap", "clap_fused"])
def test_claps_features_repeat_short_sounds(folders: Folders, family: str) -> None:
    tower = Clap(folders[family])
    extractor = ClapFeatureExtractor.from_pretrained(folders[family])
    for seconds in (0.3, 1.0, 0.7):
        sound = noise(seconds, 48_000)
        ours = tower.reader.read(torch.from_numpy(sound)[None])[0]
        theirs = extractor(sound, sampling_rate=48_000, return_tensors="pt").input_features[0, 0]
        close(ours, theirs, 1e-3)  # dB, from -100 to 30
    sound = noise(1.7, 48_000)
    ours = tower.reader.read(torch.from_numpy(sound)[None])[0]
    for start, window in ((0, ours[:101]), (48_000, ours[101:])):
        part = sound[start : start + 48_000]
        theirs = extractor(part, sampling_rate=48_000, return_tensors="pt").input_features[0, 0]
        close(window, theirs, 1e-3)


@pytest.mark.parametrize(("family", "normalised"), [("hubert", True), ("wavlm", False)])
def test_samples_are_normalised_where_the_extractor_says_so(
    folders: Folders, family: str, normalised: bool
) -> None:
    sound = noise(0.5, 16_000) + np.float32(0.2)
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folders[family])
    theirs = extractor(sound, sampling_rate=16_000, return_tensors="pt").input_values[0]
    ours = Waveform(folders[family], tuned_blocks="all").prefix([clip_of(sound)])["audio"][0]
    close(ours[:, 0], theirs)
    assert abs(float(ours.mean())) < 1e-4 if normalised else torch.equal(ours[:, 0], theirs)


# Uncut tokens, against the model's own forward.


def test_whisper_equals_its_own_encoder_on_thirty_seconds_and_on_short_clips(
    folders: Folders,
) -> None:
    tower = Whisper(folders["whisper"])
    whole = WhisperModel.from_pretrained(folders["whisper"]).encoder.eval()
    long = noise(31.0, 16_000)
    features = WhisperFeatureExtractor.from_pretrained(folders["whisper"])(
        long[: 30 * 16_000], sampling_rate=16_000, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = whole(features.input_features).last_hidden_state[0]
    tokens = audio(tower, [long])[0]
    assert tokens.shape == (1500, tiny.WIDTH), "what follows 30 s is cut"
    close(tokens, expected)
    # transformers' encoder runs on 1.5 s when it is built with 75 positions, the first ones.
    config = copy.deepcopy(whole.config)
    config.max_source_positions = 75
    reference = ReferenceEncoder(config).eval()
    state = whole.state_dict()
    state["embed_positions.weight"] = state["embed_positions.weight"][:75]
    reference.load_state_dict(state)
    short = noise(1.5, 16_000)
    with torch.inference_mode():
        features = tower.reader.read(torch.from_numpy(short)[None]).transpose(1, 2)
        expected = reference(features).last_hidden_state[0]
    close(audio(tower, [short])[0], expected)
    pooled = audio(Whisper(folders["whisper"], pool=10), [short])[0]
    assert len(pooled) == 8
    close(pooled[:7], expected[:70].unflatten(0, (7, 10)).mean(dim=1))
    close(pooled[7], expected[70:].mean(dim=0))


def test_spectrogram_transformer_equals_its_own_model_on_every_window(folders: Folders) -> None:
    model = ASTModel.from_pretrained(folders["ast"]).eval()
    extractor = ASTFeatureExtractor.from_pretrained(folders["ast"])
    sound = noise(2.3, 16_000)
    parts = [sound, sound[128 * 160 :]]
    with torch.inference_mode():
        theirs = model(extractor(parts, 16_000, return_tensors="pt").input_values)
    hidden = theirs.last_hidden_state
    assert hidden.shape == (2, 38, tiny.WIDTH)
    close(audio(SpectrogramTransformer(folders["ast"]), [sound])[0], hidden.flatten(0, 1))
    one = audio(SpectrogramTransformer(folders["ast"], pool=0), [sound])[0]
    close(one, theirs.pooler_output)
    # Three bands of patches by twelve steps in time.
    steps = hidden[:, 2:].unflatten(1, (3, 12)).mean(dim=1)
    some = audio(SpectrogramTransformer(folders["ast"], pool=5), [sound])[0]
    means = [steps[:, :5], steps[:, 5:10], steps[:, 10:]]
    expected = [hidden[:, :2], *(mean.mean(dim=1, keepdim=True) for mean in means)]
    close(some, torch.cat(expected, dim=1).flatten(0, 1))


@pytest.mark.parametrize("family", ["hubert", "hubert_large", "wavlm", "wavlm_large"])
def test_waveform_encoders_equal_their_own_models(folders: Folders, family: str) -> None:
    model = WAVES[family.split("_")[0]].from_pretrained(folders[family]).eval()
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folders[family])
    # 400 samples are one position, and with 2.3 s WavLM's distances pass its largest bucket.
    sounds = [noise(seconds, 16_000) for seconds in (1.5, 0.025, 2.3)]
    tokens = audio(Waveform(folders[family]), sounds)
    for sound, ours in zip(sounds, tokens, strict=True):
        inputs = extractor(sound, sampling_rate=16_000, return_tensors="pt").input_values
        with torch.inference_mode():
            close(ours, model(inputs).last_hidden_state[0])
    assert len(tokens[1]) == 1
    pooled = audio(Waveform(folders[family], pool=10), sounds)[0]
    close(pooled[0], tokens[0][:10].mean(dim=0))


@pytest.mark.parametrize("family", ["clap", "clap_fused"])
def test_clap_equals_its_own_model_on_every_window(folders: Folders, family: str) -> None:
    model = ClapAudioModelWithProjection.from_pretrained(folders[family]).eval().audio_model
    extractor = ClapFeatureExtractor.from_pretrained(folders[family])
    sound = noise(1.7, 48_000)
    features = torch.cat(
        [
            extractor(part, sampling_rate=48_000, return_tensors="pt").input_features
            for part in (sound[:48_000], sound[48_000:])
        ]
    )
    with torch.inference_mode():
        theirs = model(features, is_longer=torch.zeros(2, 1, dtype=torch.bool))
    hidden = theirs.last_hidden_state  # (2, D, frequencies, times)
    assert hidden.shape == (2, tiny.WIDTH, 2, 32)
    ordered = hidden.flatten(2).transpose(1, 2)
    close(audio(Clap(folders[family]), [sound])[0], ordered.flatten(0, 1))
    close(audio(Clap(folders[family], pool=0), [sound])[0], theirs.pooler_output)
    steps = hidden.mean(dim=2).unflatten(2, (8, 4)).mean(dim=3).transpose(1, 2)
    close(audio(Clap(folders[family], pool=4), [sound])[0], steps.flatten(0, 1))
