"""The stage: resumed after a failure, appended to, bad clips named, too many of them refused."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from source_files import image, video, wav, write_folder
from stage_reading import digests, members, quarantine, rows

from vlmae.config import as_dict, compose_config
from vlmae.data.prepare import IngestConfig, PrepareConfig, data_config, prepare
from vlmae.data.prepare.encode import encode
from vlmae.data.prepare.ingest import maker as maker_module
from vlmae.data.prepare.ingest.reencode import reencode
from vlmae.prepare import summarise

ConfigMaker = Callable[..., IngestConfig]


def test_a_failed_part_is_made_again_alone_and_gives_the_same_bytes(
    tmp_path: Path, folder: Path, settings: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings("folder", folder, reencode=True, short_side=32)
    undisturbed = prepare(tmp_path / "a", config)
    calls: list[str] = []
    limit = 7  # dies in the second of three shards

    def counted(media: bytes, side: int, key: str) -> Any:
        if len(calls) == limit:
            raise KeyboardInterrupt
        calls.append(key)
        return reencode(media, side, key)

    monkeypatch.setattr(maker_module, "reencode", counted)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "b", config)
    assert [path.suffix for path in (tmp_path / "b").glob("prepare-*")] == [".partial"]
    limit = 1000
    calls.clear()
    resumed = prepare(tmp_path / "b", config)
    assert len(calls) == 12 - 5, "the first shard was whole"
    assert digests(resumed) == digests(undisturbed)
    assert prepare(tmp_path / "b", config).reused


def test_more_processes_give_the_same_bytes(
    tmp_path: Path, folder: Path, settings: ConfigMaker
) -> None:
    one = prepare(tmp_path / "a", settings("folder", folder))
    two = prepare(tmp_path / "b", settings("folder", folder, processes=2))
    assert one.path.name == two.path.name
    assert digests(one) == digests(two)


def test_the_stage_is_another_one_when_a_file_is(tmp_path: Path, settings: ConfigMaker) -> None:
    media = tmp_path / "media"
    write_folder(media, 2)
    before = prepare(tmp_path, settings("folder", media))
    moved = media.rename(tmp_path / "moved")
    assert prepare(tmp_path, settings("folder", moved)).path == before.path, "moved, not changed"
    told = (moved / "clip001.mp4").stat()
    os.utime(moved / "clip001.mp4", ns=(told.st_atime_ns, told.st_mtime_ns + 1))
    assert prepare(tmp_path, settings("folder", moved)).path != before.path


def test_appended_shards_leave_the_old_ones_alone(tmp_path: Path, settings: ConfigMaker) -> None:
    media = tmp_path / "media"
    write_folder(media, 7)
    old = prepare(tmp_path / "stages", settings("folder", media))
    write_folder(media / "more", 6)
    config = settings("folder", media, extends=str(old.path), seed=5)
    new = prepare(tmp_path / "stages", config)
    assert new.path != old.path
    shards = [f"pool-{number:05d}" for number in range(4)]
    assert list(new.manifest["parts"]) == shards
    for name in old.files:
        assert (new.path / name).stat().st_ino == (old.path / name).stat().st_ino
    appended = {key for key, row in rows(new).items() if row["shard"] >= "pool-00002"}
    assert appended == {key for key in rows(new) if key.startswith("more/")}
    assert {k: v for k, v in members(new).items() if k not in appended} == members(old)
    assert new.counts["pool.clips"] == 13
    assert prepare(tmp_path / "stages", config).reused


def test_appending_to_a_damaged_or_other_stage_is_refused(
    tmp_path: Path, settings: ConfigMaker
) -> None:
    media = tmp_path / "media"
    write_folder(media, 2)
    old = prepare(tmp_path / "stages", settings("folder", media))
    tar = old.path / "pool-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    write_folder(media / "more", 1)
    with pytest.raises(ValueError, match=r"pool-00000\.tar is absent or damaged"):
        prepare(tmp_path / "stages", settings("folder", media, extends=str(old.path)))
    with pytest.raises(ValueError, match="not a finished stage"):
        prepare(tmp_path / "stages", settings("folder", media, extends=str(media)))


def bad_media() -> dict[str, bytes]:
    """File name -> content of clips that cannot be used."""
    return {
        "empty.mp4": b"",
        "text.mp4": b"this is no video " * 50,
        "cut.mp4": video(3)[:1500],
        "cut.jpg": image((400, 300))[:500],
        "noise.wav": b"\x07\x99" * 500,
        "sizes.1.jpg": image((40, 30)),
        "sizes.2.jpg": image((44, 30)),
        "titled.mp4": video(4),
        "titled.json": b'{"title": ["no", "text"]}',
    }


@pytest.mark.parametrize("reencoded", [False, True])
def test_bad_clips_are_named_with_reason_and_the_rest_is_unaffected(
    tmp_path: Path, settings: ConfigMaker, reencoded: bool
) -> None:
    media = tmp_path / "media"
    good = write_folder(media, 6)
    for name, content in bad_media().items():
        (media / f"bad_{name}").write_bytes(content)
    (media / "half.jpg").write_bytes(image())
    (media / "half.wav").write_bytes(b"no sound")  # masked when it is read, not skipped
    settled = settings("folder", media, skip_limit=0.6, reencode=reencoded)
    stage = prepare(tmp_path, settled)
    assert set(rows(stage)) == {*good, "half"}
    reasons = {
        "bad_empty": "empty file",
        "bad_text": "undecodable file",
        "bad_noise": "undecodable file",
        "bad_titled": "undecodable title",
        "bad_sizes": "images of several sizes",
    }
    found = quarantine(stage)
    assert found.keys() == {*reasons, "bad_cut"}
    assert {key: found[key][0] for key in reasons} == reasons
    assert all(detail or reason == "empty file" for reason, detail in found.values())
    assert stage.counts["pool.skipped"] == 6
    assert stage.counts["skipped: undecodable file"] >= 2
    assert sum(n for name, n in stage.counts.items() if name.startswith("skipped: ")) == 6


def test_too_many_bad_clips_are_refused_with_counts(tmp_path: Path, settings: ConfigMaker) -> None:
    media = tmp_path / "media"
    write_folder(media, 4)
    (media / "a.mp4").write_bytes(b"")
    (media / "b.wav").write_bytes(b"noise")
    config = settings("folder", media, skip_limit=0.3)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"2 of 6 clips cannot be used .*'empty file': 1"):
            prepare(tmp_path, config)
    raised = prepare(tmp_path, settings("folder", media, skip_limit=0.5))
    assert raised.reused, "the limit changes no byte"
    more = media / "more"
    write_folder(more, 2)
    extended = settings("folder", media, skip_limit=0.5, extends=str(raised.path))
    assert set(quarantine(prepare(tmp_path, extended))) == {"a", "b"}, "tried again, and named"


def test_sound_of_which_nothing_can_be_decoded_is_dropped_and_counted(
    tmp_path: Path, settings: ConfigMaker
) -> None:
    composed = PrepareConfig(name="mini", bank="avt_compose")
    frames = np.full((16, 192, 128), 99, np.uint8)
    empty = encode(frames, np.zeros(32_000, np.float32), composed, "zero_length_audio")
    media = tmp_path / "media"
    media.mkdir()
    (media / "a.mp4").write_bytes(empty)
    (media / "b.mp4").write_bytes(video(1))
    (media / "c.mp4").write_bytes(video(2, sound=None))
    stage = prepare(tmp_path, settings("folder", media, reencode=True))
    assert stage.counts["sound dropped"] == 1
    codecs = {key: row["audio_codec"] for key, row in rows(stage).items()}
    assert codecs == {"a": None, "b": "aac", "c": None}


@pytest.mark.parametrize("data", ["folder", "manifest", "shards"])
@pytest.mark.parametrize("size", ["tiny", "full"])
def test_config_groups_are_fields_and_sizes_of_splits_are_ignored(data: str, size: str) -> None:
    node = as_dict(compose_config("prepare", [f"data={data}", f"size={size}"]).data)
    config = data_config(node)
    assert isinstance(config, IngestConfig)
    assert (config.source, config.name, config.shard_clips) == (data, data, 1000)
    known = {field.name for field in fields(IngestConfig)}
    assert set(node) - {"first", "pool", "gold", "test"} <= known
    given = as_dict(compose_config("prepare", [f"data={data}", "data.shard_clips=7"]).data)
    assert data_config(given).shard_clips == 7
    with pytest.raises(ValueError, match=r"data\.path is not set"):
        prepare(Path("nosuch"), config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "nosuch"}, "choose one of folder, manifest, shards"),
        ({"name": "a-b"}, "letters, digits"),
        ({"split": "a-b"}, "letters, digits"),
        ({"name": "generated_mine"}, "rename it"),
        ({"copy": False}, "only shards can be indexed in place"),
        ({"source": "shards", "copy": False, "reencode": True}, r"set data\.reencode=false"),
        ({"short_side": 255}, "even number"),
        ({"shard_bytes": 0}, "must be positive"),
        ({"skip_limit": 1.5}, "from 0 to 1"),
        ({"nosuch": 1}, "data has no key .nosuch."),
    ],
)
def test_settings_refuse_what_cannot_be(
    settings: ConfigMaker, changes: dict[str, object], message: str
) -> None:
    values = {"source": "folder", **changes}
    with pytest.raises(ValueError, match=message):
        settings(values.pop("source"), "somewhere", **values)


def test_a_folder_without_media_is_refused(tmp_path: Path, settings: ConfigMaker) -> None:
    with pytest.raises(ValueError, match="there are no files in"):
        prepare(tmp_path, settings("folder", tmp_path / "nosuch"))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "notes.txt").write_text("only a title")
    with pytest.raises(ValueError, match="there are no media in"):
        prepare(tmp_path, settings("folder", tmp_path / "x"))


def test_command_prints_clips_shards_and_what_was_skipped(tmp_path: Path) -> None:
    media = tmp_path / "media"
    write_folder(media, 3)
    (media / "bad.mp4").write_bytes(b"")
    (media / "w.wav").write_bytes(wav())
    done = subprocess.run(
        [
            *(sys.executable, "-m", "vlmae.prepare", "data=folder", f"data.path={media}"),
            *("data.name=mine", f"runs={tmp_path}", "data.skip_limit=0.25"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    for expected in ("mine: from folder", "  empty file", "shards", "MB", "hours"):
        assert expected in done.stdout
    assert ": made," in done.stdout


def test_the_table_sums_splits_and_says_what_is_synthetic(
    tmp_path: Path, settings: ConfigMaker
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.mp4").write_bytes(video(number))
        (tmp_path / f"{number}.json").write_text('{"synthetic": true}')
    config = settings("folder", tmp_path, split="gold")
    stage = prepare(tmp_path / "stages", config)
    console = Console(width=90, record=True, file=io.StringIO())
    console.print(summarise(stage, config))
    text = console.export_text()
    assert "3 clips of SYNTHETIC media" in text
    clips = next(line for line in text.splitlines()[2:] if " clips " in line)
    assert clips.count(" 3 ") == 2
