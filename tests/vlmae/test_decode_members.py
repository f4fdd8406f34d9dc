"""Titles in any encoding, images in place of a video, and which member is what."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from media_files import decode, film, grey, image_file, shown, sine, wave_file
from PIL import Image

from vlmae.data.decode import BadClipError

VIDEO = film(4)


def title(**members: bytes) -> str:
    return decode({"mp4": VIDEO, **members}, 1).title


@pytest.mark.parametrize(
    "text", ["a title", "日本語の題名", "Ünïcödé «quotes»", "🎬 עברית", "", "  x "]
)
def test_titles_of_every_script(text: str) -> None:
    assert title(json=json.dumps({"title": text}).encode()) == text
    assert title(json=json.dumps({"title": text}, ensure_ascii=False).encode()) == text
    assert title(txt=text.encode() + b"\n") == text.strip()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("caf\u00e9".encode("cp1252"), "café"),
        ("café".encode("utf-16"), "café"),
        ("café".encode("utf-8-sig"), "café"),
        (b"\x81\x8d", "\ufffd\ufffd"),
        (b"", ""),
    ],
)
def test_titles_in_other_encodings_are_read_and_never_a_crash(
    content: bytes, expected: str
) -> None:
    assert title(txt=content) == expected


def test_half_a_surrogate_becomes_a_replacement_character() -> None:
    assert title(json=b'{"title": "a \\ud83d b"}') == "a \ufffd b"
    assert title(json=b'{"title": "a \\ud83c\\udfac b"}') == "a 🎬 b"


def test_json_comes_before_txt() -> None:
    assert title(json=b'{"title": "of json"}', txt=b"of txt") == "of json"
    assert title(json=b'{"views": 3}', txt=b"of txt") == "of txt"
    assert title(json=b'{"title": null}') == ""
    assert title() == ""


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b'"text"', b'{"title": 3}', b"[" * 100_000, b'{"title": "x"', b"\xff\xfe{"],
)
def test_damaged_json_is_a_bad_clip(content: bytes) -> None:
    with pytest.raises(BadClipError) as caught:
        title(json=content)
    assert caught.value.reason == "undecodable title"


def images(*numbers: int, size: int = 64) -> dict[str, bytes]:
    return {f"{n:03d}.jpg": image_file(grey(n, size, size)) for n in numbers}


def test_images_with_a_sound_file_are_a_clip() -> None:
    clip = decode({**images(*range(6)), "flac": wave_file(sine(1.0, 16_000), 16_000, "flac")}, 3)
    assert shown(clip.frames) == [1, 3, 5]
    assert clip.frames.dtype == np.uint8
    assert len(clip.audio) == 16_000
    assert clip.audio_missing is None
    assert clip.video_missing is None


def test_one_image_is_repeated() -> None:
    clip = decode({"png": image_file(grey(3), "PNG"), "wav": wave_file(sine(1.0, 16_000))}, 3)
    assert shown(clip.frames) == [3, 3, 3]
    assert len(clip.audio) == 16_000


def test_images_without_a_sound_file() -> None:
    clip = decode(images(0, 1))
    assert clip.audio_missing == "no audio track"
    assert shown(clip.frames) == [0, 1]


def test_images_are_in_the_order_of_their_numbers() -> None:
    members = {f"{n}.jpg": image_file(grey(n)) for n in (10, 2, 1, 0)}
    assert shown(decode(members, 4).frames) == [0, 1, 2, 10]


@pytest.mark.parametrize("sampling", ["keyframe", "segment_random"])
def test_images_follow_the_policy(sampling: str) -> None:
    frames = shown(decode(images(*range(8)), 4, sampling=sampling).frames)
    assert all(run * 2 <= frame < run * 2 + 2 for run, frame in enumerate(frames))


def test_images_of_several_sizes_are_a_bad_clip() -> None:
    with pytest.raises(BadClipError, match="32 x 32, 64 x 64") as caught:
        decode({**images(0), "001.jpg": image_file(grey(0, 32, 32))}, 1)
    assert caught.value.reason == "images of several sizes"


def test_images_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by a quarter
    turned = decode({"jpg": image_file(grey(0, 96, 64, corner=True), quality=95, exif=exif)}, 1)
    assert turned.frames.shape == (1, 96, 64, 3)
    assert turned.frames[0, 4, -4].min() > 200
    assert turned.frames[0, 4, 4].max() < 60


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_images_of_every_colour_mode_become_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    image = Image.fromarray(grey(0)).convert("I" if mode == "I;16" else mode).convert(mode)
    image.save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    assert decode({"png": buffer.getvalue()}, 1).frames.shape == (1, 64, 64, 3)


def test_damaged_sound_beside_images_is_masked() -> None:
    for content, missing in ((b"nonsense" * 99, "undecodable audio"), (b"", "zero-length audio")):
        clip = decode({**images(0), "wav": content})
        assert clip.audio_missing == missing
        assert len(clip.frames) == 2


def test_image_beside_a_video_is_its_thumbnail() -> None:
    assert shown(decode({"mp4": VIDEO, "jpg": image_file(grey(9))}, 4).frames) == [0, 1, 2, 3]


def test_endings_are_read_in_any_case_and_unknown_ones_left_alone() -> None:
    assert shown(decode({"MP4": VIDEO, "cls": b"3", "emb.npy": b"x"}, 4).frames) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({}, "no media member"),
        ({"json": b"{}", "cls": b"1"}, "no media member"),
        ({"mp4": VIDEO, "webm": VIDEO}, "several video members"),
        ({"mp4": VIDEO, "wav": b"", "flac": b""}, "several sound members"),
        ({"wav": b""}, "empty file"),
        ({"wav": b"nonsense" * 99}, "neither picture nor sound"),
    ],
)
def test_members_that_are_no_clip(members: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadClipError) as caught:
        decode(members)
    assert caught.value.reason == reason
