"""The result table: groups, what is kept, its file, and the counts that are drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.sparse.csgraph import connected_components

from lsb.files import StageError
from lsb.ids import from_arrow, sample_ids, to_bytes
from lsb.search.config import SearchConfig
from lsb.search.exact import Hits, search
from lsb.search.near_duplicates import near_duplicate_groups
from lsb.search.plot import hits_by_threshold, plot_hits
from lsb.search.rescore import similarity
from lsb.search.result import (
    RESULT,
    KeepConfig,
    Source,
    digest,
    read_result,
    result_table,
    write_result,
)
from lsb.store import Store

Make = Callable[..., Store]
CONFIG = SearchConfig(rows_per_block=64)
SOURCE = Source("store", "seeds", 0.5, 1024)


def on_circle(degrees: list[float]) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def searched(store: Store, seeds: list[float], threshold: float = 0.5) -> Hits:
    return search(
        sample_ids([f"seed-{number}" for number in range(len(seeds))]),
        on_circle(seeds),
        store,
        CONFIG,
        lookalike_threshold=threshold,
        exclude=sample_ids([]),
    )


@pytest.mark.parametrize("most", [1, 2, 5, 1024])
@pytest.mark.parametrize("copies", [1, 5])
@pytest.mark.parametrize("bound", [0.9, 0.94, 0.97])
def test_groups_are_connected_components_however_few_neighbours_are_told(
    most: int, copies: int, bound: float
) -> None:
    random = np.random.default_rng(most + copies)
    x = random.normal(size=(200 // copies, 4))
    x = np.tile(x / np.linalg.norm(x, axis=1, keepdims=True), (copies, 1)).astype(np.float32)
    ids = np.sort(sample_ids([f"clip-{number}" for number in range(len(x))]))
    x = x[random.permutation(len(x))]
    left, right = np.meshgrid(np.arange(len(x)), np.arange(len(x)), indexing="ij")
    joined = similarity(x[left.ravel()], x[right.ravel()]).reshape(left.shape) >= bound
    _, label = connected_components(joined)
    assert 1 < label.max() < len(x)
    expected = [to_bytes(ids[np.flatnonzero(label == one)[:1]])[0] for one in label]
    found = near_duplicate_groups(ids, x, bound, CONFIG, most=most)
    assert to_bytes(found) == expected


def test_a_seed_keeps_the_best_of_each_group_up_to_its_cap(make_store: Make) -> None:
    # Two chains of near duplicates (cos 2 degrees = 0.9994), then three clips alone.
    degrees = [10.0, 12, 14, 30, 32, 40, 45, 50]
    keys = [f"clip-{number}" for number in range(8)]
    store = make_store(on_circle(degrees), keys, parts=3)
    hits = searched(store, [0.0, 33.0])
    table = result_table(hits, store, KeepConfig(0.999, 3), CONFIG)
    assert table.schema == RESULT
    seeds = to_bytes(sample_ids(["seed-0", "seed-1"]))
    names = dict(zip(seeds, ("from 0", "from 33"), strict=True))
    kept: dict[str, list[str]] = {}
    for row in table.to_pylist():
        if row["kept"]:
            kept.setdefault(names[row["seed_id"]], []).append(row["key"])
    assert kept == {
        "from 0": ["clip-0", "clip-3", "clip-5"],
        "from 33": ["clip-4", "clip-5", "clip-6"],
    }
    group = dict(zip(table["key"].to_pylist(), table["group_id"].to_pylist(), strict=True))
    ids = dict(zip(keys, to_bytes(sample_ids(keys)), strict=True))
    for members in (keys[:3], keys[3:5], keys[5:6], keys[6:7], keys[7:]):
        assert {group[key] for key in members} == {min(ids[key] for key in members)}
    # Neither groups nor cap: every hit is kept, alone in its group.
    plain = result_table(hits, store, KeepConfig(None, None), CONFIG)
    assert all(plain["kept"].to_pylist())
    assert plain["group_id"].equals(plain["id"])


def test_rows_of_clips_come_from_the_store(make_store: Make) -> None:
    degrees = np.random.default_rng(0).uniform(0, 90, 300)
    keys = [f"clip-{number}" for number in range(300)]
    store = make_store(on_circle(list(degrees)), keys, parts=4, shuffle=3)
    table = result_table(searched(store, [0, 80]), store, KeepConfig(), CONFIG)
    assert np.array_equal(sample_ids(table["key"].to_pylist()), from_arrow(table["id"]))
    assert set(table["shard"].to_pylist()) == {"pool.tar"}


def test_no_hits_is_a_table_without_rows(make_store: Make, tmp_path: Path) -> None:
    store = make_store(on_circle([0, 1]), ["a", "b"])
    table = result_table(searched(store, [180.0]), store, KeepConfig(), CONFIG)
    assert table.schema == RESULT
    assert table.num_rows == 0
    plot_hits(tmp_path / "hits.png", table, seeds=1, lookalike_threshold=0.5)
    write_result(tmp_path / "result.parquet", table, SOURCE, KeepConfig())
    assert read_result(tmp_path / "result.parquet")[0].num_rows == 0


def test_the_file_tells_its_source_and_has_the_same_bytes_again(
    make_store: Make, tmp_path: Path
) -> None:
    store = make_store(on_circle([1, 2, 3]), ["a", "b", "c"])
    table = result_table(searched(store, [0.0]), store, KeepConfig(), CONFIG)
    path, twin = tmp_path / "result.parquet", tmp_path / "twin.parquet"
    write_result(path, table, SOURCE, KeepConfig())
    halves = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    write_result(twin, halves.combine_chunks(), SOURCE, KeepConfig())
    assert path.read_bytes() == twin.read_bytes()
    again, header = read_result(path)
    assert again.equals(table)
    assert digest(again) == digest(halves)
    assert header == {
        "format": "vlmae-search",
        "version": 1,
        "store": "store",
        "seeds": "seeds",
        "lookalike_threshold": 0.5,
        "max_neighbours": 1024,
        "near_duplicate": 0.98,
        "per_seed_cap": 8,
    }
    pq.write_table(table, path)
    with pytest.raises(StageError, match=r"has format None .*: search again"):
        read_result(path)
    path.write_bytes(b"what")
    with pytest.raises(StageError, match="not a parquet file"):
        read_result(path)
    with pytest.raises(StageError, match="is missing"):
        read_result(tmp_path / "nowhere")


def test_counts_fall_as_the_threshold_rises(make_store: Make, tmp_path: Path) -> None:
    store = make_store(on_circle([0, 10, 20, 60, 61]), list("abcde"))
    table = result_table(searched(store, [0.0, 60.0]), store, KeepConfig(), CONFIG)
    edge = float(table["similarity"].to_numpy().min())
    hits, seeds = hits_by_threshold(table, np.array([0.5, edge, edge + 1e-6, 0.99, 0.9999]))
    assert hits[0] == hits[1] == table.num_rows > hits[2] > hits[3] > hits[4]
    assert seeds.tolist()[:4] == [2, 2, 2, 2]
    drawn = []
    for name in ("a.png", "b.png"):
        plot_hits(tmp_path / name, table, seeds=2, lookalike_threshold=0.5)
        drawn.append((tmp_path / name).read_bytes())
    assert drawn[0] == drawn[1]
    assert min(Image.open(tmp_path / "a.png").size) > 500
    plot_hits(tmp_path / "c.png", table, seeds=2, lookalike_threshold=None)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"near_duplicate is 2: give a cosine similarity"):
        KeepConfig(near_duplicate=2)
    with pytest.raises(ValueError, match=r"per_seed_cap is 0: give at least 1"):
        KeepConfig(per_seed_cap=0)
