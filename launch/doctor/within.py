"""Work that may hang, as a file server or a device that is gone has it, given up after a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns, if it does in time. It runs on in a thread where it does not.

    Args:
        seconds: to wait.
        work: what to do.

    Raises:
        TimeoutError: it has not come back.
    """
    made: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            made.append(work())
        except BaseException as error:  # told to whoever waits
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not made:
        raise TimeoutError(f"no answer in {seconds:g} s")
    return made[0]
