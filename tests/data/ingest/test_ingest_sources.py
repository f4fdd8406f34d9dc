"""The three sources: what is a clip, its key, title and media, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from source_files import image, video, wav
from stage_reading import members, quarantine, rows

from lsb.ids import sample_id
from vlmae.data.prepare import IngestConfig, prepare
from vlmae.data.prepare.ingest.clips import clip_key
from vlmae.data.records import fits, write_sample

ConfigMaker = Callable[..., IngestConfig]


def write_manifest(path: Path, folder: Path, relative: bool) -> None:
    """A CSV or parquet table of all videos below a folder, with the titles beside them."""
    table = []
    for media in sorted(folder.rglob("*.mp4")):
        text, fields = media.with_suffix(".txt"), media.with_suffix(".json")
        title = text.read_text().strip() if text.exists() else json.loads(fields.read_text())
        title = title if isinstance(title, str) else title["title"]
        name = media.relative_to(folder).as_posix() if relative else str(media)
        key = clip_key(media.relative_to(folder).with_suffix("").as_posix(), ["mp4"])
        table.append({"path": name, "title": title, "key": key})
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(table), path)
        return
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["path", "title", "key"])
        writer.writeheader()
        writer.writerows(table)


def test_all_sources_give_equal_clips(tmp_path: Path, folder: Path, settings: ConfigMaker) -> None:
    of_folder = prepare(tmp_path, settings("folder", folder))
    write_manifest(tmp_path / "clips.csv", folder, relative=True)
    write_manifest(tmp_path / "clips.parquet", folder, relative=False)
    of_csv = prepare(tmp_path, settings("manifest", tmp_path / "clips.csv", root=str(folder)))
    of_parquet = prepare(tmp_path, settings("manifest", tmp_path / "clips.parquet"))
    tars = of_folder.path / "pool-{00000..00002}.tar"
    of_shards = prepare(tmp_path, settings("shards", tars, shard_clips=7))
    in_place = prepare(tmp_path, settings("shards", tars, copy=False))
    expected, told = members(of_folder), rows(of_folder)
    assert len(expected) == 12
    assert told["sub_one/clip003"]["title"] == "Title 3 \u00e9\u4e2d"
    assert told["clip002"]["title"] == "Title 2 \u00e9\u4e2d"
    for stage in (of_csv, of_parquet, of_shards, in_place):
        assert members(stage) == expected
        for key, row in rows(stage).items():
            same = set(row) - {"shard", "offset", "size"}
            assert {n: row[n] for n in same} == {n: told[key][n] for n in same}
    assert len({row["shard"] for row in rows(of_shards).values()}) == 2


def test_relative_paths_are_those_of_the_folder_it_was_typed_in(
    tmp_path: Path, folder: Path, settings: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_folder = prepare(tmp_path, settings("folder", folder))
    write_manifest(folder.parent / "clips.csv", folder, relative=True)
    monkeypatch.chdir(folder.parent)
    again = prepare(tmp_path, settings("folder", Path(folder.name)))
    assert again.path == of_folder.path
    assert again.reused
    listed = prepare(tmp_path, settings("manifest", Path("clips.csv"), root=folder.name))
    assert members(listed) == members(of_folder)


def test_index_and_json_say_what_the_clip_is(
    tmp_path: Path, folder: Path, settings: ConfigMaker
) -> None:
    stage = prepare(tmp_path, settings("folder", folder))
    row = rows(stage)["clip001"]
    assert row["id"] == sample_id("clip001")
    expected = {"media": "mp4", "width": 96, "height": 64, "frames": 8, "fps": 8.0, "rotation": 0}
    expected |= {"video_codec": "h264", "audio_codec": "aac", "audio_rate": 16_000}
    expected |= {"audio_channels": 1, "split": "pool"}
    assert {name: row[name] for name in expected} == expected
    assert row["duration_s"] == pytest.approx(1.0, abs=0.1)
    fields = json.loads(members(stage)["clip001"]["json"])
    assert set(fields) == {"key", "title", "split", "data", "synthetic", "duration_s"}
    assert (fields["data"], fields["synthetic"]) == ("mine", False)


def test_plain_webdataset_reads_the_same_members(
    tmp_path: Path, folder: Path, settings: ConfigMaker
) -> None:
    stage = prepare(tmp_path, settings("folder", folder, reencode=True, short_side=32))
    expected = members(stage)
    seen = {}
    for sample in webdataset.WebDataset(
        sorted(str(tar) for tar in stage.path.glob("*.tar")), shardshuffle=False
    ):
        seen[sample["__key__"]] = {k: v for k, v in sample.items() if not k.startswith("__")}
    assert seen == expected
    assert {(row["width"], row["height"]) for row in rows(stage).values()} == {(48, 32)}


def test_clips_are_shuffled_by_hash_and_shards_keep_their_limits(
    tmp_path: Path, folder: Path, settings: ConfigMaker
) -> None:
    one = prepare(tmp_path, settings("folder", folder))
    other = prepare(tmp_path, settings("folder", folder, seed=1))
    assert list(rows(one)) != sorted(rows(one))
    assert list(rows(one)) != list(rows(other))
    assert [row["shard"] for row in rows(one).values()] == sorted(
        ["pool-00000.tar"] * 5 + ["pool-00001.tar"] * 5 + ["pool-00002.tar"] * 2
    )
    largest = max(path.stat().st_size for path in folder.rglob("*.mp4"))
    small = prepare(tmp_path, settings("folder", folder, shard_bytes=largest + 100))
    assert len({row["shard"] for row in rows(small).values()}) == 12


def test_images_with_sound_sound_alone_and_what_lies_beside_a_video(
    tmp_path: Path, settings: ConfigMaker
) -> None:
    media = tmp_path / "media"
    media.mkdir()
    for name, data in {
        "run.1.jpg": image(),
        "run.2.jpg": image(),
        "run.10.jpg": image(),
        "run.wav": wav(),
        "still.PNG": image(kind="PNG"),
        "still.mp3.txt": b"no clip: only a title",
        "heard.wav": wav(seconds=2.0),
        "v1.0.film.mp4": video(sound=None),
        "v1.0.film.jpg": image(),  # a thumbnail
        "v1.0.film.wav": wav(seconds=3.0),
        ".hidden.mp4": video(),
        "notes.pdf": b"",
    }.items():
        (media / name).write_bytes(data)
    stage = prepare(tmp_path, settings("folder", media))
    found, told = members(stage), rows(stage)
    assert {key: list(value) for key, value in found.items()} == {
        "run": ["1.jpg", "2.jpg", "10.jpg", "wav", "json"],
        "still": ["png", "json"],
        "heard": ["wav", "json"],
        "v1_0_film": ["mp4", "wav", "json"],
    }
    columns = ("media", "frames", "audio_codec", "video_codec")
    assert {key: tuple(row[name] for name in columns) for key, row in told.items()} == {
        "run": ("images", 3, "pcm_s16le", "mjpeg"),
        "still": ("images", 1, None, "png"),
        "heard": ("audio", None, "pcm_s16le", None),
        "v1_0_film": ("mp4", 8, "pcm_s16le", "h264"),
    }
    assert {key: round(row["duration_s"]) for key, row in told.items()} == {
        "run": 1,
        "still": 0,
        "heard": 2,
        "v1_0_film": 3,
    }


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("a/b.c/d.e", "a/b_c/d_e"),
        ("\u4e2d\u6587 title", "\u4e2d\u6587 title"),
        ("__meta__/x", "meta__/x"),
        ("bad\udcffname", "bad\\udcffname"),
    ],
)
def test_keys_are_relative_paths_that_a_tar_can_hold(stem: str, expected: str) -> None:
    assert clip_key(stem, ["mp4", "json"]) == expected
    assert fits(expected, ("mp4", "json"))


def test_long_names_are_cut_and_stay_different() -> None:
    keys = {clip_key("\u00e9" * 150 + str(number), ["mp4"]) for number in range(20)}
    assert len(keys) == 20
    assert all(fits(key, ("mp4",)) and len(key.encode()) < 100 for key in keys)


@pytest.mark.parametrize("names", [("a.b.mp4", "a_b.mp4"), ("a.mp4", "a.webm"), ("a.wav", "a.mp3")])
def test_duplicate_keys_are_refused_naming_both_files(
    tmp_path: Path, settings: ConfigMaker, names: tuple[str, str]
) -> None:
    media = tmp_path / "media"
    media.mkdir()
    for name in names:
        (media / name).write_bytes(b"x")
    with pytest.raises(ValueError, match="rename or drop one") as caught:
        prepare(tmp_path, settings("folder", media))
    assert all(str(media / name) in str(caught.value) for name in names)


def test_duplicate_keys_of_shards_are_refused(
    tmp_path: Path, folder: Path, settings: ConfigMaker
) -> None:
    stage = prepare(tmp_path, settings("folder", folder))
    for name in ("a.tar", "b.tar"):
        shutil.copy(stage.path / "pool-00000.tar", tmp_path / name)
    for changes in ({}, {"copy": False}):
        with pytest.raises(ValueError, match=r"5 clips have a key.*a\.tar and .*b\.tar"):
            prepare(tmp_path, settings("shards", tmp_path / "{a,b}.tar", **changes))


def test_manifests_have_splits_sound_and_absent_files(
    tmp_path: Path, settings: ConfigMaker
) -> None:
    (tmp_path / "a.mp4").write_bytes(video(1))
    (tmp_path / "b.jpg").write_bytes(image())
    (tmp_path / "b.sound.wav").write_bytes(wav())
    text = "path,sound,split,title,key\na.mp4,,gold,One,\nb.jpg,b.sound.wav,,,my.key\nc.mp4,,,,\n"
    (tmp_path / "m.csv").write_text(text)
    stage = prepare(tmp_path / "stages", settings("manifest", tmp_path / "m.csv", skip_limit=0.5))
    told = rows(stage)
    assert {key: (row["split"], row["title"]) for key, row in told.items()} == {
        "a": ("gold", "One"),
        "my_key": ("pool", ""),
    }
    assert list(members(stage)["my_key"]) == ["jpg", "wav", "json"]
    assert quarantine(stage) == {"c": ("absent file", str(tmp_path / "c.mp4"))}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,title\na.mp4,x\n", "give a column path or url"),
        ("path\n", "0 rows"),
        ("path,title\n,x\n", "row 1: neither path nor url"),
        ("path\na.pdf\n", "not of a known media ending"),
        ("path,split\na.mp4,a-b\n", "letters, digits and _ only"),
    ],
)
def test_manifests_that_cannot_be_read_are_refused(
    tmp_path: Path, settings: ConfigMaker, text: str, message: str
) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "stages", settings("manifest", tmp_path / "m.csv"))


def test_foreign_tars_with_long_names_and_other_members_are_taken(
    tmp_path: Path, settings: ConfigMaker
) -> None:
    long = "folder.v1/" + "n" * 140
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in {
            "README": b"not a sample",
            f"{long}.MP4": video(1),
            f"{long}.cls": b"7",
            f"{long}.json": json.dumps({"title": "T", "synthetic": True}).encode(),
        }.items():
            source = tmp_path / "member"
            source.write_bytes(data)
            archive.add(source, name)
    in_place = prepare(tmp_path, settings("shards", tmp_path / "x.tar", copy=False))
    assert list(members(in_place)) == [long]
    assert list(members(in_place)[long]) == ["mp4", "cls", "json"]
    copied = prepare(tmp_path, settings("shards", tmp_path, split="gold"))
    (key,) = rows(copied)
    assert key.startswith("folder_v1_nnn")
    assert members(copied)[key]["mp4"] == members(in_place)[long]["mp4"]
    assert json.loads(members(copied)[key]["json"])["synthetic"] is True
    assert copied.counts["gold.synthetic"] == 1


def test_damaged_or_compressed_shards_are_refused_by_name(
    tmp_path: Path, settings: ConfigMaker
) -> None:
    whole = tmp_path / "w.tar"
    with open(whole, "wb") as stream:
        for number in range(3):
            write_sample(stream, f"k{number}", {"mp4": bytes(2_000)})
    data = whole.read_bytes()
    damaged = {
        "cut": data[:-900],
        "header": data[:2560] + b"\xff" * 100 + data[2660:],
        "gz": b"\x1f\x8b" + data,
    }
    for name, content in damaged.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.tar is damaged"):
            prepare(tmp_path / "stages", settings("shards", path))
    with pytest.raises(ValueError, match=r"there is no shard .*nosuch\.tar"):
        prepare(tmp_path / "stages", settings("shards", tmp_path / "nosuch.tar"))
    with pytest.raises(ValueError, match="there are no shards"):
        prepare(tmp_path / "stages", settings("shards", tmp_path / "*.nosuch"))
