"""Approximate threshold search: FAISS proposes, the rescoring kernel disposes, recall is measured.

Every part's index proposes candidates, their similarity is computed from the stored vectors by
`lsb.search.rescore`, and only that is compared with LT and ordered. So whatever is found is found
with the right similarity, and the only error is to miss. How much is missed is measured: the search
parameter (`nprobe`, `efSearch`) is raised until the recall on a sample of the seeds, against
the exact search, reaches the target, and the recall that is reported comes from other seeds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from lsb.ids import IdArray, to_arrow
from lsb.order import IndexArray, member
from lsb.search import exact
from lsb.search.ask import Gather, Hits, ask, seeds_of
from lsb.search.exact import require_dimension
from lsb.search.faiss_anatomy import Anatomy, Queries, faiss, require_device, threads_of
from lsb.search.faiss_config import FaissConfig
from lsb.search.faiss_index import FaissIndex, seeded_hash
from lsb.search.lists import FloatArray, NeighbourLists
from lsb.search.recall import Recall, measure
from lsb.search.rescore import rescore
from lsb.search.scan import Seeds
from lsb.store import Store, StorePart

CANDIDATES_PER_CALL = 1 << 22


@dataclass(frozen=True)
class Probe:
    """One value of the search parameter that was tried, and its recall on the tuning seeds."""

    value: int
    recall: Recall


@dataclass(frozen=True, kw_only=True)
class ApproximateHits(Hits):
    """Neighbours of all seeds that were found, and how many were missed.

    Attributes:
        recall: of this result against the exact one, on seeds that nothing was tuned on (on the
            tuning seeds where there is one seed only).
        parameter: "nprobe", "efSearch" or "none".
        value: of the parameter; 0 where there is none.
        probes: what was tried on the tuning seeds, in order.
    """

    recall: Recall
    parameter: str
    value: int
    probes: tuple[Probe, ...]

    def evidence(self) -> dict[str, Any]:
        """All but the hits, JSON-like."""
        return {
            "recall": asdict(self.recall),
            "parameter": self.parameter,
            "value": self.value,
            "probes": [asdict(probe) for probe in self.probes],
        }


def search_with_index(
    seed_ids: IdArray,
    seeds_QD: FloatArray,
    store: Store,
    index: FaissIndex,
    config: FaissConfig,
    *,
    lookalike_threshold: float | None,
    exclude: IdArray,
) -> ApproximateHits:
    """Neighbours of seeds in a store, by its index. Arguments not named are those of
    `lsb.search.exact.search`.

    Args:
        seed_ids: (Q,) S16, unique.
        seeds_QD: (Q, D) float32 of norm 1.
        store: what to search; the vectors that candidates are rescored from.
        index: of that store.
        config: widths, target, sample. `factory` must be the index's.
        lookalike_threshold: smallest similarity of a hit; None takes the nearest `max_neighbours`,
            and recall is that of these.
        exclude: ids that must not be found.

    Raises:
        ValueError: the recall is out of reach; the index is of another store or factory; or as
            `lsb.search.exact.search`.
    """
    require_dimension(seeds_QD, store)
    require_device(config.device)
    if index.store != store.hash:
        raise ValueError(f"{index.path} is not an index of {store.place}: open the one that is")
    if index.factory != config.factory:
        raise ValueError(
            f"search.factory is {config.factory!r} but {index.path} is {index.factory!r}: build "
            "another index, or name the one you have"
        )
    seeds = seeds_of(seed_ids, seeds_QD)
    tuning, held = _samples(seeds, config)
    both = np.unique(np.concatenate([tuning, held]))
    truth = exact.search(
        seeds.ids[both],
        seeds.vectors[both],
        store,
        config,
        lookalike_threshold=lookalike_threshold,
        exclude=exclude,
    )
    stack = _Stack(store, index, config, exclude)

    def found(some: Seeds, value: int) -> Hits:
        return ask(
            some,
            stack.gather(value),
            neighbours=config.neighbours,
            max_neighbours=config.max_neighbours,
            lookalike_threshold=lookalike_threshold,
        )

    with threads_of(config.threads):
        probes: list[Probe] = []
        tuning_truth = _of(truth, seeds.ids[tuning])
        ladder = stack.ladder(lookalike_threshold)
        # Where nothing can be measured nothing may be saved: the most thorough search it is.
        for value in ladder if tuning_truth.table.num_rows else ladder[-1:]:
            hits = found(seeds.take(tuning), value)
            probes.append(Probe(value, measure(tuning_truth, hits, len(tuning))))
            if probes[-1].recall.value is None or probes[-1].recall.value >= config.recall:
                break
        value = _chosen(probes, stack.parameter, config)
        hits = found(seeds, value)
    return ApproximateHits(
        hits.table,
        hits.asked_again,
        hits.saturated,
        hits.row,
        recall=measure(_of(truth, seeds.ids[held]), hits, len(held)),
        parameter=stack.parameter,
        value=value,
        probes=tuple(probes),
    )


class _Stack:
    """The indexes of all parts, one above the other: each is opened when it is its turn."""

    def __init__(self, store: Store, index: FaissIndex, config: FaissConfig, exclude: IdArray):
        self._store, self._index, self._config = store, index, config
        self._resources = None if config.device == "cpu" else faiss.StandardGpuResources()
        excluded = np.unique(exclude)
        self._allowed = [_allowed(part, excluded) for part in store.parts]
        filled = [part for part in store.parts if part.rows]
        self._any = index.part(filled[0]) if filled else None

    @property
    def parameter(self) -> str:
        return "none" if self._any is None else self._any.parameter

    def ladder(self, lookalike_threshold: float | None) -> list[int]:
        """Values of the parameter, from fast to thorough."""
        if self._any is None:
            return [0]
        config = self._config
        narrow = config.max_neighbours if lookalike_threshold is None else config.neighbours
        return self._any.ladder(_width(narrow + 1, config), config.device)

    def gather(self, value: int) -> Gather:
        """A `Gather` with one value of the parameter."""

        def gather(seeds: Seeds, limit: int, floor: float) -> NeighbourLists:
            if self._any is None:
                return NeighbourLists(len(seeds), limit)
            device = self._config.device
            queries = Queries(self._any, seeds.vectors, value, device)
            wave = _Wave(seeds, limit, floor, queries, _width(limit, self._config))
            first_row = 0
            for part, allowed in zip(self._store.parts, self._allowed, strict=True):
                if part.rows:
                    index = self._index.part(part, device, self._resources)
                    wave.add(part, first_row, index, allowed)
                first_row += part.rows
            return wave.best

        return gather


class _Wave:
    """Seeds that ask for the same number of neighbours, while parts go by.

    Args:
        seeds: what is searched for.
        limit: most neighbours of a seed.
        floor: smallest score of a neighbour, -inf for none.
        queries: the seeds as the indexes take them.
        width: candidates of a seed, over all parts.
    """

    def __init__(self, seeds: Seeds, limit: int, floor: float, queries: Queries, width: int):
        self._seeds, self._floor, self._queries, self._width = seeds, floor, queries, width
        self.best = NeighbourLists(len(seeds), limit)
        # Best scores that indexes of compressed codes gave; (Q, width) once there are some.
        self._proposed_QW = np.empty((len(seeds), 0), dtype=np.float32)

    def add(
        self, part: StorePart, first_row: int, index: Anatomy, allowed: npt.NDArray[np.uint8] | None
    ) -> None:
        """Candidates of one part, rescored, into the lists."""
        ids, vectors_ND = part.ids(), part.vectors()
        width = min(self._width, part.rows)
        step = max(1, CANDIDATES_PER_CALL // width)
        proposed_QW = np.full((len(self._seeds), width), -np.inf, dtype=np.float32)
        row_QW = np.full((len(self._seeds), width), -1, dtype=np.int64)
        for start in range(0, len(self._seeds), step):
            chunk = slice(start, start + step)
            score, row = self._queries.search(index, chunk, width, allowed)
            proposed_QW[chunk, : score.shape[1]] = np.where(row >= 0, score, -np.inf)
            row_QW[chunk, : row.shape[1]] = row
        worth_QW = proposed_QW >= self._least(proposed_QW, index.error)[:, None]
        query_P, column_P = np.nonzero(worth_QW & (row_QW >= 0))
        row_P = row_QW[query_P, column_P]
        other = ids[row_P] != self._seeds.ids[query_P]
        query_P, row_P = query_P[other], row_P[other]
        score_P = rescore(self._seeds.vectors, vectors_ND, query_P, row_P)
        passed = score_P.astype(np.float64) >= self._floor
        query_P, row_P = query_P[passed], row_P[passed]
        self.best.merge(query_P, score_P[passed], ids[row_P], row_P + first_row)

    def _least(self, proposed_QW: FloatArray, error: float | None) -> npt.NDArray[np.float64]:
        """(Q,) score that a candidate needs to be worth rescoring.

        A score with a known error is held against LT and the lists. One of compressed codes is not:
        it counts where it is among the best `width` of all parts so far.
        """
        if error is not None:
            return np.maximum(self.best.bound.astype(np.float64), self._floor) - error
        both_QW = np.concatenate([self._proposed_QW, proposed_QW], axis=1)
        surplus = both_QW.shape[1] - self._width
        if surplus > 0:
            both_QW = np.partition(both_QW, surplus, axis=1)[:, surplus:]
        self._proposed_QW = both_QW
        if surplus < 0:
            return np.full(len(both_QW), -np.inf)
        return np.asarray(both_QW.min(axis=1), dtype=np.float64)


def _width(limit: int, config: FaissConfig) -> int:
    return limit * config.candidates + 1  # one more, since a seed may find itself


def _allowed(part: StorePart, excluded: IdArray) -> npt.NDArray[np.uint8] | None:
    """One bit for each row of a part, the lowest first; None where all may be found."""
    if not excluded.size:
        return None
    gone = member(part.ids(), excluded)
    return np.packbits(~gone, bitorder="little") if gone.any() else None


def _samples(seeds: Seeds, config: FaissConfig) -> tuple[IndexArray, IndexArray]:
    """Seeds to tune on and seeds to measure on: two halves of those with the smallest hash."""
    order = np.argsort(seeded_hash(seeds.ids, config.seed), kind="stable")[: 2 * config.sample]
    tuning, held = order[::2], order[1::2]
    return tuning, held if held.size else tuning


def _of(hits: Hits, seed_ids: IdArray) -> Hits:
    """The hits of some seeds."""
    chosen = pc.is_in(hits.table["seed_id"], value_set=to_arrow(seed_ids))
    return Hits(hits.table.filter(chosen), 0, 0)


def _chosen(probes: list[Probe], parameter: str, config: FaissConfig) -> int:
    """The fastest value that reaches the target, or where it may, the best.

    Raises:
        ValueError: no value reaches it; the message gives the best recall.
    """
    last = probes[-1]
    if last.recall.value is None or last.recall.value >= config.recall:
        return last.value
    best = max(probes, key=lambda probe: (probe.recall.value or 0.0, -probe.value))
    if config.allow_below_target:
        return best.value
    setting = "" if parameter == "none" else f" at {parameter} {best.value}"
    raise ValueError(
        f"search.recall is {config.recall} but {config.factory!r} reaches {best.recall}{setting}: "
        "raise search.candidates, use larger codes, lower search.recall, set "
        "search.allow_below_target=true, or use search=exact"
    )
