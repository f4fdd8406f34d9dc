"""Decoding of small files made here: which frames, how much sound, what is wrong."""

from __future__ import annotations

import io
from collections.abc import Callable

import av
import numpy as np
import pytest

from vlmae.data.decode import BadClipError, Clip, decode_clip
from vlmae.data.prepare import PrepareConfig
from vlmae.data.prepare.encode import encode

MediaMaker = Callable[..., bytes]


def sine(seconds: float, rate: int, channels: int = 1, frequency: float = 440.0) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.5 * np.sin(2 * np.pi * frequency * time)
    return np.stack([wave] * channels).astype(np.float32)


def decode(media: bytes, frames: int = 2) -> Clip:
    return decode_clip(media, key="k", title="t", frames=frames, sample_rate=16_000)


def shown(clip: Clip) -> list[int]:
    """Numbers of the decoded frames, read from their grey level."""
    return [round((float(frame.mean()) - 20) / 10) for frame in clip.frames]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (1, [5]),
        (2, [2, 7]),
        (4, [1, 3, 6, 8]),
        (10, list(range(10))),
        (20, sorted([*range(10)] * 2)),
    ],
)
def test_frames_at_the_midpoints(make_media: MediaMaker, asked: int, expected: list[int]) -> None:
    clip = decode(make_media(10), asked)
    assert shown(clip) == expected
    assert clip.frames.shape == (asked, 64, 64, 3)
    assert clip.frames.dtype == np.uint8
    assert (clip.key, clip.title) == ("k", "t")


def test_variable_frame_rate(make_media: MediaMaker) -> None:
    # Times are those of frames that exist, counted in frames and not in seconds.
    media = make_media(10, times=[0, 1, 2, 3, 4, 50, 61, 72, 83, 94])
    assert shown(decode(media, 2)) == [2, 7]
    assert shown(decode(media, 10)) == list(range(10))


def test_file_that_does_not_start_at_zero(make_media: MediaMaker) -> None:
    assert shown(decode(make_media(10, times=list(range(30, 40))), 10)) == list(range(10))


def test_one_frame_is_repeated(make_media: MediaMaker) -> None:
    clip = decode(make_media(1, sound=sine(1.0, 16_000)), 3)
    assert shown(clip) == [0, 0, 0]
    assert clip.audio_missing is None


def test_sound_is_mono_float32_of_the_whole_clip(make_media: MediaMaker) -> None:
    clip = decode(make_media(10, sound=sine(1.0, 16_000)))
    assert clip.audio.dtype == np.float32
    assert clip.audio.ndim == 1
    assert abs(len(clip.audio) - 16_000) <= 2048
    assert clip.audio_missing is None


def test_stereo_of_another_rate_is_mixed_and_resampled(make_media: MediaMaker) -> None:
    sound = sine(2.0, 44_100, channels=2)
    sound[1] = 0.0
    clip = decode(make_media(10, sound=sound, rate=44_100))
    assert abs(len(clip.audio) - 32_000) <= 2048
    middle = clip.audio[8_000:24_000]
    spectrum = np.abs(np.fft.rfft(middle))
    assert int(spectrum.argmax()) == 440
    # One channel of two at half amplitude: mixing averages, neither sums nor drops.
    assert float(np.abs(middle).max()) == pytest.approx(0.25, abs=0.03)


def test_equal_channels_are_not_made_louder(make_media: MediaMaker) -> None:
    mono = decode(make_media(4, sound=sine(1.0, 16_000)))
    stereo = decode(make_media(4, sound=sine(1.0, 16_000, channels=2)))
    loudness = [float(np.sqrt(np.mean(clip.audio[2000:-2000] ** 2))) for clip in (mono, stereo)]
    assert loudness[1] == pytest.approx(loudness[0], rel=0.02)


def test_no_audio_track(make_media: MediaMaker) -> None:
    clip = decode(make_media(10))
    assert clip.audio.shape == (0,)
    assert clip.audio_missing == "no audio track"


def test_audio_track_without_a_packet() -> None:
    config = PrepareConfig(name="generated", bank="generated")
    frames = np.full((8, 192, 128), 128, np.uint8)
    media = encode(frames, sine(1.0, 16_000)[0], config, "zero_length_audio")
    clip = decode(media)
    assert clip.audio_missing == "zero-length audio"
    assert clip.audio.shape == (0,)


def test_audio_only_is_a_bad_clip(make_media: MediaMaker) -> None:
    with pytest.raises(BadClipError, match="clip k: no video stream") as caught:
        decode(make_media(0, sound=sine(1.0, 16_000)))
    assert caught.value.reason == "no video stream"


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_truncated_file_is_a_bad_clip(make_media: MediaMaker, share: float) -> None:
    media = make_media(10, sound=sine(1.0, 16_000))
    with pytest.raises(BadClipError) as caught:
        decode(media[: int(share * len(media))])
    assert caught.value.reason == "undecodable file"


