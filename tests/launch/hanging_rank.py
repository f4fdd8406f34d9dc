"""Two ranks that wait for each other, of which the second hangs once, in tests of jobs."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from counting_stage import long_ago

from lsb.progress import FILE


def wait_for_each_other(hangs: Path, target: Path) -> None:
    """Every rank says that it is here; the first makes the target when both are.

    Args:
        hangs: the second rank hangs where it is, and deletes it then; ranks tell beside it that
            they are here.
        target: folder to make.
    """
    folder = hangs.parent
    rank = int(os.environ["RANK"])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as one that hangs in a driver
    if rank == 1 and hangs.exists():
        until(folder / "rank-0")
        own = Path(os.environ[FILE])
        long_ago(own)
        long_ago(own)  # before the other one's
        long_ago(own.with_name(own.name.replace("rank-1", "rank-0")))
        hangs.unlink()
        threading.Event().wait()
    (folder / f"rank-{rank}").touch()
    until(folder / f"rank-{1 - rank}")
    if rank == 0:
        target.mkdir(parents=True)
    until(target)


def until(file: Path) -> None:
    """Wait for a file."""
    while not file.exists():
        time.sleep(0.05)
