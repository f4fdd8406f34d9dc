"""Takedown in data sets of media that exist already: appended to, linked, left where they lie."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server, s3
from takedown_world import files_with

from lsb.artifact import Stage, open_stage
from vlmae.data.decode import BadClipError
from vlmae.data.index import read_index
from vlmae.data.prefix_cache import Prefix, PrefixCache, cache_prefix
from vlmae.data.prepare import IngestConfig, prepare
from vlmae.data.ranges import RangeReader, tar_members
from vlmae.data.storage import Storage
from vlmae.data.token_source import CachedTokens
from vlmae.data.tombstones import read_tombstones
from vlmae.embedding import EmbedConfig, embed_pooled
from vlmae.takedown import report, take_down

__all__ = ["s3"]


def stages_of(runs: Path) -> Path:
    return runs / "stages"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of runs without any stage."""
    (tmp_path / "runs" / "stages").mkdir(parents=True)
    return tmp_path / "runs"


@pytest.fixture
def media(data: Stage, tmp_path: Path) -> Path:
    """A folder with six films, `film-0.mp4` to `film-5.mp4`."""
    folder = tmp_path / "media"
    folder.mkdir()
    for row in read_index(data, ["pool"]).to_pylist():
        tar = (data.path / row["shard"]).read_bytes()
        record = tar[row["offset"] : row["offset"] + row["size"]]
        number = len(list(folder.iterdir()))
        if number < 6 and row["video_codec"] and row["audio_codec"]:
            (folder / f"film-{number}.mp4").write_bytes(tar_members(record, row["key"])["mp4"])
    return folder


def folder_config(media: Path, **changes: Any) -> IngestConfig:
    values = {"source": "folder", "path": str(media), "reencode": False, "shard_clips": 3}
    return IngestConfig("films", **{**values, **changes})


def cached(runs: Path, prefix_on: Callable[..., Prefix], data: Stage) -> CachedTokens:
    stage = cache_prefix(stages_of(runs), prefix_on(data))
    assert stage is not None
    return CachedTokens(PrefixCache(stage))


