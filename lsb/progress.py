"""A sign of progress for whoever started this process: one file, touched as work gets done.

Called where something has been done (a part, a clip, a batch, a block, a step), never by a timer:
a process that hangs lives on, and leaves its file as it is. The file is named by the environment,
so that worker processes share it, and without a name nothing happens.
"""

from __future__ import annotations

import os
import re
import socket
import time
from contextlib import suppress

FILE = "VLMAE_PROGRESS_FILE"
"""Environment variable that names the file."""
SECONDS = 10.0
"""Between two writes; a folder on a network is not asked more often."""

_STEPS = re.compile(r"step (\d+) of (\d+) \((\d+\.\d+) s each\)")
_written = float("-inf")


def progressed(what: str) -> None:
    """Say that something has been done; costs a look at the clock when it was said just before.

    Args:
        what: in a few words, e.g. "step 120".
    """
    global _written
    now = time.monotonic()
    if now - _written < SECONDS:
        return
    _written = now
    file = os.environ.get(FILE)
    if file is None:
        return
    # A full disk is for the work itself to tell.
    with suppress(OSError), open(file, "w", encoding="utf-8") as stream:
        stream.write(f"{socket.gethostname()}\n{what}\n")


def steps_told(step: int, of: int, seconds: float | None) -> str:
    """How far work of many steps is, e.g. "step 120 of 450 (0.840 s each)".

    Args:
        step: how many are done.
        of: how many there will be, as far as is known now.
        seconds: that each has taken since this process began; None before the first.
    """
    pace = "" if seconds is None else f" ({seconds:.3f} s each)"
    return f"step {step} of {of}{pace}"


def seconds_left(what: str) -> float | None:
    """Seconds that the steps of `steps_told` will still take at their pace; None if it tells none.

    Args:
        what: was done, which may say more behind the steps.
    """
    told = _STEPS.match(what)
    if told is None:
        return None
    step, of, seconds = int(told[1]), int(told[2]), float(told[3])
    return (of - step) * seconds if step < of else None
