"""Sound: mono at one rate, as long as its track, mixed alike from any source, masked if bad."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import backends, decode, film, shown, sine, wave_file

from vlmae.data.prepare import PrepareConfig
from vlmae.data.prepare.encode import encode


def loudest_frequency(wave: np.ndarray) -> float:
    middle = wave[len(wave) // 4 : 3 * len(wave) // 4]
    return float(np.abs(np.fft.rfft(middle)).argmax()) * 16_000 / len(middle)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_two_seconds_of_sound_are_two_seconds_of_samples(rate: int, backend: str) -> None:
    # An AAC packet is 1024 samples: without trimming, the padding of the last one is heard too.
    clip = decode(film(20, sound=sine(2.0, rate, 2), rate=rate), backend=backend)
    assert clip.audio.shape == (32_000,)
    assert clip.audio.dtype == np.float32
    assert clip.audio_missing is None
    assert loudest_frequency(clip.audio) == pytest.approx(440, abs=2)


@pytest.mark.parametrize(
    ("container", "codec"),
    [("wav", "pcm_s16le"), ("wav", "pcm_u8"), ("wav", "pcm_f32le"), ("wav", "pcm_f64le"),
     ("wav", "pcm_s32le"), ("flac", "flac"), ("ogg", "libopus"), ("mp3", "libmp3lame"),
     ("ipod", "aac")],
)  # fmt: skip
def test_sound_files_of_every_format(container: str, codec: str) -> None:
    media = film(0, sound=sine(2.0, 48_000), rate=48_000, container_format=container,
                 audio_codec=codec)  # fmt: skip
    clip = decode({"flac" if container == "flac" else "wav": media})
    assert clip.audio.shape == (32_000,)
    assert loudest_frequency(clip.audio) == pytest.approx(440, abs=2)
    # Its loudness, not its peak: lossy codecs overshoot.
    assert float(np.sqrt(np.mean(clip.audio**2))) == pytest.approx(0.5 / np.sqrt(2), rel=0.06)


def test_wave_of_the_same_rate_is_passed_through() -> None:
    sound = sine(1.0, 16_000)
    clip = decode({"wav": wave_file(sound)})
    assert np.abs(clip.audio - sound[0]).max() <= 1 / 32_768


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_sound_resampled_in_pieces_has_no_seams(rate: int) -> None:
    audio = decode({"wav": wave_file(sine(3.0, rate), rate)}).audio
    # Measured 3e-5, of which 16 bits are 2e-5; the first and last 12 ms are the filter's edges.
    assert np.abs(audio - sine(3.0, 16_000)[0])[200:-200].max() < 1e-4


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("channels", [2, 6, 8])
@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_channels_are_averaged(channels: int, codec: str, backend: str) -> None:
    # Eight channels crash PyAV 18 where its own arrays are used (sound.py).
    sound = np.zeros((channels, 96_000), np.float32)
    sound[1] = sine(2.0, 48_000)
    media = film(2, sound=sound, rate=48_000, audio_codec=codec, container_format="mov")
    audio = decode(media, backend=backend).audio
    assert audio.shape == (32_000,)
    assert loudest_frequency(audio) == pytest.approx(440, abs=2)
    # Neither summed nor dropped, nor mixed by FFmpeg's matrix.
    assert float(np.abs(audio[1000:-1000]).max()) == pytest.approx(0.5 / channels, rel=0.02)


def test_equal_channels_are_not_made_louder() -> None:
    one, two = (decode(film(4, sound=sine(1.0, 16_000, channels))) for channels in (1, 2))
    loudness = [float(np.sqrt(np.mean(clip.audio[2000:-2000] ** 2))) for clip in (one, two)]
    assert loudness[1] == pytest.approx(loudness[0], rel=0.02)


def test_no_audio_track() -> None:
    clip = decode(film(10))
    assert clip.audio.shape == (0,)
    assert clip.audio_missing == "no audio track"


def test_audio_track_without_a_packet() -> None:
    config = PrepareConfig(name="generated", bank="generated")
    frames = np.full((8, 192, 128), 128, np.uint8)
    clip = decode(encode(frames, sine(1.0, 16_000)[0], config, "zero_length_audio"))
    assert clip.audio_missing == "zero-length audio"
    assert clip.audio.shape == (0,)
    assert len(clip.frames) == 2


def test_sound_shorter_than_one_analysis_window_is_missing() -> None:
    picture = film(4)
    for samples, missing in ((399, "zero-length audio"), (400, None)):
        sound = wave_file(sine(samples / 16_000, 16_000))
        assert decode({"mp4": picture, "wav": sound}).audio_missing == missing


def with_damaged_sound(media: bytes, content: bytes, packets: slice = slice(None)) -> bytes:
    """The packets of the sound overwritten; those of the picture are whole."""
    with av.open(io.BytesIO(media)) as container:
        places = [(p.pos, p.size) for p in container.demux(audio=0) if p.size]
    damaged = bytearray(media)
    for position, size in places[packets]:
        damaged[position : position + size] = (content * size)[:size]
    return bytes(damaged)


@pytest.mark.parametrize("backend", backends())
def test_damaged_sound_beside_a_good_picture_is_masked(backend: str) -> None:
    media = with_damaged_sound(film(10, sound=sine(1.0, 16_000)), b"\xff\x00\x13")
    clip = decode(media, backend=backend)
    assert shown(clip.frames) == [2, 7]
    assert clip.audio_missing == "undecodable audio"
    assert clip.audio.shape == (0,)


def test_one_lost_packet_of_many_is_no_reason_to_lose_the_sound() -> None:
    media = film(20, sound=sine(2.0, 16_000))
    clip = decode(with_damaged_sound(media, b"\xff", slice(5, 6)))
    assert clip.audio_missing is None
    assert 29_000 < len(clip.audio) <= 32_000


def test_sound_that_is_no_number_is_masked() -> None:
    sound = sine(1.0, 16_000)
    sound[0, 500] = np.nan
    media = film(0, sound=sound, container_format="wav", audio_codec="pcm_f32le")
    assert decode({"mp4": film(4), "wav": media}).audio_missing == "undecodable audio"


def test_unknown_audio_codec_is_masked() -> None:
    media = film(4, sound=sine(1.0, 16_000))
    start = media.index(b"mp4a", media.index(b"stsd", media.rindex(b"moov")))
    media = media[:start] + b"zzzz" + media[start + 4 :]
    clip = decode(media.replace(b"\x40\x15", b"\xf9\x15"), 4)
    assert shown(clip.frames) == [0, 1, 2, 3]
    assert clip.audio_missing == "unknown audio codec"


def test_sound_that_changes_its_rate_and_channels_is_read_on() -> None:
    first = film(4, sound=sine(0.4, 16_000), container_format="mpegts")
    rest = sine(0.4, 44_100, 2)
    second = film(4, times=[4, 5, 6, 7], sound=rest, rate=44_100, container_format="mpegts")
    clip = decode(first + second)
    assert clip.audio_missing is None
    assert np.isfinite(clip.audio).all()
    assert len(clip.audio) == pytest.approx(0.8 * 16_000, abs=4096)


def test_file_of_its_own_replaces_the_track_of_the_video() -> None:
    media = film(4, sound=sine(1.0, 16_000))
    clip = decode({"mp4": media, "wav": wave_file(sine(2.0, 16_000, frequency=1000.0))})
    assert len(clip.audio) == 32_000
    assert loudest_frequency(clip.audio) == pytest.approx(1000, abs=2)


PEAK = """
import sys
from vlmae.data.decode import DecodePolicy, decode_sample
media = open(sys.argv[1], "rb").read()
limit = float(sys.argv[2]) if len(sys.argv) > 2 else None
policy = DecodePolicy(2, backend="pyav", max_seconds=limit)
clip = decode_sample({"flac": media}, key="k", policy=policy, sample_rate=16_000)
status = open("/proc/self/status").read()  # not getrusage: it keeps the peak of the parent
print(len(clip.audio), status.split("VmHWM:")[1].split()[0])
"""


def test_memory_does_not_grow_beyond_max_seconds(tmp_path: Path) -> None:
    peaks = []
    for minutes in (1, 60):
        silence = np.zeros((1, minutes * 60 * 8_000), np.float32)
        path = tmp_path / f"{minutes}.flac"
        path.write_bytes(wave_file(silence, rate=8_000, container_format="flac"))
        answer = subprocess.run(
            [sys.executable, "-c", PEAK, str(path), "5"], capture_output=True, text=True, check=True
        )
        samples, kilobytes = map(int, answer.stdout.split())
        assert samples == 5 * 16_000
        peaks.append(kilobytes)
    # The whole hour would be 230 MB of samples.
    assert peaks[1] - peaks[0] < 30_000
