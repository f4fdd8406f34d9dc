"""Builders of small stores. Ids follow from keys, so tests that need special ids look for keys."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from postgres_server import PostgresServer, postgres

from lsb.artifact import Part, Stage, run_stage
from lsb.store import Store, part_files, write_part

__all__ = ["postgres"]  # a fixture


def pool_rows(keys: list[str], columns: dict[str, np.ndarray] | None = None) -> pa.Table:
    count = len(keys)
    table = {
        "key": pa.array(keys, type=pa.string()),
        "shard": pa.array(["pool.tar"] * count, type=pa.string()),
        "offset": np.arange(count, dtype=np.int64) * 100,
        "size": np.full(count, 100, dtype=np.int64),
    }
    return pa.table(table | (columns or {}))


def build_stage(
    root: Path,
    vectors: np.ndarray,
    keys: list[str],
    columns: dict[str, np.ndarray] | None = None,
    *,
    parts: int = 1,
    order: list[int] | None = None,
    shuffle: int | None = None,
    kind: str = "fused",
) -> Stage:
    """A store stage with rows dealt over `parts`, rows shuffled and parts listed in `order`."""
    row = np.arange(len(keys))
    if shuffle is not None:
        row = np.random.default_rng(shuffle).permutation(row)
    stage_parts = []
    for number, chosen in enumerate(np.array_split(row, parts)):
        name = f"part-{number:05d}"
        rows = pool_rows(
            [keys[index] for index in chosen],
            {column: values[chosen] for column, values in (columns or {}).items()},
        )
        make = functools.partial(
            write_part, name=name, vectors_ND=vectors[chosen], rows=rows, kind=kind
        )
        stage_parts.append(Part(name, part_files(name), make))
    listed = [stage_parts[index] for index in order or range(parts)]
    return run_stage(root, "embed", config={}, inputs={}, parts=listed)


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Store]:
    made = 0

    def make(vectors: np.ndarray, keys: list[str], *args: object, **options: object) -> Store:
        nonlocal made
        made += 1
        return Store.open(build_stage(tmp_path / str(made), vectors, keys, *args, **options).path)

    return make


@pytest.fixture
def rows_of() -> Callable[..., pa.Table]:
    return pool_rows


@pytest.fixture
def stage_of() -> Callable[..., Stage]:
    return build_stage


@pytest.fixture
def unit() -> Callable[..., np.ndarray]:
    def make(count: int, dimension: int, seed: int = 0) -> np.ndarray:
        x = np.random.default_rng(seed).normal(size=(count, dimension))
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new ledger may be made: a path, and a URL of an empty PostgreSQL database."""
    if request.param == "sqlite":
        return str(tmp_path / "runs" / "ledger.sqlite")
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()
