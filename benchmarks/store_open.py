"""What opening a store costs: `python -m benchmarks.store_open`.

Stores of 1M, 10M and 100M rows, in parts of 100,000 rows of 256 float16. Vectors are sparse files,
which take no disk; all parts share the rows of one. Printed are seconds of the fastest of three
opens in a process of its own, its resident memory before and after, and what reading one block and
ten rows then takes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from rich.console import Console

from lsb.store import Store, part_files, write_part

ROWS_PER_PART = 100_000
DIMENSION = 256
SIZES = (1_000_000, 10_000_000, 100_000_000)
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="for 100 MB of files; default: a temporary one")
    options = parser.parse_args()
    console = Console(highlight=False)
    console.print(f"{os.cpu_count()} cores, pyarrow {pa.__version__}, numpy {np.__version__}")
    console.print("       rows  parts  open s  RSS MB before   after  first block s  10 rows s")
    with tempfile.TemporaryDirectory(prefix="vlmae-store-open-", dir=options.folder) as folder:
        for rows in SIZES:
            path = Path(folder) / str(rows)
            build(path, rows // ROWS_PER_PART)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                told = pool.apply(measure, (path,))
            console.print(
                f"{rows:>11,}  {rows // ROWS_PER_PART:>5}  {told['open']:>6.3f}  "
                f"{told['before']:>13.1f}  {told['after']:>6.1f}  {told['block']:>13.3f}  "
                f"{told['take']:>9.3f}"
            )
            used = sum(file.stat().st_blocks * 512 for file in path.glob("part-0000*"))
            assert used < 3e9, f"{used} bytes of disk: this file system has no sparse files"


def build(path: Path, parts: int) -> None:
    """A store whose hashes are not true: opening does not read what they are of."""
    path.mkdir(parents=True)
    first, names = path / "first", [f"part-{number:05d}" for number in range(parts)]
    first.mkdir()
    vectors = np.zeros((ROWS_PER_PART, DIMENSION), dtype=np.float16)
    vectors[:, 0] = 1
    rows = pa.table(
        {
            "key": [f"clip-{row}" for row in range(ROWS_PER_PART)],
            "shard": pa.array(["pool.tar"] * ROWS_PER_PART),
            "offset": np.arange(ROWS_PER_PART),
            "size": np.ones(ROWS_PER_PART, dtype=np.int64),
        }
    )
    write_part(first, "p", vectors, rows, kind="pooled")
    head = (first / "p.npy").read_bytes()[:128]
    size = (first / "p.npy").stat().st_size
    (first / "p.npy").unlink()
    entries: dict[str, Any] = {}
    for name in names:
        vectors_name, rows_name = part_files(name)
        (path / vectors_name).write_bytes(head)
        os.truncate(path / vectors_name, size)
        os.link(first / "p.parquet", path / rows_name)
        files = {
            file: {"bytes": (path / file).stat().st_size, "sha256": "0" * 64}
            for file in (vectors_name, rows_name)
        }
        entries[name] = {"files": files, "counts": {"rows": ROWS_PER_PART}}
    (first / "p.parquet").unlink()
    first.rmdir()
    manifest = {
        "format": "vlmae-stage",
        "version": 1,
        "stage": "embed",
        "content": "0" * 32,
        "counts": {"rows": parts * ROWS_PER_PART},
        "inputs": {},
        "parts": entries,
    }
    (path / "manifest.json").write_text(json.dumps(manifest, indent=2))


def measure(path: Path) -> dict[str, float]:
    process = psutil.Process()
    np.asarray(pa.array([1]))  # libraries that load when first used do so before
    before = process.memory_info().rss / 1e6
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        store = Store.open(path)
        seconds.append(time.perf_counter() - started)
    after = process.memory_info().rss / 1e6
    started = time.perf_counter()
    _, _, block = next(store.blocks(8192))
    float(block.sum())
    read = time.perf_counter() - started
    started = time.perf_counter()
    store.take_rows(np.linspace(0, len(store) - 1, 10).astype(np.int64), ["key"])
    taken = time.perf_counter() - started
    return {"open": min(seconds), "before": before, "after": after, "block": read, "take": taken}


if __name__ == "__main__":
    main()
