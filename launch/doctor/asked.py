"""Checks that need no node: what a config asks for, against what SLURM allows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch.doctor.finding import Finding
from launch.doctor.question import Limits
from launch.jobs.executor import JobError
from launch.jobs.job import RANKS, SHARDS
from launch.jobs.launcher_config import TRAIN, SlurmConfig
from launch.slurm import render_script
from launch.slurm.commands import run_slurm
from launch.slurm.partition import (
    PATIENCE,
    Node,
    Partition,
    largest_array,
    node_names,
    read_partition,
    seconds_of,
)

EXCLUDE, NODELIST = "--exclude=", "--nodelist="


def check_settings(gpus_a_node: int, values: Mapping[str, Any]) -> Finding:
    """Whether a training on GPUs asks for some."""
    if values.get("trainer", {}).get("accelerator") == "gpu" and not gpus_a_node:
        return Finding(
            "settings",
            "trainer=gpu, and the launcher asks for no GPU",
            "++launcher.resources.train.gpus=1 (of each rank)",
        )
    return Finding("settings")


def check_time(stage: str, asked: str | None, partition: Partition) -> Finding:
    """Whether a partition gives as much time as a stage asks for."""
    limit = partition.limit
    if limit is None or asked is None:
        return Finding("time limit", told=asked or "the partition's default")
    wanted = seconds_of(asked)
    if wanted is None or wanted > limit:
        return Finding(
            "time limit",
            f"{stage} asks for {asked}, and partition {partition.name} gives at most "
            f"{limit // 3600}:{limit // 60 % 60:02d}:{limit % 60:02d}",
            f"++launcher.resources.{stage}.time='\"{limit // 60}\"' (minutes; a job that is told "
            "to stop goes on where it was), or another partition",
        )
    return Finding("time limit", told=asked)


def check_array(tasks: int, largest: int | None) -> Finding:
    """Whether the cluster takes arrays."""
    if largest is not None and largest < 2:
        return Finding(
            "arrays",
            f"MaxArraySize is {largest}: this cluster takes no arrays",
            "launcher.stages=[train], or have MaxArraySize raised",
        )
    arrays = 1 if largest is None else -(-tasks // largest)
    return Finding("arrays", told=f"{tasks} tasks, MaxArraySize {largest or 'not told'}: {arrays}")


def check_accepted(config: SlurmConfig, stage: str) -> Finding:
    """Whether SLURM would take the job of a stage: `sbatch --test-only`."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "test.sh"
        here = Path(folder)
        ranks = stage == TRAIN
        script.write_text(
            render_script(
                config,
                name=f"{stage}-doctor",
                stage=stage,
                kind=RANKS if ranks else SHARDS,
                folder=here,
                code=here,
                cwd=here,
                attempt=1,
                tasks=[0],
            ),
            encoding="utf-8",
        )
        done = run_slurm("sbatch", "--test-only", str(script), timeout=PATIENCE)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        return Finding(
            "accepted",
            f"SLURM would refuse the job of {stage}: {said}",
            f"account, partition, time, nodes or GPUs: launcher.resources.{stage} and .default, "
            "launcher.nodes, launcher.ranks",
        )
    return Finding("accepted")


@dataclass(frozen=True)
class Choice:
    """Which nodes are visited.

    Attributes:
        partition: where.
        nodes: names, in SLURM's order.
        broken: node -> what is wrong with it.
        left: node -> why it is not visited, though nothing is wrong.
        gpus: of every node that is visited.
    """

    partition: Partition
    nodes: tuple[str, ...]
    broken: dict[str, Finding]
    left: dict[str, str]
    gpus: int


