"""Worker processes that start at once: each is forked from a server that has imported everything.

A spawned process imports all modules anew, which for torch and its company takes a core several
seconds, for every worker of every stage. `multiprocessing`'s fork server imports them once a
command, runs nothing of ours and forks from then on, so that no thread, no lock and no GPU context
of the command is ever copied.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

OURS = ("vlmae", "lsb", "launch")


def worker_pool(
    processes: int, initializer: Callable[..., object] | None = None, *arguments: Any
) -> ProcessPoolExecutor:
    """A pool of processes with this one's imports and environment, which do not outlive it.

    Args:
        processes: at a time; they are started when they are needed.
        initializer: called in each with the arguments, which are pickled, before its first work.
        arguments: of the initializer.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        sorted(name for name in sys.modules if name.partition(".")[0] in OURS)
    )
    begin = (dict(os.environ), initializer, arguments)
    return ProcessPoolExecutor(processes, context, _begin, begin)


def _begin(
    environment: Mapping[str, str],
    initializer: Callable[..., object] | None,
    arguments: tuple[Any, ...],
) -> None:
    """Initialiser of a worker. The server has the environment of the command's first pool."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer(*arguments)


def _end_with_parent() -> None:
    """End when the command was killed: an orphan would go on writing, unseen, beside the next."""
    command = multiprocessing.parent_process()
    if command is not None:
        command.join()
        os._exit(1)
