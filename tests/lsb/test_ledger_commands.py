from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from annotated_ledger import fill
from test_ledger import chosen, labels, record

from lsb.ids import sample_id
from lsb.ledger import Ledger
from lsb.ledger.__main__ import main


def test_adjudicate_and_queue(ledger_location: str, capsys: pytest.CaptureFixture[str]) -> None:
    fill(ledger_location)
    assert main(["queue", ledger_location]) == 0
    captured = capsys.readouterr()
    assert captured.out == "b\tx\t0.500\tann 1, bob 0\n"
    assert captured.err == "1 items to ask another annotator about\n"
    with Ledger.open(ledger_location, create=False) as ledger:
        ledger.import_annotations(1, labels({("b", "x"): 0}, "human", "cy"))
    assert main(["adjudicate", ledger_location]) == 0
    policy = "majority(agreement=0.5, minimum_annotators=1, sources=human+oracle)"
    assert capsys.readouterr().out == (
        f"{policy}: 2 items decided, 2 resolved, 0 to be asked again; 1 decisions are new\n"
    )
    assert main(["queue", ledger_location]) == 0
    assert capsys.readouterr().out == ""
    command = ["--policy", "gold_weighted", "--agreement", "0.9", "--minimum-annotators", "2"]
    assert main(["adjudicate", ledger_location, *command, "--sources", "human"]) == 0
    assert "gold_weighted(agreement=0.9" in capsys.readouterr().out


def test_gold_and_costs_are_added_once(
    ledger_location: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(ledger_location)
    file = tmp_path / "gold.csv"
    file.write_text("task,label,note,key\nx,1,sure,c\nx,0,,z\n")
    for expected in ("1 of 2 gold labels are new\n", "0 of 2 gold labels are new\n"):
        assert main(["gold", ledger_location, str(file)]) == 0
        assert capsys.readouterr().out == expected
    cost = ["--round", "2", "--payee", "model", "--unit-price", "0.01", "--count", "1"]
    for expected in ("recorded\n", "was recorded already\n"):
        assert main(["cost", ledger_location, *cost]) == 0
        assert capsys.readouterr().out == expected
    with Ledger.open(ledger_location, create=False) as ledger:
        assert ledger.measured("z") == {(sample_id("z").hex(), "x"): 0}
        assert ledger.costs()[-1]["payee"] == "model"


def test_gold_that_a_finished_round_rests_on_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, file = str(tmp_path / "l.sqlite"), tmp_path / "gold.csv"
    fill(path)
    file.write_text("key,task,label\nb,x,0\nz,x,0\n")
    assert main(["gold", path, str(file)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "1 of 2 new gold labels" in error
    assert "clip 'b', task 'x' (round 1)" in error


@pytest.mark.parametrize("text", ["key,task\na,x\n", "key,task,label\na,x,yes\n", ""])
def test_a_file_without_gold_labels_is_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, file = str(tmp_path / "l.sqlite"), tmp_path / "gold.csv"
    fill(path)
    file.write_text(text)
    assert main(["gold", path, str(file)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "gold.csv is no table of key, task, label" in error
    assert main(["gold", path, str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err


def test_what_was_asked_is_answered_into_the_round_that_asked(
    ledger_location: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As beside a training that grows: rounds come and go, answers come when they can."""
    with Ledger.open(ledger_location) as ledger:
        ledger.record_round(record(1), chosen("a", "b", seed="s"), None)
        ledger.record_round(record(2), chosen("c", seed="s"), None)
    assert main(["asked", ledger_location]) == 0
    captured = capsys.readouterr()
    assert captured.err == "3 of 3 clips that were asked for have no answer\n"
    lines = [line.split("\t") for line in captured.out.splitlines()]
    assert [line[1:] for line in lines] == [[key, number, "lookalike"] for key, number in ASKED]
    a, b, c = (line[0] for line in lines)
    (tmp_path / "1.jsonl").write_text(f"{said(a, {'x': 1})}\n{said(c, {'x': 0})}\n")
    (tmp_path / "2.jsonl").write_text(f"{said(b, {}, skipped=True)}\n")
    both = [str(tmp_path / name) for name in ("1.jsonl", "2.jsonl")]
    for new in (2, 0):  # again changes nothing
        assert main(["import", ledger_location, *both, "--tasks", "x"]) == 0
        told = f"{new} labels are new, 0 answers were not taken, 1 skips are not kept\n"
        assert capsys.readouterr().out == told
    assert main(["asked", ledger_location]) == 0
    assert capsys.readouterr().out.split("\t")[1] == "b"
    (tmp_path / "1.jsonl").write_text(f"{said(a, {'x': 0})}\n")
    assert main(["import", ledger_location, both[0], "--tasks", "x"]) == 0
    told = capsys.readouterr().out
    assert "changed after it was taken (x): the first counts" in told
    assert told.endswith("0 labels are new, 1 answers were not taken\n")
    with Ledger.open(ledger_location, create=False) as ledger:
        held = [(row["key"], row["round"], row["label"]) for row in ledger.annotations()]
        assert sorted(held) == [("a", 1, 1), ("c", 2, 0)]


ASKED = (("a", "1"), ("b", "1"), ("c", "2"))


def said(clip: str, labels: dict[str, int], *, skipped: bool = False) -> str:
    at = "2026-03-04T05:06:07Z"
    who = {"format": "vlmae-answer-1", "clip_id": clip, "labeller": "ann", "labelled_at": at}
    return json.dumps({**who, "labels": labels, "skipped": skipped})


@pytest.mark.parametrize(
    ("key", "task", "message"),
    [("a", "y", "task 'y' was not asked about, only x"), ("z", "x", "was not asked about")],
)
def test_answers_to_what_was_not_asked_are_one_line(
    key: str, task: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, file = str(tmp_path / "l.sqlite"), tmp_path / "answers.jsonl"
    with Ledger.open(path) as ledger:
        ledger.record_round(record(1), chosen("a", seed="s"), None)
    file.write_text(
        f"{said(sample_id('a').hex(), {'x': 1})}\n{said(sample_id(key).hex(), {task: 1})}\n"
    )
    assert main(["import", path, str(file), "--tasks", "x"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "answers.jsonl, line 2" in error
    assert message in error
    with Ledger.open(path, create=False) as ledger:
        assert not ledger.annotations(), "nothing was taken"


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "l.sqlite")
    fill(path)
    assert main(["adjudicate", path, "--agreement", "1.5"]) == 2
    assert capsys.readouterr().err == "error: ledger.agreement is 1.5: give a share in [0, 1)\n"
    for name in ("adjudicate", "queue"):
        assert main([name, str(tmp_path / "absent")]) == 2
        assert capsys.readouterr().err.endswith("absent does not exist: give a ledger's path\n")


@pytest.mark.parametrize("module", ["lsb.ledger", "lsb.status", "lsb.export", "lsb.why"])
def test_modules_run_and_explain_themselves(module: str) -> None:
    command = [sys.executable, "-m", module, "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert f"python -m {module}" in told.stdout
    assert told.stderr == ""