def choose_nodes(config: SlurmConfig, limits: Limits) -> Choice:
    """Nodes on which the job of a stage could run, and what is known of the others.

    Raises:
        JobError: SLURM does not answer, or an option names no nodes.
    """
    resources = config.of(limits.stage)
    partition = read_partition(resources.partition)
    gpus = gpus_asked(config, limits.stage)
    only, never = (_named(config.options, option) for option in (NODELIST, EXCLUDE))
    broken, left, nodes = {}, {}, []
    for node in partition.nodes:
        if (only and node.name not in only) or node.name in never:
            continue
        has = node.gpus_of(resources.gpu_type)
        if not node.fits(resources.constraint):
            left[node.name] = f"has not the features {resources.constraint}"
        elif has < gpus:
            left[node.name] = f"has {has} of {gpus} {resources.gpu_type or ''} GPUs by sinfo"
        elif node.broken:
            broken[node.name] = not_answering(node)
        elif node.ready:
            nodes.append(node.name)
        else:
            left[node.name] = f"is {node.state}: others have it, not looked at"
    return Choice(partition, tuple(nodes), broken, left, gpus)


def not_answering(node: Node) -> Finding:
    """A node that SLURM has given up."""
    reason = f": {node.reason}" if node.reason else ""
    return Finding(
        "answers",
        f"SLURM has it {node.state}{reason}",
        f"mend it, then (administrators) scontrol update nodename={node.name} state=resume; or "
        f"leave it out: 'launcher.options=[--exclude={node.name}]'",
    )


def gpus_asked(config: SlurmConfig, stage: str) -> int:
    """Of one node, by the ranks of a training or by a task."""
    return config.of(stage).gpus * _on_a_node(config, stage)


def memory_asked(config: SlurmConfig, stage: str) -> float:
    """Gigabytes of one node, likewise; 0 where it is the cluster that says."""
    return (config.of(stage).memory_gb or 0.0) * _on_a_node(config, stage)


def _on_a_node(config: SlurmConfig, stage: str) -> int:
    return config.ranks if stage == TRAIN else 1


def check_enough(config: SlurmConfig, choice: Choice) -> Finding:
    """Whether a training can get its nodes."""
    busy = sum(1 for node in choice.partition.nodes if node.busy and node.name in choice.left)
    there = len(choice.nodes) + busy
    if there < config.nodes:
        return Finding(
            "settings",
            f"launcher.nodes is {config.nodes}, and partition {choice.partition.name} has {there} "
            f"that work and fit",
            f"launcher.nodes={max(1, there)}, or see below why the others do not fit",
        )
    return Finding("settings")


def check_asked(
    config: SlurmConfig, choice: Choice, limits: Limits, values: Mapping[str, Any]
) -> Iterator[Finding]:
    """All checks of this module."""
    yield check_settings(gpus_asked(config, TRAIN), values)
    if limits.stage == TRAIN:  # another one chooses other nodes
        yield check_enough(config, choice)
    partitions = {choice.partition.name: choice.partition}
    seen = []
    for stage in config.stages:
        resources = config.of(stage)
        name = resources.partition or choice.partition.name
        if name not in partitions:
            try:
                partitions[name] = read_partition(name)
            except JobError as error:
                yield Finding("accepted", str(error), f"launcher.resources.{stage}.partition")
                continue
        yield check_time(stage, resources.time, partitions[name])
        if (resources, stage == TRAIN) not in seen:  # equal ones would be refused alike
            seen.append((resources, stage == TRAIN))
            yield check_accepted(config, stage)
    if set(config.stages) - {TRAIN}:
        yield check_array(config.tasks, largest_array())


def visiting(config: SlurmConfig, choice: Choice, limits: Limits) -> SlurmConfig:
    """The config of the job that visits nodes: small, short, and on exactly those."""
    kept = [one for one in config.options if not one.startswith((EXCLUDE, NODELIST))]
    own = {
        "cpus": 1,
        "memory_gb": None if config.of(limits.stage).memory_gb is None else 2,
        "time": str(3 + round(6 * limits.patience) // 60),
        "gpus": choice.gpus,
    }
    nodes = (f"{NODELIST}{','.join(choice.nodes)}", "--no-requeue")
    stage = {**config.resources.get(limits.stage, {}), **own}
    return replace(
        config,
        nodes=len(choice.nodes),
        ranks=1,
        requeues=0,
        options=(*kept, *nodes),
        resources={**config.resources, limits.stage: stage},
    )


def _named(options: Sequence[str], option: str) -> set[str]:
    """Nodes that an option of sbatch names."""
    found = [one.removeprefix(option) for one in options if one.startswith(option)]
    return {name for expression in found for name in node_names(expression)}
