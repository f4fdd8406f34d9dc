"""Label Studio's shapes without a server: what is shown, and which annotations are answers."""

from __future__ import annotations

from typing import Any

import pytest

from lsb.annotate.label_studio import local_files_base, mark_of, shortened
from lsb.annotate.labelling import checked_tasks, labelling_config, read_export, task_of
from lsb.annotate.questions import Media, Neighbour, Prediction, Question, Reason
from lsb.ids import sample_id

pytest.importorskip("label_studio_sdk", reason="pip install 'vlmae[label-studio]'")

TASKS = ("policy", "unsafe")
CLIPS = [sample_id(f"clip-{number}").hex() for number in range(3)]
NAMES = {1: "ann@example.com", 2: "bob@example.com"}


def question(number: int = 0, **fields: Any) -> Question:
    clip = CLIPS[number]
    told = {
        "clip_id": clip,
        "round": 2,
        "tasks": TASKS,
        "title": "<b>One</b> & two",
        "media": Media(
            video=f"{clip}.mp4", contact_sheet=f"{clip} a.jpg", waveform="w.png", mel="m.png"
        ),
        "anonymisation": "none",
        "predictions": {
            "policy": Prediction(with_audio=0.51, without_audio=0.2, audio_only=0.9),
            "unsafe": Prediction(with_audio=0.01, without_audio=None, audio_only=None),
        },
        "why": Reason(
            reason="lookalike",
            rank=3,
            seed_id=CLIPS[1],
            seed_kind="confident_error",
            task="policy",
            similarity=0.8125,
            lookalike_threshold=0.75,
        ),
        "alike_in": "pooled",
        "neighbours": (
            Neighbour(clip_id=CLIPS[2], title="near", similarity=0.9, labels={"policy": 1}),
        ),
    }
    return Question.model_validate(told | fields)


def annotation(number: int, who: Any = 1, minute: int = 0, **fields: Any) -> dict[str, Any]:
    told = {
        "id": number,
        "completed_by": who,
        "was_cancelled": False,
        "created_at": f"2026-03-04T05:{minute:02d}:07.123456Z",
        "lead_time": 4.5,
        "result": [choice("policy", "yes"), choice("unsafe", "no")],
    }
    return told | fields


def choice(task: str, *values: str) -> dict[str, Any]:
    return {
        "from_name": task, "to_name": "video", "type": "choices", "value": {"choices": [*values]}
    }  # fmt: skip


def exported(*annotations: dict[str, Any], clip: str = CLIPS[0], number: int = 7) -> dict[str, Any]:
    return {
        "id": number,
        "data": {"clip_id": clip},
        "annotations": [*annotations],
        "drafts": [annotation(99)],
        "predictions": [5],
    }


def test_a_task_shows_all_and_fits_the_config() -> None:
    (task,) = checked_tasks([question()], "/data/local-files/?d=x/", labelling_config(TASKS))
    data = task["data"]
    assert data["contact_sheet"] == f"/data/local-files/?d=x/{CLIPS[0]}%20a.jpg"
    assert data["why"] == (
        f"Rank 3: it resembles the clip {CLIPS[1]} (confident_error) with similarity 0.812, "
        "threshold 0.750, task policy."
    )
    assert data["predictions"].splitlines() == [
        "policy: with audio 0.510, without audio 0.200, audio only 0.900",
        "unsafe: with audio 0.010",
    ]
    assert data["neighbours"].splitlines() == [
        "cosine of the pooled vectors, as the frozen encoders see and hear them",
        f"0.900 {CLIPS[2][:8]} “near”: policy yes",
    ]
    bare = task_of(question(title="", neighbours=()), "u/")["data"]
    assert (bare["title"], bare["neighbours"]) == ("(no title)", "none")


def test_the_config_is_what_label_studio_takes() -> None:
    from label_studio_sdk.label_interface import LabelInterface

    interface = LabelInterface(labelling_config(TASKS))
    interface.validate()
    assert {control.name for control in interface.controls} == set(TASKS)
    assert not interface.validate_annotation({"result": [choice("policy", "maybe")]})
    for task in ("a b", "video", "1", "x&y"):
        with pytest.raises(ValueError, match="cannot be asked about in Label Studio"):
            labelling_config([task])


