from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lsb.artifact import Part, Stage, open_stage, run_stage
from lsb.ids import sample_ids
from lsb.store import Store, part_files, write_part
from lsb.store.drop import drop_clips, drop_parts

Rows = Callable[..., pa.Table]
StageOf = Callable[..., Stage]
Unit = Callable[..., np.ndarray]
KEYS = [f"clip-{index}" for index in range(23)]


@pytest.fixture
def store(tmp_path: Path, stage_of: StageOf, unit: Unit) -> Store:
    scores = {"probability_x": np.linspace(0, 1, 23)}
    return Store.open(stage_of(tmp_path / "root", unit(23, 8), KEYS, scores, parts=3).path)


def test_dropped_parts_are_gone_and_the_others_linked(tmp_path: Path, store: Store) -> None:
    assert drop_parts(tmp_path / "less", store, ["part-00001"])
    less = Store.open(tmp_path / "less", verify=True)
    assert [part.name for part in less.parts] == ["part-00000", "part-00002"]
    assert less.rows().equals(
        pa.concat_tables([store.parts[0].read_rows(), store.parts[2].read_rows()])
    )
    assert less.parts[0].vectors_path.samefile(store.parts[0].vectors_path)
    assert open_stage(tmp_path / "less").manifest["inputs"] == {"store": store.hash}
    assert not drop_parts(tmp_path / "less", store, ["part-00001"])
    with pytest.raises(ValueError, match="less exists and is not what these arguments give"):
        drop_parts(tmp_path / "less", store, ["part-00002"])
    with pytest.raises(ValueError, match="has no part 'part-7', only part-00000, part-00001, part"):
        drop_parts(tmp_path / "other", store, ["part-7"])
    with pytest.raises(ValueError, match="would have no part left"):
        drop_parts(tmp_path / "other", store, [part.name for part in store.parts])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("where", ["local", "memory"])
def test_dropped_clips_are_gone(
    tmp_path: Path, store: Store, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lsb.store.drop.ROWS_PER_GROUP", 3)
    monkeypatch.setattr("lsb.store.drop.CHECK_ROWS", 3)
    source = store
    if where == "memory":
        fsspec.filesystem("memory").put(str(store.path), "memory://drop/store", recursive=True)
        source = Store.open("memory://drop/store")
    first, gone = store.parts[0], ["clip-3", "clip-0", "clip-22", "clip-3"]
    assert drop_clips(tmp_path / "less", source, gone)
    less = Store.open(tmp_path / "less", verify=True)
    left = [key for key in KEYS if key not in gone]
    assert less.rows(["key"])["key"].to_pylist() == left
    assert less.rows().equals(store.take(sample_ids(left), list(store.columns)))
    assert np.array_equal(less.vectors(less.ids), store.vectors(less.ids))
    assert [part.rows for part in less.parts] == [6, 8, 7 - 1]
    assert open_stage(tmp_path / "less").counts == {"rows": 20}
    told = pq.read_metadata(less.parts[0].rows_path)
    assert [told.row_group(group).num_rows for group in range(told.num_row_groups)] == [3, 3]
    if where == "local":
        assert less.parts[1].vectors_path.samefile(store.parts[1].vectors_path)
    assert (tmp_path / "less" / "part-00000.npy").stat().st_size == 128 + 6 * 8 * 4
    assert len(np.load(first.vectors_path)) == 8, "the source is as it was"


def test_all_clips_of_a_part_may_go(tmp_path: Path, store: Store) -> None:
    drop_clips(tmp_path / "less", store, KEYS[:8])
    less = Store.open(tmp_path / "less", verify=True)
    assert [part.rows for part in less.parts] == [0, 8, 7]
    assert less.rows(["key"])["key"].to_pylist() == KEYS[8:]


def test_unknown_clips_are_named_and_nothing_is_left(tmp_path: Path, store: Store) -> None:
    with pytest.raises(ValueError, match=r"1 of 2 keys are not in .*, first 'clip-23': give keys"):
        drop_clips(tmp_path / "less", store, ["clip-1", "clip-23"])
    with pytest.raises(ValueError, match="there is no key to drop"):
        drop_clips(tmp_path / "less", store, [])
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".partial"]
    assert not (tmp_path / "less").exists()


def test_codes_follow_and_files_made_of_all_rows_do_not(
    tmp_path: Path, rows_of: Rows, unit: Unit
) -> None:
    codes = pytest.importorskip("lsb.search.codes")
    vectors = unit(40, 16)

    def make(folder: Path) -> dict[str, int]:
        codes.write_codes(folder / "p.codes.safetensors", vectors)
        (folder / "p.quarantine.parquet").write_bytes(b"bad clips")
        (folder / "p.neighbours.parquet").write_bytes(b"of all rows")
        keys = [f"clip-{index}" for index in range(40)]
        return {**write_part(folder, "p", vectors, rows_of(keys), kind="pooled"), "skipped": 2}

    files = (*part_files("p", codes=True), "p.quarantine.parquet", "p.neighbours.parquet")
    root = tmp_path / "root"
    path = run_stage(root, "embed", config={}, inputs={}, parts=[Part("p", files, make)]).path
    drop_clips(tmp_path / "less", Store.open(path), ["clip-4"])
    less = Store.open(tmp_path / "less", verify=True)
    left = less.manifest["parts"]["p"]
    assert sorted(left["files"]) == sorted([*part_files("p", codes=True), "p.quarantine.parquet"])
    assert left["counts"] == {"rows": 39, "skipped": 2}
    keep = np.arange(40) != 4
    whole = codes.PartCodes.open(path / "p.codes.safetensors")
    cut = codes.PartCodes.open(less.parts[0].codes_path, less.parts[0].vectors_path)
    assert np.array_equal(cut.read("codes", 0, 39), whole.read("codes", 0, 40)[keep])
