"""Collecting what nodes answer: who fell silent is named with where, and nothing waits for ever."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from launch.doctor import visit as visiting
from launch.doctor.finding import Finding
from launch.doctor.page import Diagnosis, as_json, page
from launch.doctor.question import Limits, Question, answer_file, echo_file
from launch.doctor.verdict import verdicts
from launch.doctor.visit import ENDED, RUNS, WAITS, collect
from launch.jobs.executor import JobError
from lsb.artifact import write_json
from lsb.console import console

LIMITS = Limits(patience=0.05, queue_seconds=0.05)


@dataclass
class Fake:
    """A visit whose nodes have written all they will."""

    told: tuple[str, str] = (RUNS, "")

    def start(self) -> None: ...

    def state(self) -> tuple[str, str]:
        return self.told

    def stop(self) -> None: ...


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(visiting, "LOADING_SECONDS", 0.0)
    monkeypatch.setattr(visiting, "PAUSE", 0.001)
    question = Question("t", ("a", "b"), {}, (), 0, 0.0, 1.0, 0.0, 0.0, 0)
    question.write(tmp_path)
    return tmp_path


def answered(folder: Path, node: str, doing: str, *findings: Finding) -> None:
    record = {"node": node, "doing": doing, "findings": [asdict(one) for one in findings]}
    write_json(answer_file(folder, node), record)


BAD = Finding("versions", "torch is 1", "upgrade")


def test_findings_are_told_at_once_and_answers_are_answered(folder: Path) -> None:
    answered(folder, "a", "", BAD)
    answered(folder, "b", "")
    said: list[str] = []
    found = collect(Fake(), folder, ["a", "b"], LIMITS, said.append)
    assert sorted(said) == ["a: versions: torch is 1", "visiting 2 nodes"]
    assert BAD in found["a"]
    assert [one.fine for one in found["b"]] == [True]
    assert json.loads(echo_file(folder, "b").read_text())["limit"] == LIMITS.clock_seconds


@pytest.mark.parametrize("check", ["torch", "folders", "a check that nobody knows"])
def test_a_node_that_falls_silent_is_named_with_its_check(folder: Path, check: str) -> None:
    answered(folder, "a", "")
    answered(folder, "b", check)
    (folder / "logs" / "b.log").write_text("Bus error\n")
    found = collect(Fake(), folder, ["a", "b"], LIMITS, lambda line: None)
    told = Diagnosis("head", tuple(verdicts(found)), {}, 1.0)
    assert not told.well
    (row,) = [one for one in told.verdicts if one.check == check]
    assert "fell silent at this check; its last words: Bus error" in row.failed["b"][0].cause


def test_a_node_that_wrote_nothing_tells_by_its_log(folder: Path) -> None:
    log = folder / "logs" / "b.log"
    found = collect(Fake(), folder, ["b"], LIMITS, lambda line: None)
    assert "nothing came from it" in found["b"][0].cause
    log.write_text("srun: error: Task launch failed on node b: Communication connection failure\n")
    found = collect(Fake(), folder, ["b"], LIMITS, lambda line: None)
    assert "no route: the first node of the job cannot start anything there" in found["b"][0].cause
    ended = "srun: error: b: task 0: Exited with exit code 1\n"
    log.write_text(f"/opt/python: No module named launch.doctor\n{ended}")
    found = collect(Fake((ENDED, "")), folder, ["b"], LIMITS, lambda line: None)
    assert "its last words: /opt/python: No module named" in found["b"][0].cause
    assert "launcher.python" in found["b"][0].remedy


def test_a_job_that_waits_too_long_is_an_error(folder: Path) -> None:
    with pytest.raises(JobError, match=r"waits in the queue .*\(Resources\).*queue_seconds"):
        collect(Fake((WAITS, "Resources")), folder, ["a"], LIMITS, lambda line: None)


def test_the_page_names_nodes_causes_and_remedies() -> None:
    found = {f"n{number}": [BAD] for number in range(9)} | {"m": [Finding("versions")]}
    told = Diagnosis("head", tuple(verdicts(found)), {"x": "is allocated"}, 3.0)
    out = console()
    with out.capture() as shown:
        out.print(page(told), soft_wrap=True)
    text = shown.get()
    assert "n0, n1, n2, n3, n4, n5 and 3 more: versions: torch is 1" in text
    assert "-> upgrade" in text
    assert "x is allocated" in text
    assert "1 of 10" in text
    record = as_json(told, found)
    assert record["well"] is False
    assert record["nodes"]["n0"][0]["cause"] == "torch is 1"
