"""Byte ranges: what is read, in how many requests, and what is said when it cannot be."""

from __future__ import annotations

import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_pool import PoolClip, write_pool
from s3_server import S3Server

from vlmae.data.decode import BadClipError
from vlmae.data.ranges import RangeReader, Traffic, join_ranges, tar_members


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[PoolClip]]:
    """200 shards of 50 clips of about 20 kB: 200 MB."""
    folder = tmp_path_factory.mktemp("pool")
    return folder, write_pool(folder, shards=200, clips=50, media_bytes=20_000)


def columns(clips: list[PoolClip]) -> tuple[list[str], list[int], list[int]]:
    return [c.shard for c in clips], [c.offset for c in clips], [c.size for c in clips]


def expansion(clips: list[PoolClip]) -> list[PoolClip]:
    """500 clips in the order an expansion asks for them: none that the shards have."""
    chosen = np.random.default_rng(0).choice(len(clips), 500, replace=False)
    return [clips[int(number)] for number in chosen]


def test_expanding_500_of_200_shards_reads_under_one_percent_more(
    pool: tuple[Path, list[PoolClip]],
) -> None:
    folder, clips = pool
    chosen = expansion(clips)
    with RangeReader(folder) as reader:
        records = reader.read(*columns(chosen))
        traffic = reader.traffic
    for clip, record in zip(chosen, records, strict=True):
        assert tar_members(record, clip.key) == clip.members
    in_pool = sum(path.stat().st_size for path in folder.iterdir())
    assert traffic.wanted == sum(clip.size for clip in chosen)
    assert 0 <= traffic.read - traffic.wanted < 0.01 * in_pool
    assert traffic.requests < len(chosen), "neighbours were read together"


def test_expanding_from_s3_reads_under_one_percent_more_and_serves_what_it_counts(
    tmp_path: Path, s3: S3Server
) -> None:
    clips = write_pool(tmp_path, shards=200, clips=20, media_bytes=8_000)
    in_pool = sum(path.stat().st_size for path in tmp_path.iterdir())
    s3.upload(tmp_path, "expansion")
    chosen = expansion(clips)
    served = s3.served
    with RangeReader("s3://expansion", storage_options=s3.storage_options) as reader:
        records = reader.read(*columns(chosen))
        traffic = reader.traffic
    for clip, record in zip(chosen, records, strict=True):
        assert tar_members(record, clip.key) == clip.members
    assert traffic.read - traffic.wanted < 0.01 * in_pool
    assert s3.served - served == traffic.read, "nothing was fetched that is not counted"


def test_order_duplicates_and_overlaps_are_as_asked(tmp_path: Path) -> None:
    data = np.random.default_rng(1).bytes(10_000)
    (tmp_path / "a.tar").write_bytes(data)
    (tmp_path / "b.tar").write_bytes(data[::-1])
    asked = [("b.tar", 50, 10), ("a.tar", 9_000, 1_000), ("a.tar", 0, 100), ("b.tar", 50, 10)]
    asked += [("a.tar", 50, 100), ("a.tar", 0, 0)]
    with RangeReader(tmp_path, max_gap=0) as reader:
        answers = reader.read(*map(list, zip(*asked, strict=True)))  # type: ignore[arg-type]
        assert reader.traffic == Traffic(wanted=1_220, read=150 + 1_000 + 10, requests=3)
    for (shard, offset, size), answer in zip(asked, answers, strict=True):
        whole = data if shard == "a.tar" else data[::-1]
        assert answer == whole[offset : offset + size]


@given(
    ranges=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 400), st.integers(0, 90))),
    max_gap=st.integers(0, 60),
    max_request=st.integers(1, 200),
)
@settings(max_examples=200, deadline=None)
def test_joined_requests_cover_all_ranges_within_the_limits(
    ranges: list[tuple[str, int, int]], max_gap: int, max_request: int
) -> None:
    shards, offsets, sizes = (
        (list(column) for column in zip(*ranges, strict=True)) if ranges else ([], [], [])
    )
    spans = join_ranges(shards, offsets, sizes, max_gap=max_gap, max_request=max_request)
    assert sorted(number for span in spans for number in span.ranges) == list(range(len(ranges)))
    for span in spans:
        longest = max(sizes[number] for number in span.ranges)
        assert span.stop - span.start <= max(max_request, longest)
        wanted = np.zeros(600, bool)
        for number in span.ranges:
            assert shards[number] == span.shard
            assert span.start <= offsets[number]
            assert offsets[number] + sizes[number] <= span.stop
            wanted[offsets[number] : offsets[number] + sizes[number]] = True
        unwanted = "".join("01"[int(w)] for w in wanted[span.start : span.stop])
        assert max(map(len, unwanted.split("1")), default=0) <= max_gap


