"""Sources in an object store: moto's server on loopback, over the network like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from s3_server import S3Server
from source_files import video, write_folder
from stage_reading import digests, members, rows

from vlmae.data.prepare import IngestConfig, prepare
from vlmae.data.records import END_OF_TAR, write_sample

ConfigMaker = Callable[..., IngestConfig]


def test_folder_manifest_and_shards_in_a_bucket_give_the_clips_of_local_ones(
    tmp_path: Path, s3: S3Server, settings: ConfigMaker
) -> None:
    media = tmp_path / "media"
    write_folder(media, 4)
    text = "\n".join(["url", *(f"s3://ingest/clip00{number}.mp4" for number in (1, 2)), ""])
    (media / "m.csv").write_text(text)
    local = prepare(tmp_path / "a", settings("folder", media, shard_clips=2))
    s3.upload(media, "ingest")
    s3.upload(local.path, "shards")
    options = {"storage_options": s3.storage_options}
    remote = prepare(
        tmp_path / "b", settings("folder", "s3://ingest", shard_clips=2, processes=2, **options)
    )
    tars = {name: digest for name, digest in digests(local).items() if name.endswith(".tar")}
    assert tars.items() <= digests(remote).items()
    assert rows(remote) == rows(local)
    listed = prepare(tmp_path / "b", settings("manifest", "s3://ingest/m.csv", **options))
    assert set(rows(listed)) == {"clip001", "clip002"}
    for path in ("s3://shards/pool-{00000..00001}.tar", "s3://shards/*.tar"):
        copied = prepare(tmp_path / "b", settings("shards", path, **options))
        assert members(copied) == members(local)


def test_a_shard_set_is_indexed_in_place_without_reading_its_media(
    tmp_path: Path, s3: S3Server, settings: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    media = video(1, size=(64, 48))
    padding = bytes(2_000_000)  # FFmpeg skips what follows a file's last box unread
    long = media + len(padding).to_bytes(4, "big") + b"free" + padding[:-8]
    for shard in range(2):
        with open(tmp_path / f"big-{shard}.tar", "wb") as stream:
            for clip in range(3):
                write_sample(stream, f"c{shard}{clip}", {"mp4": long, "txt": b"A title"})
            stream.write(END_OF_TAR)
    s3.upload(tmp_path, "inplace")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)  # instead of storage options
    served = s3.served
    path = "s3://inplace/big-{0..1}.tar"
    stage = prepare(tmp_path / "stages", settings("shards", path, copy=False))
    assert s3.served - served < 0.2 * 6 * len(long)
    assert not list(stage.path.glob("*.tar"))
    told = rows(stage)
    assert {row["shard"] for row in told.values()} == {f"s3://inplace/big-{n}.tar" for n in (0, 1)}
    assert {(row["title"], row["frames"], row["width"]) for row in told.values()} == {
        ("A title", 8, 64)
    }
    assert members(stage)["c12"] == {"mp4": long, "txt": b"A title"}
    again = prepare(tmp_path / "stages", settings("shards", path, copy=False))
    assert again.reused
    with open(tmp_path / "big-2.tar", "wb") as stream:
        write_sample(stream, "c20", {"mp4": media})
        stream.write(END_OF_TAR)
    s3.client().upload_file(str(tmp_path / "big-2.tar"), "inplace", "big-2.tar")
    served = s3.served
    grown = settings("shards", "s3://inplace/big-{0..2}.tar", copy=False, extends=str(stage.path))
    extended = prepare(tmp_path / "stages", grown)
    assert s3.served - served < 200_000, "shards that were scanned before are not read again"
    assert list(extended.manifest["parts"]) == ["pool-00000", "pool-00001", "pool-00002"]
    assert len(rows(extended)) == 7