def test_bytes_that_are_no_media_are_a_bad_clip() -> None:
    with pytest.raises(BadClipError) as caught:
        decode(np.random.default_rng(0).bytes(5000))
    assert caught.value.reason == "undecodable file"


def faststart(media: bytes) -> bytes:
    """The same mp4 with its index first, as streaming sites store it."""
    buffer = io.BytesIO()
    options = {"movflags": "empty_moov+default_base_moof+frag_keyframe"}
    with (
        av.open(io.BytesIO(media)) as source,
        av.open(buffer, "w", format="mp4", options=options) as target,
    ):
        streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    return buffer.getvalue()


def test_file_cut_behind_its_index_gives_what_is_there(make_media: MediaMaker) -> None:
    media = faststart(make_media(20, sound=sine(2.0, 16_000)))
    assert shown(decode(media, 2)) == [5, 15]
    outcomes = set()
    for share in (0.2, 0.5, 0.7, 0.9):
        try:
            clip = decode(media[: int(share * len(media))])
        except BadClipError as bad:
            outcomes.add(bad.reason)
        else:
            assert clip.frames.shape == (2, 64, 64, 3)
            outcomes.add("decoded")
    assert "decoded" in outcomes
    assert outcomes <= {"decoded", "undecodable frames", "undecodable file"}


def test_frames_before_the_start_of_a_trimmed_file_are_not_asked_for(
    make_media: MediaMaker,
) -> None:
    # `ffmpeg -ss 0.5 -c copy` keeps the packets before the cut and marks them as not shown.
    source = make_media(10)
    buffer = io.BytesIO()
    with av.open(io.BytesIO(source)) as read, av.open(buffer, "w", format="mp4") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(read.streams.video[0]):
            if packet.dts is not None and packet.pts is not None:
                shift = round(0.5 / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = stream
                written.mux(packet)
    assert shown(decode(buffer.getvalue(), 5)) == [5, 6, 7, 8, 9]


def test_metadata_in_another_encoding_is_no_reason_to_fail(make_media: MediaMaker) -> None:
    media = make_media(4)
    assert media.count(b"VideoHandler") == 1
    assert shown(decode(media.replace(b"VideoHandler", b"Vid\xe9oHandler"), 4)) == [0, 1, 2, 3]


def renamed(media: bytes, box: bytes) -> bytes:
    """An mp4 whose codec nobody knows, by its four letters and, for sound, its object type."""
    start = media.index(box, media.index(b"stsd"))
    media = media[:start] + b"zzzz" + media[start + 4 :]
    return media.replace(b"\x40\x15", b"\xf9\x15") if box == b"mp4a" else media


def test_unknown_codecs_are_no_crash(make_media: MediaMaker) -> None:
    media = make_media(4, sound=sine(1.0, 16_000))
    clip = decode(renamed(media, b"mp4a"), 4)
    assert shown(clip) == [0, 1, 2, 3]
    assert clip.audio_missing == "zero-length audio"
    with pytest.raises(BadClipError) as caught:
        decode(renamed(media, b"avc1"))
    assert caught.value.reason == "unknown video codec"


def test_frames_of_several_sizes_are_a_bad_clip(make_media: MediaMaker) -> None:
    small = make_media(4, container_format="mpegts")
    large = make_media(4, times=[4, 5, 6, 7], container_format="mpegts", size=96)
    with pytest.raises(BadClipError) as caught:
        decode(small + large)
    assert caught.value.reason == "frames of several sizes"


def test_sound_that_changes_its_rate_is_read_up_to_there(make_media: MediaMaker) -> None:
    first = make_media(4, sound=sine(0.4, 16_000), container_format="mpegts")
    rest = sine(0.4, 44_100, channels=2)
    second = make_media(4, times=[4, 5, 6, 7], sound=rest, rate=44_100, container_format="mpegts")
    clip = decode(first + second)
    assert clip.audio_missing is None
    assert np.isfinite(clip.audio).all()


def test_damaged_bytes_are_never_a_crash(make_media: MediaMaker) -> None:
    media = make_media(20, sound=sine(2.0, 16_000))
    for seed in range(30):
        rng = np.random.default_rng(seed)
        damaged = bytearray(media)
        for place in rng.integers(0, len(media), 40):
            damaged[place] = int(rng.integers(256))
        try:
            clip = decode(bytes(damaged))
        except BadClipError:
            continue
        assert clip.frames.shape[0] == 2
        assert np.isfinite(clip.audio).all()
