"""What the benchmarks of the data plane share: a data set, its settings and a folder for scratch.

The clips are those of the experiment avt_small: 500 of its split `first` and 500 of its pool (a
clip has the same content in every size), in shards of 50, none broken. Without the sources they are
generated ones, and every table says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.measure import Timing, Work, interleave
from launch.stages.settings import Settings
from lsb.artifact import Stage
from lsb.labelled import LABEL
from vlmae.config import compose_config
from vlmae.data.index import read_index
from vlmae.data.labels import label_matrix
from vlmae.data.prefix_cache import Prefix, PrefixCache, cache_prefix
from vlmae.data.prepare import PrepareConfig, prepare, read_truth
from vlmae.data.token_source import CachedTokens
from vlmae.data.whitening import whiten
from vlmae.towers import Towers, build_towers
from vlmae.training import Training, train
from vlmae.training_data import PLACE

BENCH_PACKAGES = Path(__file__).parents[2] / ".bench-packages"
# avt_small's `first` and the labels of its two rounds, less those of a broken clip.
LABELS = 899
FULL = (
    *("data.first=500", "data.pool=500", "data.gold=50", "data.test=0"),
    *("data.shard_clips=50", "data.broken=0.0", "name=bench"),
)
QUICK = (
    *("data.first=16", "data.pool=16", "data.gold=4", "data.test=0", "data.clip_seconds=2.0"),
    *("data.shard_clips=4", "data.broken=0.0", "data.pictures_per_digit=30", "data.processes=1"),
    *("data.unsafe_rate=0.4", "model.components=8", "name=bench"),
)


@dataclass(frozen=True)
class FewShards(Prefix):
    """Some shards of a data set, as if it had no others.

    Attributes:
        split: whose shards.
        limit: the first so many of them; 0 takes all.
    """

    split: str = "pool"
    limit: int = 0

    @property
    def shards(self) -> list[str]:
        """Their names, in order."""
        names = [name for name in super().shards if name.startswith(f"{self.split}-")]
        return names[: self.limit or None]


@dataclass(frozen=True)
class Bench:
    """One run of the benchmarks.

    Attributes:
        runs: folder of finished stages, where the data set is looked for and made.
        scratch: empty folder for what is built to be timed.
        sources: of AVT-compose.
        quick: a smoke run on a few generated clips: its numbers mean nothing.
        repeats: turns of each path, or None for each benchmark's own.
        overrides: of the experiment's config, beside those of the data set.
    """

    runs: Path
    scratch: Path
    sources: Path
    quick: bool = False
    repeats: int | None = None
    overrides: tuple[str, ...] = ()

    def turns(self, usual: int) -> int:
        """How often every path is timed."""
        return self.repeats or (1 if self.quick else usual)

    def time(
        self, paths: Mapping[str, Work], usual: int, *, warm: bool = True
    ) -> dict[str, list[Timing]]:
        """`interleave` with as many turns as wanted; a smoke run does without warming up."""
        return interleave(paths, self.turns(usual), warm=warm and not self.quick)

    @property
    def cores(self) -> int:
        """Cores that this process may use."""
        return len(os.sched_getaffinity(0))

    @property
    def composed(self) -> bool:
        """Whether the clips are AVT-compose, and not generated."""
        return not self.quick and self.sources.is_dir()

    @cached_property
    def settings(self) -> Settings:
        """Of avt_small, but for the size of the data."""
        chosen: tuple[str, ...]
        if self.composed:
            chosen = ("experiment=avt_small", f"data.sources={self.sources}", *FULL)
        elif self.quick:
            chosen = ("experiment=tiny", *QUICK)
        else:
            chosen = ("experiment=demo", *FULL)
        given = [*chosen, *self.overrides, f"runs={self.runs}"]
        return Settings.from_config(compose_config("round", given))

    @property
    def composition(self) -> PrepareConfig:
        """How the clips are composed."""
        config = self.settings.data.composed
        assert config is not None, "benchmarks compose their clips"
        return config

    @cached_property
    def data(self) -> Stage:
        """The prepared clips; not timed."""
        return prepare(self.settings.stages, self.composition)

    @property
    def described(self) -> str:
        """The data set in words."""
        config = self.composition
        kind = (
            "AVT-compose (real media, composed labels; clips of avt_small)"
            if self.composed
            else "GENERATED clips"
            + ("" if self.quick else f" ({self.sources} is absent, so not AVT-compose)")
        )
        size = f"{config.frame_size} px, {config.clip_seconds:g} s, {config.fps} frames/s"
        return f"{kind}, {size}, mp4 in webdataset shards of {config.shard_clips}"

    @property
    def prefix(self) -> Prefix:
        """The frozen tokens as the experiment keeps them."""
        settings = self.settings
        return Prefix(self.data, settings.vl, settings.audio, settings.decode, settings.prefix)

    def few(self, split: str, limit: int = 0, **changes: Any) -> FewShards:
        """The same of some shards, with changed fields of `PrefixConfig`."""
        prefix = self.prefix
        return FewShards(
            prefix.data,
            prefix.vl,
            prefix.audio,
            prefix.policy,
            replace(prefix.config, **changes),
            split=split,
            limit=limit,
        )

    @property
    def towers(self) -> Towers:
        """The frozen backbones."""
        return build_towers(self.settings.vl, self.settings.audio)

    @cached_property
    def cached(self) -> CachedTokens:
        """Tokens of all clips from a cache in the scratch folder; built when first asked for."""
        return CachedTokens(PrefixCache(finished(cache_prefix(self.scratch / "all", self.prefix))))

    @cached_property
    def whitened(self) -> Stage:
        """Whitening fitted on the labelled and the unlabelled clips."""
        components = int(self.settings.model["components"])
        return whiten(
            self.scratch / "all", self.cached, components=components, **self.settings.whitening
        )

    @cached_property
    def trained(self) -> Stage:
        """A model after a few epochs, so that its outputs are spread out."""
        settings = self.settings
        return train(
            self.scratch / "all",
            Training(
                source=self.cached,
                whitened=self.whitened,
                labelled=self.labelled().drop_columns(list(PLACE)),
                validation=self.labelled(("gold",)).drop_columns(list(PLACE)),
                model=settings.model,
                objective=settings.objective,
                optimizer=settings.optimizer,
                config=replace(settings.train, epochs=2 if self.quick else 5),
            ),
        )

    def clips(self, splits: Sequence[str] = ("pool",)) -> pa.Table:
        """The index of some splits, by shard then offset."""
        return read_index(self.data, splits)

    def labelled(self, splits: Sequence[str] = ("first", "pool")) -> pa.Table:
        """At most `LABELS` clips with all labels and their places, the split `first` before all."""
        truth, index = read_truth(self.data, splits), self.clips(splits)
        if truth["id"].to_pylist() != index["id"].to_pylist():
            raise ValueError(f"{self.data.path}: index and truth name other clips: prepare it anew")
        for task in self.settings.tasks:
            index = index.append_column(LABEL + task, truth[task])
        human = pa.array(["oracle"] * index.num_rows, pa.string())
        return index.append_column("source", human).slice(0, LABELS)

    def labels(self, table: pa.Table) -> npt.NDArray[np.int8]:
        """(N, K) labels of a table that `labelled` returned."""
        return label_matrix(table, self.settings.tasks)

    def urls(self, split: str = "pool") -> list[str]:
        """Paths of the tars of a split, as webdataset wants them."""
        names = sorted(name for name in self.data.files if name.endswith(".tar"))
        return [str(self.data.path / name) for name in names if name.startswith(f"{split}-")]


def finished(stage: Stage | None) -> Stage:
    """A stage of which this process made every part."""
    if stage is None:
        raise ValueError("a stage has one share here and is not finished: this is a bug")
    return stage
