"""Scores of media files as one table: a row a clip, good or bad, nothing stops at a bad one.

key, id, path, title            which clip
audio_missing, video_missing    why a modality was masked, else null
error, error_detail             why there are no scores, else null
probability_<task>              and vl_probability_<task>, audio_probability_<task>
decision_<task>                 whether the probability reaches the model's threshold
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lsb import ids as sample_ids
from vlmae.data.decode import BadClipError, Clip
from vlmae.data.encode import CLIPS_AT_A_TIME
from vlmae.media import MediaClip, decode_clip
from vlmae.prediction import ARRAYS, Predictions, prediction_columns
from vlmae.scorer import Scorer

DECODER_FAILED = "decoder failed"
ENCODER_FAILED = "encoder failed"
NOT_FINITE = "scores are not finite"
ROWS_AT_A_TIME = 1024
HEADS = ("probability", "vl_probability", "audio_probability")
_CLIP_FIELDS: list[tuple[str, pa.DataType]] = [
    ("key", pa.string()),
    ("id", sample_ids.ID_TYPE),
    ("path", pa.string()),
    ("title", pa.string()),
    ("audio_missing", pa.string()),
    ("video_missing", pa.string()),
    ("error", pa.string()),
    ("error_detail", pa.string()),
]


@dataclass(frozen=True)
class Scored:
    """How far a scoring is, or how it ended.

    Attributes:
        clips: scored or found bad so far.
        of: all clips.
        bad: reason -> how many clips have no scores for it.
        seconds: since the start.
    """

    clips: int
    of: int
    bad: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def score_media(
    scorer: Scorer,
    clips: Sequence[MediaClip],
    output: Path,
    *,
    decoders: int = 1,
    largest: int | None = None,
    on_group: Callable[[Scored], None] | None = None,
) -> Scored:
    """Score clips into a parquet file, which appears when it is whole.

    Memory holds two groups of 16 decoded clips, one file a decoder and some rows, however many
    clips there are.

    Args:
        scorer: of the model.
        clips: where their files are.
        output: the table; an older one is replaced.
        decoders: threads that read and decode ahead.
        largest: bytes of a clip's files; larger ones are rows with an error.
        on_group: called after every group of clips.
    """
    if decoders < 1:
        raise ValueError(f"decoders is {decoders}: give at least 1")
    started = time.monotonic()
    bad: Counter[str] = Counter()
    done = 0
    with _table(scorer, output) as write:
        for some, decoded in _decoded(scorer, clips, decoders, largest):
            rows, predictions, errors = _score(scorer, decoded)
            write(_rows(scorer, some, rows, predictions, errors))
            bad.update(error.reason for error in errors.values())
            done += len(some)
            scored = Scored(done, len(clips), bad, time.monotonic() - started)
            if on_group is not None:
                on_group(scored)
    return Scored(done, len(clips), bad, time.monotonic() - started)


def table_schema(tasks: Sequence[str]) -> pa.Schema:
    """Columns of the table."""
    scores = [(f"{head}_{task}", pa.float32()) for head in HEADS for task in tasks]
    decisions = [(f"decision_{task}", pa.bool_()) for task in tasks]
    return pa.schema([*_CLIP_FIELDS, *scores, *decisions])


@contextmanager
def _table(scorer: Scorer, output: Path) -> Iterator[Callable[[pa.Table], None]]:
    """A function that appends rows; the file gets its name at the end of the block."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    schema = table_schema(scorer.tasks).with_metadata(
        {"vlmae.checkpoint": scorer.checkpoint.sha256}
    )
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(partial, schema) as writer:

        def flush() -> None:
            if waiting:
                writer.write_table(pa.concat_tables(waiting).cast(schema))
                waiting.clear()

        def write(rows: pa.Table) -> None:
            waiting.append(rows)
            if sum(table.num_rows for table in waiting) >= ROWS_AT_A_TIME:
                flush()

        yield write
        flush()
    os.replace(partial, output)


