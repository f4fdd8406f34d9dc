"""A slow array task, to be killed: `array_task.py <store> <root> <share> <of> <patience>`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cut_pools

from lsb.search import array, exact
from lsb.store import Store


def slow_blocks(*arguments: Any) -> Iterator[Any]:
    for block in exact.part_blocks(*arguments):
        time.sleep(0.02)
        yield block


def main(path: str, root: str, number: str, of: str, patience: str) -> None:
    array.part_blocks = slow_blocks  # type: ignore[assignment]
    store = Store.open(Path(path))
    hits = array.search_array(
        Path(root),
        cut_pools.SEED_IDS,
        cut_pools.seeds(),
        store,
        cut_pools.CONFIG,
        lookalike_threshold=cut_pools.LT,
        exclude=cut_pools.EXCLUDE,
        share=(int(number), int(of)),
        patience=float(patience),
    )
    print("digest", None if hits is None else cut_pools.result_digest(hits, store))


if __name__ == "__main__":
    main(*sys.argv[1:])
