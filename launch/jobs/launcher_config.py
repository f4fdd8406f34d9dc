"""Where the stages of a command are made: the config group `launcher`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmae.config import build, checked

TRAIN = "train"
STAGES = ("sources", "prepare", "cache", "embed", "neighbours", TRAIN)
"""Stages that can be made elsewhere: their parts need nothing of the process that asks for them."""
COMPARE = "compare"
"""Units of a comparison, which have resources of their own, like a stage."""

_NAME = re.compile(r"[A-Za-z0-9_.,:@&|*+\-]+")
_TIME = re.compile(r"(\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2}|UNLIMITED|INFINITE)")


@dataclass(frozen=True)
class Resources:
    """What a task of a stage, or a rank of a training, gets; null keys take the cluster's default.

    Attributes:
        partition: SLURM's, like the next three.
        account: who pays.
        qos: quality of service.
        constraint: features of nodes.
        time: limit, as "HH:MM:SS", "D-HH:MM:SS" or minutes.
        cpus: cores.
        memory_gb: main memory.
        gpus: devices.
        gpu_type: SLURM's name of their kind.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | None = None
    cpus: int = 1
    memory_gb: float | None = None
    gpus: int = 0
    gpu_type: str | None = None

    def __post_init__(self) -> None:
        for name in ("partition", "account", "qos", "constraint", "gpu_type"):
            value = getattr(self, name)
            if value is not None and not _NAME.fullmatch(value):
                raise ValueError(
                    f"launcher.resources has {name} {value!r}: give a name without spaces or quotes"
                )
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise ValueError(
                f"launcher.resources has time {self.time!r}: give HH:MM:SS, D-HH:MM:SS or minutes, "
                "in quotes"
            )
        if self.cpus < 1 or self.gpus < 0 or not (self.memory_gb is None or self.memory_gb > 0):
            raise ValueError(
                f"launcher.resources has cpus {self.cpus}, gpus {self.gpus}, memory_gb "
                f"{self.memory_gb}: give at least 1, 0, and more than 0"
            )


