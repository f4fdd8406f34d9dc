"""Searching a store behind a URL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest

from lsb.ids import sample_ids
from lsb.search.array import search_array
from lsb.search.exact import SearchConfig, search
from lsb.search.result import KeepConfig, result_table
from lsb.store import Store

Make = Callable[..., Store]
Unit = Callable[..., np.ndarray]


@pytest.mark.parametrize("backend", ["auto", "int_mm"])
def test_hits_are_those_of_the_local_copy(
    tmp_path: Path, make_store: Make, unit: Unit, backend: str
) -> None:
    keys = [f"clip-{row}" for row in range(300)]
    local = make_store(unit(300, 64), keys, parts=3)
    url = f"memory://search-{backend}/store"
    fsspec.filesystem("memory").put(str(local.path), url, recursive=True)
    remote = Store.open(url)
    ids = sample_ids(keys[:10])
    config = SearchConfig(5, 20, rows_per_block=37, backend=backend)
    found = []
    for store in (local, remote):
        hits = search(
            ids,
            local.vectors(ids),
            store,
            config,
            lookalike_threshold=0.1,
            exclude=sample_ids(keys[50:60]),
        )
        found.append(result_table(hits, store, KeepConfig(0.98, 3), config))
    shared = search_array(
        tmp_path / "waves",
        ids,
        local.vectors(ids),
        remote,
        config,
        lookalike_threshold=0.1,
        exclude=sample_ids(keys[50:60]),
    )
    assert shared is not None
    found.append(result_table(shared, remote, KeepConfig(0.98, 3), config))
    assert found[0].num_rows > 50
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])
