"""Seeds that are searched for while a pool is embedded, shard by shard; hits once it is finished.

    <runs>/stages/embed-3f2a.../    <shard>.neighbours.parquet beside the vectors of each shard
    <runs>/stages/hits-81c0.../     result.parquet, hits.png, summary.json (lsb.search)

Seeds are part of the store's hash: with others, another store is embedded. A store that exists is
searched by `python -m lsb.search`.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock

from lsb.artifact import Counts, Part, Stage, run_stage
from lsb.ids import sample_ids
from lsb.search.array import part_contents
from lsb.search.config import SearchConfig
from lsb.search.outputs import FILES, write_outputs
from lsb.search.partial import seeds_hash
from lsb.search.result import KeepConfig, Source
from lsb.search.seed_files import read_ids, read_seeds
from lsb.search.streaming import SeedSearch
from lsb.store import Store

STAGE = "hits"
REVISION = 1


@dataclass(frozen=True)
class SeedConfig:
    """Seeds that are searched for while a pool is embedded.

    Attributes:
        seeds: folder of a store, all of whose clips are seeds, or a file with ids or keys of clips
            of `seed_store`; None for none.
        seed_store: folder of a store of the same kind and checkpoint.
        lt: smallest cosine similarity of a hit.
        neighbours: hits that a seed asks for while embedding; those that have more are asked again
            over the finished store, by one process.
        max_neighbours: most hits of a seed.
        exclude: file with ids or keys that must not be found (labelled clips).
        near_duplicate: similarity within a group of hits.
        per_seed_cap: most hits kept of a seed.
    """

    seeds: str | None = None
    seed_store: str | None = None
    lt: float | None = None
    neighbours: int = 64
    max_neighbours: int = 1024
    exclude: str | None = None
    near_duplicate: float | None = 0.98
    per_seed_cap: int | None = 8

    def __post_init__(self) -> None:
        if self.seeds is None:
            idle = [name for name in ("seed_store", "lt", "exclude") if getattr(self, name)]
            if idle:
                warnings.warn(
                    f"embed.{idle[0]} has no effect: embed.seeds is not set", stacklevel=2
                )
        elif self.lt is None:
            raise ValueError("embed.lt is not set: give the smallest cosine similarity of a hit")
        elif not -1 <= self.lt <= 1:
            raise ValueError(f"embed.lt is {self.lt}: give a cosine similarity in [-1, 1]")

    @property
    def keep(self) -> KeepConfig:
        """Which hits are kept."""
        return KeepConfig(self.near_duplicate, self.per_seed_cap)

    def open(self, threads: int) -> SeedSearch | None:
        """The search, None without seeds.

        Args:
            threads: of the compiled kernels.

        Raises:
            ValueError: a file or store is absent, or a seed is not in the store.
        """
        if self.seeds is None:
            return None
        _ = self.keep  # wrong values are refused before anything is embedded
        store = None if self.seed_store is None else Store.open(Path(self.seed_store))
        seeds = read_seeds(Path(self.seeds), store, "embed.seeds")
        exclude = sample_ids([])
        if self.exclude is not None:
            exclude = read_ids(Path(self.exclude), "embed.exclude")
        return SeedSearch.of(
            seeds.ids,
            seeds.vectors,
            SearchConfig(self.neighbours, self.max_neighbours, threads=threads),
            lookalike_threshold=self.lt,
            exclude=exclude,
        )


def make_hits(root: Path, embedded: Stage, search: SeedSearch, keep: KeepConfig) -> Stage:
    """The stage with the hits of a store that was embedded with seeds.

    result.parquet has the bytes that `python -m lsb.search` writes for this store and these seeds.

    Args:
        root: folder of all stages.
        embedded: the finished store.
        search: that it was embedded with.
        keep: which hits are kept.
    """
    store = Store.open(embedded.path)
    # Processes that share the shards may all find the store finished: one makes it, others wait.
    with FileLock(root / f".{embedded.path.name}.{STAGE}.lock"):
        return run_stage(
            root,
            STAGE,
            config={
                **search.key,
                "max_neighbours": search.config.max_neighbours,
                "keep": asdict(keep),
                "contents": part_contents(store),  # a takedown changes these, not the store's hash
            },
            inputs={"store": store.hash},
            parts=[Part("result", FILES, partial(_write, store, search, keep))],
            revision=REVISION,
        )


def _write(store: Store, search: SeedSearch, keep: KeepConfig, output: Path) -> Counts:
    source = Source(
        store.hash,
        seeds_hash(search.seeds),
        search.lookalike_threshold,
        search.config.max_neighbours,
    )
    summary = write_outputs(
        output,
        search.finish(store),
        store,
        source,
        keep,
        search.config,
        seeds=len(search.seeds),
        excluded=len(search.excluded),
    )
    return {name: int(summary[name]) for name in ("seeds", "hits", "asked_again", "saturated")}