def test_a_sample_above_the_limit_is_one_request(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(5_000))
    with RangeReader(tmp_path, max_request=1_000) as reader:
        assert [len(found) for found in reader.read(["a.tar"] * 2, [0, 4_000], [4_000, 1_000])] == [
            4_000,
            1_000,
        ]
        assert reader.traffic.requests == 2


@pytest.mark.parametrize("where", ["local", "s3"])
def test_absent_and_short_shards_are_named_with_range_and_remedy(
    tmp_path: Path, s3: S3Server, where: str
) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(1_000))
    base = str(tmp_path)
    if where == "s3":
        s3.upload(tmp_path, "short")
        base = "s3://short"
    with RangeReader(base, storage_options=s3.storage_options) as reader:
        with pytest.raises(ValueError, match=r"there is no shard .*b\.tar: restore it"):
            reader.read(["b.tar"], [0], [10])
        with pytest.raises(ValueError, match=r"a\.tar gave 100 of the bytes 900 to 1100.* again"):
            reader.read(["a.tar"], [900], [200])
        with pytest.raises(ValueError, match=r"bytes 5000 to 5001 of|0 of the bytes 5000 to 5001"):
            reader.read(["a.tar"], [5_000], [1])
        with pytest.raises(ValueError, match="offset -1"):
            reader.read(["a.tar"], [-1], [1])
        with pytest.raises(ValueError, match="give equally many"):
            reader.read(["a.tar"], [0, 1], [1])


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(ValueError, match="give a local path or a URL that fsspec knows"):
        RangeReader("nosuch://bucket").read(["a.tar"], [0], [1])


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_descriptors_are_few_and_closed(tmp_path: Path) -> None:
    names = [f"{number:03d}.tar" for number in range(150)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    before = open_files()
    reader = RangeReader(tmp_path)
    for _ in range(2):
        assert reader.read(names, [0] * 150, [3] * 150) == [name[:3].encode() for name in names]
        assert 0 < open_files() - before <= 64
    reader.close()
    assert open_files() == before
    assert reader.read(names[:1], [0], [3]) == [b"000"], "it opens again when it is needed"
    del reader
    assert open_files() == before


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_reader_that_has_read_works_in_a_forked_and_an_unpickled_copy(
    tmp_path: Path, s3: S3Server, where: str
) -> None:
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    base = str(tmp_path)
    if where == "s3":
        bucket = "fork"
        s3.upload(tmp_path, bucket)
        base = f"s3://{bucket}"
    reader = RangeReader(base, storage_options=s3.storage_options)
    assert reader.read(["a.tar"], [2], [3]) == [b"234"]
    assert pickle.loads(pickle.dumps(reader)).read(["a.tar"], [7], [3]) == [b"789"]
    child = os.fork()
    if child == 0:
        # In the child nothing may reach pytest: what was read is told by the exit status.
        try:
            right = reader.read(["a.tar"], [5], [2]) == [b"56"]
        except BaseException:
            right = False
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert reader.read(["a.tar"], [0], [1]) == [b"0"], "the parent's descriptors still work"


@pytest.fixture(scope="module")
def record(pool: tuple[Path, list[PoolClip]]) -> tuple[PoolClip, bytes]:
    folder, clips = pool
    clip = clips[70]
    return clip, RangeReader(folder).read(*columns([clip]))[0]


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 600, -1, -512])
def test_a_cut_record_is_a_bad_clip(record: tuple[PoolClip, bytes], cut: int) -> None:
    clip, data = record
    with pytest.raises(BadClipError, match="damaged sample") as caught:
        tar_members(data[:cut], clip.key)
    assert (caught.value.key, caught.value.reason) == (clip.key, "damaged sample")


def test_a_record_of_another_key_or_with_a_damaged_header_is_a_bad_clip(
    record: tuple[PoolClip, bytes],
) -> None:
    clip, data = record
    with pytest.raises(BadClipError, match="another key"):
        tar_members(data, "other")
    second = len(data) - 1024  # the header of the json, whose checksum no longer fits
    damaged = data[: second + 5] + b"\xff" + data[second + 6 :]
    with pytest.raises(BadClipError, match="damaged sample"):
        tar_members(damaged, clip.key)
    twice = data + data
    with pytest.raises(BadClipError, match="a second member of this name"):
        tar_members(twice, clip.key)


@given(data=st.binary(max_size=2048), place=st.integers(0, 1023), patch=st.binary(max_size=40))
@settings(max_examples=300, deadline=None)
def test_no_bytes_raise_anything_else(data: bytes, place: int, patch: bytes) -> None:
    header = tarfile.TarInfo("k.txt")
    header.size = 5
    whole = bytearray(header.tobuf(tarfile.USTAR_FORMAT) + b"title".ljust(512, b"\0"))
    whole[place : place + len(patch)] = patch
    for record in (data, bytes(whole)):
        reasons = []
        try:
            tar_members(record, "k")
        except BadClipError as bad:
            reasons.append(bad.reason)
        assert set(reasons) <= {"damaged sample"}