def test_appending_does_not_bring_it_back_and_borrows_the_rest(
    runs: Path, media: Path, prefix_on: Callable[..., Prefix], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = prepare(stages_of(runs), folder_config(media))
    source = cached(runs, prefix_on, old)
    store = embed_pooled(stages_of(runs), source, EmbedConfig("pool"))
    assert store is not None
    other, key = read_index(old)["key"].to_pylist()[:2]
    film = (media / f"{key}.mp4").read_bytes()[100:1100]
    take_down(runs, [key], reason="x")
    shutil.copy(media / f"{other}.mp4", media / "film-6.mp4")
    grown = prepare(stages_of(runs), folder_config(media, extends=str(old.path)))
    keys = read_index(grown)["key"].to_pylist()
    assert sorted(keys) == sorted({f"film-{number}" for number in range(7)} - {key})
    assert not files_with(stages_of(runs), film)

    encoded: list[str] = []
    encode = Prefix.encode

    def counted(self: Prefix, shard: str, only: Any = None) -> Any:
        encoded.append(shard)
        return encode(self, shard, only)

    monkeypatch.setattr(Prefix, "encode", counted)
    tokens = cached(runs, prefix_on, grown)
    assert encoded == ["pool-00002"], "the parts of the old shards are lent"
    assert sorted(tokens.index["key"].to_pylist()) == sorted(keys)
    bigger = embed_pooled(stages_of(runs), tokens, EmbedConfig("pool"))
    assert bigger is not None
    for name in ("pool-00000.npy", "pool-00001.npy"):
        assert (bigger.path / name).samefile(store.path / name)
    # The same command again finds the same stage.
    assert prepare(stages_of(runs), folder_config(media, extends=str(old.path))).path == grown.path


def test_files_that_stages_shared_stay_shared(runs: Path, media: Path) -> None:
    old = prepare(stages_of(runs), folder_config(media))
    shutil.copy(media / "film-0.mp4", media / "film-6.mp4")
    grown = prepare(stages_of(runs), folder_config(media, extends=str(old.path)))
    key = read_index(old)["key"].to_pylist()[1]
    take_down(runs, [key], reason="x")
    for stage in (old, grown):
        assert key not in read_index(open_stage(stage.path))["key"].to_pylist()
    for name in old.files:
        assert (old.path / name).samefile(grown.path / name)
    again = prepare(stages_of(runs), folder_config(media, extends=str(old.path)))
    assert again.reused
    assert again.path == grown.path


def test_force_bars_a_clip_that_is_yet_to_come(runs: Path, media: Path) -> None:
    take_down(runs, ["film-2"], reason="x", force=True)
    stage = prepare(stages_of(runs), folder_config(media))
    assert stage.counts["pool.clips"] == 5
    assert "film-2" not in read_index(stage)["key"].to_pylist()
    assert not files_with(stages_of(runs), (media / "film-2.mp4").read_bytes()[100:1100])


def in_place(place: str, **changes: Any) -> IngestConfig:
    values = {"source": "shards", "path": place, "copy": False, "reencode": False}
    return IngestConfig("elsewhere", **{**values, **changes})


def test_a_shard_in_place_is_named_and_rewritten_when_asked(
    runs: Path, media: Path, tmp_path: Path
) -> None:
    films = prepare(stages_of(runs), folder_config(media, shard_clips=6))
    shard = tmp_path / "shards" / "a.tar"
    shard.parent.mkdir()
    shutil.copy(films.path / "pool-00000.tar", shard)
    shutil.rmtree(films.path)
    data = prepare(stages_of(runs), in_place(str(shard)))
    before, bytes_before = read_index(data), shard.read_bytes()
    take_down(runs, ["film-3"], reason="x")
    assert "film-3" not in read_index(open_stage(data.path))["key"].to_pylist()
    assert shard.read_bytes() == bytes_before
    stones = list(read_tombstones(stages_of(runs)).values())
    assert [place.shard for place in stones[0].places] == [f"file://{shard}"]
    found = take_down(runs, [])
    assert "--rewrite-remote" in "".join(report(found, stones, dry_run=False))

    assert take_down(runs, [], rewrite_remote=True).rewritten == 1
    assert read_tombstones(stages_of(runs))["film-3"].places == ()
    assert take_down(runs, [], rewrite_remote=True).rewritten == 0
    assert [path.name for path in shard.parent.iterdir()] == ["a.tar"]
    after = shard.read_bytes()
    assert len(after) == len(bytes_before)
    assert (media / "film-3.mp4").read_bytes()[100:1100] not in after
    for row in before.to_pylist():
        part = slice(row["offset"], row["offset"] + row["size"])
        if row["key"] == "film-3":
            with pytest.raises(BadClipError):
                tar_members(after[part], row["key"])
        else:
            assert after[part] == bytes_before[part]
    assert len(read_index(prepare(stages_of(runs), in_place(str(shard))))) == 5


def test_a_shard_that_holds_something_else_is_never_written(
    runs: Path, media: Path, tmp_path: Path
) -> None:
    films = prepare(stages_of(runs), folder_config(media, shard_clips=6))
    shard = tmp_path / "a.tar"
    shutil.copy(films.path / "pool-00000.tar", shard)
    prepare(stages_of(runs), in_place(str(shard)))
    take_down(runs, ["film-3"], reason="x")
    other = bytes(reversed(shard.read_bytes()))
    shard.write_bytes(other)
    with pytest.raises(ValueError, match=r"a\.tar no longer holds the clip 'film-3'.*yourself"):
        take_down(runs, [], rewrite_remote=True)
    assert shard.read_bytes() == other


def test_a_shard_in_a_store_is_rewritten(
    runs: Path, media: Path, tmp_path: Path, s3: S3Server
) -> None:
    films = prepare(stages_of(runs), folder_config(media, shard_clips=6))
    folder = tmp_path / "bucket"
    folder.mkdir()
    shutil.copy(films.path / "pool-00000.tar", folder / "a.tar")
    s3.upload(folder, "taken-down")
    options = s3.storage_options
    data = prepare(stages_of(runs), in_place("s3://taken-down/a.tar", storage_options=options))
    take_down(runs, ["film-3"], reason="x", rewrite_remote=True, storage=Storage(options))
    body = s3.client().get_object(Bucket="taken-down", Key="a.tar")["Body"].read()
    assert len(body) == (folder / "a.tar").stat().st_size
    assert (media / "film-3.mp4").read_bytes()[100:1100] not in body
    index = read_index(open_stage(data.path))
    reader = RangeReader("", storage_options=options)
    records = reader.read(*(index[name].to_pylist() for name in ("shard", "offset", "size")))
    for key, record in zip(index["key"].to_pylist(), records, strict=True):
        assert tar_members(record, key)["mp4"] == (media / f"{key}.mp4").read_bytes()
