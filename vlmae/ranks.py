"""The processes of one training: who this one is, and how stages are made once for all of them.

A launcher (torchrun, srun) starts every rank with RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE,
MASTER_ADDR and MASTER_PORT; without them there is one. Only the first rank makes, finishes or
reuses a stage; a stage that all ranks make together runs its work on all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from lsb.artifact import Counts, Stage, open_stage

# The others wait while the first rank prepares data or fills a cache.
PATIENCE = timedelta(days=7)
Work = Callable[[Path], Counts]


class OtherRankError(RuntimeError):
    """The first rank failed; it has said why."""


@dataclass(frozen=True)
class Ranks:
    """This process among all.

    Attributes:
        rank: from 0 to `size` - 1.
        size: how many processes train together.
        local_size: how many of them are on this machine.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @classmethod
    def from_environment(cls) -> Ranks:
        """As the launcher says.

        Raises:
            ValueError: some of the variables are set and others are not, or they contradict each
                other.
        """
        size, rank = (_number(name, default) for name, default in (("WORLD_SIZE", 1), ("RANK", 0)))
        if size == 1 and rank == 0:
            return cls()
        needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        absent = [name for name in needed if name not in os.environ]
        if absent:
            raise ValueError(
                f"WORLD_SIZE is {size}, and {', '.join(absent)} is not set: start every rank with "
                "torchrun or srun, or unset WORLD_SIZE"
            )
        local = _number("LOCAL_WORLD_SIZE", size)
        if not 0 <= rank < size or local < 1 or size % local:
            raise ValueError(
                f"RANK is {rank}, WORLD_SIZE {size}, LOCAL_WORLD_SIZE {local}: ranks count from 0 "
                "to WORLD_SIZE - 1, equally many on every machine; start them with torchrun or "
                "srun, or unset these variables"
            )
        return cls(rank, size, local)

    @property
    def first(self) -> bool:
        """Whether this rank makes the stages."""
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Connect the ranks, and part at the end. Collective: all ranks call it."""
        if self.size == 1:
            yield
            return
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(
            backend, rank=self.rank, world_size=self.size, timeout=PATIENCE
        )
        try:
            yield
        finally:
            # Left alone, it aborts the process at exit now and then.
            distributed.destroy_process_group()

    def once(self, make: Callable[[], Stage]) -> Stage:
        """A stage that the first rank makes. Collective.

        Raises:
            OtherRankError: on the others, where the first failed.
        """
        return self.all(lambda work: make(), None)

    def all(self, make: Callable[[Work], Stage], work: Work | None) -> Stage:
        """A stage whose work all ranks do together. Collective.

        Args:
            make: called on the first rank with a function to be called as `Part.make`, at most
                once; where it is not called, the stage was there already.
            work: called on every rank with the output folder, which only the first may fill.

        Raises:
            OtherRankError: on the others, where the first failed before the work began. A rank that
                fails during the work ends, and the launcher ends the others.
        """
        if self.size == 1:
            return make(work or _nothing)
        if self.first:
            return self._lead(make, work)
        told, path = self._tell(None)
        if told == "work" and work is not None:
            work(Path(path))
            told, path = self._tell(None)
        if told != "done":
            raise OtherRankError("the first rank failed: see what it says")
        return open_stage(Path(path), verify=False)

    def _lead(self, make: Callable[[Work], Stage], work: Work | None) -> Stage:
        working = False

        def collective(output: Path) -> Counts:
            nonlocal working
            self._tell(("work", str(output.resolve())))
            working = True
            counts = (work or _nothing)(output)
            working = False
            return counts

        try:
            stage = make(collective)
        except BaseException:
            if not working:  # else the others are in the midst of something else
                self._tell(("failed", ""))
            raise
        self._tell(("done", str(stage.path.resolve())))
        return stage

    def _tell(self, message: tuple[str, str] | None) -> tuple[str, str]:
        """The first rank's message, on all ranks."""
        box: list[Any] = [message]
        distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        told: tuple[str, str] = box[0]
        return told


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise ValueError(f"{name} is {value!r}: give a whole number, or unset it")
    return int(value)


def _nothing(output: Path) -> Counts:
    raise AssertionError(f"this stage has no collective work to put into {output}")
