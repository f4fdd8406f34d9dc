"""Questions as Label Studio tasks and its annotations as answers, checked without any server.

What Label Studio lets through is caught here: choices that the labelling config does not have, the
same clip in two tasks, tasks of other projects, several answers by one person, skips (which come as
`was_cancelled` with an empty result), answers without content.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from pydantic import ValidationError

from lsb.annotate.answers import TAKEN_DOWN, Answer, Refused, first_answers, not_asked
from lsb.annotate.questions import Question, neighbour_text, prediction_text, why_text

YES, NO = "yes", "no"
CHOICES = {YES: 1, NO: 0}
CLIP = "clip_id"
OBJECT = "video"
MEDIA = ("video", "contact_sheet", "waveform", "mel")
LOCAL_FILES = "/data/local-files/?d="
_TASK_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
Task = dict[str, Any]


def labelling_config(tasks: Sequence[str]) -> str:
    """What people see of a task, in Label Studio's XML: media, reasons, one choice a task.

    Args:
        tasks: to be judged; letters, digits, _ and -.

    Raises:
        ValueError: a task cannot be named so.
    """
    shown = [
        '<Header value="$title"/>',
        f'<Video name="{OBJECT}" value="$video"/>',
        '<Image name="contact_sheet" value="$contact_sheet"/>',
        '<Image name="waveform" value="$waveform"/>',
        '<Image name="mel" value="$mel"/>',
    ]
    for name, title in (
        ("why", "Why this clip"),
        ("predictions", "What the model says"),
        ("neighbours", "Labelled neighbours"),
        ("anonymisation", "Sound"),
    ):
        shown += [
            f'<Header size="5" value="{title}"/>',
            f'<Text name="{name}" value="${name}"/>',
        ]
    taken = {OBJECT, *MEDIA, "why", "predictions", "neighbours", "anonymisation", "title"}
    for task in tasks:
        if not _TASK_NAME.fullmatch(task) or task in taken:
            raise ValueError(
                f"task {task!r} cannot be asked about in Label Studio: use letters, digits, _ and "
                f"-, and none of {', '.join(sorted(taken))}"
            )
        shown += [
            f"<Header value={quoteattr(f'{task}?')}/>",
            f'<Choices name="{task}" toName="{OBJECT}" choice="single" showInline="true">',
            *(f'<Choice value="{choice}"/>' for choice in CHOICES),
            "</Choices>",
        ]
    return "<View>\n" + "\n".join(f"  {line}" for line in shown) + "\n</View>\n"


def media_urls(question: Question, base: str) -> dict[str, str]:
    """Addresses of a clip's files, under a base that ends where the file's name begins."""
    return {name: base + quote(getattr(question.media, name)) for name in MEDIA}


def task_of(question: Question, base: str) -> Task:
    """A question as Label Studio imports it; no keys, no parameters of an anonymisation."""
    data = {
        CLIP: question.clip_id,
        "round": question.round,
        "title": question.title or "(no title)",
        **media_urls(question, base),
        "why": why_text(question.why),
        "predictions": prediction_text(question.predictions),
        "neighbours": neighbour_text(question.neighbours, question.alike_in),
        "anonymisation": question.anonymisation,
    }
    return {"data": data}


def checked_tasks(questions: Iterable[Question], base: str, config: str) -> list[Task]:
    """Tasks that fit a labelling config, one a clip.

    Raises:
        ValueError: a task lacks what the config shows, or a clip comes twice.
    """
    from label_studio_sdk.label_interface import LabelInterface  # two seconds, and few need it

    interface = LabelInterface(config)
    tasks: dict[str, Task] = {}
    for question in questions:
        task = task_of(question, base)
        if not interface.validate_task(task):
            raise ValueError(
                f"the task of clip {question.clip_id} lacks what the labelling config shows: "
                "write the questions again"
            )
        if question.clip_id in tasks:
            raise ValueError(
                f"clip {question.clip_id} is asked about twice in round {question.round}: write "
                "the questions again"
            )
        tasks[question.clip_id] = task
    return list(tasks.values())


def read_export(
    exported: Iterable[Mapping[str, Any]],
    names: Mapping[int, str],
    clips: Collection[str],
    tasks: Sequence[str],
    gone: Collection[str] = (),
) -> tuple[list[Answer], list[Refused]]:
    """Answers in an export, one of each person about each clip, and what is none.

    Args:
        exported: tasks with annotations, as Label Studio's JSON export has them. Drafts and
            predictions are left alone.
        names: user id -> name of the person.
        clips: ids that were asked about.
        tasks: that were asked about.
        gone: ids that were asked about and have been taken down since.

    Returns:
        Answers by clip and person, and refusals by the ids of their annotations.
    """
    from label_studio_sdk.label_interface import LabelInterface

    interface = LabelInterface(labelling_config(tasks))
    found: list[tuple[Answer, str]] = []
    refused: list[Refused] = []
    annotations = [(task, told) for task in exported for told in task.get("annotations", ())]
    for task, told in sorted(annotations, key=lambda pair: int(pair[1]["id"])):
        place = f"task {task['id']}, annotation {told['id']}"
        clip = str(task.get("data", {}).get(CLIP, ""))
        person = _person(told, names)
        if clip in gone:
            refused.append(Refused(place, clip, person, TAKEN_DOWN))
            continue
        try:
            answer = _answer(interface, clip, person, told, tasks)
            problem = not_asked(answer, clips, tasks)
            if problem is not None:
                raise ValueError(problem)
        except ValueError as error:
            refused.append(Refused(place, clip, person, _told(error)))
            continue
        found.append((answer, place))
    kept, again = first_answers(found)
    return kept, refused + again


def _answer(
    interface: Any, clip: str, person: str, told: Mapping[str, Any], tasks: Sequence[str]
) -> Answer:
    """One annotation; ValueError where it is none."""
    skipped = bool(told.get("was_cancelled"))
    result = told.get("result") or []
    labels: dict[str, int] = {}
    if not skipped:
        if not result:
            raise ValueError("it has no answer")
        if not interface.validate_annotation({"result": result}):
            # A prediction is checked as an annotation is, and only it may ask what is wrong.
            problems = interface.validate_prediction({"result": result}, return_errors=True)
            raise ValueError(f"it does not fit the labelling config: {problems[0]}")
        for region in result:
            task, chosen = region["from_name"], region["value"].get("choices", [])
            if task not in tasks or task in labels or len(chosen) != 1:
                raise ValueError(f"task {task!r} has not one choice: {chosen}")
            labels[task] = CHOICES[chosen[0]]
    fields = {
        "format": "vlmae-answer-1",
        "clip_id": clip,
        "labeller": person,
        "labelled_at": told["created_at"],
        "labels": labels,
        "skipped": skipped,
        "seconds": told.get("lead_time"),
    }
    return Answer.model_validate(fields, strict=False)


def _person(told: Mapping[str, Any], names: Mapping[int, str]) -> str:
    who = told.get("completed_by")
    if isinstance(who, Mapping):
        return str(who.get("email") or f"user-{who.get('id')}")
    return names.get(int(who), f"user-{who}") if who is not None else ""


def _told(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)
