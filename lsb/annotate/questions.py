"""What an annotator is asked about a clip, and why: one line of `questions.jsonl`.

It names the clip by its id alone. Keys, which often are paths or names of people, stay where the
ledger is, and so do the parameters of an anonymisation: with them it could be undone.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from lsb.annotate.lines import ClipId, Line

POOLED: Literal["pooled"] = "pooled"
"""Vectors of the frozen towers alone, which all clips have."""


class Media(Line):
    """Names of the files of a clip, relative to the folder that is handed off."""

    video: str
    contact_sheet: str
    waveform: str
    mel: str


class Prediction(Line):
    """Probabilities of one task: of the whole model, and of its heads on one modality alone."""

    with_audio: float
    without_audio: float | None
    audio_only: float | None


class Reason(Line):
    """Why the clip was chosen, see `lsb.selection.CHOSEN`."""

    reason: str
    rank: int
    seed_id: ClipId | None
    seed_kind: str | None
    task: str | None
    similarity: float | None
    lookalike_threshold: float | None


class Neighbour(Line):
    """A labelled clip near to it."""

    clip_id: ClipId
    title: str
    similarity: float
    labels: dict[str, int]


class Question(Line):
    """One clip to be judged.

    Attributes:
        clip_id: its id, which an answer names.
        round: of the ledger.
        tasks: to be judged.
        title: of the clip, "" where titles stay.
        media: its files.
        anonymisation: method that its sound went through.
        predictions: task -> what the model says; none where the round scored no clip.
        why: why it was chosen.
        neighbours: labelled clips near to it, nearest first.
        alike_in: kind of the vectors whose cosine their similarity is; "fused" in lines of earlier
            releases, which did not say so.
        answered_by: people who have answered already and are not to be asked, where the clip is
            asked about again; `tasks` are those that are open then. Not in the line otherwise.
    """

    format: Literal["vlmae-question-1"] = "vlmae-question-1"
    clip_id: ClipId
    round: int
    tasks: tuple[str, ...]
    title: str
    media: Media
    anonymisation: str
    predictions: dict[str, Prediction]
    why: Reason
    neighbours: tuple[Neighbour, ...]
    alike_in: Literal["pooled", "fused"] = "fused"
    answered_by: tuple[str, ...] = ()

    @model_serializer(mode="wrap")
    def _without_nobody(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        told: dict[str, Any] = whole(self)
        if not self.answered_by:
            del told["answered_by"]
        return told


def why_text(why: Reason) -> str:
    """A reason as a sentence for people."""
    if why.reason == "seed":
        kinds = {
            "entropy": "the model is unsure of it",
            "confident_error": "the model was wrong on it",
        }
        kind = why.seed_kind or "seed"
        told = f"it is a seed itself: {kinds.get(kind, kind)}"
    elif why.reason == "lookalike" and why.similarity is not None:
        limit = why.lookalike_threshold
        told = f"it resembles the clip {why.seed_id} ({why.seed_kind})"
        told += f" with similarity {why.similarity:.3f}"
        told += "" if limit is None else f", threshold {limit:.3f}"
    elif why.reason == "fill":
        told = "it fills the budget, by the order of the acquisition"
    else:
        told = "the acquisition ranks it high"
    task = "" if why.task is None else f", task {why.task}"
    return f"Rank {why.rank}: {told}{task}."


def prediction_text(predictions: dict[str, Prediction]) -> str:
    """Probabilities as lines for people."""
    lines = []
    for task, told in predictions.items():
        parts = [f"with audio {told.with_audio:.3f}"]
        if told.without_audio is not None:
            parts.append(f"without audio {told.without_audio:.3f}")
        if told.audio_only is not None:
            parts.append(f"audio only {told.audio_only:.3f}")
        lines.append(f"{task}: {', '.join(parts)}")
    return "\n".join(lines) or "nothing: it was chosen unscored"


def neighbour_text(neighbours: tuple[Neighbour, ...], alike_in: str) -> str:
    """Labelled neighbours as lines for people, below what their similarity is of."""
    what = "as the frozen encoders see and hear them" if alike_in == POOLED else "of the model"
    lines = [f"cosine of the {alike_in} vectors, {what}"] if neighbours else []
    for near in neighbours:
        labels = ", ".join(
            f"{task} {'yes' if label else 'no'}" for task, label in near.labels.items()
        )
        title = f" “{near.title}”" if near.title else ""
        lines.append(f"{near.similarity:.3f} {near.clip_id[:8]}{title}: {labels}")
    return "\n".join(lines) or "none"
