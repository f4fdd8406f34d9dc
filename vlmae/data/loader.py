"""The loader: batches in the order of `BatchOrder`, made by any number of workers.

The cursor counts the batches that were handed out, not those that workers are ahead with, and it is
the only state: `state_dict` is the same on all ranks and with any number of workers. A worker is
told which clips to fetch and keeps nothing. Workers live through all epochs and are ahead of the
trainer across the end of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lsb.artifact import fingerprint
from vlmae.data.labels import with_weights
from vlmae.data.order import BatchOrder, Indices, OrderConfig

VERSION = 1
Made = TypeVar("Made", covariant=True)


@dataclass(frozen=True)
class LoaderConfig:
    """How batches are composed and by how many hands they are made.

    Attributes:
        workers: processes that make batches; 0 makes them in the trainer's. Changes no result.
        prefetch: batches a worker is ahead. Changes no result.
        run_clips, bucket_batches, remainder: see `vlmae.data.order.OrderConfig`.
        positive_weight: task -> how often a clip with a positive label comes in an epoch.
        new_weight: how often a clip comes that the last round added.
    """

    workers: int = 0
    prefetch: int = 2
    run_clips: int = 1
    bucket_batches: int = 1
    remainder: str = "repeat"
    positive_weight: dict[str, float] = field(default_factory=dict)
    new_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.workers < 0 or self.prefetch < 1:
            raise ValueError(
                f"loader has workers {self.workers}, prefetch {self.prefetch}: give at least 0 "
                "and 1"
            )
        for name, weight in (*self.positive_weight.items(), ("new_weight", self.new_weight)):
            if not 0 < weight < math.inf:
                raise ValueError(f"loader weight {name} is {weight}: give a number above 0")
        self.order(1, 0)

    def order(self, batch_size: int, seed: int, accumulate: int = 1) -> OrderConfig:
        """The part that decides which clips make up which batch."""
        return OrderConfig(
            batch_size, seed, self.run_clips, self.bucket_batches, self.remainder, accumulate
        )

    def weighted(self, table: pa.Table, tasks: Sequence[str]) -> pa.Table:
        """A training set with the draws of each clip; see `vlmae.data.labels.with_weights`."""
        return with_weights(
            table, tasks, positive_weight=self.positive_weight, new_weight=self.new_weight
        )

    def hashed(self) -> dict[str, Any]:
        """What changes results."""
        return {k: v for k, v in asdict(self).items() if k not in ("workers", "prefetch")}


class BatchSource(Protocol[Made]):
    """What turns clip numbers into a batch; picklable, and called in a worker."""

    def batch(self, rows: Indices, seed: int) -> Made:
        """The batch of some clips; `seed` is for what may differ by epoch."""


class ClipLoader:
    """Batches of one rank, epoch by epoch, from any point on.

    Iterating gives the rest of the current epoch. Lightning saves and restores the state through
    `state_dict` and `load_state_dict`.

    Args:
        source: makes the batches.
        order: which clips they have.
        rank: whose batches, from 0 to `order.world` - 1.
        workers, prefetch: see `LoaderConfig`.
        data: fingerprint of the training set; a state of another one is refused.
        terms: (N, T) how many loss terms of each kind a clip has (`Objective.terms`), or None. With
            it every batch is told the `totals` of its whole step, over all ranks and all
            micro-batches that are accumulated, which nobody then has to ask the other ranks for.
    """

    def __init__(
        self,
        source: BatchSource[Any],
        order: BatchOrder,
        *,
        rank: int = 0,
        workers: int = 0,
        prefetch: int = 2,
        data: str = "",
        terms: npt.NDArray[np.float32] | None = None,
    ) -> None:
        if not 0 <= rank < order.world:
            raise ValueError(f"rank {rank} of {order.world}: give one from 0 to {order.world - 1}")
        self.source, self.order, self.rank, self.workers = source, order, rank, workers
        self.batch_size = order.config.batch_size
        self._prefetch = prefetch
        self._data = data
        self._terms = terms
        self._epoch, self._consumed, self._handed = 0, 0, 0
        # Where steps are counted from: a resume may be in the midst of other ranks' steps.
        self._origin = 0
        self._running: Iterator[Any] | None = None

    def __len__(self) -> int:
        """Steps of the current epoch, those handed out included."""
        return self._handed + self.order.steps(self._consumed)

    def __iter__(self) -> Iterator[Any]:
        if self.order.steps(self._consumed) == 0:
            self._turn()
        if self._running is None:
            self._running = iter(self._loader())
        for _ in range(self.order.steps(self._consumed)):
            try:
                made = next(self._running)
            except BaseException:
                self.close()  # it has moved on past the batch that failed, the cursor has not
                raise
            if self._terms is not None:
                made = replace(made, totals=self._totals(self._terms))
            self._consumed += self.order.world
            self._handed += 1
            yield made
        self._turn()

    def grow(self, other: ClipLoader) -> None:
        """Go on with the clips of another loader of the same rank, from the next epoch on.

        The epochs keep their numbers. Workers, which are ahead with the clips of before, end.

        Raises:
            ValueError: an epoch has begun and is not over.
        """
        if self._consumed and self.order.steps(self._consumed) == 0:
            self._turn()
        if self._consumed:
            raise ValueError(
                f"epoch {self._epoch} is under way, {self._consumed} batches of it are gone: a "
                "training set grows between epochs only"
            )
        self.close()
        self.source, self.order = other.source, other.order
        self._data, self._terms = other._data, other._terms

    @property
    def next_epoch(self) -> int | None:
        """Number of the epoch that begins next; None in the midst of one."""
        if not self._consumed:
            return self._epoch
        return self._epoch + 1 if self.order.steps(self._consumed) == 0 else None

    def close(self) -> None:
        """End the workers; iterating again starts new ones at the cursor."""
        # torch ends them when nothing refers to the iterator: after an error its traceback does.
        end = getattr(self._running, "_shutdown_workers", None)
        self._running = None
        if end is not None:
            end()

    def state_dict(self) -> dict[str, Any]:
        """The cursor: equal on all ranks, and for any number of workers."""
        return {
            "version": VERSION,
            "epoch": self._epoch,
            "consumed": self._consumed,
            "steps": self._handed,
            "order": self._identity(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a cursor.

        Raises:
            ValueError: it is of another training set, batch size, seed or version.
        """
        if state.get("version") != VERSION:
            raise ValueError(
                f"the loader's state has version {state.get('version')!r}, this release reads "
                f"{VERSION}: start the training anew"
            )
        own = self._identity()
        held = dict(state["order"])
        changed = [
            f"{key}: {held.get(key)} -> {own[key]}" for key in own if held.get(key) != own[key]
        ]
        if changed:
            raise ValueError(
                f"the loader's state is of another order of clips ({'; '.join(changed)}): resume "
                "with the same training set and loader settings, or start the training anew"
            )
        self._epoch, self._consumed = int(state["epoch"]), int(state["consumed"])
        self._handed = int(state["steps"])
        self._origin = self._consumed
        self.close()

    def _turn(self) -> None:
        self._epoch, self._consumed, self._handed = self._epoch + 1, 0, 0
        self._origin = 0

    def _totals(self, terms: npt.NDArray[np.float32]) -> Tensor:
        """(T,) loss terms in the step that the next batch belongs to."""
        length = self.order.per_step
        start = self._consumed - (self._consumed - self._origin) % length
        rows = [self.order.batch(self._epoch, number) for number in range(start, start + length)]
        return torch.from_numpy(terms[np.concatenate(rows)].sum(axis=0))

    def _identity(self) -> dict[str, Any]:
        config = self.order.config
        return {
            "data": self._data,
            "draws": self.order.draws,
            "batch_size": config.batch_size,
            "seed": config.seed,
            "settings": fingerprint([config.run_clips, config.bucket_batches, config.remainder]),
        }

    def _loader(self) -> DataLoader[Any]:
        specs = _Specs(self.order, self.rank, self._epoch, self._consumed)
        # The only way to give a worker more than a number: a data set that is asked for a spec.
        return DataLoader(
            _Fetch(self.source),
            batch_size=None,
            sampler=specs,
            num_workers=self.workers,
            prefetch_factor=self._prefetch if self.workers else None,
        )


class _Specs:
    """(clips, seed) of every batch of one rank, from a cursor on, without end."""

    def __init__(self, order: BatchOrder, rank: int, epoch: int, consumed: int) -> None:
        self.order, self.rank, self.epoch, self.consumed = order, rank, epoch, consumed

    def __iter__(self) -> Iterator[tuple[Indices, int]]:
        epoch, consumed = self.epoch, self.consumed
        while True:
            seed = int(fingerprint([self.order.config.seed, epoch])[:8], 16)
            for step in range(self.order.steps(consumed)):
                number = consumed + step * self.order.world + self.rank
                yield self.order.batch(epoch, number), seed
            epoch, consumed = epoch + 1, 0


class _Fetch(Dataset[Any]):
    def __init__(self, source: BatchSource[Any]) -> None:
        self.source = source

    def __getitem__(self, spec: tuple[Indices, int]) -> Any:
        return self.source.batch(*spec)
