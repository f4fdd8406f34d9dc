"""Stores behind URLs: equal to local ones, and no more is fetched than is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_server import S3Server

from lsb.arrays import ArrayHeader
from lsb.artifact import Stage
from lsb.store import Store
from lsb.store import remote as remote_module
from lsb.store.checks import find_faults
from lsb.store.remote import RemoteArray

StageOf = Callable[..., Stage]
Unit = Callable[..., np.ndarray]
Opened = tuple[Store, str, dict[str, Any]]
KEYS = [f"clip-{index}" for index in range(50)]


@pytest.fixture(params=["memory", "s3"])
def remote(
    request: pytest.FixtureRequest, tmp_path: Path, stage_of: StageOf, unit: Unit, s3: S3Server
) -> Iterator[Opened]:
    """A local store, its copy's URL and the options to reach it."""
    scores = {"probability_x": np.linspace(0, 1, 50)}
    stage = stage_of(tmp_path / "root", unit(50, 8).astype(np.float16), KEYS, scores, parts=3)
    name = f"bucket-{abs(hash(request.node.nodeid))}"
    if request.param == "s3":
        s3.upload(stage.path.parent, name)
        url, options = f"s3://{name}/{stage.path.name}", s3.storage_options
    else:
        url, options = f"memory://{name}/{stage.path.name}", {}
        system = fsspec.filesystem("memory")
        system.put(str(stage.path), url, recursive=True)
    yield Store.open(stage.path), url, options
    if request.param == "memory":
        system.rm(f"memory://{name}", recursive=True)


def test_it_reads_as_the_local_one_does(remote: Opened) -> None:
    local, url, options = remote
    store = Store.open(url, options=options, verify=True)
    assert (store.hash, store.columns, len(store)) == (local.hash, local.columns, 50)
    assert store.rows().equals(local.rows())
    rows = np.asarray([49, 0, 17, 17, 3])
    assert store.take_rows(rows, ["key", "id"]).equals(local.take_rows(rows, ["key", "id"]))
    assert np.array_equal(store.take_vectors(rows), local.take_vectors(rows))
    assert np.array_equal(store.vectors(local.ids), local.vectors(local.ids))
    for one, other in zip(store.blocks(7), local.blocks(7), strict=True):
        assert (one[0].name, one[1]) == (other[0].name, other[1])
        assert one[2].dtype == other[2].dtype
        assert np.array_equal(one[2], other[2])
    with pytest.raises(ValueError, match=r"part-00000\.npy has no local path"):
        _ = store.parts[0].vectors_path
    with pytest.raises(ValueError, match="has no local path: copy the store"):
        _ = store.path
    assert store.place == url


def test_faults_are_found_behind_a_url(remote: Opened) -> None:
    local, url, options = remote
    assert find_faults(url, options=options) == []
    system = fsspec.filesystem(url.split("://", 1)[0], **options)
    vectors = bytearray((local.path / "part-00001.npy").read_bytes())
    vectors[-2:] = b"\xff\xff"
    system.pipe_file(f"{url}/part-00001.npy", bytes(vectors))
    faults = [str(fault) for fault in find_faults(url, options=options)]
    assert faults[0].startswith(f"{url}/part-00001.npy is damaged")
    assert faults[1].startswith(f"{url}/part-00001.npy: row 16 holds NaN or infinity, clip 'clip-")
    assert len(faults) == 2
    system.rm_file(f"{url}/part-00002.parquet")
    with pytest.raises(ValueError, match=f"{url}/part-00002.parquet is missing: run the command"):
        Store.open(url, options=options)


def test_only_what_is_asked_for_is_fetched(
    tmp_path: Path, stage_of: StageOf, unit: Unit, s3: S3Server
) -> None:
    keys = [f"clip-{index}" for index in range(4000)]
    stage = stage_of(tmp_path / "root", unit(4000, 256), keys, parts=2)
    s3.upload(stage.path.parent, "wide-store")
    before = s3.served
    url = f"s3://wide-store/{stage.path.name}"
    store = Store.open(url, options=s3.storage_options)
    # A manifest, the footer of one rows file and the head of one array.
    assert s3.served - before < 160_000
    part, before = store.parts[0], s3.served
    assert part.vectors()[100:200].shape == (100, 256)
    assert s3.served - before < 100 * 1024 + 5_000
    before = s3.served
    store.take_vectors(np.asarray([3, 900, 905, 1700]))
    assert s3.served - before < 50_000
    before = s3.served
    next(store.blocks(10))
    assert s3.served - before < 10 * 1024 + 5_000


def test_places_that_cannot_be_read_are_named(s3: S3Server) -> None:
    def refused(url: str, message: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            Store.open(url, options=options)

    refused("nosuch://bucket/store", "nosuch://bucket/store: .*give a local path or a URL")
    refused("memory://none/store", "memory://none/store has no manifest.json: it is not a")
    refused("s3://none/store", "s3://none/store has no manifest.json", **s3.storage_options)
    nobody = {
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    refused("s3://none/store", "s3://none/store cannot be read .*: check the URL, the", **nobody)
    fsspec.filesystem("memory").pipe_file("memory://empty/store/x", b"")
    refused("memory://empty/store", "memory://empty/store has no manifest.json")


ARRAY = np.arange(60, dtype=np.float32).reshape(20, 3)
DATA = bytes(8) + ARRAY.tobytes()
rows = st.lists(st.integers(-20, 19), max_size=25).map(
    lambda rows: np.asarray(rows, dtype=np.int64)
)
bound = st.one_of(st.none(), st.integers(-25, 25))
step = st.one_of(st.none(), st.integers(-3, 3).filter(bool))
slices = st.builds(slice, bound, bound, step)
masks = st.lists(st.booleans(), min_size=20, max_size=20).map(np.asarray)


@given(st.one_of(rows, slices, masks, st.integers(-20, 19)), st.sampled_from([0, 13, 1 << 16]))
@settings(deadline=None)
def test_remote_arrays_are_indexed_as_numpy_does(index: Any, gap: int) -> None:
    fetched = 0

    def fetch(ranges: Any) -> list[bytes]:
        nonlocal fetched
        fetched += sum(stop - start for start, stop in ranges)
        return [DATA[start:stop] for start, stop in ranges]

    array = RemoteArray(ArrayHeader(ARRAY.shape, ARRAY.dtype, False, 8), fetch)
    assert (len(array), array.ndim, array.shape, array.dtype) == (20, 2, (20, 3), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_module, "GAP_BYTES", gap)
        got = array[index]
    assert np.array_equal(got, ARRAY[index])
    assert got.dtype == ARRAY.dtype
    if gap == 0:
        assert fetched == np.unique(np.arange(20)[index]).size * 12


def test_rows_outside_of_a_remote_array_are_named() -> None:
    array = RemoteArray(ArrayHeader((20, 3), np.dtype("f4"), False, 8), lambda ranges: [])
    with pytest.raises(IndexError, match="row 20 is not among 20 rows"):
        array[[0, 20]]
    with pytest.raises(IndexError, match=r"rows are float64 of shape \(1,\)"):
        array[[0.5]]
    with pytest.raises(IndexError, match=r"a mask of shape \(1,\) for 20 rows"):
        array[[True]]