def _decoded(
    scorer: Scorer, clips: Sequence[MediaClip], decoders: int, largest: int | None
) -> Iterator[tuple[Sequence[MediaClip], list[Clip | BadClipError]]]:
    """Groups of clips with what decoding gave; the next group is decoded while one is scored."""

    def decode(clip: MediaClip) -> Clip | BadClipError:
        try:
            return decode_clip(clip, scorer.policy, scorer.sample_rate, largest)
        except BadClipError as error:
            return error
        except Exception as error:  # a decoder's own fault is a row like any other
            return BadClipError(clip.key, DECODER_FAILED, f"{type(error).__name__}: {error}")

    groups = [
        clips[start : start + CLIPS_AT_A_TIME] for start in range(0, len(clips), CLIPS_AT_A_TIME)
    ]
    with ThreadPoolExecutor(decoders) as pool:

        def begin(number: int) -> list[Future[Clip | BadClipError]]:
            return [pool.submit(decode, clip) for clip in groups[number]]

        ahead = begin(0) if groups else []
        for number, group in enumerate(groups):
            under_way, ahead = ahead, begin(number + 1) if number + 1 < len(groups) else []
            yield group, [future.result() for future in under_way]


def _score(
    scorer: Scorer, decoded: Sequence[Clip | BadClipError]
) -> tuple[dict[int, Clip], Predictions, dict[int, BadClipError]]:
    """Clips by place that have scores, those scores in their order, and the errors of the rest."""
    good = {place: clip for place, clip in enumerate(decoded) if isinstance(clip, Clip)}
    errors = {place: bad for place, bad in enumerate(decoded) if isinstance(bad, BadClipError)}
    predictions = _of_group(scorer, list(good.values()))
    if predictions is None:
        # One of them is at fault, or all are too much at once: what each gives alone is kept.
        pieces = [_no_predictions(scorer)]
        for place, clip in list(good.items()):
            try:
                pieces.append(scorer.predict([clip]))
            except (ValueError, RuntimeError) as error:
                errors[place] = BadClipError(clip.key, ENCODER_FAILED, str(error)[:200])
                del good[place]
        predictions = _joined(pieces)
    places = np.array(list(good), np.int64)
    finite = np.isfinite(predictions.logits).all(axis=1)
    for place in places[~finite].tolist():
        errors[place] = BadClipError(good.pop(place).key, NOT_FINITE)
    return good, _taken(predictions, np.flatnonzero(finite)), errors


def _of_group(scorer: Scorer, clips: Sequence[Clip]) -> Predictions | None:
    """Predictions of clips computed together; None if that failed.

    Whoever tries again must do so after this has returned: while an error is handled, its frames
    hold on to the tensors that filled the device's memory.
    """
    try:
        return scorer.predict(clips)
    except (ValueError, RuntimeError):
        return None


def _no_predictions(scorer: Scorer) -> Predictions:
    """Of no clip, with nothing computed that could fail."""
    logits = np.zeros((0, len(scorer.tasks)), np.float32)
    embedding = np.zeros((0, scorer.model.fusion.embedding_width), np.float32)
    samples = np.zeros((0, len(scorer.tasks), 0), np.float32)
    return Predictions(logits, logits, logits, embedding, samples, scorer.calibration)


def _joined(pieces: Sequence[Predictions]) -> Predictions:
    """Predictions one after the other; there is at least one piece."""
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in ARRAYS
    }
    return replace(pieces[0], **joined)


def _taken(predictions: Predictions, rows: np.ndarray) -> Predictions:
    if len(rows) == len(predictions.logits):
        return predictions
    taken: dict[str, Any] = {name: getattr(predictions, name)[rows] for name in ARRAYS}
    return replace(predictions, **taken)


def _rows(
    scorer: Scorer,
    media: Sequence[MediaClip],
    good: dict[int, Clip],
    predictions: Predictions,
    errors: dict[int, BadClipError],
) -> pa.Table:
    """Rows of one group in its order."""
    scores = prediction_columns(
        pa.table({"place": pa.array(list(good), pa.int64())}), scorer.tasks, predictions
    )
    decisions = scorer.decisions(predictions)
    for column, task in enumerate(scorer.tasks):
        scores = scores.append_column(f"decision_{task}", pa.array(decisions[:, column]))
    by_place = {row.pop("place"): row for row in scores.to_pylist()}
    rows = []
    for place, clip in enumerate(media):
        decoded, error = good.get(place), errors.get(place)
        rows.append(
            {
                "key": clip.key,
                "id": sample_ids.sample_id(clip.key),
                "path": clip.path,
                "title": decoded.title if decoded else None,
                "audio_missing": decoded.audio_missing if decoded else None,
                "video_missing": decoded.video_missing if decoded else None,
                "error": error.reason if error else None,
                "error_detail": (error.detail or None) if error else None,
                **by_place.get(place, {}),
            }
        )
    return pa.Table.from_pylist(rows, schema=table_schema(scorer.tasks))
