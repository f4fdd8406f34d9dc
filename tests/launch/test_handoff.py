"""A round in the hands of people: killed pulls, takedowns, what is shown as labelled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from launch import annotate
from launch.labelling import handoff, neighbours
from launch.labelling.handoff import RoundFolder
from launch.labelling.neighbours import trusted_labels
from launch.stages.annotators import HandOffConfig
from launch.stages.settings import Settings
from lsb import ids as sample_ids
from lsb.annotate import annotation_table
from lsb.annotate.answers import Answer
from lsb.annotate.lines import read_lines, write_lines
from lsb.annotate.questions import Media, Question, Reason
from lsb.ids import sample_id
from lsb.ledger import HOURS, Ledger, Round
from lsb.selection import CHOSEN
from vlmae.config import compose_config
from vlmae.data.tombstones import Tombstone, add_tombstones

KEYS = ("a", "b", "c")


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def labels(key: str, label: int, source: str, labeller: str) -> pa.Table:
    return annotation_table(
        [sample_id(key)], [key], ["relevance"], [label], source=source, labeller=labeller
    )


def answer(key: str, who: str = "ann", **fields: Any) -> Answer:
    told = {
        "format": "vlmae-answer-1",
        "clip_id": sample_id(key).hex(),
        "labeller": who,
        "labelled_at": datetime(2026, 3, 4, 5, tzinfo=UTC),
        "labels": {"relevance": 1},
        "seconds": 9.0,
    }
    return Answer.model_validate(told | fields)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    overrides = ["experiment=tiny", "name=people", "oracle=files", "oracle.price=0.05"]
    return Settings.from_config(compose_config("round", overrides))


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    """Round 1 asked people about three clips."""
    rows = [
        dict.fromkeys(CHOSEN.names)
        | {"id": sample_id(key), "key": key, "rank": rank, "reason": "fill"}
        for rank, key in enumerate(KEYS, start=1)
    ]
    with Ledger.open(settings.folder / settings.arm / "ledger.sqlite") as ledger:
        ledger.record_round(Round(0, "first", "", ""), CHOSEN.empty_table(), None)
        chosen = pa.Table.from_pylist(rows, schema=CHOSEN)
        ledger.record_round(Round(1, "lsb_lt", "c", "s"), chosen, None)
        yield ledger


@pytest.mark.parametrize("killed_in", ["answers are kept", "labels are imported"])
def test_a_killed_pull_loses_no_cost_and_no_skip(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    skip = answer("c", labels={}, skipped=True)
    every = [answer("a"), answer("b"), skip]

    def kill(*arguments: Any, **options: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        if killed_in == "answers are kept":
            patched.setattr(handoff, "write_lines", kill)
        else:
            patched.setattr(Ledger, "import_annotations", kill)
        with pytest.raises(Killed):
            RoundFolder(settings, 1).take(ledger, every, [])
    assert ledger.annotations() == []
    if killed_in == "answers are kept":
        assert not RoundFolder(settings, 1).progress(ledger).is_enough
        RoundFolder(settings, 1).take(ledger, every, [])
    # What the run does when it is started again, without another pull.
    folder = RoundFolder(settings, 1)
    assert folder.progress(ledger).is_enough
    folder.close(ledger)
    assert {(row["key"], row["label"]) for row in ledger.annotations()} == {("a", 1), ("b", 1)}
    paid = {row["payee"]: row["count"] for row in ledger.costs() if row["entry"] != HOURS}
    assert paid == {"ann": 3}
    again = RoundFolder(settings, 1).take(ledger, every, [])
    assert (len(again.answers), again.labels, again.refused) == (3, 0, [])


def test_answers_of_a_clip_that_was_taken_down_stop_no_pull(
    settings: Settings, ledger: Ledger
) -> None:
    folder = RoundFolder(settings, 1)
    folder.answers.mkdir(parents=True)
    lines = [answer(key).model_dump(mode="json") for key in ("a", "b")]
    file = folder.answers / "ann.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said: list[str] = []
    annotate.pull(settings, said.append)
    assert said[-2] == "2 labels are new, 0 answers were not taken"
    add_tombstones(settings.stages, [Tombstone.now("a", "asked by its owner")])
    more = answer("c").model_dump(mode="json")
    (folder.answers / "late.jsonl").write_text(json.dumps(more) + "\n")
    said.clear()
    annotate.pull(settings, said.append)
    assert "line 1: the clip was taken down (clip " in said[0]
    assert said[-2] == "1 labels are new, 1 answers were not taken"
    assert said[-1].startswith("round 1: 2 of 2 clips are done")
    (folder.answers / "late.jsonl").write_text(json.dumps(more | {"clip_id": "0" * 32}))
    with pytest.raises(ValueError, match="was not asked about in this round"):
        annotate.pull(settings, said.append)


def question(key: str) -> Question:
    why = dict.fromkeys(("seed_id", "seed_kind", "task", "similarity", "lookalike_threshold"))
    return Question(
        clip_id=sample_id(key).hex(),
        round=1,
        tasks=("relevance", "unsafe"),
        title="",
        media=Media(video="v", contact_sheet="c", waveform="w", mel="m"),
        anonymisation="as it was",
        predictions={},
        why=Reason(reason="fill", rank=1, **why),
        neighbours=(),
    )


class Office:
    """People who answer round 1 by files."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.folder = settings, RoundFolder(settings, 1)
        self.folder.answers.mkdir(parents=True)
        write_lines(self.folder.questions, map(question, KEYS))

    def pull(self, **files: list[Answer]) -> list[str]:
        for name, told in files.items():
            write_lines(self.folder.answers / f"{name}.jsonl", told)
        said: list[str] = []
        annotate.pull(self.settings, said.append)
        return said

    def asked(self) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
        if not self.folder.again.is_file():
            return []
        lines = read_lines(self.folder.again, Question)
        return [(line.clip_id, line.tasks, line.answered_by) for line in lines]


