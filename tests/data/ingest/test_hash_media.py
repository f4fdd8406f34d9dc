"""Hashes of media: equal for the same file under another key and title."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from source_files import image, video, wav, write_folder

from lsb.ids import from_arrow, sample_ids
from lsb.media_hashes import MediaHashes
from vlmae.data.decode.members import Media
from vlmae.data.media_hashes import hash_media, media_hash, read_media_hashes
from vlmae.data.prepare import IngestConfig, prepare

ConfigMaker = Callable[..., IngestConfig]


@pytest.mark.parametrize("reencoded", [False, True])
def test_a_reupload_has_the_hash_of_its_original(
    tmp_path: Path, settings: ConfigMaker, reencoded: bool
) -> None:
    media = tmp_path / "media"
    keys = write_folder(media, 7)
    (media / "again.mp4").write_bytes(video(3))
    (media / "again.txt").write_text("Another title", encoding="utf-8")
    (media / "again.jpg").write_bytes(image())  # a thumbnail
    data = prepare(tmp_path, settings("folder", media, reencode=reencoded))
    stage = hash_media(tmp_path, data)
    table = read_media_hashes(stage.path)
    assert stage.counts == {"clips": 8, "hashed": 8}
    hashes = MediaHashes(table)
    both = hashes.groups(sample_ids(["clip003" if "clip003" in keys else "sub_one/clip003"]))
    assert hashes.groups(sample_ids(["again"])) == both
    assert len(hashes.members(int(both[0]))) == 2
    assert len(np.unique(hashes.groups(from_arrow(table["id"])))) == 7
    assert hash_media(tmp_path, data).reused


def test_appended_shards_take_the_hashes_of_the_old_ones_over(
    tmp_path: Path, settings: ConfigMaker
) -> None:
    media, stages = tmp_path / "media", tmp_path / "stages"
    write_folder(media, 7)
    old = prepare(stages, settings("folder", media))
    first = hash_media(stages, old)
    write_folder(media / "more", 6)
    new = prepare(stages, settings("folder", media, extends=str(old.path), seed=5))
    second = hash_media(stages, new)
    assert second.path != first.path
    for name in first.files:
        assert (second.path / name).stat().st_ino == (first.path / name).stat().st_ino
    table = read_media_hashes(second.path)
    groups = MediaHashes(table).groups(from_arrow(table["id"]))
    _, copies = np.unique(groups, return_counts=True)
    assert sorted(copies) == [1] + [2] * 6  # clips 0 to 5 came again


def test_a_damaged_record_has_no_hash_and_is_counted(tmp_path: Path, settings: ConfigMaker) -> None:
    media = tmp_path / "media"
    write_folder(media, 5)
    data = prepare(tmp_path, settings("folder", media))
    tar = data.path / "pool-00000.tar"
    damaged = bytearray(tar.read_bytes())
    damaged[:512] = b"x" * 512  # the header of the first member
    tar.write_bytes(damaged)
    stage = hash_media(tmp_path, data)
    assert stage.counts == {"clips": 5, "hashed": 4, "skipped: damaged sample": 1}
    table = read_media_hashes(stage.path)
    assert table["media_hash"].null_count == 1
    groups = MediaHashes(table).groups(from_arrow(table["id"]))
    assert (groups == -1).sum() == 1


def test_every_kind_of_media_counts() -> None:
    found = [
        media_hash(media)
        for media in (
            Media(video(1), (), None),
            Media(video(2), (), None),
            Media(video(1), (), wav(1)),
            Media(None, (image(),), None),
            Media(None, (image(), image((44, 30))), None),
            Media(None, (), wav(1)),
        )
    ]
    assert len(set(found)) == len(found)
    # What is cut in two is not what is whole.
    assert media_hash(Media(None, (b"ab", b"c"), None)) != media_hash(
        Media(None, (b"a", b"bc"), None)
    )
