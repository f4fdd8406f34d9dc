"""Pictures of every codec and kind of file: the right frames, upright, equal in both backends."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
import pytest
from media_files import (
    TURNS,
    backends,
    decode,
    film,
    grey,
    image_file,
    remuxed,
    rotated,
    shown,
    sine,
    textures,
    wave_file,
)

from vlmae.data.decode import BadClipError, pyav, torchcodec_pictures, why_torchcodec_fails
from vlmae.data.decode.container import PictureIndex, opened, scan

# Levels of 255. Measured 0 between FFmpeg 5.1 (torchcodec) and 8.1 (PyAV) over all files below.
TOLERANCE = 2
CODECS = [
    ("libx264", "mp4", "aac"),
    ("libx264", "matroska", "aac"),
    ("libx264", "mpegts", "aac"),
    ("libx265", "mp4", "aac"),
    ("libvpx-vp9", "webm", "libopus"),
    ("libvpx", "webm", "libopus"),
    ("libsvtav1", "mp4", "aac"),
    ("mpeg4", "avi", "libmp3lame"),
]
needs_torchcodec = pytest.mark.skipif(
    bool(why_torchcodec_fails()), reason=f"torchcodec does not load: {why_torchcodec_fails()}"
)


@pytest.fixture(params=backends())
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend. torchcodec must do the work itself: PyAV, which judges for it, is taken away."""
    if request.param == "torchcodec":

        def refuse(*_: Any) -> None:
            raise AssertionError("torchcodec refused a good file, and PyAV was asked")

        monkeypatch.setattr(pyav, "read_pictures", refuse)
    return str(request.param)


