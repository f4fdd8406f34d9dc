from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lsb.artifact import Part, Stage, StageError, run_stage
from lsb.ids import sample_ids, to_bytes
from lsb.store import METADATA_KEY, Store, part_files, write_part

Make = Callable[..., Store]
Rows = Callable[..., pa.Table]
Unit = Callable[..., np.ndarray]
StageOf = Callable[..., Stage]
Makes = dict[str, Callable[[Path], dict[str, int]]]
KEYS = [f"clip-{index}" for index in range(23)]


def test_round_trip_over_parts(make_store: Make, unit: Unit) -> None:
    vectors = unit(23, 8)
    probability = np.linspace(0, 1, 23)
    store = make_store(vectors, KEYS, {"probability_policy": probability}, parts=3, shuffle=1)
    assert (len(store), store.dimension, store.dtype, store.kind) == (23, 8, "float32", "fused")
    assert [part.rows for part in store.parts] == [8, 8, 7]
    rows = store.rows(["id", "key", "probability_policy"])
    assert to_bytes(store.ids) == rows["id"].to_pylist()
    assert sorted(rows["key"].to_pylist()) == sorted(KEYS)
    by_key = dict(zip(rows["key"].to_pylist(), rows["probability_policy"].to_pylist(), strict=True))
    assert by_key == dict(zip(KEYS, probability.tolist(), strict=True))

    asked = [20, 3, 3, 11]
    ids = sample_ids([KEYS[index] for index in asked])
    assert np.array_equal(store.vectors(ids), vectors[asked])
    assert store.keys(ids) == [KEYS[index] for index in asked]
    assert store.take(ids, ["offset", "shard"])["offset"].type == pa.int64()
    assert store.keys(ids[:0]) == []
    assert store.vectors(ids[:0]).shape == (0, 8)


def test_blocks_cover_every_row_once_and_are_memory_mapped(make_store: Make, unit: Unit) -> None:
    store = make_store(unit(23, 8), KEYS, parts=3)
    blocks = list(store.blocks(3))
    assert all(isinstance(vectors, np.memmap) and len(vectors) <= 3 for _, _, vectors in blocks)
    ids = np.concatenate([part.ids()[s : s + len(v)] for part, s, v in blocks])
    assert np.array_equal(ids, store.ids)
    assert np.array_equal(np.concatenate([v for _, _, v in blocks]), store.vectors(store.ids))
    with pytest.raises(ValueError, match="rows_per_block is 0"):
        next(store.blocks(0))


def test_float16_is_kept_and_gathered_as_float32(make_store: Make, unit: Unit) -> None:
    vectors = unit(23, 768).astype(np.float16)
    store = make_store(vectors, KEYS, parts=2)
    gathered = store.vectors(sample_ids(KEYS))
    assert store.dtype == "float16"
    assert gathered.dtype == np.float32
    assert np.array_equal(gathered, vectors.astype(np.float32))


def test_part_without_rows(make_store: Make, unit: Unit) -> None:
    store = make_store(unit(2, 4), KEYS[:2], parts=3)
    assert [part.rows for part in store.parts] == [1, 1, 0]
    assert len(list(store.blocks(10))) == 2
    assert store.keys(store.ids) == KEYS[:2]


def test_same_rows_give_the_same_bytes(tmp_path: Path, rows_of: Rows, unit: Unit) -> None:
    rows = rows_of(KEYS)
    pieces = pa.concat_tables([rows.slice(0, 10), rows.slice(10)])
    extra = pieces.replace_schema_metadata({"made": "elsewhere"})
    for name, table in (("one", rows), ("two", extra)):
        (tmp_path / name).mkdir()
        write_part(tmp_path / name, "p", unit(23, 4), table, kind="pooled")
    for file in part_files("p"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_partition_like_folder_adds_no_column(
    tmp_path: Path, stage_of: StageOf, unit: Unit
) -> None:
    store = Store.open(stage_of(tmp_path / "lr=0.1" / "seed=2", unit(3, 4), KEYS[:3]).path)
    assert store.rows().column_names == ["id", "key", "shard", "offset", "size"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[:-1], r"22 vectors but 23 rows"),
        (lambda v: v.astype(np.float64), "vectors are float64: convert them"),
        (lambda v: v * 1.01, r"row 0 has norm 1\.01, expected 1 .* L2-normalise"),
        (lambda v: np.where(np.arange(23)[:, None] == 5, np.nan, v), "row 5 holds NaN"),
        (lambda v: np.where(np.arange(23)[:, None] == 7, 0, v), "row 7 has norm 0"),
        (lambda v: v[0], r"shape \(8,\), expected \(N, D\)"),
    ],
)
def test_bad_vectors_are_refused(
    tmp_path: Path, rows_of: Rows, unit: Unit, change: Callable[..., np.ndarray], message: str
) -> None:
    changed = change(unit(23, 8))
    if changed.dtype == np.float64 and "float64" not in message:
        changed = changed.astype(np.float32)
    with pytest.raises(ValueError, match=message):
        write_part(tmp_path, "part-00004", changed, rows_of(KEYS), kind="fused")
    assert list(tmp_path.iterdir()) == []


def test_bad_rows_are_refused(tmp_path: Path, rows_of: Rows, unit: Unit) -> None:
    vectors, rows = unit(2, 4), rows_of(KEYS[:2])

    def refused(table: pa.Table, message: str, kind: str = "fused") -> None:
        with pytest.raises(ValueError, match=message):
            write_part(tmp_path, "p", vectors, table, kind=kind)

    refused(rows, "store kind 'mixed' is unknown", kind="mixed")
    refused(rows_of(["a", "a"]), "first 'a': every clip key must be unique")
    refused(rows.drop_columns(["size"]), "no column 'size'")
    refused(rows.append_column("n", pa.array([1, 2])), "'n' is int64: columns after .* floats")
    wrong = rows.append_column("id", pa.array([b"0" * 16] * 2, pa.binary(16)))
    refused(wrong, "'id' is not the id of 'key'")