def changed(settings: Settings, **oracle: Any) -> Settings:
    assert isinstance(settings.oracle, HandOffConfig)
    return replace(settings, oracle=replace(settings.oracle, **oracle))


def test_what_two_people_disagree_about_a_third_is_asked(
    settings: Settings, ledger: Ledger
) -> None:
    office = Office(changed(settings, answers_per_clip=2))
    assert "answered_by" not in office.folder.questions.read_text()
    both = {"relevance": 1, "unsafe": 1}
    said = office.pull(
        ann=[answer(key, labels=both) for key in KEYS],
        bob=[answer("a", "bob", labels=both), answer("b", "bob", labels=both | {"unsafe": 0})],
    )
    b = sample_id("b").hex()
    assert said[-2].startswith("1 judgements of 1 clips are open: hand ")
    assert said[-1] == (
        "round 1: 1 of 3 clips are done, 3 are wanted (ann 3, bob 2); 1 wait for one person more"
    )
    assert office.asked() == [(b, ("unsafe",), ("ann", "bob"))]
    before = office.folder.again.read_bytes()
    office.pull(bob=[answer("a", "bob", labels=both), answer("b", "bob", labels=both)])
    assert office.folder.again.read_bytes() == before, "ann and bob have said what they say"
    files = {
        "bob": [answer("a", "bob", labels=both), answer("b", "bob", labels=both | {"unsafe": 0})],
        "cyd": [answer("b", "cyd", labels={"unsafe": 0}), answer("c", "cyd", labels=both)],
    }
    assert office.pull(**files)[-1] == (
        "round 1: 3 of 3 clips are done, 3 are wanted (ann 3, bob 2, cyd 2)"
    )
    assert office.asked() == []
    office.folder.close(ledger)
    ledger.adjudicate(office.settings.merge, 1)
    table = {row["key"]: row for row in ledger.training_set(1).to_pylist()}
    assert (table["b"]["label_relevance"], table["b"]["label_unsafe"]) == (1, 0)
    paid = {row["payee"]: row["count"] for row in ledger.costs() if row["entry"] != HOURS}
    assert paid == {"ann": 6, "bob": 4, "cyd": 3}


