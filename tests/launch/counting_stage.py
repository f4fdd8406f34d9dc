"""A stage of small parts, made by tasks in tests; what a part does is told by files beside it."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from functools import partial
from pathlib import Path

import psutil

from lsb.artifact import Part, Stage, run_stage
from lsb.progress import FILE

LETTERS = "abcdefgh"
MEGABYTE = 1 << 20


def write(name: str, orders: Path, folder: Path) -> dict[str, int]:
    """Write a letter; first obey `<orders>/<name>.<order>`.

    Orders are `fail`, `fail_once`, `killed`, `memory`, `hang_once` and `wait`.
    """
    with open(orders / f"{name}.begun", "a") as stream:
        stream.write(f"{os.getpid()} {os.environ.get('SLURMD_NODENAME', '')}\n")
    if (orders / f"{name}.fail").exists():
        raise ValueError(f"{name} cannot be decoded")
    if (orders / f"{name}.fail_once").exists():
        (orders / f"{name}.fail_once").unlink()
        raise RuntimeError(f"{name} failed once")
    if (orders / f"{name}.killed").exists():
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory runs out
    if (orders / f"{name}.memory").exists():
        use_more_memory_than_there_is()
    if (orders / f"{name}.hang_once").exists():
        long_ago(Path(os.environ[FILE]))
        (orders / f"{name}.hang_once").unlink()
        threading.Event().wait()
    while (orders / f"{name}.wait").exists():
        time.sleep(0.05)
    (folder / f"{name}.txt").write_text(name)
    return {"letters": 1}


def use_more_memory_than_there_is() -> None:
    """Ask for more than this process may have from now on."""
    limit = psutil.Process().memory_info().vms + 64 * MEGABYTE
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    bytearray(1024 * MEGABYTE)


def long_ago(beat: Path) -> None:
    """Put the last progress back by an hour: tests do not wait for it to be so."""
    hour = beat.stat().st_mtime - 3600
    os.utime(beat, (hour, hour))


def counting_stage(root: Path, orders: Path, letters: str = LETTERS) -> Stage:
    """The stage, made by whoever makes stages here."""
    orders.mkdir(parents=True, exist_ok=True)
    parts = [Part(name, (f"{name}.txt",), partial(write, name, orders)) for name in letters]
    return run_stage(root, "embed", config={}, inputs={}, parts=parts)


def times_begun(orders: Path, letters: str = LETTERS) -> dict[str, int]:
    """Letter -> how often some process began it."""
    files = {name: orders / f"{name}.begun" for name in letters}
    return {
        name: len(file.read_text().splitlines()) if file.is_file() else 0
        for name, file in files.items()
    }
