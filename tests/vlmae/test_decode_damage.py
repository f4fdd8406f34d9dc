"""Whatever the bytes, decoding gives a clip or a BadClipError with its reason, leaking nothing."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from damage import KINDS, REASONS, damage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media_files import backends, decode, film, grey, image_file, remuxed, shown, sine, wave_file

from vlmae.data.decode import BadClipError, Clip

WHOLE = film(20, sound=sine(2.0, 16_000))


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("kind", KINDS)
def test_ten_kinds_of_damage_are_bad_clips_with_their_reason(kind: str, backend: str) -> None:
    for seed in range(5):
        members = damage(WHOLE, kind, seed)
        assert members == damage(WHOLE, kind, seed)
        with pytest.raises(BadClipError) as caught:
            decode(members, backend=backend)
        assert caught.value.reason == REASONS[kind]
        assert caught.value.key == "k"


def test_there_are_ten_kinds_of_damage_and_the_media_is_whole() -> None:
    assert len(KINDS) == len(set(KINDS)) == 10
    assert decode(WHOLE).audio_missing is None
    with pytest.raises(ValueError, match="damage 'rust' is unknown"):
        damage(WHOLE, "rust", 0)


def test_error_crosses_processes_whole() -> None:
    error = pickle.loads(pickle.dumps(BadClipError("clip-1", "empty file", "0 bytes")))
    assert (error.key, error.reason, error.detail) == ("clip-1", "empty file", "0 bytes")
    assert str(error) == "clip clip-1: empty file (0 bytes)"


@pytest.mark.parametrize("share", [0.02, 0.5, 0.8])
def test_file_cut_before_its_index_is_a_bad_clip(share: float) -> None:
    with pytest.raises(BadClipError) as caught:
        decode(WHOLE[: int(share * len(WHOLE))])
    assert caught.value.reason == "undecodable file"


def test_file_cut_within_its_index_is_a_bad_clip() -> None:
    # The index of the picture comes first in it: FFmpeg would find a clip without sound.
    start = WHOLE.rindex(b"moov")
    reasons = set()
    for share in (0.1, 0.5, 0.7, 0.9, 0.99):
        with pytest.raises(BadClipError) as caught:
            decode(WHOLE[: start + int(share * (len(WHOLE) - start))])
        reasons.add(caught.value.reason)
    assert reasons == {"undecodable file", "truncated file"}


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("backend", backends())
def test_file_cut_behind_its_index_is_not_taken_for_a_shorter_clip(
    share: float, backend: str
) -> None:
    media = remuxed(WHOLE, movflags="faststart")
    assert shown(decode(media, 2, backend).frames) == [5, 15]
    with pytest.raises(BadClipError) as caught:
        decode(media[: int(share * len(media))], backend=backend)
    assert caught.value.reason == "truncated file"


def test_stream_cut_between_fragments_gives_what_is_there() -> None:
    media = remuxed(WHOLE, movflags="empty_moov+default_base_moof+frag_keyframe")
    assert shown(decode(media, 2).frames) == [5, 15]
    with pytest.raises(BadClipError) as caught:
        decode(media[: len(media) // 2])
    assert caught.value.reason == "truncated file"
    assert len(decode(remuxed(WHOLE, container_format="mpegts")[: len(WHOLE) // 2]).frames) == 2


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{path}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {path}\n",
        "1\n00:00:00,000 --> 00:00:01,000\nwords\n",
    ],
)
def test_playlists_do_not_open_other_files(text: str, tmp_path: Path) -> None:
    other = tmp_path / "other.mp4"
    other.write_bytes(WHOLE)
    with pytest.raises(BadClipError) as caught:
        decode(text.format(path=other).encode())
    assert caught.value.reason == "undecodable file"


def test_file_that_is_not_a_clip_any_more_says_what_is_left() -> None:
    with pytest.raises(BadClipError, match="zero-length video, zero-length audio"):
        decode(damage(WHOLE, "no_packets", 0))


def test_sound_alone_says_that_the_picture_is_missing_and_a_picture_keeps_its_title() -> None:
    assert decode(film(0, sound=sine(1.0, 16_000))).video_missing == "no video stream"
    clip = decode({"mp4": film(10), "txt": b"t"})
    assert (clip.key, clip.title, shown(clip.frames)) == ("k", "t", [2, 7])


def attempt(members: dict[str, bytes], backend: str = "pyav") -> Clip | None:
    """The clip, checked, or None if it is bad."""
    try:
        clip = decode(members, backend=backend)
    except BadClipError:
        return None
    assert len(clip.frames) == (0 if clip.video_missing else 2)
    assert np.isfinite(clip.audio).all()
    assert (len(clip.audio) == 0) == (clip.audio_missing is not None)
    assert not (clip.video_missing and clip.audio_missing)
    return clip


ENDINGS = st.sampled_from(["mp4", "webm", "jpg", "png", "wav", "flac", "json", "txt", "0.jpg", "x"])
MAGIC = st.sampled_from(
    [b"", b"RIFF\x24\x00\x00\x00WAVEfmt ", b"fLaC\x00\x00\x00\x22", b"\x1aE\xdf\xa3", b"OggS\x00",
     b"\x00\x00\x00\x18ftypmp42", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"ID3\x04", b"G@\x00"]
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(ENDINGS, st.tuples(MAGIC, st.binary(max_size=600)).map(b"".join)))
def test_no_bytes_raise_anything_but_a_bad_clip(members: dict[str, bytes]) -> None:
    attempt(members)


FILES = {
    "mp4": WHOLE,
    "webm": film(
        8, codec="libvpx-vp9", container_format="webm", sound=sine(0.8, 48_000, 2), rate=48_000,
        audio_codec="libopus",
    ),
    "ts": film(8, container_format="mpegts", sound=sine(0.8, 16_000)),
    "mov": film(4, sound=sine(0.4, 48_000, 8), rate=48_000, container_format="mov"),
    "wav": wave_file(sine(0.5, 16_000)),
    "flac": wave_file(sine(0.5, 16_000), container_format="flac"),
    "jpg": image_file(grey(3)),
    "png": image_file(grey(3), "PNG"),
}  # fmt: skip


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("ending", list(FILES))
def test_no_damage_is_a_crash(ending: str, backend: str) -> None:
    media = FILES[ending]
    assert attempt({ending: media}, backend) is not None
    for seed in range(25):
        rng = np.random.default_rng(seed)
        damaged = bytearray(media)
        if seed % 2:
            for place in rng.integers(0, len(media), 40):
                damaged[place] = int(rng.integers(256))
        else:
            start = int(rng.integers(len(media)))
            damaged[start : start + int(rng.integers(1, 300))] = rng.bytes(int(rng.integers(300)))
        attempt({ending: bytes(damaged)}, backend)


@pytest.mark.parametrize("backend", backends())
def test_nothing_is_left_open(backend: str) -> None:
    good = {"mp4": WHOLE, "json": json.dumps({"title": "t"}).encode()}
    clips = [good, {"jpg": FILES["jpg"], "wav": FILES["wav"]}]
    clips += [damage(WHOLE, kind, 0) for kind in KINDS]

    def usage() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), len(
            list(Path("/proc/self/task").iterdir())
        )

    for members in clips:
        attempt(members, backend)
    before = usage()
    for _ in range(15):
        for members in clips:
            attempt(members, backend)
    assert usage() == before


@pytest.mark.parametrize("backend", backends())
def test_nothing_is_printed(backend: str, capfd: pytest.CaptureFixture[str]) -> None:
    for kind in KINDS:
        attempt(damage(WHOLE, kind, 1), backend)
    flipped = bytearray(WHOLE)
    flipped[3000:3050] = bytes(50)
    attempt({"mp4": bytes(flipped)}, backend)
    assert capfd.readouterr() == ("", "")