def test_what_stays_open_is_told_and_asked_no_more(settings: Settings, ledger: Ledger) -> None:
    office = Office(changed(settings, answers_per_clip=2, further_answers=1))
    no = {"relevance": 0}
    files = {
        "ann": [answer(key) for key in KEYS],
        "bob": [answer("a", "bob", labels=no), answer("b", "bob", labels=no), answer("c", "bob")],
    }
    office.pull(**files)
    assert [clip for clip, _, _ in office.asked()] == [sample_id(key).hex() for key in "ab"]
    said = office.pull(**files, cyd=[answer("a", "cyd", labels={}, skipped=True)])
    left = "1 judgement stays undecided, of 1 clips: no label of them is trained on"
    assert said[-1].endswith(f"; 1 wait for one person more; {left}")
    assert [clip for clip, _, _ in office.asked()] == [sample_id("b").hex()]
    more = RoundFolder(changed(office.settings, further_answers=2), 1).progress(ledger)
    assert len(more.again) == 2, "the bound may be raised while the round waits"
    none = RoundFolder(changed(office.settings, further_answers=0), 1).progress(ledger)
    assert (len(none.again), none.done, len(none.undecided)) == (0, 3, 2)
    closing: list[str] = []
    annotate.close(office.settings, closing.append)
    both = "2 judgements stay undecided, of 2 clips: no label of them is trained on"
    assert closing[-1].endswith(f"(ann 3, bob 3, cyd 1); {both}")
    assert office.asked() == []
    assert office.pull()[-1].endswith(both)
    assert office.asked() == []


def test_people_are_not_shown_what_a_model_labelled(ledger: Ledger) -> None:
    ledger.import_annotations(0, labels("known", 1, "human", "given"))
    ledger.import_annotations(0, labels("guessed", 1, "pseudo", "pseudo:model"))
    assert trusted_labels(ledger, 0) == {sample_id("known"): {"relevance": 1}}


def test_labelled_neighbours_are_the_nearest_of_all_that_have_tokens(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = sample_ids.sample_ids([f"clip-{number}" for number in range(40)])
    random = np.random.default_rng(3)
    drawn = random.normal(size=(len(every), 8)).astype(np.float32)
    vectors = dict(zip(sample_ids.to_bytes(every), drawn, strict=True))
    unit = {clip: one / np.linalg.norm(one) for clip, one in vectors.items()}
    asked, gone = every[:5], every[39:]
    known = {clip: {"relevance": 1} for clip in sample_ids.to_bytes(every[5:])}

    def pooled(source: Any, ids: sample_ids.IdArray, threads: int) -> Any:
        assert sorted(ids.tolist()) == sorted(every[:39].tolist()), "no clip but those compared"
        return ids, np.stack([unit[clip] for clip in sample_ids.to_bytes(ids)])

    source = SimpleNamespace(index=pa.table({"id": sample_ids.to_arrow(every[:39])}))
    monkeypatch.setattr(neighbours, "_tokens", lambda settings, data: source)
    monkeypatch.setattr(neighbours, "pooled_vectors", pooled)
    data: Any = None
    found = neighbours.nearest_labelled(settings, data, asked, known, count=3)
    for clip in sample_ids.to_bytes(asked):
        alike = {
            other: float(unit[clip] @ unit[other])
            for other in known
            if other != sample_ids.to_bytes(gone)[0]
        }
        best = sorted(alike, key=lambda other: -alike[other])[:3]
        assert [near.clip for near in found[clip]] == best
        assert [near.similarity for near in found[clip]] == pytest.approx(
            [alike[other] for other in best], abs=1e-6
        )
    none = neighbours.nearest_labelled(settings, data, asked, {}, count=3)
    assert set(map(len, none.values())) == {0}
