"""Encoding again: size, keyframes, times, turns and sound, as FFmpeg's tools and PyAV see them."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from source_files import image, video

from vlmae.data.decode import BadClipError
from vlmae.data.prepare.ingest.reencode import reencode, shrink_image, target_size
from vlmae.data.prepare.probe import probe


def frames_of(media: bytes) -> tuple[list[float], list[float], np.ndarray]:
    """Times of all frames and of the keyframes in seconds, and the first picture in RGB."""
    with av.open(io.BytesIO(media)) as container:
        frames = list(container.decode(video=0))
        keys = [float(f.pts * f.time_base) for f in frames if f.key_frame]
        times = [float(f.pts * f.time_base) for f in frames]
        return times, keys, frames[0].to_ndarray(format="rgb24")


def test_a_keyframe_every_second_and_a_short_side_within_the_limit() -> None:
    made = reencode(video(size=(480, 322), seconds=3.0), 160, "k").media
    times, keys, picture = frames_of(made)
    assert picture.shape == (160, 238, 3)
    np.testing.assert_allclose(times, np.arange(24) / 8, atol=1e-3)
    np.testing.assert_allclose(keys, [0.0, 1.0, 2.0], atol=1e-3)
    found = probe({"mp4": made}, "k")
    assert (found.video_codec, found.audio_codec, found.frames) == ("h264", "aac", 24)
    assert (found.audio_rate, found.audio_channels) == (16_000, 1)
    assert found.duration_s == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((96, 64), 256, (96, 64)),
        ((1920, 1080), 256, (456, 256)),
        ((1080, 1920), 256, (256, 456)),
        ((97, 65), 256, (96, 64)),
        ((2000, 20), 16, (1600, 16)),
        ((3, 1), 16, (4, 2)),
    ],
)
def test_target_sizes_are_even_never_enlarged_and_keep_their_shape(
    size: tuple[int, int], short_side: int, expected: tuple[int, int]
) -> None:
    assert target_size(*size, short_side) == expected


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_turned_video_comes_out_upright(rotation: int) -> None:
    source = video(rotation=rotation, size=(96, 64))
    with av.open(io.BytesIO(source)) as container:
        stored = next(container.decode(video=0))
        turns = round(stored.rotation / 90) % 4
        upright = np.rot90(stored.to_ndarray(format="rgb24"), turns)
    assert turns == rotation // 90 % 4, "the test's video is turned as asked"
    made = reencode(source, 256, "k").media
    with av.open(io.BytesIO(made)) as container:
        again = next(container.decode(video=0))
        assert again.rotation == 0
        picture = again.to_ndarray(format="rgb24")
    assert picture.shape == upright.shape
    assert np.abs(picture.astype(int) - upright).mean() < 6


@pytest.mark.parametrize("colours", ["bt709", "bt601", "full"])
def test_colours_survive_what_the_source_says_about_them(tmp_path: Path, colours: str) -> None:
    flags = {
        "bt709": ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"],
        "bt601": ["-colorspace", "smpte170m"],
        "full": ["-pix_fmt", "yuvj420p", "-color_range", "pc"],
    }[colours]
    path = tmp_path / "c.mp4"
    lavfi = "color=c=0xC84030:s=320x240:d=1:r=8"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", lavfi, "-c:v", "libx264"]
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is absent: apt-get install ffmpeg")
    pixels = [] if colours == "full" else ["-pix_fmt", "yuv420p"]
    subprocess.run([*command, *pixels, *flags, str(path)], check=True)
    before = frames_of(path.read_bytes())[2].mean((0, 1))
    after = frames_of(reencode(path.read_bytes(), 64, "k").media)[2].mean((0, 1))
    np.testing.assert_allclose(after, before, atol=4)


def test_variable_frame_times_and_gaps_are_kept() -> None:
    times = [0.0, 0.04, 0.3, 0.33, 1.7, 1.75, 4.0, 4.2]
    made = reencode(video(times=times, seconds=4.5), 256, "k").media
    found, keys, _ = frames_of(made)
    np.testing.assert_allclose(found, times, atol=2e-3)
    np.testing.assert_allclose(keys, [0.0, 1.7, 4.0], atol=2e-3)


@pytest.mark.parametrize(
    ("layout", "rate", "expected"),
    [("5.1", 48_000, (48_000, 2)), ("stereo", 44_100, (44_100, 2)), ("mono", 96_000, (48_000, 1))],
)
def test_sound_keeps_its_rate_up_to_48_khz_and_two_channels(
    layout: str, rate: int, expected: tuple[int, int]
) -> None:
    made = reencode(video(sound=layout, rate=rate), 256, "k").media
    found = probe({"mp4": made}, "k")
    assert (found.audio_rate, found.audio_channels) == expected
    with av.open(io.BytesIO(made)) as container:
        wave = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
    assert wave.shape[1] == pytest.approx(expected[0], rel=0.06)
    assert np.abs(wave).max() > 0.2


def test_other_containers_no_sound_and_no_picture() -> None:
    webm = reencode(video(codec="libvpx-vp9", container="webm"), 256, "k").media
    assert probe({"mp4": webm}, "k").video_codec == "h264"
    silent = reencode(video(sound=None), 256, "k")
    assert probe({"mp4": silent.media}, "k").audio_codec is None
    assert not silent.sound_dropped
    buffer = io.BytesIO()
    with av.open(io.BytesIO(video())) as source, av.open(buffer, "w", format="mp4") as target:
        copied = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = copied
                target.mux(packet)
    heard = probe({"mp4": reencode(buffer.getvalue(), 256, "k").media}, "k")
    assert (heard.video_codec, heard.audio_codec) == (None, "aac")


ENCODED = """
import hashlib, sys
from pathlib import Path
import numpy as np
from vlmae.data.prepare import PrepareConfig
from vlmae.data.prepare.encode import encode
from vlmae.data.prepare.ingest.reencode import reencode

