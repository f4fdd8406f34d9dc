"""Starting the servers, and the executable that stands for the interpreter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

HERE = Path(__file__).parent
REAL = sys.executable
"""The ordinary interpreter."""
SERVERS = 2
ROOM = 8000 * "-"
VARIABLE = "VLMAE_WARM_PYTHON"
"""Environment variable that names the executable, for processes that did not start it."""


class WarmPython:
    """Running servers.

    Attributes:
        executable: what to start instead of the interpreter. While a server still imports, it is
            the ordinary one.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vlmae-warm-"))  # short: it holds sockets
        (self.folder / "forked").mkdir()
        self.executable = self.folder / "python"
        # The shell becomes the client: same process, same files.
        client = f'exec "{REAL}" -IS "{HERE / "client.py"}" "{self.folder}" "$@"'
        self.executable.write_text(f"#!/bin/sh\n{client}\n")
        self.executable.chmod(0o755)
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment["OMP_NUM_THREADS"] = "1"
        self.servers = [
            subprocess.Popen(
                [REAL, HERE / "server.py", self.folder, f"server-{number}", ROOM],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=environment,
                cwd=self.folder,
            )
            for number in range(SERVERS)
        ]

    def stop(self) -> None:
        """End the servers and what they have forked."""
        for server in self.servers:
            assert server.stdin is not None
            server.stdin.close()
        for server in self.servers:
            try:
                server.wait(timeout=5)
            except subprocess.TimeoutExpired:  # it still imports
                server.kill()
                server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def start() -> WarmPython:
    """Start the servers; they end with this process, too."""
    return WarmPython()


def family(pid: int) -> list[psutil.Process]:
    """All processes that a process has started, and those that they have, forked ones as well."""
    forked = Path(os.environ.get(VARIABLE, "")).parent / "forked"
    found: dict[int, psutil.Process] = {}
    asked = [pid]
    while asked:
        parent = asked.pop()
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(parent).children()
            with suppress(FileNotFoundError):
                started.append(psutil.Process(int((forked / str(parent)).read_text())))
            new = [one for one in started if one.pid not in found]
            found |= {one.pid: one for one in new}
            asked += [one.pid for one in new]
    return list(found.values())
