"""Another voice, and no voice: what is left of the speaker and what of everything else."""

from __future__ import annotations

import numpy as np
import pytest

from lsb.ids import sample_id
from vlmae.data.prepare.speech import speak_all
from vlmae.handoff.anonymise import AnonymiseConfig, anonymise
from vlmae.handoff.pictures import contact_sheet, mel, waveform
from vlmae.handoff.speech import speech_mask
from vlmae.handoff.voice import SAMPLE_RATE, Wave, bend_formants, shift_pitch

CLIP = sample_id("clip")
SECRET = bytes(range(32))
NOISE = 0.002


@pytest.fixture(scope="module")
def voices() -> list[Wave]:
    """Spoken digits of espeak-ng, three of each speaker."""
    takes = [one for one in speak_all(1) if one.digit in (1, 4, 8)]
    assert len(takes) == 24
    return [one.sound.astype(np.float32) / 65536 for one in takes]


def in_a_clip(voice: Wave, seconds: float = 3.0) -> tuple[Wave, slice]:
    """A voice after a second of a quiet room, and where it is."""
    wave = np.random.default_rng(0).normal(0, NOISE, round(seconds * SAMPLE_RATE))
    place = slice(SAMPLE_RATE, SAMPLE_RATE + len(voice))
    wave[place] += voice[: len(wave) - SAMPLE_RATE]
    return wave.astype(np.float32), place


def tone(frequency: float, seconds: float = 1.0) -> Wave:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.3 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def peak_hz(wave: Wave) -> float:
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return float(np.argmax(spectrum)) * SAMPLE_RATE / len(wave)


def centroid_hz(wave: Wave) -> float:
    spectrum = np.abs(np.fft.rfft(wave)) ** 2
    return float(np.sum(spectrum * np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)) / spectrum.sum())


@pytest.mark.parametrize("semitones", [-12.0, -3.7, -2.0, 2.0, 3.3, 12.0])
def test_pitch_moves_by_what_is_asked_and_time_does_not(semitones: float) -> None:
    wave = np.concatenate([tone(440.0, 1.5), np.zeros(SAMPLE_RATE, np.float32)])
    moved = shift_pitch(wave, semitones)
    assert moved.shape == wave.shape
    assert moved.dtype == np.float32
    assert peak_hz(moved[2000:22_000]) == pytest.approx(440 * 2 ** (semitones / 12), rel=0.01)
    assert np.abs(moved[26_000:]).max() < 0.02  # the tone ends where it ended
    assert np.array_equal(moved, shift_pitch(wave, semitones))