@pytest.mark.parametrize(("codec", "container", "audio"), CODECS)
def test_every_codec_gives_its_frames_and_sound(
    codec: str, container: str, audio: str, backend: str
) -> None:
    media = film(
        20,
        codec=codec,
        container_format=container,
        audio_codec=audio,
        gop=5,
        sound=sine(2.0, 16_000),
    )
    clip = decode(media, 4, backend)
    assert shown(clip.frames) == [2, 7, 12, 17]
    assert clip.frames.shape == (4, 64, 64, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.frames.flags.c_contiguous
    assert clip.video_missing is None
    assert clip.audio_missing is None
    assert abs(len(clip.audio) - 32_000) <= 2048


@needs_torchcodec
@pytest.mark.parametrize(("codec", "container", "audio"), CODECS)
@pytest.mark.parametrize("sampling", ["uniform", "keyframe", "segment_random"])
def test_both_backends_give_the_same_clip(
    codec: str, container: str, audio: str, sampling: str
) -> None:
    media = film(
        20,
        codec=codec,
        container_format=container,
        audio_codec=audio,
        gop=7,
        pictures=textures(20, 96, 72),
        width=96,
        height=72,
        sound=sine(1.0, 48_000, 2),
        rate=48_000,
    )
    clips = [decode(media, 5, name, sampling=sampling) for name in ("pyav", "torchcodec")]
    difference = np.abs(clips[0].frames.astype(int) - clips[1].frames)
    assert difference.max() <= TOLERANCE
    np.testing.assert_array_equal(clips[0].audio, clips[1].audio)


@needs_torchcodec
@pytest.mark.parametrize("size", [(128, 128), (90, 70), (62, 50)])
@pytest.mark.parametrize("colours", [{}, {"colorspace": "bt709"}, {"color_range": "pc"}])
def test_both_backends_give_the_same_colours(
    size: tuple[int, int], colours: dict[str, str]
) -> None:
    width, height = size
    pictures = textures(4, width, height)
    media = film(4, pictures=pictures, width=width, height=height, options=colours)
    clips = [decode(media, 4, name) for name in ("pyav", "torchcodec")]
    assert np.abs(clips[0].frames.astype(int) - clips[1].frames).max() <= TOLERANCE
    # And they are the colours that went in, but for what 4:2:0 loses.
    assert np.abs(clips[0].frames.astype(int) - np.stack(pictures)).mean() < 15


@pytest.mark.parametrize("degrees", list(TURNS))
def test_rotated_pictures_come_out_upright(degrees: int, backend: str) -> None:
    media = rotated(film(6, width=96, height=64, corner=True), degrees)
    frames = decode(media, 2, backend).frames
    assert frames.shape == ((2, 64, 96, 3) if degrees % 180 == 0 else (2, 96, 64, 3))
    # Clockwise from the top left; the bright corner moves with the clock.
    picture = frames[0].mean(axis=-1)
    corners = [picture[4, 4], picture[4, -4], picture[-4, -4], picture[-4, 4]]
    assert int(np.argmax(corners)) == degrees // 90


def test_variable_frame_rate_counts_frames_and_not_seconds(backend: str) -> None:
    media = film(10, times=[0, 1, 2, 3, 4, 50, 61, 72, 83, 94])
    assert shown(decode(media, 2, backend).frames) == [2, 7]
    assert shown(decode(media, 10, backend).frames) == list(range(10))


def test_file_that_does_not_start_at_zero(backend: str) -> None:
    assert shown(decode(film(10, times=list(range(30, 40))), 10, backend).frames) == [*range(10)]


def test_frames_stored_out_of_order_are_read_in_the_order_shown(backend: str) -> None:
    media = film(20, gop=9, options={"preset": "medium", "bf": "3"})
    assert shown(decode(media, 20, backend).frames) == list(range(20))
    assert shown(decode(media, 3, backend).frames) == [3, 10, 16]


def test_frames_between_open_groups_are_exact(backend: str) -> None:
    # The frames shown before a keyframe but stored behind it depend on the group before.
    options = {"x265-params": "open-gop=1:log-level=none:pools=none", "bf": "3", "preset": "fast"}
    media = film(20, codec="libx265", gop=6, options=options)
    assert shown(decode(media, 20, backend).frames) == list(range(20))
    for frames in (3, 5, 7):
        expected = [int((run + 0.5) / frames * 20) for run in range(frames)]
        assert shown(decode(media, frames, backend).frames) == expected


def test_frames_before_the_start_of_a_trimmed_file_are_not_asked_for(backend: str) -> None:
    # `ffmpeg -ss 0.5 -c copy` keeps the packets before the cut and marks them as not shown.
    media = remuxed(film(10), shift_seconds=0.5)
    assert shown(decode(media, 5, backend).frames) == [5, 6, 7, 8, 9]


def test_trimmed_file_with_a_later_keyframe(backend: str) -> None:
    media = remuxed(film(20, gop=8, options={"sc_threshold": "0"}), shift_seconds=0.5)
    assert shown(decode(media, 15, backend).frames) == list(range(5, 20))


def test_one_frame_is_repeated(backend: str) -> None:
    clip = decode(film(1, sound=sine(1.0, 16_000)), 3, backend)
    assert shown(clip.frames) == [0, 0, 0]
    assert clip.audio_missing is None


def test_keyframe_sampling_decodes_keyframes(backend: str) -> None:
    media = film(20, gop=4, options={"sc_threshold": "0"})
    assert shown(decode(media, 4, backend, sampling="keyframe").frames) == [0, 4, 12, 16]


def test_pyav_decodes_only_what_the_wanted_frames_need(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[list[tuple[int, int]]] = []
    real = pyav.runs

    def spy(*arguments: Any) -> list[tuple[int, int]]:
        planned.append(real(*arguments))
        return planned[-1]

    monkeypatch.setattr(pyav, "runs", spy)
    media = film(20, gop=4, options={"sc_threshold": "0", "bf": "0"})
    decode(media, 4, "pyav", sampling="keyframe")
    decode(media, 2, "pyav")
    assert planned == [[(0, 0), (4, 4), (12, 12), (16, 16)], [(4, 5), (12, 15)]]


def test_time_without_a_frame_of_its_own_gets_the_frame_on_screen() -> None:
    # VP8 stores references that no player shows; they have packets and times of their own.
    media = film(20)
    with opened(media, "k") as container:
        index = scan(container, "k", sample_rate=16_000, max_seconds=None).pictures
        assert index is not None
        times = sorted(index.times)
        between = (times[9] + times[10]) // 2
        hidden = PictureIndex(
            index.stream,
            index.time_base,
            [*index.times, between],
            [*index.keyframes, False],
            [*index.shown, True],
            has_times=True,
        )
        frames = pyav.read_pictures(container, media, hidden, [times[3], between], "k")
    assert shown(frames) == [3, 9]


def test_max_seconds_cuts_picture_and_sound(backend: str) -> None:
    media = film(20, gop=6, sound=sine(2.0, 44_100, 2), rate=44_100)
    clip = decode(media, 10, backend, max_seconds=1.0)
    assert shown(clip.frames) == list(range(10))
    assert len(clip.audio) == 16_000
    assert shown(decode(media, 20, backend, max_seconds=60.0).frames) == list(range(20))


def test_max_seconds_of_a_file_that_does_not_start_at_zero(backend: str) -> None:
    media = film(20, times=list(range(30, 50)), options={"preset": "medium", "bf": "3"})
    assert shown(decode(media, 5, backend, max_seconds=0.5).frames) == [0, 1, 2, 3, 4]


def test_sound_alone_has_no_frames(backend: str) -> None:
    clip = decode(film(0, sound=sine(1.0, 16_000)), 2, backend)
    assert clip.frames.shape == (0, 0, 0, 3)
    assert clip.video_missing == "no video stream"
    assert clip.audio_missing is None
    assert len(clip.audio) == 16_000


def test_cover_of_an_audio_file_is_no_video() -> None:
    buffer = io.BytesIO()
    with (
        av.open(io.BytesIO(wave_file(sine(1.0, 16_000), container_format="flac"))) as sound,
        av.open(io.BytesIO(image_file(grey(5))), format="jpeg_pipe") as cover,
        av.open(buffer, "w", format="flac") as target,
    ):
        tracks = [
            (source, target.add_stream_from_template(source.streams[0]))
            for source in (sound, cover)
        ]
        tracks[1][1].disposition = av.stream.Disposition.attached_pic
        for source, track in tracks:
            for packet in source.demux(0):
                if packet.size:
                    packet.stream = track
                    target.mux(packet)
    media = buffer.getvalue()
    with av.open(io.BytesIO(media)) as container:
        assert len(container.streams.video) == 1, "the file has no cover: the test proves nothing"
    clip = decode({"flac": media})
    assert clip.video_missing == "no video stream"
    assert len(clip.audio) == 16_000
    assert decode({"mp4": media}).video_missing == "no video stream"


def test_frames_of_several_sizes_are_a_bad_clip() -> None:
    small = film(4, container_format="mpegts")
    large = film(4, times=[4, 5, 6, 7], container_format="mpegts", width=96, height=96)
    for name in ("pyav", *(() if why_torchcodec_fails() else ("torchcodec",))):
        with pytest.raises(BadClipError, match="64 x 64, 96 x 96") as caught:
            decode(small + large, backend=name)
        assert caught.value.reason == "frames of several sizes"


def test_what_torchcodec_refuses_pyav_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def VideoDecoder(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("Could not push packet to decoder")

    monkeypatch.setattr("vlmae.data.decode.policy.why_torchcodec_fails", lambda: "")
    monkeypatch.setattr(torchcodec_pictures, "import_module", lambda _: Refusing())
    assert shown(decode(film(10), 2, "torchcodec").frames) == [2, 7]


def test_metadata_in_another_encoding_is_no_reason_to_fail(backend: str) -> None:
    media = film(4)
    assert media.count(b"VideoHandler") == 1
    media = media.replace(b"VideoHandler", b"Vid\xe9oHandler")
    assert shown(decode(media, 4, backend).frames) == [0, 1, 2, 3]


def test_picture_too_large_for_memory_is_a_bad_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmae.data.decode.container.LARGEST_PICTURE", 63 * 64)
    with pytest.raises(BadClipError, match="64 x 64") as caught:
        decode(film(4))
    assert caught.value.reason == "picture too large"