def test_a_clip_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="asked about twice in round 2"):
        checked_tasks([question(), question()], "u/", labelling_config(TASKS))


def test_every_trap_of_an_export() -> None:
    answers, refused = read_export(
        [
            exported(
                annotation(1, 1, minute=5),
                annotation(2, {"id": 2, "email": "bob@example.com"}, minute=6),
                annotation(3, 1, minute=7, result=[choice("policy", "no")]),
                annotation(4, 2, result=[choice("policy", "maybe")], minute=1),
            ),
            exported(annotation(5, 1, minute=8), number=8),  # the same clip in another task
            exported(annotation(6, 2, was_cancelled=True, result=[]), clip=CLIPS[1], number=9),
            exported(
                annotation(7, 1, result=[]),
                annotation(8, 2, result=[choice("policy", "yes", "no")]),
                annotation(9, 3, result=[choice("unsafe", "yes")]),
                annotation(10, 1, result=[choice("policy", "yes"), choice("policy", "no")]),
                annotation(11, 1, result=[{"from_name": "policy"}]),
                clip=CLIPS[2],
                number=10,
            ),
            exported(annotation(12), clip="f" * 32, number=11),
            {"id": 12, "data": {"text": "of somebody else"}, "annotations": [annotation(13)]},
        ],
        NAMES,
        CLIPS,
        TASKS,
    )
    told = {(one.clip_id, one.labeller): (one.labels, one.skipped) for one in answers}
    assert told == {
        (CLIPS[0], "ann@example.com"): ({"policy": 1, "unsafe": 0}, False),
        (CLIPS[0], "bob@example.com"): ({"policy": 1, "unsafe": 0}, False),
        (CLIPS[1], "bob@example.com"): ({}, True),
        (CLIPS[2], "user-3"): ({"unsafe": 1}, False),
    }
    assert {one.seconds for one in answers} == {4.5}
    reasons = {one.place.split()[-1]: one.reason for one in refused}
    assert set(reasons) == {"3", "4", "5", "7", "8", "10", "11", "12", "13"}
    assert reasons["3"] == "answered again: the first counts"
    assert reasons["5"] == "answered again, the same"
    assert "valid labels: ['yes', 'no']" in reasons["4"]
    assert reasons["7"] == "it has no answer"
    assert "not one choice" in reasons["8"]
    assert "not one choice" in reasons["10"]
    assert "Missing required field" in reasons["11"]
    assert "was not asked about in this round" in reasons["12"]
    assert reasons["13"].startswith("clip_id: ")


def test_answers_of_a_clip_that_was_taken_down_say_so() -> None:
    answers, refused = read_export([exported(annotation(1))], NAMES, CLIPS[1:], TASKS, CLIPS[:1])
    assert answers == []
    assert [one.reason for one in refused] == ["the clip was taken down"]


def test_choices_of_other_tasks_are_refused() -> None:
    answers, refused = read_export(
        [exported(annotation(1, result=[choice("weather", "yes")]))], NAMES, CLIPS, TASKS
    )
    assert not answers
    assert "'weather' not found in configuration" in refused[0].reason


def test_titles_marks_and_places(tmp_path: Any) -> None:
    assert shortened("short") == "short"
    long = [shortened("x" * 60 + end) for end in "ab"]
    assert len(set(long)) == 2
    assert {len(title) for title in long} == {50}
    assert mark_of(run="a", round=1) == mark_of(round=1, run="a") != mark_of(run="a", round=2)
    folder = tmp_path / "runs" / "stages"
    folder.mkdir(parents=True)
    assert local_files_base(folder, tmp_path) == "/data/local-files/?d=runs/stages/"
    with pytest.raises(ValueError, match="LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"):
        local_files_base(tmp_path, tmp_path)
