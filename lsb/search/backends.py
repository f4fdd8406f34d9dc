"""Which implementation of `Scan` a search runs on."""

from __future__ import annotations

from lsb.search.config import SearchConfig
from lsb.search.knn import KnnScan
from lsb.search.scan import Scan, Seeds


def open_scan(seeds: Seeds, limit: int, floor: float, config: SearchConfig) -> Scan:
    """A scan for given seeds.

    Args:
        seeds: what is searched for.
        limit: most neighbours of a seed.
        floor: smallest score of a neighbour, -inf for none.
        config: backend, threads, device.
    """
    return KnnScan(seeds, limit, floor)
