"""Answers of people on their way into a ledger: one line of a JSONL file, and the import.

    {"format": "vlmae-answer-1", "clip_id": "<32 hex digits>", "labeller": "ann",
     "labelled_at": "2026-03-04T05:06:07Z", "labels": {"policy": 1, "unsafe": 0}}
    {..., "labels": {}, "skipped": true}

A skip is no label: it is kept beside the ledger, so that nobody waits for the clip. Of several
answers by one person about one clip the first counts, whatever was taken when, so that pulling
often and pulling once give the same ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints, model_validator

from lsb.annotate import ANNOTATIONS
from lsb.annotate.lines import ClipId, Line, read_lines
from lsb.ledger import Ledger

ANSWERS_ENDING = ".jsonl"
SOURCE = "human"
TAKEN_DOWN = "the clip was taken down"


def _no_reserved(labeller: str) -> str:
    if labeller.split(":")[0] in ("oracle", "pseudo", "gold"):
        raise ValueError(f"{labeller!r} is a name that programs use: give the person's own")
    return labeller


Label = Annotated[int, Field(ge=0, le=1)]
Labeller = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200, pattern=r"^\S(.*\S)?$"),
    AfterValidator(_no_reserved),
]


class Answer(Line):
    """What one person says of one clip.

    Attributes:
        clip_id: of the clip.
        labeller: the person.
        labelled_at: when, with a time zone.
        labels: task -> 1 for yes, 0 for no; tasks that were not judged are absent.
        skipped: the person cannot tell; there are no labels then.
        seconds: that it took, None if nobody measured.
    """

    format: Literal["vlmae-answer-1"]
    clip_id: ClipId
    labeller: Labeller
    labelled_at: AwareDatetime
    labels: dict[str, Label]
    skipped: bool = False
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _labels_or_skipped(self) -> Answer:
        if self.skipped == bool(self.labels):
            raise ValueError("give labels, or an empty labels and skipped=true")
        return self

    @property
    def place(self) -> tuple[str, str]:
        """Clip and person: what there is one answer for."""
        return self.clip_id, self.labeller


@dataclass(frozen=True)
class Refused:
    """An answer that was not taken.

    Attributes:
        place: where it came from, e.g. "task 3, annotation 7".
        clip_id: of the clip, as it was given.
        labeller: who gave it.
        reason: why it was not taken.
    """

    place: str
    clip_id: str
    labeller: str
    reason: str

    @property
    def text(self) -> str:
        """A line for people."""
        return f"{self.place}: {self.reason} (clip {self.clip_id or '?'}, {self.labeller or '?'})"


@dataclass(frozen=True)
class Taken:
    """What an import did.

    Attributes:
        answers: all that are taken, those of earlier imports included, by clip and person.
        labels: labels that the ledger did not hold before.
        refused: answers that are not taken now.
    """

    answers: list[Answer]
    labels: int
    refused: list[Refused] = field(default_factory=list)


def read_answers(
    folder: Path,
    clips: Collection[str],
    tasks: Collection[str],
    gone: Collection[str] = (),
) -> tuple[list[Answer], list[Refused]]:
    """All answers in the `.jsonl` files of a folder, by clip and person.

    An answer may come twice, in one file or in several.

    Args:
        folder: with the files.
        clips: ids that were asked about.
        tasks: that were asked about.
        gone: ids that were asked about and have been taken down since.

    Returns:
        Answers about `clips`, and those about clips that are gone.

    Raises:
        ValueError: a line is bad, or of a clip or task that was not asked about, or one person
            answers one clip in two ways; names file and line. Nothing is returned then.
    """
    return read_answer_files(sorted(folder.glob(f"*{ANSWERS_ENDING}")), clips, tasks, gone)


def read_answer_files(
    paths: Iterable[Path],
    clips: Collection[str],
    tasks: Collection[str],
    gone: Collection[str] = (),
) -> tuple[list[Answer], list[Refused]]:
    """All answers in some files, see `read_answers`."""
    found: dict[tuple[str, str], tuple[Answer, str]] = {}
    refused: list[Refused] = []
    for path in paths:
        for number, answer in enumerate(read_lines(path, Answer), start=1):
            place = f"{path}, line {number}"
            if answer.clip_id in gone:
                refused.append(Refused(place, answer.clip_id, answer.labeller, TAKEN_DOWN))
                continue
            if (problem := not_asked(answer, clips, tasks)) is not None:
                raise ValueError(f"{place}: {problem}; nothing was taken")
            before = found.setdefault(answer.place, (answer, place))
            if before[0] != answer:
                raise ValueError(
                    f"{place}: {answer.labeller!r} has answered clip {answer.clip_id} in another "
                    f"way at {before[1]}: leave one of them; nothing was taken"
                )
    return [found[place][0] for place in sorted(found)], refused


def not_asked(answer: Answer, clips: Collection[str], tasks: Collection[str]) -> str | None:
    """Why an answer belongs to nothing that was asked, None if it does."""
    if answer.clip_id not in clips:
        return f"clip {answer.clip_id} was not asked about in this round: leave it out"
    unknown = sorted(set(answer.labels) - set(tasks))
    if unknown:
        return f"task {unknown[0]!r} was not asked about, only {', '.join(sorted(tasks))}"
    return None


def first_answers(found: Iterable[tuple[Answer, str]]) -> tuple[list[Answer], list[Refused]]:
    """One answer of each person about each clip: the first, but any answer before any skip.

    Args:
        found: answers with where they come from; equal times in the order given.

    Returns:
        Answers by clip and person, and the others.
    """
    ordered = sorted(found, key=lambda one: (one[0].skipped, one[0].labelled_at))
    best: dict[tuple[str, str], Answer] = {}
    refused: list[Refused] = []
    for answer, place in ordered:
        held = best.setdefault(answer.place, answer)
        if held is not answer:
            same = held.labels == answer.labels and held.skipped == answer.skipped
            reason = "answered again, the same" if same else "answered again: the first counts"
            refused.append(Refused(place, answer.clip_id, answer.labeller, reason))
    return [best[place] for place in sorted(best)], refused


def take_answers(
    ledger: Ledger,
    number: int,
    answers: Iterable[Answer],
    taken: Iterable[Answer] = (),
    keep: Callable[[list[Answer]], None] | None = None,
) -> Taken:
    """Import answers into a round; importing them again changes nothing.

    A label is never rewritten: where somebody has changed an answer since it was taken, what was
    taken stays, and the change is told.

    Args:
        ledger: that has the round.
        number: of the round.
        answers: one of each person about each clip.
        taken: those of earlier imports; whatever is no longer given stays taken.
        keep: called with all that are taken before the ledger has their labels. Skips and seconds
            are kept there alone: killed after the import, they would be lost.
    """
    keys = {row["clip_id"]: row["key"] for row in ledger.candidacies() if row["round"] == number}
    held = _held_labels(ledger, number)
    merged = {answer.place: answer for answer in taken}
    refused: list[Refused] = []
    for answer in answers:
        before = held.get(answer.place)
        if before is None:
            merged[answer.place] = answer
        elif before == answer.labels:
            merged.setdefault(answer.place, answer)
        else:
            tasks = sorted(
                task
                for task in before.keys() | answer.labels.keys()
                if before.get(task) != answer.labels.get(task)
            )
            reason = f"changed after it was taken ({', '.join(tasks)}): the first counts"
            refused.append(Refused("in the ledger", answer.clip_id, answer.labeller, reason))
    kept = [merged[place] for place in sorted(merged)]
    rows: list[dict[str, Any]] = []
    times: list[datetime] = []
    for answer in kept:
        for task, label in sorted(answer.labels.items()):
            rows.append(
                {
                    "id": bytes.fromhex(answer.clip_id),
                    "key": keys[answer.clip_id],
                    "task": task,
                    "label": label,
                    "source": SOURCE,
                    "labeller": answer.labeller,
                }
            )
            times.append(answer.labelled_at)
    table = pa.Table.from_pylist(rows, schema=ANNOTATIONS)
    if keep is not None:
        keep(kept)
    added = ledger.import_annotations(number, table, labelled_at=times)
    return Taken(kept, added, refused)


def _held_labels(ledger: Ledger, number: int) -> Mapping[tuple[str, str], dict[str, int]]:
    """(clip, person) -> task -> label that the ledger has of people in a round."""
    held: dict[tuple[str, str], dict[str, int]] = {}
    for row in ledger.annotations():
        if row["round"] == number and row["source"] == SOURCE:
            held.setdefault((row["clip_id"], row["labeller"]), {})[row["task"]] = row["label"]
    return held
