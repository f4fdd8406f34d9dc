"""One node's part: `python -m launch.doctor.node <folder> --rank N`, started by the doctor.

Writes what it has found after every check, with the name of the one that comes next: where a node
falls silent, its file says at what.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from launch.doctor.finding import Finding, one_line
from launch.doctor.folders import check_lock, check_nonce, check_place
from launch.doctor.machine import (
    check_gpus,
    check_memory,
    check_names,
    check_open_files,
    check_shared_memory,
    check_versions,
    installed_versions,
)
from launch.doctor.question import Question, answer_file, echo_file, told_by
from launch.doctor.route import Meeting, check_route
from launch.doctor.within import within
from lsb.artifact import read_json, write_json

PAUSE = 0.1


class Answer:
    """What this node has found so far, in its file.

    Args:
        folder: of the visit.
        node: name.
    """

    def __init__(self, folder: Path, node: str) -> None:
        self._file = answer_file(folder, node)
        self._found: list[Finding] = []
        self._record = {"node": node, "host": socket.gethostname(), "sent": time.time()}

    def doing(self, check: str) -> None:
        """Say what comes next; empty for nothing."""
        findings = [asdict(one) for one in self._found]
        write_json(self._file, {**self._record, "doing": check, "findings": findings})

    def add(self, finding: Finding) -> None:
        """Keep a finding; written with the next `doing`."""
        self._found.append(finding)

    def check(self, name: str, seconds: float, work: Callable[[], Finding]) -> None:
        """Do one check that may fail or hang in ways of its own."""
        self.doing(name)
        try:
            self.add(within(seconds, work))
        except TimeoutError as error:
            remedy = "look at the file servers and devices of that node (dmesg, df)"
            self.add(Finding(name, f"it hangs: {one_line(error)}", remedy))
        except Exception as error:
            self.add(Finding(name, one_line(error), "see the node's log"))


def main(arguments: list[str] | None = None) -> int:
    """Command line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.doctor.node", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="of the visit")
    parser.add_argument("--rank", type=int, required=True, help="number of the node, from 0")
    options = parser.parse_args(arguments)
    examine(options.folder, options.rank)
    return 0


def examine(folder: Path, rank: int) -> None:
    """Do all checks of one node and write what they find."""
    asked = Question.read(folder)
    node, patience = asked.nodes[rank], asked.patience
    answer = Answer(folder, node)
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("clock", partial(check_clock, folder, node, 0.8 * patience)),
        ("renames", partial(check_nonce, folder, asked.token)),
        ("locks", partial(check_lock, folder)),
        ("versions", lambda: check_versions(asked.versions, installed_versions())),
        ("names", partial(check_names, asked.nodes, socket.gethostname())),
        ("memory", partial(check_memory, asked.memory_gb)),
        ("shared memory", partial(check_shared_memory, asked.shm_gb)),
        ("open files", partial(check_open_files, asked.open_files)),
        *(
            (
                "folders" if place.writes else "weights and data",
                partial(check_place, place, asked.free_gb, asked.token, node),
            )
            for place in asked.places
        ),
    ]
    for name, work in checks:
        answer.check(name, patience, work)
    meeting = Meeting.from_environment(asked.nodes, rank, patience, asked.gpus)
    try:
        for finding in check_route(meeting, answer.doing, partial(loads_torch, folder)):
            answer.add(finding)
    except Exception as error:
        answer.add(Finding("route", one_line(error), "see the node's log"))
    answer.check("gpus", 2 * patience, partial(check_gpus, asked.gpus))
    answer.doing("")


def loads_torch(folder: Path, node: str) -> bool:
    """Whether another node says that it is loading torch, which a busy machine draws out."""
    try:
        return told_by(read_json(answer_file(folder, node))) == "torch"
    except (OSError, ValueError):
        return False


def check_clock(folder: Path, node: str, patience: float) -> Finding:
    """Whether what the command writes is seen here, and how far both clocks are apart.

    The command answers the first answer of this node with its time, as NTP does.
    """
    sent = read_json(answer_file(folder, node))["sent"]
    deadline = time.monotonic() + patience
    while not echo_file(folder, node).is_file():
        if time.monotonic() > deadline:
            return Finding(
                "renames",
                f"what the command writes is not seen there in {patience:g} s",
                "mount the folder with less caching (NFS: actimeo=3, lookupcache=positive), or "
                "doctor.patience=60",
            )
        time.sleep(PAUSE)
    now = time.time()
    echo = read_json(echo_file(folder, node))
    return clock_of(sent, float(echo["time"]), now, float(echo["limit"]))


def clock_of(sent: float, answered: float, received: float, limit: float) -> Finding:
    """How far two clocks are apart: `answered` is of the other one, and lies between both.

    Args:
        sent: seconds of this clock.
        answered: of the other one.
        received: of this clock.
        limit: that they may be apart, beyond what the way takes.
    """
    apart, unsure = (sent + received) / 2 - answered, (received - sent) / 2
    if abs(apart) - unsure > limit:
        side = "ahead of" if apart > 0 else "behind"
        return Finding(
            "clock",
            f"it is {abs(apart):.0f} s {side} that of the command",
            "chronyc makestep there (or restart its time service)",
        )
    return Finding("clock", told=f"within {abs(apart) + unsure:.1f} s")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread that hangs would keep it
