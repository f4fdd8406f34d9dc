"""Locks that another process may hold for long: whoever waits for one says so, as progress.

A process that waits for another's work does not hang. Where that other one does, it is found by its
own silence, and its lock is released when it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lsb.progress import progressed

SECONDS = 5.0
"""Between two signs of progress."""


@contextmanager
def waited_for(file: Path, what: str) -> Iterator[None]:
    """Hold a lock, however long another process has it.

    Args:
        file: of the lock.
        what: is waited for, in a few words.
    """
    lock = FileLock(file)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=SECONDS)
        except Timeout:
            progressed(f"waits for {what}")
    try:
        yield
    finally:
        lock.release()
