from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest

from lsb.artifact import Stage, open_stage
from lsb.ids import to_bytes
from lsb.store import Store
from lsb.store.merge import merge

StageOf = Callable[..., Stage]
Unit = Callable[..., np.ndarray]
Build = Callable[..., Store]


def keys(first: int, count: int) -> list[str]:
    return [f"clip-{index}" for index in range(first, first + count)]


@pytest.fixture
def build(tmp_path: Path, stage_of: StageOf, unit: Unit) -> Build:
    def make(first: int, count: int, *arguments: object, **options: object) -> Store:
        root = tmp_path / f"root-{first}-{len(list(tmp_path.iterdir()))}"
        vectors = unit(count, options.pop("dimension", 4), seed=first)
        return Store.open(stage_of(root, vectors, keys(first, count), *arguments, **options).path)

    return make


def test_all_rows_of_both_are_in_it(tmp_path: Path, build: Build) -> None:
    one, other = build(0, 5, parts=2), build(5, 6, parts=3)
    output = tmp_path / "merged"
    assert merge(output, [one, other])
    merged = Store.open(output, verify=True)
    assert [part.name for part in merged.parts] == [
        "00-part-00000",
        "00-part-00001",
        "01-part-00000",
        "01-part-00001",
        "part-00002",
    ]
    assert merged.rows(["id", "key"]).to_pylist() == [
        *one.rows(["id", "key"]).to_pylist(),
        *other.rows(["id", "key"]).to_pylist(),
    ]
    assert np.array_equal(merged.vectors(other.ids), other.vectors(other.ids))
    assert (output / "part-00002.npy").samefile(other.parts[2].vectors_path)
    stage = open_stage(output)
    assert stage.counts == {"rows": 11}
    assert stage.manifest["inputs"] == {"store 0": one.hash, "store 1": other.hash}
    assert stage.manifest["stage"] == "embed"
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("root")) == [
        ".merged.lock",
        "merged",
    ]
    assert not merge(output, [one, other]), "the same store is there already"
    with pytest.raises(ValueError, match="merged exists and is not what these arguments give"):
        merge(output, [other, one])


def test_a_merged_store_can_be_merged_again(tmp_path: Path, build: Build) -> None:
    one, other, third = build(0, 2), build(2, 2), build(4, 2)
    merge(tmp_path / "two", [one, other])
    two = Store.open(tmp_path / "two")
    merge(tmp_path / "all", [two, third])
    names = [part.name for part in Store.open(tmp_path / "all", verify=True).parts]
    assert names == ["00-part-00000", "01-part-00000", "part-00000"]


def test_a_clip_in_two_stores_is_named(tmp_path: Path, build: Build) -> None:
    one, other = build(0, 5), build(4, 3, parts=2)
    with pytest.raises(
        ValueError, match=r"clip 'clip-4' is in .*00000\.parquet row 4 and in .*parquet row 0: take"
    ):
        merge(tmp_path / "merged", [one, other])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("merged")]


def test_stores_that_differ_are_refused(tmp_path: Path, build: Build) -> None:
    def refused(other: Store, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            merge(tmp_path / "merged", [one, other])

    one = build(0, 5)
    refused(build(5, 2, dimension=6), "has dimension 6, .* has 4: merge stores of one checkpoint")
    refused(build(5, 2, kind="pooled"), "has kind pooled, .* has fused")
    refused(build(5, 2, {"probability_x": np.ones(2)}), "differ in the column 'probability_x: ")
    with pytest.raises(ValueError, match="merge needs two stores or more, got 1"):
        merge(tmp_path / "merged", [one])


def test_remote_stores_are_copied_and_checked(tmp_path: Path, build: Build) -> None:
    one, other = build(0, 5), build(5, 2)
    url, system = "memory://merge/other", fsspec.filesystem("memory")
    system.put(str(other.path), url, recursive=True)
    merge(tmp_path / "merged", [one, Store.open(url)])
    merged = Store.open(tmp_path / "merged", verify=True)
    assert to_bytes(merged.ids) == [*to_bytes(one.ids), *to_bytes(other.ids)]
    vectors = bytearray(other.parts[0].vectors_path.read_bytes())
    vectors[-1] ^= 1
    system.pipe_file(f"{url}/part-00000.npy", bytes(vectors))
    with pytest.raises(ValueError, match=f"{url}/part-00000.npy is damaged"):
        merge(tmp_path / "damaged", [one, Store.open(url)])
    assert not (tmp_path / "damaged").exists()
    assert not (tmp_path / "damaged.partial").exists()


def test_what_a_killed_merge_left_is_cleared(tmp_path: Path, build: Build) -> None:
    one, other = build(0, 2), build(2, 2)
    (tmp_path / "merged.partial").mkdir()
    (tmp_path / "merged.partial" / "part-00000.npy").write_bytes(b"half")
    merge(tmp_path / "merged", [one, other])
    assert len(Store.open(tmp_path / "merged", verify=True)) == 4
    manifest = json.loads((tmp_path / "merged" / "manifest.json").read_text())
    assert {len(part["files"]) for part in manifest["parts"].values()} == {2}