@dataclass(frozen=True, kw_only=True)
class LauncherConfig:
    """What every launcher knows.

    Attributes:
        name: "local" or "slurm".
        tasks: processes that share the shards of a stage.
        at_once: of them at a time; None for no limit.
        stages: names of the stages that tasks make.
        nodes: of a training.
        ranks: of a training, on each node.
        retries: how often a task that failed is started again.
        poll_seconds: between two looks at what is going on.
        hang_minutes: a task without progress for so long is stopped and started again, as one that
            failed; None never is.
        dry_run: print what would be submitted, and make nothing.
    """

    name: str
    tasks: int = 1
    at_once: int | None = None
    stages: tuple[str, ...] = STAGES
    nodes: int = 1
    ranks: int = 1
    retries: int = 1
    poll_seconds: float = 1.0
    hang_minutes: float | None = 30.0
    dry_run: bool = False

    def __post_init__(self) -> None:
        for name in ("tasks", "at_once", "nodes", "ranks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"launcher.{name} is {value}: give at least 1")
        if self.retries < 0 or not self.poll_seconds > 0:
            raise ValueError(
                f"launcher has retries {self.retries}, poll_seconds {self.poll_seconds}: give at "
                "least 0, and more than 0"
            )
        if self.hang_minutes is not None and not self.hang_minutes > 0:
            raise ValueError(
                f"launcher.hang_minutes is {self.hang_minutes}: give more than 0, or null to wait "
                "for ever"
            )
        unknown = sorted(set(self.stages) - set(STAGES))
        if unknown:
            raise ValueError(
                f"launcher.stages names {unknown[0]!r}: the stages that can be made elsewhere are "
                f"{', '.join(STAGES)}"
            )

    @property
    def world(self) -> int:
        """Ranks of a training."""
        return self.nodes * self.ranks

    @property
    def in_process(self) -> bool:
        """Whether the command's own process makes everything."""
        return False

    def require_none(self, command: str, instead: str) -> None:
        """Refuse a launcher where it would have no effect.

        Args:
            command: that makes its stages itself.
            instead: key of its own for processes.

        Raises:
            ValueError: names the launcher and the remedy.
        """
        if not self.in_process:
            raise ValueError(
                f"launcher={self.name} with {self.tasks} tasks and {self.world} ranks has no "
                f"effect on {command}: leave it out and set {instead}"
            )

    def require_one_rank(self, command: str) -> None:
        """Refuse trainings on several ranks where each has one.

        Args:
            command: whose trainings run inside tasks.

        Raises:
            ValueError: names both keys.
        """
        if self.world > 1:
            raise ValueError(
                f"launcher.nodes is {self.nodes} and launcher.ranks {self.ranks}: a task of "
                f"{command} trains on one device; leave both at 1, and set launcher.at_once for "
                "more tasks at a time"
            )


@dataclass(frozen=True, kw_only=True)
class LocalConfig(LauncherConfig):
    """Processes on this machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nodes != 1:
            raise ValueError(
                f"launcher.nodes is {self.nodes} and launcher=local has one: give the ranks of the "
                "training as launcher.ranks, or use launcher=slurm"
            )

    @property
    def in_process(self) -> bool:
        """With one task and one rank."""
        return self.tasks == 1 and self.world == 1


@dataclass(frozen=True, kw_only=True)
class SlurmConfig(LauncherConfig):
    """Jobs of a SLURM cluster.

    Attributes:
        requeues: how often a job may go back into the queue by itself.
        signal_seconds: how long before its time limit a job is told to save and leave.
        python: interpreter of the jobs; None for that of the command.
        container: words that start the interpreter, or None.
        modules: loaded before.
        setup: lines of shell before the command.
        options: further options of sbatch.
        resources: "default" and, by stage, what differs from it.
    """

    requeues: int = 50
    signal_seconds: int = 120
    python: str | None = None
    container: str | None = None
    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    resources: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.requeues < 0 or self.signal_seconds < 1:
            raise ValueError(
                f"launcher has requeues {self.requeues}, signal_seconds {self.signal_seconds}: "
                "give at least 0 and 1"
            )
        for option in self.options:
            if not re.fullmatch(r"--[a-z][^\n]*", option):
                raise ValueError(
                    f"launcher.options has {option!r}: give long options of sbatch, --key=value"
                )
        for module in self.modules:
            if not re.fullmatch(r"[^\s'\"]+", module):
                raise ValueError(f"launcher.modules has {module!r}: give names of modules")
        known = (*STAGES, COMPARE)
        unknown = sorted(set(self.resources) - {"default", *known})
        if unknown:
            raise ValueError(
                f"launcher.resources has {unknown[0]!r}: give default, or one of {', '.join(known)}"
            )
        for stage in known:
            self.of(stage)

    def of(self, stage: str) -> Resources:
        """Resources of a stage's task.

        Raises:
            ValueError: names the key and the value.
        """
        values = {**self.resources.get("default", {}), **self.resources.get(stage, {})}
        return build(f"launcher.resources.{stage}", Resources, values)


def launcher_config(values: Mapping[str, Any]) -> LauncherConfig:
    """The group `launcher` of a composed config.

    Raises:
        ValueError: names the key and the value.
    """
    kinds: dict[str, type[LauncherConfig]] = {"local": LocalConfig, "slurm": SlurmConfig}
    name = checked("launcher.name", str, values.get("name"))
    if name not in kinds:
        raise ValueError(f"launcher.name is {name!r}: use {' or '.join(kinds)}")
    tuples = {
        key: tuple(checked(f"launcher.{key}", list[str], values[key]))
        for key in ("stages", "modules", "setup", "options")
        if key in values
    }
    return build("launcher", kinds[name], {**values, **tuples})