def build(root: Path, makes: Makes) -> Path:
    parts = [Part(name, part_files(name), make) for name, make in makes.items()]
    return run_stage(root, "embed", config={}, inputs={}, parts=parts).path


def part_of(name: str, vectors: np.ndarray, rows: pa.Table, kind: str = "fused") -> Makes:
    make = functools.partial(write_part, name=name, vectors_ND=vectors, rows=rows, kind=kind)
    return {name: make}


def test_parts_that_do_not_fit_are_refused(tmp_path: Path, rows_of: Rows, unit: Unit) -> None:
    first = part_of("a", unit(2, 8), rows_of(["k0", "k1"]))

    def refused(second: Makes, message: str) -> None:
        path = build(tmp_path / message[:9], first | second)
        with pytest.raises(ValueError, match=message):
            Store.open(path, verify=True)
        if "the id of row" not in message:
            # Opening reads the first part's headers; another part is refused when it is used.
            store = Store.open(path)
            for use in (store.parts[1].vectors, store.parts[1].ids, store.rows):
                with pytest.raises(ValueError, match=message):
                    use()

    refused(
        part_of("b", unit(2, 6), rows_of(["k2", "k3"])),
        r"b\.npy has dimension 6, a\.parquet says 8: delete .* embed the pool again",
    )
    half = unit(2, 8).astype(np.float16)
    refused(part_of("b", half, rows_of(["k2", "k3"])), "has dtype float16, a.parquet says float32")
    refused(part_of("b", unit(2, 8), rows_of(["k2", "k3"]), "pooled"), "has kind pooled")
    twice = r"b\.parquet: row 1 has the id of row 1 of a\.parquet, clip 'k1': every clip key must"
    refused(part_of("b", unit(2, 8), rows_of(["k2", "k1"])), twice)
    scored = rows_of(["k2"], {"probability_x": np.ones(1)})
    refused(part_of("b", unit(1, 8), scored), "probability_x")


def tampered(
    root: Path, rows_of: Rows, vectors: np.ndarray, change: Callable[[Path], None]
) -> Path:
    """A store whose maker spoils its part after `write_part`, so that all hashes are right."""

    def make(folder: Path) -> dict[str, int]:
        counts = write_part(folder, "p", vectors, rows_of(KEYS[: len(vectors)]), kind="fused")
        change(folder)
        return counts

    return build(root, {"p": make})


def test_spoiled_parts_are_refused(tmp_path: Path, rows_of: Rows, unit: Unit) -> None:
    vectors = unit(4, 8)

    def save(array: np.ndarray) -> Callable[[Path], None]:
        return lambda folder: np.save(folder / "p.npy", array)

    def version(folder: Path) -> None:
        table = pq.read_table(folder / "p.parquet")
        header = json.loads(table.schema.metadata[METADATA_KEY]) | {"version": 7}
        table = table.replace_schema_metadata({METADATA_KEY: json.dumps(header)})
        pq.write_table(table, folder / "p.parquet")

    spoiled = vectors.copy()
    spoiled[2, 3] = np.nan
    cases = [
        (save(spoiled), r"p\.npy: row 2 holds NaN"),
        (save(vectors * 2), r"p\.npy: row 0 has norm 2"),
        (save(vectors[:, :5]), r"p\.npy has dimension 5, p\.parquet says 8"),
        (save(vectors[:3]), r"p\.npy has 3 vectors, its rows file says 4: delete both files"),
        (save(vectors.astype(">f4")), "has dtype >f4"),
        (version, r"p\.parquet has format 'vlmae-store' version 7, this release reads"),
    ]
    for number, (change, message) in enumerate(cases):
        path = tampered(tmp_path / str(number), rows_of, vectors, change)
        with pytest.raises(ValueError, match=message):
            Store.open(path, verify=True)


def test_altered_file_is_refused_and_missing_names_are_explained(
    make_store: Make, unit: Unit
) -> None:
    store = make_store(unit(4, 8), KEYS[:4])
    with pytest.raises(ValueError, match=r"1 of 2 ids are not in store .*, first [0-9a-f]{32}"):
        store.vectors(sample_ids([KEYS[0], "unknown"]))
    with pytest.raises(ValueError, match="no column 'probability_x', only id, key"):
        store.rows(["probability_x"])
    file = store.parts[0].vectors_path
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(StageError, match=r"part-00000\.npy is damaged"):
        Store.open(store.path, verify=True)
    file.write_bytes(bytes(content)[:-4])
    with pytest.raises(StageError, match=r"npy is damaged \(it has 252 bytes, .* says 256\)"):
        Store.open(store.path)
    file.unlink()
    with pytest.raises(StageError, match=r"part-00000\.npy is missing: run"):
        Store.open(store.path)


def test_ids_come_block_by_block_as_they_stand(make_store: Make, unit: Unit) -> None:
    store = make_store(unit(100, 4), [f"clip-{row}" for row in range(100)], parts=3)
    for part in store.parts:
        for rows in (1, 7, part.rows, 1000):
            blocks = list(part.id_blocks(rows))
            assert all(len(block) == rows for block in blocks[:-1])
            assert np.array_equal(np.concatenate(blocks), part.ids())
