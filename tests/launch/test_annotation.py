"""Annotators of a round: exact, noisy with costs, people by files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from people import BUDGET, PeopleRun
from tiny_run import TinyRun, run_python

from launch.stages.annotators import HandOffConfig, oracle_config
from launch.stages.settings import Settings
from lsb.annotate.lines import read_lines
from lsb.annotate.questions import Question
from lsb.annotate.simulated import SimulatedConfig
from lsb.artifact import open_stage
from lsb.ledger import HOURS, Ledger
from vlmae.config import as_dict, compose_config
from vlmae.handoff import media_files

TASKS = ["relevance", "clickbait", "unsafe"]


def settings(*overrides: str) -> Settings:
    return Settings.from_config(compose_config("round", ["experiment=tiny", *overrides]))


@pytest.mark.slow
def test_exact_answers_keep_their_stages_and_their_labeller(tiny: TinyRun) -> None:
    stages = [open_stage(path) for path in (tiny.runs / "stages").glob("label-*") if path.is_dir()]
    assert len(stages) == 6
    for stage in stages:
        assert stage.manifest["config"] == {"oracle": {"noise": 0.0, "seed": 0}, "tasks": TASKS}
        assert stage.files == ["annotations.parquet"]
        told = pq.read_table(stage.path / "annotations.parquet")
        assert set(told["labeller"].to_pylist()) == {"oracle:noise=0.0"}
    with Ledger.open(tiny.runs / "tiny" / "lsb_lt" / "ledger.sqlite", create=False) as ledger:
        assert ledger.costs() == []
        asked, labelled = ledger.asked_ids(), ledger.labelled_ids()
    assert (asked == labelled).all()


@pytest.mark.slow
def test_a_noisy_crowd_answers_twice_and_is_paid(tiny: TinyRun, tmp_path: Path) -> None:
    folder = tiny.copy_of_shared_stages(tmp_path)
    overrides = ("experiment=tiny", "arms=[]", "controls=false", "rounds=1", "oracle=noisy")
    done = run_python("-m", "launch.round", *overrides, "name=noisy", cwd=folder)
    assert done.returncode == 0, done.stderr
    (stage,) = (folder / "runs" / "stages").glob("label-*")
    costs = {row["labeller"]: row for row in pq.read_table(stage / "costs.parquet").to_pylist()}
    with Ledger.open(folder / "runs" / "noisy" / "lsb_lt" / "ledger.sqlite", create=False) as held:
        every = [row for row in held.costs() if row["round"] == 1]
        paid = [row for row in every if row["entry"] == "judgements"]
        labels = Counter(row["labeller"] for row in held.annotations() if row["round"] == 1)
        several = [row for row in held.adjudications() if row["round"] == 1]
        assert {row["round"] for row in held.costs()} == {0, 1}
    assert sum(row["count"] for row in paid) == 2 * 16 * 3
    for row in paid:
        told = costs[row["payee"]]
        assert (row["count"], row["unit_price"]) == (told["judgements"], told["unit_price"])
        assert labels[row["payee"]] == told["judgements"] - told["skipped"]
    worked = {row["payee"]: row["unit_price"] * row["count"] for row in every if row not in paid}
    assert worked == pytest.approx({name: row["seconds"] / 3600 for name, row in costs.items()})
    assert len(several) > 30
    before = (folder / "runs" / "noisy" / "lsb_lt" / "ledger.sqlite").read_bytes()
    again = run_python("-m", "launch.round", *overrides, "name=noisy", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert " 0 made, " in again.stdout
    assert (folder / "runs" / "noisy" / "lsb_lt" / "ledger.sqlite").read_bytes() == before


@pytest.mark.slow
def test_a_noisy_crowd_asks_another_about_what_two_leave_open(
    tiny: TinyRun, tmp_path: Path
) -> None:
    folder = tiny.copy_of_shared_stages(tmp_path)
    overrides = ("experiment=tiny", "arms=[]", "controls=false", "rounds=1", "oracle=noisy")
    command = ("-m", "launch.round", *overrides, "oracle.further_answers=1", "name=asking")
    done = run_python(*command, "ledger=gold_weighted", "ledger.agreement=0.6", cwd=folder)
    assert done.returncode == 0, done.stderr
    place = folder / "runs" / "asking" / "lsb_lt" / "ledger.sqlite"
    with Ledger.open(place, create=False) as ledger:
        who = Counter((row["clip_id"], row["task"]) for row in ledger.annotations())
        every = [row for row in ledger.costs() if row["entry"] == "judgements"]
        open_items = {(row["id"].hex(), row["task"]) for row in ledger.queue().to_pylist()}
    for number, clips in ((0, None), (1, 16)):
        paid = sum(row["count"] for row in every if row["round"] == number)
        assert clips is None or 2 * clips * 3 < paid < 3 * clips * 3
    assert 3 in who.values()
    assert max(who.values()) == 3
    # A clip that one skipped has two answers after three were asked.
    assert all(who[item] >= 2 for item in open_items)
    before = place.read_bytes()
    again = run_python(*command, "ledger=gold_weighted", "ledger.agreement=0.6", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert " 0 made, " in again.stdout
    assert place.read_bytes() == before


@pytest.mark.slow
def test_a_crowd_that_is_weighed_by_all_its_answers_changes_no_earlier_round(
    tiny: TinyRun, tmp_path: Path
) -> None:
    pytest.importorskip("crowdkit", reason="no crowd-kit: pip install 'vlmae[crowd]'")
    folder = tiny.copy_of_shared_stages(tmp_path)
    overrides = ("experiment=tiny", "arms=[]", "controls=false", "rounds=1", "name=crowd")
    command = ("-m", "launch.round", *overrides, "oracle=noisy", "ledger=dawid_skene")
    done = run_python(*command, cwd=folder)
    assert done.returncode == 0, done.stderr
    place = folder / "runs" / "crowd" / "lsb_lt" / "ledger.sqlite"
    before = place.read_bytes()
    with Ledger.open(place, create=False) as ledger:
        of_round_1 = [row for row in ledger.adjudications() if row["round"] == 1]
    # Answers of round 1 tell more of the crowd, and with it of clips that were answered before.
    assert any({number for _, number in row["evidence"]} == {0} for row in of_round_1)
    again = run_python(*command, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert " 0 made, " in again.stdout
    assert place.read_bytes() == before


def answer(question: Question, who: str, **fields: Any) -> dict[str, Any]:
    told = {
        "format": "vlmae-answer-1",
        "clip_id": question.clip_id,
        "labeller": who,
        "labelled_at": "2026-03-04T05:06:07Z",
        "labels": dict.fromkeys(TASKS, 0),
        "seconds": 9.0,
    }
    return told | fields


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


UNSCORED = ("acquisition=random", "broadening=none", "threshold=none", "shortlist=unscored")


def shows_labelled_of_every_split(run: PeopleRun, questions: list[Question]) -> None:
    """Neighbours are first labels and gold clips, in one space, whatever the round scored."""
    rows = run.annotations(0)
    first = {row["clip_id"] for row in rows if row["source"] != "gold"}
    gold = {row["clip_id"] for row in rows if row["source"] == "gold"}
    near = [one.clip_id for question in questions for one in question.neighbours]
    assert len(near) == 3 * len(questions)
    assert set(near) <= first | gold
    # Many more are labelled first, so that most neighbours are of them.
    share = len(first) / (len(first) + len(gold))
    assert sum(clip in first for clip in near) > share / 2 * len(near) > 0
    assert {question.alike_in for question in questions} == {"pooled"}


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [(), UNSCORED], ids=["broadened", "unscored"])
def test_people_are_asked_within_a_scoring_budget_and_one_of_a_round(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: tuple[str, ...]
) -> None:
    budget = (f"budgets=[{BUDGET}]", "selection.budget=16", "shortlist.share=0.5")
    run = PeopleRun.start(tiny, tmp_path, "oracle=files", *budget, *chosen)
    run.act("push", monkeypatch)
    questions = read_lines(run.handoff / "questions.jsonl", Question)
    assert len(questions) == BUDGET
    shows_labelled_of_every_split(run, questions)
    told = {frozenset(question.predictions) for question in questions}
    assert told == {frozenset() if chosen else frozenset(TASKS)}


@pytest.mark.slow
def test_people_answer_in_files_and_the_round_goes_on(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = PeopleRun.start(tiny, tmp_path, "oracle=files", "oracle.price=0.05")
    with pytest.raises(ValueError, match="push the round first"):
        run.act("pull", monkeypatch)
    run.act("push", monkeypatch)
    questions = read_lines(run.handoff / "questions.jsonl", Question)
    assert len(questions) == BUDGET
    (stage,) = [path for path in (tmp_path / "runs" / "stages").glob("handoff-*") if path.is_dir()]
    for question in questions:
        assert {(stage / name).is_file() for name in media_files(question.clip_id).values()} == {
            True
        }
        assert set(question.predictions) == set(TASKS)
        assert len(question.neighbours) == 3
        near = [one.similarity for one in question.neighbours]
        assert near == sorted(near, reverse=True)
    shows_labelled_of_every_split(run, questions)
    assert "handoff" in (tmp_path / "runs" / "people" / "run.json").read_text()

    first = [answer(question, "ann") for question in questions[:12]]
    write(run.handoff / "answers" / "ann.jsonl", [*first, {"clip_id": "?"}])
    with pytest.raises(ValueError, match=r"ann\.jsonl, line 13: format: Field required"):
        run.act("pull", monkeypatch)
    assert run.annotations() == []
    write(run.handoff / "answers" / "ann.jsonl", first)
    assert "36 labels are new, 0 answers" in run.act("pull", monkeypatch)[-2]
    held = run.annotations()
    assert "0 labels are new" in run.act("pull", monkeypatch)[-2]
    assert run.annotations() == held
    skip = answer(questions[12], "bob", labels={}, skipped=True)
    write(run.handoff / "answers" / "bob.jsonl", [skip])
    run.act("pull", monkeypatch)
    (told,) = run.act("status", monkeypatch)
    assert told == (
        "lsb_lt, round 1 (open): 13 of 20 clips are done, 20 are wanted (ann 12, bob 1)"
    )

    assert "is closed: 13 of 20" in run.act("close", monkeypatch)[-1]
    late = [*first, answer(questions[13], "ann")]
    write(run.handoff / "answers" / "ann.jsonl", late)
    said = run.act("pull", monkeypatch)
    assert "came after the round had gone on" in said[0]
    assert run.annotations() == held
    finished = run.round()
    assert finished.returncode == 0, finished.stderr
    rounds = json.loads((tmp_path / "runs" / "people" / "summary.json").read_text())["rounds"]
    assert rounds[1]["labels"] == rounds[0]["labels"] + 12
    with Ledger.open(run.ledger, create=False) as ledger:
        costs = {
            row["payee"]: (row["count"], row["unit_price"])
            for row in ledger.costs()
            if not row["entry"].endswith(HOURS)
        }
        assert len(ledger.asked_ids()) == len(ledger.labelled_ids()) + 8
    assert costs == {"ann": (36, 0.05), "bob": (3, 0.05)}


def test_every_group_of_oracle_is_built() -> None:
    assert settings().oracle == {"noise": 0.0, "seed": 0}
    noisy = settings("oracle=noisy").oracle
    assert isinstance(noisy, SimulatedConfig)
    assert set(noisy.annotators) == {"careful", "usual", "hurried"}
    files = settings("oracle=files", "oracle.media.anonymise.method=remove").oracle
    assert isinstance(files, HandOffConfig)
    assert files.media.anonymise.method == "remove"
    studio = settings("oracle=label_studio").oracle
    assert isinstance(studio, HandOffConfig)
    assert (studio.kind, studio.document_root) == ("label_studio", "runs")


def test_where_people_work_is_no_identity() -> None:
    base = settings("oracle=label_studio").identity
    moved = settings("oracle=label_studio", "oracle.url=http://x", "oracle.share=0.5").identity
    assert base == moved
    other = settings("oracle=label_studio", "oracle.media.anonymise.method=shift").identity
    assert base != other
    more = settings("oracle=label_studio", "oracle.further_answers=3").identity
    assert base == more
    exact = as_dict(compose_config("round", ["experiment=tiny"]))["oracle"]
    assert settings().identity["oracle"] == exact == {"noise": 0.0, "seed": 0}


def test_whether_simulated_annotators_are_asked_again_is_an_identity() -> None:
    noisy, asking = settings("oracle=noisy"), settings("oracle=noisy", "oracle.further_answers=1")
    assert "further_answers" not in noisy.identity["oracle"]
    assert asking.identity["oracle"] == noisy.identity["oracle"] | {"further_answers": 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "magic"}, "oracle.kind is 'magic': use simulated, files or label_studio"),
        ({"noise": 0.1}, "oracle.seed: Field required"),
        ({"kind": "files", "share": 0}, "oracle.share is 0"),
        ({"kind": "files", "answers_per_clip": 0}, "oracle.answers_per_clip is 0"),
        ({"kind": "files", "further_answers": -1}, "oracle.further_answers is -1"),
        ({"kind": "files", "price": -1}, "oracle.price is -1"),
        ({"kind": "files", "neighbours": -1}, "oracle.neighbours is -1"),
        ({"kind": "label_studio"}, "oracle=label_studio needs oracle.url"),
        ({"kind": "files", "colour": 1}, "oracle has no key 'colour'"),
        ({"kind": "simulated", "annotators": {}}, "answers_per_clip is 1 of 0 annotators"),
        ({"kind": "simulated", "annotators": {"a": {"skip": 2}}}, "skip is 2"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        oracle_config(values)


def test_simulated_annotators_are_not_handed_anything(tmp_path: Path) -> None:
    done = run_python("-m", "launch.annotate", "push", "experiment=tiny", cwd=tmp_path)
    assert done.returncode == 1
    assert "does not exist: run launch.round" in done.stderr
    done = run_python("-m", "launch.annotate", "experiment=tiny", cwd=tmp_path)
    assert done.returncode == 2
    assert "give one of push, pull, status, close" in done.stderr
