"""One peer on one pool in a process of its own, in the virtual environment of its package.

Called by `benchmarks.search.full`; prints what `benchmarks.search.worker` prints. Imports neither
torch nor lsb.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.search.found import Found
from benchmarks.search.peers import PEERS
from benchmarks.search.timed import timed


def main() -> int:
    """Build once, search for each number of seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=PEERS, required=True)
    parser.add_argument("--pool", type=Path, required=True, help=".npy, (N, D) float32")
    parser.add_argument("--seed-vectors", type=Path, required=True, help=".npy, (Q, D) float32")
    parser.add_argument("--truth", type=Path, required=True, help=".npz of all these seeds")
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    seeds = np.load(options.seed_vectors)
    peer = PEERS[options.method][0]()
    peer.prepare()
    with tempfile.TemporaryDirectory(dir=options.output) as scratch:
        timed(
            options.method,
            build=partial(peer.build, options.pool, Path(scratch)),
            tune=partial(peer.tune, seeds, Found.load(options.truth)),
            search=peer.search,
            seeds_QD=seeds,
            counts=options.seeds,
            output=options.output,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
