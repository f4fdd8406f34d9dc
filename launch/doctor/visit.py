"""How nodes are visited, by one small job or a process of this machine; and what they answer."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from launch.doctor.finding import Finding
from launch.doctor.question import Limits, answer_file, echo_file, told_by
from launch.jobs.executor import JobError
from launch.jobs.job import last_line
from launch.jobs.local import free_port
from launch.slurm.commands import run_slurm
from lsb.artifact import StageError, read_json, write_bytes, write_json

PAUSE = 0.2
ASK_SLURM_SECONDS = 1.0
LOADING = ("torch", "route", "all-reduce", "gpus")
LOADING_SECONDS = 90.0
"""Given to a node that loads torch, or waits for one that does: a busy machine draws it out."""
WAITS, RUNS, ENDED = "waits", "runs", "ended"


class Visit(Protocol):
    """Starts `launch.doctor.node` on every node."""

    def start(self) -> None:
        """Start it, or say by JobError why not."""

    def state(self) -> tuple[str, str]:
        """`WAITS`, `RUNS` or `ENDED`, and why it waits."""

    def stop(self) -> None:
        """End what is left of it."""


@dataclass
class SlurmVisit:
    """One job over all nodes.

    Args:
        script: the batch script.
        folder: of the visit.
    """

    script: str
    folder: Path
    id: str = ""
    _asked: float = field(default=float("-inf"), repr=False)
    _told: tuple[str, str] = (WAITS, "")

    def start(self) -> None:
        """Submit it.

        Raises:
            JobError: it was refused; in SLURM's words.
        """
        file = self.folder / "script.sh"
        write_bytes(file, self.script.encode())
        done = run_slurm("sbatch", "--parsable", str(file))
        if done.returncode:
            raise JobError(
                f"sbatch refused {file}: {' '.join((done.stderr or done.stdout).split())}"
            )
        self.id = done.stdout.strip().split(";")[0]

    def state(self) -> tuple[str, str]:
        """What squeue says, asked once a second."""
        if time.monotonic() - self._asked >= ASK_SLURM_SECONDS:
            done = run_slurm("squeue", "--noheader", f"--jobs={self.id}", "--format=%T|%r")
            state, _, reason = done.stdout.strip().partition("|")
            self._asked = time.monotonic()
            if state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD"):
                self._told = (WAITS, reason)
            elif state in ("RUNNING", "COMPLETING"):
                self._told = (RUNS, "")
            elif done.returncode == 0 or "Invalid job id" in done.stderr:
                self._told = (ENDED, state or "GONE")
        return self._told

    def stop(self) -> None:
        """Cancel it."""
        if self.id and self.state()[0] != ENDED:
            run_slurm("scancel", self.id)


@dataclass
class LocalVisit:
    """One process, of this machine.

    Args:
        folder: of the visit.
        node: name of this machine.
    """

    folder: Path
    node: str
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        command = [sys.executable, "-m", "launch.doctor.node", str(self.folder), "--rank", "0"]
        home = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        own = {"PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        with open(self.folder / "logs" / f"{self.node}.log", "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **own},
            )

    def state(self) -> tuple[str, str]:
        """Whether it runs."""
        assert self.process is not None
        return (RUNS, "") if self.process.poll() is None else (ENDED, "")

    def stop(self) -> None:
        """Kill it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def own_name() -> str:
    """Name of this machine, as a node."""
    return socket.gethostname()