def test_formants_move_and_the_pitch_stays() -> None:
    # A buzz of 120 Hz through one resonance at 1 kHz.
    from scipy.signal import lfilter

    buzz = np.zeros(SAMPLE_RATE)
    buzz[:: SAMPLE_RATE // 125] = 1.0
    angle = 2 * np.pi * 1000 / SAMPLE_RATE
    voiced = lfilter([1.0], np.poly(0.97 * np.exp([1j * angle, -1j * angle])).real, buzz)
    wave = (0.3 * voiced / np.abs(voiced).max()).astype(np.float32)
    bent = bend_formants(wave, 0.8)
    assert bent.shape == wave.shape
    expected = angle**0.8 * SAMPLE_RATE / 2 / np.pi
    assert expected > 1190
    assert peak_hz(wave) == pytest.approx(1000, abs=80)
    assert peak_hz(bent) == pytest.approx(expected, abs=130)
    for sound in (wave, bent):  # still 125 pulses a second
        lags = np.correlate(sound[:4000], sound[:4000], "full")[3999:]
        assert abs(int(np.argmax(lags[90:200])) + 90 - SAMPLE_RATE // 125) <= 1
    assert np.sqrt(np.mean(bent**2)) == pytest.approx(np.sqrt(np.mean(wave**2)), rel=0.1)
    assert np.array_equal(bend_formants(wave, 1.0), wave)


def test_every_clip_gets_a_voice_of_its_own_and_keeps_it() -> None:
    config = AnonymiseConfig("shift", seed=3)
    wave = tone(200.0, 0.4)
    first = anonymise(CLIP, wave, config, SECRET)
    assert np.array_equal(first.wave, anonymise(CLIP, wave, config, SECRET).wave)
    assert first.seconds == pytest.approx(0.4)
    drawn = [
        anonymise(sample_id(f"clip-{number}"), wave, config, SECRET).parameters
        for number in range(40)
    ]
    sizes = [abs(one["semitones"]) for one in drawn]
    assert min(sizes) >= 2
    assert max(sizes) <= 4
    assert {one["semitones"] > 0 for one in drawn} == {True, False}
    assert all(0.75 <= one["formants"] <= 0.9 for one in drawn)
    assert len({tuple(one.values()) for one in drawn}) == 40
    other = anonymise(CLIP, wave, AnonymiseConfig("shift", seed=4), SECRET)
    assert other.parameters != first.parameters


def test_who_has_the_id_and_the_config_cannot_compute_the_shift() -> None:
    config, wave = AnonymiseConfig("shift"), tone(200.0, 0.4)
    drawn = {
        tuple(anonymise(CLIP, wave, config, bytes([number] * 32)).parameters.values())
        for number in range(20)
    }
    assert len(drawn) == 20, "it is drawn with the secret"
    for none in (None, b""):
        with pytest.raises(ValueError, match="shift without a secret"):
            anonymise(CLIP, wave, config, none)


def test_a_voice_sounds_like_another_one(voices: list[Wave]) -> None:
    config = AnonymiseConfig("shift")
    for number, voice in enumerate(voices[::4]):
        changed = anonymise(sample_id(f"voice-{number}"), voice, config, SECRET)
        moved = centroid_hz(changed.wave) / centroid_hz(voice)
        assert abs(np.log2(moved)) > 0.03, changed.parameters


def test_speech_is_gone_and_the_rest_is_untouched(voices: list[Wave]) -> None:
    for voice in voices:
        wave, place = in_a_clip(voice)
        done = anonymise(CLIP, wave, AnonymiseConfig("remove"))
        loud = np.abs(voice) > 0.02
        assert not done.wave[place][loud].any()
        assert not speech_mask(done.wave, threshold=0.3, padding=0.0).any()
        assert np.array_equal(done.wave[: SAMPLE_RATE // 2], wave[: SAMPLE_RATE // 2])
        assert np.array_equal(done.wave[-SAMPLE_RATE // 4 :], wave[-SAMPLE_RATE // 4 :])
        assert 0.2 < done.seconds < 2.0
        assert done.parameters == {"threshold": 0.3, "padding": 0.2}


def test_what_has_no_speech_stays() -> None:
    wave = np.random.default_rng(1).normal(0, NOISE, SAMPLE_RATE).astype(np.float32)
    done = anonymise(CLIP, wave, AnonymiseConfig("remove"))
    assert np.array_equal(done.wave, wave)
    assert done.seconds == 0
    nothing = np.zeros(0, np.float32)
    for method in ("none", "shift", "remove"):
        assert anonymise(CLIP, nothing, AnonymiseConfig(method)).wave.shape == (0,)
    assert anonymise(CLIP, wave, AnonymiseConfig()).wave is wave


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"anonymise\.method is 'blur'"):
        AnonymiseConfig("blur")  # type: ignore[arg-type]
    for semitones in ((0.0, 2.0), (3.0, 2.0), (2.0, 13.0)):
        with pytest.raises(ValueError, match=r"anonymise\.semitones is"):
            AnonymiseConfig(semitones=semitones)
    with pytest.raises(ValueError, match=r"anonymise\.formants is"):
        AnonymiseConfig(formants=(0.3, 0.9))
    with pytest.raises(ValueError, match=r"anonymise\.threshold is 1"):
        AnonymiseConfig(threshold=1)


def test_pictures_show_what_there_is() -> None:
    import io

    from PIL import Image

    frames = np.zeros((6, 60, 100, 3), np.uint8)
    frames[5, ..., 0] = 255
    with Image.open(io.BytesIO(contact_sheet(frames))) as sheet:
        assert sheet.size == (4 * 244 - 4, 2 * 148 - 4)
        assert sheet.getpixel((244 + 120, 148 + 72))[0] > 240  # the sixth, second row
        assert sheet.getpixel((120, 72))[0] < 15
    half = np.concatenate([np.zeros(8000, np.float32), tone(2000.0, 0.5)])
    with Image.open(io.BytesIO(waveform(half))) as picture:
        ink = np.asarray(picture.convert("L")) < 200
        assert ink[:, :390].sum(0).max() <= 2
        assert ink[:, 410:].sum(0).min() > 40
    with Image.open(io.BytesIO(mel(half))) as picture:
        light = np.asarray(picture.convert("L")).astype(float)
        assert light[:, 500:].mean() > 2 * light[:, :300].mean()
        row = int(light[:, 500:700].mean(1).argmax())
        assert 0.25 * 160 < row < 0.6 * 160  # 2 kHz lies a little above the middle of the scale
    empty = np.zeros(0, np.float32)
    for content in (contact_sheet(frames[:0]), waveform(empty), mel(empty)):
        with Image.open(io.BytesIO(content)) as picture:
            assert (np.asarray(picture.convert("L")) < 200).any()  # it says that there is none
