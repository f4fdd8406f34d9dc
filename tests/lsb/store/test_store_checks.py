"""Every fault is found, in one go, and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lsb.artifact import Part, Stage, file_sha256, run_stage
from lsb.store import Store, part_files, write_part
from lsb.store.checks import LISTED, find_faults

Rows = Callable[..., pa.Table]
StageOf = Callable[..., Stage]
Unit = Callable[..., np.ndarray]
KEYS = [f"clip-{index}" for index in range(12)]


@pytest.fixture
def store(tmp_path: Path, stage_of: StageOf, unit: Unit) -> Path:
    """Three parts of four rows."""
    return stage_of(tmp_path, unit(12, 4), KEYS, parts=3).path


def rehash(path: Path) -> None:
    """Make the manifest say what the files are."""
    manifest = json.loads((path / "manifest.json").read_text())
    for entry in manifest["parts"].values():
        for name in entry["files"]:
            file = path / name
            entry["files"][name] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    (path / "manifest.json").write_text(json.dumps(manifest))


def lines(path: Path) -> list[str]:
    return [str(fault).removeprefix(f"{path}/") for fault in find_faults(path)]


def test_a_whole_store_has_no_fault(store: Path) -> None:
    assert find_faults(store) == []
    assert len(Store.open(store, verify=True)) == 12


def test_all_faults_are_told_at_once(store: Path) -> None:
    vectors = np.load(store / "part-00000.npy")
    vectors[1, 2], vectors[3] = np.inf, vectors[3] * 1.5
    np.save(store / "part-00000.npy", vectors)
    table = pq.read_table(store / "part-00001.parquet")
    ids = table["id"].to_pylist()
    wrong = table.set_column(0, "id", pa.array([ids[1], *ids[1:]], pa.binary(16)))
    pq.write_table(wrong, store / "part-00001.parquet")
    np.save(store / "part-00002.npy", np.load(store / "part-00002.npy").astype(np.float16))
    rehash(store)
    file = store / "part-00001.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    found = lines(store)
    expected = [
        "part-00000.npy: row 1 holds NaN or infinity, clip 'clip-1': look for a diverged",
        "part-00000.npy: row 3 has norm 1.5, expected 1 +- 0.001, clip 'clip-3': L2-normalise",
        f"part-00001.parquet: row 0 has id {ids[1].hex()}, the id of its key is {ids[0].hex()}, "
        "clip 'clip-4': write it with",
        "part-00001.npy is damaged (its sha256 is ",
        "part-00002.npy has dtype float16, part-00002.parquet says float32: delete",
        "part-00001.parquet: row 1 has the id of row 0 of part-00001.parquet, clip 'clip-4': "
        "every clip key must be unique",
    ]
    for line in expected:
        assert [told for told in found if told.startswith(line)], (line, found)
    # The last byte of the damaged vectors also spoils a norm.
    assert len(found) == len(expected) + 1
    with pytest.raises(ValueError, match=r"row 1 holds NaN.*\(and 6 more faults\)"):
        Store.open(store, verify=True)


def test_missing_cut_and_foreign_files(store: Path) -> None:
    (store / "part-00000.npy").unlink()
    file = store / "part-00001.npy"
    file.write_bytes(file.read_bytes()[:-5])
    (store / "part-00002.parquet").write_bytes(b"no parquet")
    found = lines(store)
    assert [line.split(" ", 1)[0] for line in found] == [
        "part-00000.npy",
        "part-00001.npy",
        "part-00002.parquet",
    ]
    assert "is missing: run the command that made it again" in found[0]
    assert f"it has {file.stat().st_size} bytes, manifest.json says" in found[1]
    rehash_all = store / "part-00002.parquet"
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["parts"]["part-00002"]["files"][rehash_all.name] = {
        "bytes": rehash_all.stat().st_size,
        "sha256": file_sha256(rehash_all),
    }
    (store / "manifest.json").write_text(json.dumps(manifest))
    assert lines(store)[-1].startswith("part-00002.parquet is not a parquet file")


def test_rows_without_key_or_with_other_types(store: Path) -> None:
    table = pq.read_table(store / "part-00000.parquet")
    keys = table["key"].to_pylist()
    none = table.set_column(1, "key", pa.array([*keys[:3], None], pa.string()))
    pq.write_table(none, store / "part-00000.parquet")
    table = pq.read_table(store / "part-00001.parquet")
    short = table.set_column(4, "size", table["size"].cast(pa.int32()))
    pq.write_table(short, store / "part-00001.parquet")
    rehash(store)
    found = lines(store)
    assert found[0].startswith("part-00000.parquet: row 3 has no key: write it with")
    assert found[1].startswith("part-00001.parquet has column 'size' of type int32, expected int64")
    assert found[2].startswith("part-00001.parquet has columns ['id: fixed_size_binary[16]', ")
    assert len(found) == 3


def test_other_files_of_a_part_are_hashed(tmp_path: Path, rows_of: Rows, unit: Unit) -> None:
    def make(folder: Path) -> dict[str, int]:
        (folder / "p.codes.safetensors").write_bytes(b"codes")
        (folder / "p.quarantine.parquet").write_bytes(b"bad clips")
        return write_part(folder, "p", unit(2, 4), rows_of(["a", "b"]), kind="pooled")

    files = (*part_files("p", codes=True), "p.quarantine.parquet")
    path = run_stage(tmp_path, "embed", config={}, inputs={}, parts=[Part("p", files, make)]).path
    store = Store.open(path, verify=True)
    assert store.parts[0].codes_path == path / "p.codes.safetensors"
    assert store.parts[0].read_codes() == b"codes"
    for name in ("p.codes.safetensors", "p.quarantine.parquet"):
        file = path / name
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    found = lines(path)
    assert [line.split(" is damaged")[0] for line in found] == [
        "p.codes.safetensors",
        "p.quarantine.parquet",
    ]


def test_many_faults_of_a_kind_are_counted(tmp_path: Path, stage_of: StageOf, unit: Unit) -> None:
    keys = [f"clip-{index}" for index in range(LISTED + 30)]
    path = stage_of(tmp_path, unit(len(keys), 4), keys).path
    np.save(path / "part-00000.npy", np.zeros((len(keys), 4), np.float32))
    rehash(path)
    found = lines(path)
    assert len(found) == LISTED + 1
    assert found[-1].startswith("part-00000.npy has 30 more such rows: L2-normalise")
