"""Shards as others read them: plain webdataset, byte ranges, PyAV."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
import webdataset

from lsb.artifact import Stage
from vlmae.data.prepare import BROKEN_KINDS, read_index, read_truth
from vlmae.data.ranges import RangeReader, tar_members


def decode(media: bytes) -> tuple[int, int | None]:
    """Pictures and samples of a clip; None where there is no audio stream."""
    frames, samples = 0, 0
    with av.open(io.BytesIO(media)) as container:
        sounds = bool(container.streams.audio)
        for decoded in container.decode():
            if isinstance(decoded, av.VideoFrame):
                frames += 1
            else:
                samples += decoded.samples
    return frames, samples if sounds else None


def media_of(stage: Stage, broken: str | None) -> list[bytes]:
    kinds = dict(
        zip(*(read_truth(stage)[name].to_pylist() for name in ("key", "broken")), strict=True)
    )
    found = []
    for row in read_index(stage).to_pylist():
        if kinds[row["key"]] == broken:
            record = RangeReader(stage.path).read([row["shard"]], [row["offset"]], [row["size"]])[0]
            found.append(tar_members(record, row["key"])["mp4"])
    return found


def test_plain_webdataset_reads_what_the_index_says(mini: Stage) -> None:
    index = {row["key"]: row for row in read_index(mini).to_pylist()}
    urls = sorted({str(mini.path / row["shard"]) for row in index.values()})
    seen = 0
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        row = index[sample["__key__"]]
        with open(mini.path / row["shard"], "rb") as stream:
            stream.seek(row["offset"])
            whole = stream.read(row["size"])
        assert tar_members(whole, row["key"]) == {"mp4": sample["mp4"], "json": sample["json"]}
        with tarfile.open(fileobj=io.BytesIO(whole)) as members:
            assert members.getnames() == [f"{row['key']}.mp4", f"{row['key']}.json"]
            described = members.extractfile(f"{row['key']}.json")
            assert described is not None
            assert described.read() == sample["json"]
        seen += 1
    assert seen == len(index)


def test_json_and_index_give_nothing_away(mini: Stage) -> None:
    truth = read_truth(mini).to_pylist()
    assert set(read_index(mini).column_names) == {
        *("id", "key", "shard", "offset", "size", "title", "duration_s", "split"),
        *("media", "width", "height", "frames", "fps", "video_codec"),
        *("audio_codec", "audio_rate", "audio_channels", "rotation"),
    }
    recordings = {row[f"{kind}_recording"] for row in truth for kind in ("picture", "voice")}
    for shard in sorted(mini.path.glob("*.tar")):
        for sample in webdataset.WebDataset(str(shard), shardshuffle=False):
            fields = json.loads(sample["json"])
            assert set(fields) == {"key", "title", "split", "data", "synthetic", "duration_s"}
            assert not any(recording.encode() in sample["mp4"] for recording in recordings)
            assert fields["synthetic"] is False
            if "Won" in fields["title"]:
                assert "\u2019".encode() in sample["json"], "text stays UTF-8"


def test_index_has_what_a_probe_finds_and_nothing_for_files_that_do_not_open(mini: Stage) -> None:
    kinds = dict(
        zip(*(read_truth(mini)[name].to_pylist() for name in ("key", "broken")), strict=True)
    )
    whole = {"media": "mp4", "width": 128, "height": 128, "frames": 16, "fps": 8.0}
    whole |= {"video_codec": "h264", "rotation": 0}
    sound = {"audio_codec": "aac", "audio_rate": 16_000, "audio_channels": 1}
    silent = dict.fromkeys(sound)
    expected = {
        None: whole | sound,
        "no_audio_track": whole | silent,
        "truncated": dict.fromkeys(whole | sound) | {"media": "mp4"},
        "one_frame": whole | sound | {"frames": 1},
        "zero_length_audio": whole | sound,
    }
    for row in read_index(mini).to_pylist():
        kind = kinds[row["key"]]
        told = {name: row[name] for name in expected[kind] if name != "fps" or kind is None}
        assert told == {name: expected[kind][name] for name in told}, kind
        length = 0.0 if kind == "truncated" else 2.0
        assert row["duration_s"] == pytest.approx(length, abs=0.15), kind


def test_tar_headers_hold_no_time_or_owner(mini: Stage) -> None:
    with tarfile.open(mini.path / "first-00000.tar") as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")


def test_whole_clips_are_h264_and_aac_of_the_expected_length(mini: Stage) -> None:
    clips = media_of(mini, None)
    assert len(clips) == 80 - 4
    for media in clips[::8]:
        with av.open(io.BytesIO(media)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
            assert (video.width, video.height, video.pix_fmt) == (128, 128, "yuv420p")
            assert (audio.rate, audio.channels) == (16_000, 1)
            assert container.duration == pytest.approx(2.0e6, abs=0.1e6)
            keys = [packet.pts for packet in container.demux(video) if packet.is_keyframe]
            assert len(keys) == 2, "one key frame a second"
        frames, samples = decode(media)
        assert frames == 16
        assert samples == pytest.approx(32_000, abs=2048)


@pytest.mark.skipif(
    shutil.which("ffprobe") is None, reason="ffprobe is absent: apt-get install ffmpeg"
)
def test_ffprobe_agrees_on_streams_and_duration(mini: Stage, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(media_of(mini, None)[0])
    entries = "stream=codec_name,width,height,sample_rate,channels:format=duration"
    command = ["ffprobe", "-v", "error", "-show_entries", entries, "-of", "json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    told = json.loads(done.stdout)
    streams = {stream["codec_name"]: stream for stream in told["streams"]}
    assert set(streams) == {"h264", "aac"}
    assert (streams["h264"]["width"], streams["h264"]["height"]) == (128, 128)
    assert (streams["aac"]["sample_rate"], streams["aac"]["channels"]) == ("16000", 1)
    assert abs(float(told["format"]["duration"]) - read_duration(mini)) < 0.15


def read_duration(stage: Stage) -> float:
    return float(stage.manifest["config"]["clip_seconds"])


def test_every_kind_is_broken_as_its_name_says(mini: Stage) -> None:
    clips = {kind: media_of(mini, kind) for kind in BROKEN_KINDS}
    assert all(len(found) == 1 for found in clips.values())
    assert decode(clips["no_audio_track"][0]) == (16, None)
    assert decode(clips["one_frame"][0])[0] == 1
    assert decode(clips["one_frame"][0])[1]
    assert decode(clips["zero_length_audio"][0]) == (16, 0)
    with pytest.raises(av.error.InvalidDataError):
        decode(clips["truncated"][0])


def test_frames_move_and_stay_inside(mini: Stage) -> None:
    with av.open(io.BytesIO(media_of(mini, None)[0])) as container:
        luma = np.stack(
            [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
        ).astype(np.int32)
    assert np.abs(luma[-1] - luma[0]).max() > 40
    # All along the border only paper is seen: its gradient and grain, never the ink 90 steps away.
    border = np.concatenate([luma[:, 0], luma[:, -1], luma[:, :, 0], luma[:, :, -1]], axis=1)
    assert np.ptp(border) < 60
