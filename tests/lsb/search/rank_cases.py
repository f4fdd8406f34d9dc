"""Collective searches on one rank: `rank_cases.py <folder> <rank> <ranks>`; writes a JSON file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cut_pools
import numpy as np
from torch import distributed

from lsb.search import collective, exact
from lsb.store import Store


def search(store: Store, **changes: Any) -> str:
    order = np.random.default_rng(len(store.parts)).permutation(len(cut_pools.SEED_IDS))
    arguments: dict[str, Any] = {
        "config": cut_pools.CONFIG,
        "lookalike_threshold": cut_pools.LT,
        "exclude": cut_pools.EXCLUDE,
        **changes,
    }
    hits = collective.search_collective(
        cut_pools.SEED_IDS[order], cut_pools.seeds()[order], store, **arguments
    )
    return cut_pools.result_digest(hits, store)


def refused(store: Store, **changes: Any) -> str:
    try:
        search(store, **changes)
    except ValueError as error:
        return str(error)
    return "nothing was refused"


def bad_blocks(*arguments: Any) -> Iterator[Any]:
    for number, block in enumerate(exact.part_blocks(*arguments)):
        if number == 2:
            raise OSError("a block cannot be read")
        yield block


def main(folder: Path, rank: int, ranks: int) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet-{ranks}", rank=rank, world_size=ranks
    )
    told: dict[str, Any] = {"digests": {}}
    stores = {path.parent.name: Store.open(path) for path in sorted(folder.glob("*/embed-*"))}
    some = stores["7"]
    # Failures first: whoever was out of step afterwards would hang or differ below.
    if rank == ranks - 1:
        collective.part_blocks = bad_blocks  # type: ignore[assignment]
    told["bad block"] = refused(some)
    collective.part_blocks = exact.part_blocks
    told["other LT"] = refused(some, lookalike_threshold=0.7 + 0.05 * rank)
    other = replace(cut_pools.CONFIG, rows_per_block=100 + rank)
    told["other blocks"] = refused(some, config=other)
    for name, store in stores.items():
        for blocks in (1, 3):
            told["digests"][f"{name}, {blocks}"] = search(store, blocks_per_exchange=blocks)
    told["nearest"] = search(some, lookalike_threshold=None)
    none = cut_pools.SEED_IDS[:0]
    empty = collective.search_collective(
        none,
        cut_pools.seeds()[:0],
        some,
        cut_pools.CONFIG,
        lookalike_threshold=0.5,
        exclude=none,
    )
    told["empty"] = empty.table.num_rows
    distributed.barrier()
    distributed.destroy_process_group()
    (folder / f"told-{ranks}-{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
