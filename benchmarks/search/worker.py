"""One method on one pool in a process of its own: CPU and wall seconds, and peak memory.

Called by `benchmarks.search`; prints one line of JSON a number of seeds and keeps what was found.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from benchmarks.search.data import Law
from benchmarks.search.methods import METHODS, one_thread
from benchmarks.search.timed import timed
from lsb.store import Store


def main() -> int:
    """Build once, search for each number of seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--unclustered", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--together", action="store_true", help="see benchmarks.search.timed")
    options = parser.parse_args()
    one_thread()
    store = Store.open(options.store)
    seeds = Law(store.dimension, not options.unclustered).seeds(max(options.seeds))
    method = METHODS[options.method]()
    method.warm(store, seeds)
    timed(
        options.method,
        build=partial(method.build, store),
        tune=partial(method.tune, store, seeds),
        search=partial(method.search, store),
        seeds_QD=seeds,
        counts=options.seeds,
        output=options.output,
        together=options.together,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
