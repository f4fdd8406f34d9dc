"""Batch scripts, rendered from `launch/templates`.

A script sets up what the config says, starts one task and waits. Jobs that were told to stop and
have saved go back into the queue by themselves; only this layer requeues (contract 9).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from launch.jobs.job import COME_AGAIN, RANKS
from launch.jobs.launcher_config import Resources, SlurmConfig

NODES = "nodes"
"""Kind of a script that starts one process on every node, each by itself (`launch.doctor`)."""
ONE_JOB = (RANKS, NODES)
"""Kinds of one job over several nodes, each with a template of its own; others are arrays."""
TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


def render_script(
    config: SlurmConfig,
    *,
    name: str,
    stage: str,
    kind: str,
    folder: Path,
    code: Path,
    cwd: Path,
    attempt: int,
    tasks: Sequence[int],
    offset: int = 0,
    after: Sequence[str] = (),
) -> str:
    """The batch script of some tasks of a job.

    Args:
        config: resources and set-up.
        name: of the SLURM job.
        stage: whose resources are asked for.
        kind: `launch.jobs.job.RANKS`, `NODES`, or another: an array.
        folder: of the job; absolute, as are the next two.
        code: snapshot that is run.
        cwd: where the command was given: runs may be relative to it.
        attempt: number of the attempt.
        tasks: numbers of the tasks; array indices after `offset` is taken off.
        offset: see there.
        after: ids of jobs that have to end well before.

    Raises:
        ValueError: a path has a character that SLURM would expand or that ends a line.
    """
    for path in (folder, code, cwd):
        if any(character in str(path) for character in '%\n"\\'):
            raise ValueError(
                f'{path} has a character that SLURM cannot take in a path (% " \\ or a line '
                "break): use another folder"
            )
    resources = config.of(stage)
    log = folder / "logs" / f"{attempt:03d}-{'0' if kind in ONE_JOB else '%a'}.log"
    options = [
        f"--job-name={name}",
        f'--chdir="{cwd}"',
        f'--output="{log}"',
        "--open-mode=append",
        "--requeue",
        # A visit of nodes has nothing to save, and the signal could come at once: it is short.
        *([] if kind == NODES else [f"--signal=B:USR2@{config.signal_seconds}"]),
        *_resources(resources, config, kind),
    ]
    if kind not in ONE_JOB:
        limit = f"%{config.at_once}" if config.at_once else ""
        options.append(f"--array={array_of([number - offset for number in tasks])}{limit}")
    if after:
        options += [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"]
    python = f"{config.container} " if config.container else ""
    python += shlex.quote(config.python or sys.executable)
    if kind == NODES:
        command = f"{python} -m launch.doctor.node {shlex.quote(str(folder))}"
    else:
        command = f"{python} -m launch.task {shlex.quote(str(folder))} --attempt {attempt}"
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = shlex.quote
    return environment.get_template(f"{kind if kind in ONE_JOB else 'array'}.sh.j2").render(
        options=[*options, *config.options],
        attempt=attempt,
        folder=folder,
        modules=config.modules,
        setup=config.setup,
        code=str(code),
        cpus=resources.cpus,
        command=command,
        offset=offset,
        logs=str(folder / "logs"),
        log=str(folder / "logs" / f"{attempt:03d}-0-rank-%t.log"),
        requeue_code=COME_AGAIN,
        requeues=config.requeues,
    )


def _resources(resources: Resources, config: SlurmConfig, kind: str) -> Iterator[str]:
    """Options of sbatch for what a task or the ranks get."""
    for name in ("partition", "account", "qos", "constraint", "time"):
        value = getattr(resources, name)
        if value is not None:
            yield f'--{name}="{value}"' if name == "constraint" else f"--{name}={value}"
    nodes, ranks = (config.nodes, config.ranks) if kind in ONE_JOB else (1, 1)
    yield f"--nodes={nodes}"
    yield f"--ntasks-per-node={ranks}"
    yield f"--cpus-per-task={resources.cpus}"
    if resources.memory_gb is not None:
        yield f"--mem={round(resources.memory_gb * ranks * 1024)}M"
    if resources.gpus:
        device = f"gpu:{resources.gpu_type}" if resources.gpu_type else "gpu"
        yield f"--gres={device}:{resources.gpus * ranks}"


def array_of(numbers: Sequence[int]) -> str:
    """Numbers as SLURM writes them, e.g. "0-3,5"."""
    ordered = sorted(numbers)
    runs = [
        [number for _, number in group]
        for _, group in groupby(enumerate(ordered), key=lambda pair: pair[1] - pair[0])
    ]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
