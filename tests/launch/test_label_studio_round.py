"""One round in a real Label Studio: 20 tasks, two annotators, every trap, merged, trained on."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from label_studio_server import LabelStudioServer, label_studio
from people import BUDGET, PeopleRun
from tiny_run import TinyRun, run_python

from lsb.ledger import HOURS, Ledger, MergeConfig

__all__ = ["label_studio"]
pytestmark = pytest.mark.slow
TASKS = ("relevance", "clickbait", "unsafe")
TIMEOUT = 1800  # two minutes on an idle machine, with all of experiment=tiny before it


def choices(labels: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {"from_name": task, "to_name": "video", "type": "choices", "value": {"choices": [chosen]}}
        for task, chosen in labels.items()
    ]


class Team:
    """Two people at work on the run's project, through its API."""

    def __init__(self, server: LabelStudioServer) -> None:
        from label_studio_sdk import LabelStudio

        self.client = LabelStudio(base_url=server.url, api_key=server.key)
        self.people = {
            name: self.client.users.create(username=name, email=f"{name}@example.com").id
            for name in ("ann", "bob", "cyd")
        }
        (project,) = list(self.client.projects.list())
        self.project = project.id
        self.tasks = list(self.client.tasks.list(project=self.project, fields="task_only"))

    def answer(self, place: int | str, who: str, answer: str = "yes", **fields: Any) -> None:
        task = self.tasks[place].id if isinstance(place, int) else int(place)
        labels = {name: answer if name == "relevance" else "no" for name in TASKS}
        given = {"result": choices(labels), "lead_time": 6.0} | fields
        self.client.annotations.create(id=task, completed_by=self.people[who], **given)