def collect(
    visit: Visit,
    folder: Path,
    nodes: Sequence[str],
    limits: Limits,
    say: Callable[[str], None],
) -> dict[str, list[Finding]]:
    """Node -> what it has found, with a finding for those that fell silent.

    The command answers each node's first answer, so that the node knows its clock and what it sees.

    Args:
        visit: started.
        folder: of it.
        nodes: that are visited.
        limits: how long to wait.
        say: called with what changes.

    Raises:
        JobError: the job waits longer than it may.
    """
    answers: dict[str, dict[str, Any]] = {}
    heard: dict[str, float] = {}
    told: set[str] = set()
    begun = time.monotonic()
    ended = None
    while True:
        state, reason = visit.state()
        now = time.monotonic()
        for node in nodes:
            before = answers.get(node)
            if _read(answer_file(folder, node), answers, node):
                record = {"time": time.time(), "limit": limits.clock_seconds}
                write_json(echo_file(folder, node), record)
            if answers.get(node) != before:
                heard[node] = now
                for line in _bad(node, answers[node]):  # at once: others may take their time
                    if line not in told:
                        told.add(line)
                        say(line)
        if state == WAITS and not answers:
            if now - begun > limits.queue_seconds:
                raise JobError(
                    f"the job waits in the queue after {limits.queue_seconds:g} s ({reason}): give "
                    "it longer by doctor.queue_seconds=600, or leave out nodes that others have: "
                    "'launcher.options=[--exclude=<nodes>]'"
                )
        elif "" not in heard:  # that it has begun
            say(f"visiting {len(nodes)} nodes")
            heard[""] = now
        if state == ENDED:
            ended = ended or now
        waited = [
            node for node in nodes if not _ended(folder, node, answers, heard, limits.patience)
        ]
        # The last files of a job that has ended may be seen late.
        if not waited or (ended is not None and now - ended > limits.patience / 3):
            break
        time.sleep(PAUSE)
    return {node: _findings(folder, node, answers) for node in nodes}


def _bad(node: str, record: dict[str, Any]) -> list[str]:
    """What a node has found to be mended so far, a line each."""
    found = (Finding(**one) for one in record["findings"])
    return [f"{node}: {one.check}: {one.cause}" for one in found if not one.fine]


def _read(file: Path, answers: dict[str, dict[str, Any]], node: str) -> bool:
    """Read a node's answer; returns whether it is its first."""
    try:
        record = read_json(file)
    except (OSError, StageError):
        return False
    first = node not in answers
    answers[node] = record
    return first


def _log(folder: Path, node: str) -> Path:
    return folder / "logs" / f"{node}.log"


def _ended(
    folder: Path,
    node: str,
    answers: dict[str, dict[str, Any]],
    heard: dict[str, float],
    patience: float,
) -> bool:
    """Whether nothing more is to be expected of a node."""
    doing = told_by(answers[node]) if node in answers else "start"
    if not doing or ("" in heard and node not in answers and _refused(folder, node)):
        return True
    # Who has not begun is waited for since others have.
    since = heard.get(node) or min(heard.values(), default=None)
    silent = 2 * patience + (LOADING_SECONDS if doing in LOADING else 0)
    return since is not None and time.monotonic() - since > silent


def _refused(folder: Path, node: str) -> bool:
    return "srun: error" in _text(_log(folder, node))


def _text(log: Path) -> str:
    return log.read_text("utf-8", "replace") if log.is_file() else ""


def _findings(folder: Path, node: str, answers: dict[str, dict[str, Any]]) -> list[Finding]:
    record = answers.get(node)
    if record is None:
        return [Finding("answers", *_silence(folder, node))]
    found = [Finding(**one) for one in record["findings"]]
    doing = told_by(record)
    if doing:
        words = last_line(_log(folder, node))
        more = f"; its last words: {words}" if words else ""
        remedy = "look at that node (dmesg, df), and run the doctor again with doctor.patience=60"
        return [*found, Finding(doing, f"it fell silent at this check{more}", remedy)]
    return [Finding("answers", told="all checks"), *found]


def _silence(folder: Path, node: str) -> tuple[str, str]:
    """Why a node has written nothing, and what to do."""
    log, leave_out = _log(folder, node), f"or leave it out: 'launcher.options=[--exclude={node}]'"
    said = [line.strip() for line in _text(log).splitlines() if line.strip()]
    errors = [line for line in said if "error:" in line.lower()]
    if any("failed on node" in line or "connect" in line.lower() for line in errors):
        return (
            f"no route: the first node of the job cannot start anything there, srun says: "
            f"{errors[0].removeprefix('srun: error: ')}",
            "ping and nc -vz from the first node to it and back; mend routes or firewalls, "
            f"{leave_out}",
        )
    if said:
        # What the node itself said; srun only adds that it ended.
        own = [line for line in said if not line.startswith("srun:")]
        words = (own or said)[-1]
        return (
            f"it was started and wrote nothing into {folder}; its last words: {words}",
            f"see that {folder} and the interpreter (launcher.python) are mounted there as here, "
            f"{leave_out}",
        )
    return (
        f"nothing came from it into {folder}",
        f"log in there and see whether slurmd, its network and that folder answer, {leave_out}",
    )
