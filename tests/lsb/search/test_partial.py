"""Files of partial lists: what is written is read, anything else is refused with the remedy."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lsb.files import StageError
from lsb.ids import sample_ids
from lsb.search.ask import seeds_of
from lsb.search.lists import NeighbourLists
from lsb.search.partial import (
    LISTS,
    METADATA_KEY,
    Wave,
    merge_part,
    read_lists,
    void_lists,
    write_lists,
)

ROWS = 50


@pytest.fixture
def wave() -> Wave:
    ids = sample_ids(["a", "b", "c"])
    return Wave(seeds_of(ids, np.eye(3, dtype=np.float32)), 2, 0.5, np.sort(sample_ids(["x"])))


@pytest.fixture
def lists() -> NeighbourLists:
    made = NeighbourLists(3, 2)
    query = np.array([0, 0, 2, 2, 2])
    score = np.array([0.5, 0.75, 0.9, 0.9, 0.9], dtype=np.float32)
    ids = sample_ids([f"clip-{number}" for number in range(5)])
    made.merge(query, score, ids, np.array([7, 0, 49, 3, 4]))
    return made


def rewrite(path: Path, table: pa.Table, **changes: object) -> None:
    header = json.loads(pq.read_schema(path).metadata[METADATA_KEY]) | changes
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(header).encode()}), path)


def test_lists_come_back(tmp_path: Path, wave: Wave, lists: NeighbourLists) -> None:
    path = tmp_path / "p.neighbours.parquet"
    write_lists(path, wave, lists)
    again = read_lists(path, wave, ROWS)
    assert again is not None
    for name in ("query", "score", "id", "row"):
        np.testing.assert_array_equal(getattr(again, name), getattr(lists, name))
    assert pq.read_schema(path).remove_metadata() == LISTS
    empty = NeighbourLists(3, 2)
    write_lists(path, wave, empty)
    again = read_lists(path, wave, 0)
    assert again is not None
    assert again.is_full().sum() == len(again.query) == 0


@pytest.mark.parametrize("field", ["seeds", "vectors", "limit", "floor", "excluded"])
def test_lists_of_another_wave_are_refused(
    tmp_path: Path, wave: Wave, lists: NeighbourLists, field: str
) -> None:
    path = tmp_path / "p.neighbours.parquet"
    write_lists(path, wave, lists)
    changes = {
        "seeds": {"seeds": wave.seeds.take(np.array([0, 1]))},
        "vectors": {"seeds": seeds_of(wave.seeds.ids, -wave.seeds.vectors)},
        "limit": {"limit": 3},
        "floor": {"floor": -np.inf},
        "excluded": {"excluded": wave.excluded[:0]},
    }[field]
    name = "seeds" if field == "vectors" else field
    with pytest.raises(StageError, match=rf"another question \({name} .*search this part again"):
        read_lists(path, dataclasses.replace(wave, **changes), ROWS)


def test_files_that_are_not_ours_are_refused(
    tmp_path: Path, wave: Wave, lists: NeighbourLists
) -> None:
    path = tmp_path / "p.neighbours.parquet"
    with pytest.raises(StageError, match=r"is missing: lists are merged only when every part"):
        read_lists(path, wave, ROWS)
    path.write_bytes(b"what")
    with pytest.raises(StageError, match=r"not a parquet file .*: delete it"):
        read_lists(path, wave, ROWS)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(StageError, match=r"has format None version None, this release reads"):
        read_lists(path, wave, ROWS)
    write_lists(path, wave, lists)
    rewrite(path, pq.read_table(path), version=2)
    with pytest.raises(StageError, match=r"version 2, this release reads .*delete it"):
        read_lists(path, wave, ROWS)


@pytest.mark.parametrize("damage", ["order", "too many", "rows", "seed", "nan"])
def test_lists_that_contradict_themselves_are_refused(
    tmp_path: Path, wave: Wave, lists: NeighbourLists, damage: str
) -> None:
    path = tmp_path / "p.neighbours.parquet"
    write_lists(path, wave, lists)
    table, rows = pq.read_table(path), ROWS
    if damage == "order":
        table = table.take([1, 0, 2, 3])
    elif damage == "too many":
        table = table.take([0, 1, 1, 2, 3])
    elif damage == "rows":
        rows = int(lists.row.max())
    elif damage == "seed":
        other = pa.array([b"0" * 16] * 4, LISTS.field("seed_id").type)
        table = table.set_column(0, LISTS.field("seed_id"), other)
    else:
        table = table.set_column(3, LISTS.field("similarity"), pa.array([np.nan] * 4, pa.float32()))
    rewrite(path, table)
    with pytest.raises(StageError, match=r"is damaged .*search this part again"):
        read_lists(path, wave, rows)


def test_void_lists_say_that_the_part_must_be_searched(
    tmp_path: Path, wave: Wave, lists: NeighbourLists
) -> None:
    path = tmp_path / "p.neighbours.parquet"
    write_lists(path, wave, lists)
    void_lists(path, path)
    assert pq.read_metadata(path).num_rows == 0
    assert read_lists(path, wave, ROWS) is None
    with pytest.raises(StageError, match="another question"):
        read_lists(path, dataclasses.replace(wave, limit=9), ROWS)


def test_parts_merge_in_any_order(lists: NeighbourLists) -> None:
    random = np.random.default_rng(0)
    parts = []
    for part in range(5):
        one = NeighbourLists(4, 3)
        query = np.sort(random.integers(4, size=30))
        score = random.choice(np.array([0.5, 0.6, 0.7], np.float32), 30)
        one.merge(query, score, sample_ids([f"{part}-{n}" for n in range(30)]), np.arange(30))
        parts.append(one)
    merged = []
    for order in (range(5), [4, 2, 0, 1, 3]):
        one = NeighbourLists(4, 3)
        for part in order:
            merge_part(one, parts[part], first_row=30 * part)
        merged.append(one)
    for name in ("query", "score", "id", "row", "bound"):
        np.testing.assert_array_equal(getattr(merged[0], name), getattr(merged[1], name))
    assert merged[0].is_full().all()
