"""A round on media of one's own: labels from a table, then by people."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from small_clips import OF_CLIPS, write_folder
from tiny_run import run_python

from lsb import ids as sample_ids
from lsb.annotate.lines import read_lines
from lsb.annotate.questions import Question
from lsb.ledger import Ledger

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLIPS, BUDGET = 40, 4
SPLITS = {"first": range(0, 12), "gold": range(12, 20), "test": range(20, 28)}
TASKS = ("spam", "nsfw")


def split_of(number: int) -> str:
    return next((name for name, numbers in SPLITS.items() if number in numbers), "pool")


@pytest.fixture
def keys(tmp_path: Path) -> list[str]:
    """Clips, a manifest with their splits, and a table of what is known; overrides of a round."""
    write_folder(tmp_path / "clips", CLIPS)
    with open(tmp_path / "clips.csv", "w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["path", "split"])
        rows.writerows([f"clips/clip-{n:04d}.mp4", split_of(n)] for n in range(CLIPS))
    with open(tmp_path / "labels.csv", "w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["key", *(f"label_{task}" for task in TASKS)])
        known = [n for numbers in SPLITS.values() for n in numbers]
        rows.writerows([f"clips/clip-{n:04d}", n % 2, "" if n == 1 else n % 3 % 2] for n in known)
    of_data = [key for key in OF_CLIPS if not key.startswith("data=")]
    return [
        *of_data,
        "data=manifest",
        f"data.path={tmp_path / 'clips.csv'}",
        f"clips.labels={tmp_path / 'labels.csv'}",
        "task=own",
        f"task.names=[{','.join(TASKS)}]",
        "arm=entropy",
        "rounds=1",
        f"selection.budget={BUDGET}",
        "model.components=8",
        "fusion.width=16",
        "fusion.heads=2",
        "trainer.batch_size=4",
        "trainer.epochs=1",
        "evaluation.resamples=20",
        "name=mine",
    ]


def test_people_go_on_from_labels_that_came_with_the_media(keys: list[str], tmp_path: Path) -> None:
    refused = run_python("-m", "launch.round", *keys, cwd=tmp_path)
    assert refused.returncode == 1
    assert "no label of 12 of 12 pool clips" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1

    by_people = (*keys, "oracle=files")
    waits = run_python("-m", "launch.round", *by_people, cwd=tmp_path)
    assert waits.returncode == 75, waits.stderr
    pushed = run_python("-m", "launch.annotate", "push", *by_people, cwd=tmp_path)
    assert pushed.returncode == 0, pushed.stderr
    handoff = tmp_path / "runs" / "mine" / "entropy" / "handoff" / "round-001"
    questions = read_lines(handoff / "questions.jsonl", Question)
    assert len(questions) == BUDGET
    pool = [f"clips/clip-{n:04d}" for n in range(CLIPS) if split_of(n) == "pool"]
    ids = sample_ids.to_hex(sample_ids.sample_ids(pool))
    assert {question.clip_id for question in questions} <= set(ids)
    lines = [json.dumps(answer(question)) for question in questions]
    (handoff / "answers" / "anna.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    pulled = run_python("-m", "launch.annotate", "pull", *by_people, cwd=tmp_path)
    assert pulled.returncode == 0, pulled.stderr
    done = run_python("-m", "launch.round", *by_people, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    with Ledger.open(
        tmp_path / "runs" / "mine" / "entropy" / "ledger.sqlite", create=False
    ) as held:
        told = Counter((row["round"], row["source"], row["labeller"]) for row in held.annotations())
    assert told == {
        (0, "human", "given"): 2 * 12 - 1,
        (0, "gold", "gold"): 2 * 8,
        (1, "human", "anna"): 2 * BUDGET,
    }
    summary = json.loads((tmp_path / "runs" / "mine" / "summary.json").read_text())
    assert summary["data"]["media"] == "media and labels that were given"
    assert [entry["labels"] for entry in summary["rounds"]] == [12, 12 + BUDGET]


def answer(question: Question) -> dict[str, Any]:
    return {
        "format": "vlmae-answer-1",
        "clip_id": question.clip_id,
        "labeller": "anna",
        "labelled_at": "2026-03-04T05:06:07Z",
        "labels": {"spam": 1, "nsfw": 0},
        "seconds": 3.0,
    }
