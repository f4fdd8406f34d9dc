"""Rendered clips: what people get of videos, images and sounds, and what stays behind."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media_files import film, grey, image_file, sine, wave_file

from lsb.artifact import Stage, open_stage
from lsb.ids import sample_id, sample_ids
from vlmae.data.decode import DecodePolicy, decode_sample
from vlmae.handoff import AnonymiseConfig, MediaConfig, hand_off_media, media_files, read_rendered
from vlmae.handoff.secret import FILE
from vlmae.takedown import take_down

KEYS = ["video", "silent", "images", "sound", "wide"]
PLACE = b"loci\x00\x00\x00\x00"  # the box of an mp4 that says where it was filmed


@pytest.fixture
def clips(make_data: Any, tmp_path: Path) -> Stage:
    """One clip of every kind, the first with a title and a place in its metadata."""
    sound = sine(1.0, 16_000, frequency=440.0)
    video = io.BytesIO()
    with (
        av.open(io.BytesIO(film(10, sound=sound))) as source,
        av.open(video, "w", format="mp4") as target,
    ):
        target.metadata["title"] = "holidays of Jane"
        target.metadata["location"] = "+48.8577+002.295/"
        streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    assert PLACE in video.getvalue()
    images = {f"{n}.jpg": image_file(grey(3 * n, 80, 60)) for n in range(3)}
    shard = [
        ("video", {"mp4": video.getvalue()}),
        ("silent", {"mp4": film(10)}),
        ("images", {**images, "wav": wave_file(sound)}),
        ("sound", {"wav": wave_file(sound)}),
        ("wide", {"mkv": film(6, sound=sound, width=640, height=240, container_format="matroska")}),
    ]
    return make_data(tmp_path / "runs" / "stages", {"pool-00000": shard})


def render(clips: Stage, *keys: str, processes: int = 1, **config: Any) -> Stage:
    ids = sample_ids(keys or KEYS)
    return hand_off_media(clips.path.parent, clips, ids, MediaConfig(**config), processes=processes)


def content(stage: Stage, key: str, kind: str) -> bytes:
    return (stage.path / media_files(sample_id(key).hex())[kind]).read_bytes()


def test_every_kind_of_clip_becomes_a_video_with_its_sound(clips: Stage) -> None:
    stage = render(clips, short_side=120)
    shapes = {"video": (64, 64), "silent": (64, 64), "images": (60, 80), "wide": (120, 320)}
    for key in KEYS:
        media = content(stage, key, "video")
        policy = DecodePolicy(3, backend="pyav")
        clip = decode_sample({"mp4": media}, key=key, policy=policy, sample_rate=16_000)
        assert clip.video_missing is None
        if key in shapes:
            assert clip.frames.shape[1:3] == shapes[key]
        with av.open(io.BytesIO(media)) as container:
            codecs = [stream.codec_context.name for stream in container.streams]
            seconds = container.duration / av.time_base
        assert codecs[0] == "h264"
        assert seconds == pytest.approx({"silent": 1.0, "wide": 1.0}.get(key, 1.0), abs=0.15)
        if key == "silent":
            assert len(codecs) == 1
        else:
            assert codecs[1] == "aac"
            spectrum = np.abs(np.fft.rfft(clip.audio[:16_000]))
            assert int(np.argmax(spectrum)) == pytest.approx(440, abs=3)
    told = {row["key"]: row for row in read_rendered(stage).to_pylist()}
    assert told.keys() == set(KEYS)
    assert told["video"]["title"] == "title of video"
    assert {(row["method"], row["parameters"]) for row in told.values()} == {("none", "{}")}


def test_pictures_keep_their_order(clips: Stage) -> None:
    media = content(render(clips, "images"), "images", "video")
    clip = decode_sample(
        {"mp4": media}, key="k", policy=DecodePolicy(3, backend="pyav"), sample_rate=16_000
    )
    levels = clip.frames.mean(axis=(1, 2, 3))
    expected = [grey(3 * number, 80, 60).mean() for number in range(3)]
    assert levels == pytest.approx(expected, abs=6)


def test_nothing_of_the_metadata_leaves(clips: Stage) -> None:
    stage = render(clips)
    for kind in media_files("x"):
        for secret in (b"Jane", PLACE):
            assert secret not in content(stage, "video", kind)


def test_pictures_of_the_sound_are_of_the_anonymised_one(clips: Stage) -> None:
    (clips.path.parent / FILE).write_text("03" * 32)  # what is drawn moves a sine far enough
    plain = render(clips, "video", "silent")
    shifted = render(clips, "video", "silent", anonymise=AnonymiseConfig("shift"))
    assert plain.path != shifted.path
    for kind in ("video", "waveform", "mel"):
        assert content(plain, "video", kind) != content(shifted, "video", kind)
    assert content(plain, "video", "contact_sheet") == content(shifted, "video", "contact_sheet")
    for kind in media_files("x"):
        assert content(plain, "silent", kind) == content(shifted, "silent", kind)
    rows = {row["key"]: row for row in read_rendered(shifted).to_pylist()}
    assert json.loads(rows["video"]["parameters"]).keys() == {"semitones", "formants"}
    assert (rows["silent"]["parameters"], rows["silent"]["seconds"]) == ("{}", 0.0)
    assert shifted.counts["anonymised by shift"] == 1
    heard = decode_sample(
        {"mp4": content(shifted, "video", "video")},
        key="k", policy=DecodePolicy(1, backend="pyav"), sample_rate=16_000,
    ).audio  # fmt: skip
    spectrum = np.abs(np.fft.rfft(heard[:16_000]))
    assert abs(int(np.argmax(spectrum)) - 440) > 30


def test_voices_are_drawn_with_a_secret_that_stays(clips: Stage, tmp_path: Path) -> None:
    import shutil

    def parameters(stage: Stage) -> str:
        return str(read_rendered(stage)["parameters"].to_pylist())

    shift = AnonymiseConfig("shift")
    shifted = render(clips, "video", anonymise=shift)
    file = clips.path.parent / FILE
    secret = file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600
    leaves = [path.read_bytes() for path in shifted.path.iterdir()]
    assert not [one for one in leaves if secret in one or bytes.fromhex(secret.decode()) in one]
    # Deleted and made again it has the same bytes, in another run too; the secret is not.
    shutil.rmtree(shifted.path)
    again = render(clips, "video", anonymise=shift)
    assert not again.reused
    assert again.manifest == shifted.manifest
    assert file.read_bytes() == secret
    file.unlink()
    other = render(clips, "video", anonymise=shift)
    assert file.read_bytes() != secret
    assert other.path != shifted.path
    assert parameters(other) != parameters(again)


def test_nothing_but_a_shift_needs_a_secret(clips: Stage) -> None:
    stage = render(clips, "silent")
    assert stage.manifest["config"].keys() == {"media", "clips"}
    assert not (clips.path.parent / FILE).exists()


def test_order_and_processes_change_no_byte(clips: Stage, tmp_path: Path) -> None:
    first = render(clips, *KEYS)
    again = render(clips, *KEYS[::-1])
    assert again.reused
    import shutil

    copy = tmp_path / "copy" / clips.path.name
    shutil.copytree(clips.path, copy)
    other = render(open_stage(copy), *KEYS[::-1], processes=2)
    assert (other.content, other.path.name) == (first.content, first.path.name)


def test_clips_of_other_data_are_refused(clips: Stage) -> None:
    with pytest.raises(ValueError, match="1 of 2 clips are not in the data set"):
        render(clips, "video", "nobody")
    with pytest.raises(ValueError, match=r"media\.short_side is 2"):
        MediaConfig(short_side=2)


def test_a_takedown_reaches_what_was_rendered(clips: Stage, tmp_path: Path) -> None:
    stage = render(clips, anonymise=AnonymiseConfig("shift"))
    kept = content(stage, "wide", "video")
    secret = content(stage, "video", "video")[200:600]
    found = take_down(tmp_path / "runs", ["video"], reason="asked by its owner")
    assert stage.path.name in found.held
    held = open_stage(stage.path)  # every hash is checked
    for kind in media_files("x"):
        assert content(held, "video", kind) == b""
    assert content(held, "wide", "video") == kept
    assert "video" not in read_rendered(held)["key"].to_pylist()
    assert held.counts["clips"] == len(KEYS) - 1
    assert held.counts["anonymised by shift"] == stage.counts["anonymised by shift"] - 1
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if secret in path.read_bytes()]
