"""Reading by row number, and what opening does not read."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsb.artifact import Stage
from lsb.ids import to_bytes
from lsb.store import Store, write_part
from lsb.store.folder import LocalFolder

Make = Callable[..., Store]
Unit = Callable[..., np.ndarray]
StageOf = Callable[..., Stage]
KEYS = [f"clip-{index}" for index in range(23)]


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Rows in groups of 3, in parts of 0 to 10 rows."""
    from lsb.artifact import Part, run_stage
    from lsb.store import part_files

    vectors = np.random.default_rng(0).normal(size=(23, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    parts, start = [], 0
    for number, count in enumerate([7, 0, 10, 1, 5]):
        rows = pa.table(
            {
                "key": KEYS[start : start + count],
                "shard": pa.array(["pool.tar"] * count, pa.string()),
                "offset": np.arange(start, start + count),
                "size": np.full(count, 5),
                "probability_x": np.arange(start, start + count) / 23,
            }
        )
        part = vectors[start : start + count]
        name, start = f"p{number}", start + count

        def make(
            folder: Path, name: str = name, part: np.ndarray = part, rows: pa.Table = rows
        ) -> dict[str, int]:
            return write_part(folder, name, part, rows, kind="fused")

        parts.append(Part(name, part_files(name), make))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lsb.store.write.ROWS_PER_GROUP", 3)
        root = tmp_path_factory.mktemp("grouped")
        stage = run_stage(root, "embed", config={}, inputs={}, parts=parts)
    return Store.open(stage.path)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(0, 22), max_size=40),
    columns=st.permutations(["id", "key", "offset", "probability_x"]).flatmap(
        lambda names: st.integers(1, 4).map(lambda count: names[:count])
    ),
)
def test_rows_come_as_asked(grouped: Store, rows: list[int], columns: list[str]) -> None:
    asked = np.asarray(rows, dtype=np.int64)
    expected = grouped.rows(columns).take(asked)
    assert grouped.take_rows(asked, columns).equals(expected)
    vectors = np.concatenate([part.vectors() for part in grouped.parts])
    assert np.array_equal(grouped.take_vectors(asked), vectors[asked])


def test_rows_that_are_not_there_are_named(grouped: Store) -> None:
    for row in (-1, 23):
        for read in (lambda row: grouped.take_rows(row, ["key"]), grouped.take_vectors):
            with pytest.raises(ValueError, match=f"row {row} is not among the 23 rows of store"):
                read(np.asarray([0, row]))
    with pytest.raises(ValueError, match="no column 'x'"):
        grouped.take_rows(np.asarray([0]), ["x"])


def test_parts_know_their_place(grouped: Store) -> None:
    assert [part.first_row for part in grouped.parts] == [0, 7, 7, 17, 18]
    assert {(part.dimension, part.dtype) for part in grouped.parts} == {(4, "float32")}
    assert {part.codes_path for part in grouped.parts} == {None}
    for part in grouped.parts:
        rows = np.arange(part.first_row, part.first_row + part.rows)
        assert grouped.take_rows(rows, ["id"])["id"].to_pylist() == to_bytes(part.ids())


def test_only_the_row_groups_that_are_asked_for_are_read(
    grouped: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counted(file: pq.ParquetFile, group: int, **options: object) -> pa.Table:
        read.append(group)
        return original(file, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    grouped.take_rows(np.asarray([16, 8, 7, 16]), ["key"])
    assert read == [0, 3]


def test_an_opened_store_can_be_handed_to_another_process(grouped: Store) -> None:
    other = pickle.loads(pickle.dumps(grouped))
    assert other.rows().equals(grouped.rows())


def test_opening_reads_a_manifest_one_listing_and_the_first_part(
    tmp_path: Path, stage_of: StageOf, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"clip-{index}" for index in range(60)]
    path = stage_of(tmp_path, unit(60, 4), keys, parts=20).path
    opened: list[str] = []

    def counted(name: str) -> Callable[..., object]:
        original = getattr(LocalFolder, name)

        def call(folder: LocalFolder, *arguments: str) -> object:
            opened.append(f"{name} {' '.join(arguments)}".strip())
            return original(folder, *arguments)

        return call

    for name in ("sizes", "read", "parquet", "header", "array", "stream"):
        monkeypatch.setattr(LocalFolder, name, counted(name))
    store = Store.open(path)
    first = ["parquet part-00000.parquet", "header part-00000.npy", "stream part-00000.npy"]
    assert opened[:2] == ["sizes", "read manifest.json"]
    assert set(opened[2:]) == set(first)
    assert len(store) == 60
    opened.clear()
    next(store.blocks(2))
    assert opened == ["array part-00000.npy"]
    opened.clear()
    store.take_rows(np.asarray([58]), ["key"])
    assert {name.split()[1].split(".")[0] for name in opened} == {"part-00019"}


def test_parts_that_cannot_be_read_do_not_hinder_opening(
    tmp_path: Path, stage_of: StageOf, unit: Unit
) -> None:
    path = stage_of(tmp_path, unit(23, 4), KEYS, parts=3).path
    file = path / "part-00002.npy"
    size = file.stat().st_size
    file.unlink()
    with open(file, "wb") as stream:
        os.truncate(stream.fileno(), size)
    store = Store.open(path)
    assert len(store) == 23
    with pytest.raises(ValueError, match=r"part-00002\.npy is not an \.npy file"):
        store.parts[2].vectors()


def test_folders_that_hold_no_store_are_refused(
    tmp_path: Path, stage_of: StageOf, unit: Unit
) -> None:
    def refused(path: Path | str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Store.open(path)

    refused(tmp_path / "none", "none has no manifest.json: it is not a finished stage; run")
    refused(tmp_path, "has no manifest.json: it is not a finished stage")
    path = stage_of(tmp_path / "root", unit(3, 4), KEYS[:3]).path
    assert len(Store.open(str(path))) == len(Store.open(f"file://{path}")) == 3
    manifest = json.loads((path / "manifest.json").read_text())

    def changed(parts: dict[str, object]) -> Path:
        (path / "manifest.json").write_text(json.dumps(manifest | {"parts": parts}))
        return path

    refused(changed({}), "has no parts: embed at least one shard")
    entry = manifest["parts"]["part-00000"]
    other = {"pool": {**entry, "files": {"pool.tar": {}}}}
    refused(changed(other), "is no store, its part 'pool' has the files pool.tar")
