"""Stages that others make: a process may hand on what it would make itself.

Whoever decides where things run puts up a delegate; every stage that this process is asked for
whole and that is not finished is then offered to it before it is made here. A delegate that takes
an offer has the parts made by other processes, each by `lsb.artifact.work_on_stage` with a share,
and comes back when the stage is finished. Parts that processes have dealt among themselves are not
offered: they need what those hold, as the weights of a running training. Without a delegate nothing
changes, and a stage's bytes never depend on who made it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsb.parts import Part


@dataclass(frozen=True)
class StageCall:
    """A call of `lsb.artifact.work_on_stage`, to be made elsewhere; picklable as its parts are.

    Attributes:
        root: folder of all stages.
        stage: name.
        target: directory of the finished stage.
        config: see `lsb.artifact.run_stage`, like the others.
        inputs: see there.
        parts: see there.
        processes: see there.
        revision: see there.
    """

    root: Path
    stage: str
    target: Path
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    parts: Sequence[Part]
    processes: int
    revision: int


Delegate = Callable[[StageCall], bool]
"""Returns whether it has had the stage made; False leaves it to the process that was asked."""

_delegate: ContextVar[Delegate | None] = ContextVar("delegate", default=None)


@contextmanager
def delegated(delegate: Delegate) -> Iterator[None]:
    """Offer stages to `delegate` while the context lasts, in this thread."""
    token = _delegate.set(delegate)
    try:
        yield
    finally:
        _delegate.reset(token)


def offer(call: StageCall) -> bool:
    """Whether a delegate has had the stage made."""
    delegate = _delegate.get()
    if delegate is None:
        return False
    with _alone():
        return delegate(call)


@contextmanager
def _alone() -> Iterator[None]:
    """What a delegate itself is asked for is not offered to it again."""
    token = _delegate.set(None)
    try:
        yield
    finally:
        _delegate.reset(token)