@pytest.mark.timeout(TIMEOUT)
def test_a_round_is_annotated_merged_and_trained_on(
    tiny: TinyRun,
    label_studio: LabelStudioServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = PeopleRun.start(
        tiny,
        tmp_path,
        "oracle=label_studio",
        f"oracle.url={label_studio.url}",
        f"oracle.document_root={label_studio.documents}",
        "oracle.page=6",
        "oracle.answers_per_clip=2",
        "oracle.share=0.95",
        "oracle.hourly_wage=18",
        "oracle.media.anonymise.method=shift",
    )
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", label_studio.key)
    assert f"{BUDGET} tasks, {BUDGET} of them new" in run.act("push", monkeypatch)[-1]
    assert f"{BUDGET} tasks, 0 of them new" in run.act("push", monkeypatch)[-1]

    team = Team(label_studio)
    assert len(team.tasks) == BUDGET
    shown_to_people(label_studio, run, team)
    while_people_work(run, team, monkeypatch)
    one_person_more(label_studio, run, team, monkeypatch)
    finished = run.round()
    assert finished.returncode == 0, finished.stderr
    assert "round 1 goes on; 1 judgement stays undecided" in finished.stderr
    trained_on(run)
    late = team.tasks[9]
    team.answer(9, "ann", "no")
    before = run.annotations()
    said = run.act("pull", monkeypatch)
    assert run.annotations() == before
    assert late.data["clip_id"]  # answered twice by ann, and the round is closed
    assert "0 labels are new" in said[-2]


def shown_to_people(server: LabelStudioServer, run: PeopleRun, team: Team) -> None:
    """Media are served, and nothing of what stays is told."""
    headers = {"Authorization": f"Token {server.key}"}
    data = team.tasks[0].data
    for name, start in (("video", 4), ("contact_sheet", 0), ("waveform", 1), ("mel", 1)):
        got = httpx.get(server.url + data[name], headers=headers)
        assert got.status_code == 200, name
        expected = {"video": b"ftyp", "contact_sheet": b"\xff\xd8"}.get(name, b"PNG")
        assert got.content[start : start + len(expected)] == expected
    (questions,) = [run.handoff / "questions.jsonl"]
    asked = [json.loads(line) for line in questions.read_text("utf-8").splitlines()]
    assert [one["clip_id"] for one in asked] == [task.data["clip_id"] for task in team.tasks]
    with Ledger.open(run.ledger, create=False) as ledger:
        keys = [row["key"] for row in ledger.candidacies()]
    told = json.dumps([task.data for task in team.tasks]) + questions.read_text("utf-8")
    assert not [key for key in keys if key in told]
    assert "semitones" not in told
    rendered = pq.read_table(run.handoff / "rendered.parquet").to_pylist()
    assert {row["key"] for row in rendered} == set(keys)
    changed = [json.loads(row["parameters"]) for row in rendered if row["seconds"]]
    assert len(changed) > BUDGET // 2
    assert all(2 <= abs(one["semitones"]) <= 4 for one in changed)


def while_people_work(run: PeopleRun, team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers come in, are pulled in between, and again: one ledger."""
    empty = run.ledger.read_bytes()
    for place in range(10):
        team.answer(place, "ann")
    said = run.act("pull", monkeypatch)
    assert "30 labels are new, 0 answers" in said[-2]
    assert "0 of 20 clips are done, 19 are wanted (ann@example.com 10)" in said[-1]
    still = run.round()
    assert still.returncode == 75
    assert "waits for people: 0 of 20 clips are done" in still.stderr

    for place in range(10, BUDGET):
        team.answer(place, "ann")
    for place in range(BUDGET):
        if place < 5:
            team.answer(place, "bob", "no")  # a conflict
        elif place == 5:
            team.answer(place, "bob", was_cancelled=True, result=[])  # a skip
        elif place == 6:
            team.answer(place, "bob", "maybe")  # a choice that the config does not have
        else:
            team.answer(place, "bob")
    twice = team.client.projects.import_tasks(
        team.project, request=[{"data": team.tasks[7].data}], return_task_ids=True
    )
    team.answer(str(twice.task_ids[0]), "ann", "no")  # the same clip in a second task
    team.answer(8, "ann", "no")  # the same task a second time

    said = run.act("pull", monkeypatch)
    assert "84 labels are new, 3 answers were not taken" in said[-3]
    refused = (run.handoff / "refused.txt").read_text("utf-8")
    assert "valid labels: ['yes', 'no']" in refused
    assert refused.count("answered again: the first counts") == 2
    assert "14 of 20 clips are done, 19 are wanted" in said[-1]
    assert "; 5 wait for one person more" in said[-1]
    assert said[-2].startswith("5 judgements of 5 clips are open: ")
    held, taken = run.annotations(), (run.handoff / "taken.jsonl").read_bytes()
    assert Counter(row["labeller"] for row in held) == {
        "ann@example.com": 60,
        "bob@example.com": 54,
    }
    assert "0 labels are new" in run.act("pull", monkeypatch)[-3]
    assert (run.annotations(), (run.handoff / "taken.jsonl").read_bytes()) == (held, taken)

    # Everything in one pull, from before the first: the same ledger.
    with_all = run.ledger.read_bytes()
    aside = run.handoff.with_name("aside")
    shutil.copytree(run.handoff, aside)
    run.ledger.write_bytes(empty)
    (run.handoff / "taken.jsonl").unlink()
    assert "114 labels are new" in run.act("pull", monkeypatch)[-3]
    assert (run.annotations(), (run.handoff / "taken.jsonl").read_bytes()) == (held, taken)
    run.ledger.write_bytes(with_all)

    status = run_python("-m", "launch.annotate", "status", *run.overrides, cwd=run.folder)
    assert "round 1 (open): 14 of 20 clips are done" in status.stdout, status.stderr


def one_person_more(
    server: LabelStudioServer, run: PeopleRun, team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ann and bob disagree about is offered to others, and nothing else is."""

    def offered() -> set[int]:
        held = team.client.tasks.list(project=team.project, fields="all")
        return {task.id for task in held if not task.is_labeled} & {t.id for t in team.tasks}

    # Label Studio counts no skip: it goes on offering a task that bob skipped.
    skipped = {team.tasks[5].id}
    assert offered() == {task.id for task in team.tasks[:5]} | skipped
    headers = {"Authorization": f"Token {server.key}"}  # the owner has answered nothing
    following = httpx.get(f"{server.url}/api/projects/{team.project}/next", headers=headers)
    assert following.json()["id"] in offered()

    team.answer(0, "cyd")
    team.answer(1, "cyd")
    team.answer(2, "cyd", "no")
    team.answer(3, "cyd", was_cancelled=True, result=[])
    said = run.act("pull", monkeypatch)
    assert "9 labels are new" in said[-3]
    assert "18 of 20 clips are done, 19 are wanted" in said[-1]
    assert "; 1 wait for one person more; 1 judgement stays undecided, of 1 clips" in said[-1]
    assert offered() == {team.tasks[4].id} | skipped, "three have been asked about the fourth"
    still = run.round()
    assert still.returncode == 75
    team.answer(4, "cyd", "no")
    said = run.act("pull", monkeypatch)
    assert "3 labels are new" in said[-2]
    assert "19 of 20 clips are done, 19 are wanted" in said[-1]
    assert offered() == skipped
    held = run.annotations()
    assert "0 labels are new" in run.act("pull", monkeypatch)[-2]
    assert run.annotations() == held


def trained_on(run: PeopleRun) -> None:
    """What most people say is in the training set; what they leave open is in the queue."""
    with Ledger.open(run.ledger, create=False) as ledger:
        queue = ledger.queue().to_pylist()
        assert {(row["task"], tuple(row["labels"])) for row in queue} == {("relevance", (1, 0))}
        assert len(queue) == 1
        assert ledger.adjudicate(MergeConfig()).recorded == 0
        people = {row["clip_id"] for row in ledger.annotations() if row["source"] == "human"}
        costs = {(row["payee"], row["entry"]): row for row in ledger.costs()}
    ann, bob, cyd = (f"{name}@example.com" for name in ("ann", "bob", "cyd"))
    assert costs[ann, "hand-off"]["count"] == 60
    assert costs[bob, "hand-off"]["count"] == 57  # a skip takes time, too
    assert costs[cyd, "hand-off"]["count"] == 15
    assert costs[ann, "hand-off"]["unit_price"] == pytest.approx(18 * 2 / 3600)
    assert costs[ann, HOURS]["unit_price"] == pytest.approx(2 / 3600)
    assert len(people) == BUDGET
    (summary,) = (run.folder / "runs" / "people").glob("summary.json")
    rounds = json.loads(summary.read_text())["rounds"]
    assert rounds[1]["labels"] == rounds[0]["labels"] + BUDGET
    sets = [
        pq.read_table(file).to_pylist()
        for file in (run.folder / "runs" / "stages").glob("train-*/training_set.parquet")
    ]
    (last,) = [rows for rows in sets if len(rows) == rounds[1]["labels"]]
    mine = [row for row in last if row["id"].hex() in people]
    assert len(mine) == BUDGET
    assert sum(row["label_relevance"] is None for row in mine) == 1
    assert sum(row["label_relevance"] == 0 for row in mine) == 2
    assert sum(row["label_relevance"] == 1 for row in mine) == BUDGET - 3
