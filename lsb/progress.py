"""A sign of progress for whoever started this process: one file, touched as work gets done.

Called where something has been done (a part, a clip, a batch, a block, a step), never by a timer:
a process that hangs lives on, and leaves its file as it is. The file is named by the environment,
so that worker processes share it, and without a name nothing happens.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

FILE = "VLMAE_PROGRESS_FILE"
"""Environment variable that names the file."""
SECONDS = 10.0
"""Between two writes; a folder on a network is not asked more often."""

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
