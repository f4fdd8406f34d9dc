"""The doctor's visit from its beginning to its page."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from launch.doctor.asked import (
    Choice,
    check_asked,
    check_settings,
    choose_nodes,
    memory_asked,
    visiting,
)
from launch.doctor.finding import HERE, Finding
from launch.doctor.folders import listed, node_file, nonce_file
from launch.doctor.machine import installed_versions
from launch.doctor.page import Diagnosis, as_json
from launch.doctor.places import places_of
from launch.doctor.question import LOCK, Limits, Place, Question
from launch.doctor.verdict import blamed, verdicts
from launch.doctor.visit import LocalVisit, SlurmVisit, Visit, collect, own_name
from launch.jobs.executor import JobError
from launch.jobs.launcher_config import LauncherConfig, SlurmConfig
from launch.jobs.snapshot import snapshot
from launch.slurm import render_script
from launch.slurm.script import NODES
from lsb.artifact import write_json

RECORD = "doctor.json"
Say = Callable[[str], None]
Found = dict[str, list[Finding]]


@dataclass(frozen=True)
class Examination:
    """What is looked at, by which config.

    Args:
        values: of `conf/doctor.yaml`, as plain containers.
        config: of the launcher.
        limits: see there.
        say: called with what happens.
    """

    values: Mapping[str, Any]
    config: LauncherConfig
    limits: Limits
    say: Say

    def diagnose(self) -> tuple[Diagnosis, dict[str, Any]]:
        """Visit the nodes; returns the page, and its record, which is kept beside the answers.

        Raises:
            JobError: SLURM is absent, does not answer, or refuses the job.
        """
        begun = time.monotonic()
        choice = None
        if isinstance(self.config, SlurmConfig):
            choice = choose_nodes(self.config, self.limits)
        found = self._asked(choice)
        places, absent = self._places()
        found[HERE] += absent
        nodes = [own_name()] if choice is None else list(choice.nodes)
        folder = self._folder()
        if nodes:
            found |= self._visit(folder, nodes, places, choice)
            found = blamed(found, nodes[0])
        if choice is not None:
            found |= {node: [finding] for node, finding in choice.broken.items()}
        where = "this machine" if choice is None else f"partition {choice.partition.name}"
        left = {} if choice is None else choice.left
        head = f"launcher={self.config.name}, {where}: {len(nodes)} visited; {folder / RECORD}"
        told = Diagnosis(head, tuple(verdicts(found)), left, time.monotonic() - begun)
        record = as_json(told, found)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RECORD, record)
        return told, record

    def script(self, choice: Choice, folder: Path, code: Path) -> str:
        """The batch script that visits the nodes of a choice."""
        assert isinstance(self.config, SlurmConfig)
        return render_script(
            visiting(self.config, choice, self.limits),
            name=f"doctor-{folder.name}",
            stage=self.limits.stage,
            kind=NODES,
            folder=folder,
            code=code,
            cwd=Path.cwd(),
            attempt=1,
            tasks=[0],
        )

    def _asked(self, choice: Choice | None) -> Found:
        if choice is None:
            return {HERE: [check_settings(self._gpus(choice), self.values)]}
        assert isinstance(self.config, SlurmConfig)
        return {HERE: list(check_asked(self.config, choice, self.limits, self.values))}

    def _gpus(self, choice: Choice | None) -> int:
        """Of every node; here, one for each rank of a training on GPUs."""
        if choice is not None:
            return choice.gpus
        gpu = self.values.get("trainer", {}).get("accelerator") == "gpu"
        return self.config.ranks if gpu else 0

    def _memory(self) -> float:
        if not isinstance(self.config, SlurmConfig):
            return 0.0
        return memory_asked(self.config, self.limits.stage)

    def _places(self) -> tuple[list[Place], list[Finding]]:
        """What nodes are asked for, and what is absent already here."""
        there, absent = [], []
        for place in places_of(self.values):
            try:
                there.append(listed(place))
            except ValueError as error:
                cause, _, remedy = str(error).rpartition("; ")
                absent.append(Finding("weights and data", cause, remedy))
        return there, absent

    def _folder(self) -> Path:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        runs = Path(self.values["runs"]).expanduser().absolute()
        return runs / "doctor" / f"{stamp}-{secrets.token_hex(2)}"

    def _visit(
        self, folder: Path, nodes: Sequence[str], places: Sequence[Place], choice: Choice | None
    ) -> Found:
        limits = self.limits
        question = Question(
            token=secrets.token_hex(8),
            nodes=tuple(nodes),
            versions=installed_versions(),
            places=tuple(places),
            gpus=self._gpus(choice),
            memory_gb=self._memory(),
            patience=limits.patience,
            free_gb=limits.free_gb,
            shm_gb=limits.shm_gb,
            open_files=limits.open_files,
        )
        written = [place for place in places if place.writes]
        for place in written:
            Path(place.path).mkdir(parents=True, exist_ok=True)
        question.write(folder)
        visit: Visit
        if choice is None:
            visit = LocalVisit(folder, nodes[0])
        else:
            visit = SlurmVisit(self.script(choice, folder, snapshot(folder.parent)), folder)
        with ExitStack() as stack:
            stack.enter_context(FileLock(folder / LOCK))
            for place in written:
                nonce_file(place, question.token).write_text("", encoding="utf-8")
                stack.callback(_sweep, place, question.token)
            stack.callback(visit.stop)
            visit.start()
            found = collect(visit, folder, nodes, limits, self.say)
            for place in written:
                unseen_here(found, place, question.token, limits.patience / 3)
        return found


def dry_run(examination: Examination) -> str:
    """The script as it would be submitted; nothing is made.

    Raises:
        JobError: see `Examination.diagnose`.
    """
    config = examination.config
    assert isinstance(config, SlurmConfig)
    choice = choose_nodes(config, examination.limits)
    if not choice.nodes:
        raise JobError(f"partition {choice.partition.name} has no node that is free and works")
    runs = Path(examination.values["runs"]).expanduser().absolute() / "doctor"
    return examination.script(choice, runs / "<time>", runs / "code-<hash>")


def unseen_here(found: Found, place: Place, token: str, patience: float) -> None:
    """Add a finding for nodes that wrote into a folder what is not seen here.

    Args:
        found: of every node.
        place: that is written to.
        token: of the visit.
        patience: seconds until it should be seen.
    """
    wrote = [
        node
        for node, findings in found.items()
        if any(one.check == "folders" and one.fine for one in findings)
    ]
    deadline = time.monotonic() + patience
    while wrote:
        wrote = [node for node in wrote if not node_file(place, token, node).is_file()]
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    for node in wrote:
        cause = f"{place.key}: what it has written into {place.path} is not seen by the command"
        remedy = f"mount {place.path} there as it is here, with less caching (NFS: actimeo=3)"
        found[node] = [*found[node], Finding("folders", cause, remedy)]


def _sweep(place: Place, token: str) -> None:
    """Delete what a visit has written into a folder."""
    for file in Path(place.path).glob(f"{nonce_file(place, token).name}*"):
        file.unlink(missing_ok=True)
