"""A real SLURM on this machine for tests: slurmctld and several slurmd, see slurm/up.sh."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

HERE = Path(__file__).parent
SCRIPTS = HERE / "slurm"
TESTS_OF_LAUNCH = HERE.parent / "launch"
PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "srun": "slurm-client",
    "munged": "munge",
    "tini": "tini",
    "ip": "iproute2",
    "pgrep": "procps",
    "nsenter": "util-linux",
}
LARGEST_ARRAY = 5
"""MaxArraySize of the cluster: small, so that a test has more tasks than one array may have."""


def what_is_missing() -> str:
    """Why no cluster can be started here and what helps; empty where one can."""
    absent = [package for command, package in PACKAGES.items() if shutil.which(command) is None]
    if absent:
        return f"no SLURM here: apt-get install --no-install-recommends {' '.join(absent)}"
    if os.geteuid() != 0:
        return "a SLURM cluster of namespaces needs root: run the tests as root, or in a container"
    probe = ["unshare", "-m", "-u", "-i", "-p", "-n", "--fork", "--mount-proc", "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        return "this machine lets root make no namespaces: docker run needs --privileged"
    return ""


class Cluster:
    """A cluster of 4 nodes with 8 cores and 2 faked GPUs each, and a login host.

    Args:
        base: folder of everything it writes; a short path, for it holds sockets.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        # Hosts end when the write end is closed, even where this process is killed.
        self._ends, self._lives = os.pipe()

    def up(self) -> None:
        """Start it, or what of it is down."""
        command = [str(SCRIPTS / "up.sh"), str(self.base)]
        environment = {**os.environ, "TASKS": str(LARGEST_ARRAY)}
        # As descriptor 9: see the script.
        shell = ["bash", "-c", f'exec "$@" 9<&{self._ends}', "up", *command]
        log = self.base / "up.log"
        with open(log, "ab") as stream:
            subprocess.run(
                shell,
                env=environment,
                pass_fds=[self._ends],
                stdout=stream,
                stderr=stream,
                timeout=120,
                check=True,
            )

    def down(self) -> None:
        """Stop it."""
        subprocess.run([SCRIPTS / "down.sh", self.base], capture_output=True, check=False)
        os.close(self._lives)
        os.close(self._ends)

    def cut(self, node: str) -> None:
        """Cut the power of a node."""
        subprocess.run([SCRIPTS / "down.sh", self.base, node], check=True)

    def start(
        self,
        *command: object,
        cwd: Path,
        host: str = "login",
        output: IO[bytes] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a command on a host, with this interpreter's code and that of tests/launch.

        Args:
            command: to start.
            cwd: its folder.
            host: of the cluster.
            output: what it prints goes there; None pipes its output and its errors.
        """
        path = [str(TESTS_OF_LAUNCH), str(HERE.parents[1])]
        return subprocess.Popen(
            [str(SCRIPTS / "on.sh"), str(self.base), host, *map(str, command)],
            cwd=cwd,
            stdout=subprocess.PIPE if output is None else output,
            stderr=subprocess.PIPE if output is None else subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path),
                "OMP_NUM_THREADS": "1",
                "COLUMNS": "160",
            },
        )

    def run(self, *command: object, cwd: Path, timeout: float = 900) -> tuple[int, str, str]:
        """Exit code, output and errors of a command on the login host."""
        process = self.start(*command, cwd=cwd)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return process.returncode, out, err

    def python(self, *arguments: object, cwd: Path, timeout: float = 900) -> tuple[int, str, str]:
        """As `run`, of this interpreter."""
        return self.run(sys.executable, *arguments, cwd=cwd, timeout=timeout)

    def kill(self, words: str) -> None:
        """`kill -9` what runs on the login host and has these words in its command line."""
        code, _, err = self.run("pkill", "-KILL", "-f", words, cwd=self.base)
        assert code in (0, -9), err

    def fields(self, job: str, *names: str) -> list[str]:
        """Fields of `scontrol show job`."""
        _, out, _ = self.run("scontrol", "--oneliner", "show", "job", job, cwd=self.base)
        found = dict(word.partition("=")[::2] for word in out.split())
        return [found.get(name, "") for name in names]


def until(true: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Wait for something that is bound to happen."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"it did not happen: {what}"
        time.sleep(0.1)
