"""What SLURM says of a partition: its nodes, and its limits."""

from __future__ import annotations

import re
from dataclasses import dataclass

from launch.jobs.executor import JobError
from launch.slurm.commands import run_slurm

PATIENCE = 20
READY = ("idle", "mixed", "planned", "completing")
BUSY = ("allocated",)
BROKEN = ("down", "drain", "fail", "error", "unknown", "inval", "no_respond")
_MARKS = "*~#!%$@^-+"
_GPUS = re.compile(r"(?:^|,)gpu(?::([^:,(]+))?:(\d+)")
_PARTS = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class Node:
    """A node as sinfo shows it.

    Attributes:
        name: of the node.
        state: SLURM's, e.g. "idle", "down*".
        gpus: devices by kind; "" for those whose kind is not told.
        features: for constraints.
        reason: why it is down or drained; else empty.
    """

    name: str
    state: str
    gpus: dict[str, int]
    features: frozenset[str]
    reason: str

    @property
    def broken(self) -> bool:
        """Whether nothing can run there, and somebody has to see to it."""
        return "*" in self.state or self.state.startswith(BROKEN)

    @property
    def ready(self) -> bool:
        """Whether a small job may start there soon."""
        return not self.broken and self.state.rstrip(_MARKS) in READY

    @property
    def busy(self) -> bool:
        """Whether others have all of it."""
        return not self.broken and self.state.rstrip(_MARKS) in BUSY

    def gpus_of(self, kind: str | None) -> int:
        """Devices of a kind; None for all."""
        return sum(self.gpus.values()) if kind is None else self.gpus.get(kind, 0)

    def fits(self, constraint: str | None) -> bool:
        """Whether it has the features of a constraint; what is more than names counts as yes."""
        if constraint is None or not re.fullmatch(r"[\w.\-]+([&|,][\w.\-]+)*", constraint):
            return True
        wanted = re.split(r"[&|,]", constraint)
        return (any if "|" in constraint else all)(one in self.features for one in wanted)


@dataclass(frozen=True)
class Partition:
    """A partition.

    Attributes:
        name: of the partition.
        nodes: all of them, by name.
        limit: seconds that a job may take; None for no limit.
        default: seconds that a job gets which names no time; None where that is `limit`.
    """

    name: str
    nodes: tuple[Node, ...]
    limit: int | None
    default: int | None


def read_partition(name: str | None) -> Partition:
    """A partition, or the default one.

    Raises:
        JobError: SLURM does not answer or does not know it; names those that there are.
    """
    done = run_slurm("scontrol", "--oneliner", "show", "partition", timeout=PATIENCE)
    if done.returncode:
        raise JobError(f"scontrol failed: {' '.join(done.stderr.split())}")
    known = {}
    for line in done.stdout.splitlines():
        record = dict(word.partition("=")[::2] for word in line.split())
        if "PartitionName" in record:
            known[record["PartitionName"]] = record
    found = known.get(name) if name else None
    if name is None:
        found = next((one for one in known.values() if one.get("Default") == "YES"), None)
    if found is None:
        what = f"has no partition {name!r}" if name else "has no default partition"
        raise JobError(
            f"SLURM {what}: set launcher.resources.default.partition to one of {', '.join(known)}"
        )
    name = found["PartitionName"]
    return Partition(
        name,
        read_nodes(name),
        seconds_of(found.get("MaxTime", "UNLIMITED")),
        seconds_of(found.get("DefaultTime", "NONE")),
    )


def read_nodes(partition: str) -> tuple[Node, ...]:
    """Nodes of a partition.

    Raises:
        JobError: SLURM does not answer.
    """
    done = run_slurm(
        "sinfo",
        "--Node",
        "--noheader",
        f"--partition={partition}",
        "--format=%N|%T|%G|%f|%E",
        timeout=PATIENCE,
    )
    if done.returncode:
        raise JobError(f"sinfo failed: {' '.join(done.stderr.split())}")
    return tuple(map(parse_node, filter(None, map(str.strip, done.stdout.splitlines()))))


def parse_node(line: str) -> Node:
    """A node from a line "name|state|gres|features|reason" of sinfo."""
    name, state, gres, features, reason = line.split("|", 4)
    gpus: dict[str, int] = {}
    for kind, count in _GPUS.findall(re.sub(r"\([^)]*\)", "", gres)):
        gpus[kind] = gpus.get(kind, 0) + int(count)
    told = frozenset() if features == "(null)" else frozenset(features.split(","))
    return Node(name, state, gpus, told, "" if reason == "none" else reason)


def seconds_of(time: str) -> int | None:
    """Seconds of a time as SLURM writes it; None where there is no limit."""
    found = _PARTS.fullmatch(time)
    if found is None:
        return None
    days, first, second, third = found.groups()
    if days is not None or third is not None:  # D-HH[:MM[:SS]], HH:MM:SS
        hours, minutes, seconds = first, second, third
    else:  # MM[:SS]
        hours, minutes, seconds = "0", first, second
    total = int(days or 0) * 24 + int(hours)
    return total * 3600 + int(minutes or 0) * 60 + int(seconds or 0)


def largest_array() -> int | None:
    """MaxArraySize; None where SLURM does not say."""
    done = run_slurm("scontrol", "show", "config", timeout=PATIENCE)
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    return int(found.group(1)) if found else None


def node_names(expression: str) -> list[str]:
    """Names of an expression like "node[1-3,7]".

    Raises:
        JobError: SLURM cannot read it.
    """
    done = run_slurm("scontrol", "show", "hostnames", expression, timeout=PATIENCE)
    if done.returncode:
        raise JobError(f"{expression!r} names no nodes: {' '.join(done.stderr.split())}")
    return done.stdout.split()