made = [reencode(path.read_bytes(), int(path.stem), "k").media for path in map(Path, sys.argv[1:])]
rng = np.random.default_rng(0)
for size in (96, 128):
    config = PrepareConfig(name="generated", bank="generated", frame_size=size, digit_size=28)
    frames = rng.integers(0, 256, (16, size * 3 // 2, size), np.uint8)
    made.append(encode(frames, np.zeros(16_000, np.float32), config))
print([hashlib.sha256(media).hexdigest()[:8] for media in made])
"""


def test_equal_bytes_whatever_lies_in_fresh_memory(tmp_path: Path) -> None:
    sources = []
    for size, side in [((320, 240), 128), ((96, 64), 32), ((130, 96), 96)]:
        sources.append(tmp_path / f"{side}.mp4")
        sources[-1].write_bytes(video(4, size=size, rotation=90))
    told = {
        subprocess.run(
            [sys.executable, "-c", ENCODED, *sources],
            env={**os.environ, "MALLOC_PERTURB_": fill},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for fill in ("0", "85", "255")
    }
    assert len(told) == 1


@pytest.mark.parametrize(
    ("media", "reason"),
    [
        (b"", "empty file"),
        (b"not a video at all" * 99, "undecodable file"),
        (video()[:700], "undecodable file"),
    ],
)
def test_unusable_files_are_bad_clips(media: bytes, reason: str) -> None:
    with pytest.raises(BadClipError) as caught:
        reencode(media, 256, "k")
    assert caught.value.reason == reason


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is absent: install ffmpeg")
def test_ffprobe_sees_a_plain_file(tmp_path: Path) -> None:
    path = tmp_path / "made.mp4"
    path.write_bytes(reencode(video(size=(640, 360), seconds=2.0), 256, "k").media)
    entries = "stream=codec_name,width,height,r_frame_rate,nb_frames:format=duration"
    command = ["ffprobe", "-v", "error", "-show_entries", entries, "-of", "json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    told = json.loads(done.stdout)
    picture = next(s for s in told["streams"] if s["codec_name"] == "h264")
    assert (picture["width"], picture["height"], picture["nb_frames"]) == (456, 256, "16")
    assert picture["r_frame_rate"] == "8/1"


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_images_shrink_turn_upright_and_small_ones_stay_as_they_are(kind: str) -> None:
    small = image((40, 30), kind)
    assert shrink_image(small, 256, "k") == small
    with Image.open(io.BytesIO(shrink_image(image((400, 300), kind), 60, "k"))) as made:
        assert (made.format, made.size) == (kind, (80, 60))
    for orientation, bright in ((3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))):
        turned = image((40, 30), kind, orientation)
        upright = shrink_image(turned, 256, "k")
        with Image.open(io.BytesIO(upright)) as made:
            pixels = np.asarray(made.convert("L"))
        assert pixels[bright] > 150, orientation
        assert pixels.shape == ((40, 30) if orientation != 3 else (30, 40))
    with pytest.raises(BadClipError, match="undecodable image"):
        shrink_image(small[: len(small) // 2], 256, "k")
