"""What people are asked about the clips of a round, from the ledger and the stores behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from launch.labelling.neighbours import nearest_labelled, trusted_labels
from launch.stages.expansion import EXPANSION_FILES
from launch.stages.recorded import expansion_of
from launch.stages.settings import Settings
from launch.stages.shortlist import expand_of
from lsb import ids as sample_ids
from lsb.annotate.questions import POOLED, Media, Neighbour, Prediction, Question, Reason
from lsb.artifact import Stage, open_stage
from lsb.ids import IdArray
from lsb.labelled import PROBABILITY
from lsb.ledger import Ledger
from lsb.store import Store
from vlmae.data.index import read_index
from vlmae.handoff import media_files

UNIMODAL = {"without_audio": f"vl_{PROBABILITY}", "audio_only": f"audio_{PROBABILITY}"}


def pool_of(settings: Settings, ledger: Ledger, number: int) -> Store:
    """The store of the pool that a recorded round was chosen from.

    Raises:
        ValueError: it is no longer there.
    """
    held = next(record for record in ledger.rounds() if record.round == number)
    expanded = expansion_of(settings.stages, held, expand_of(settings.in_round(number)))
    if expanded is not None:
        found = _stage_of(settings.stages, expanded.manifest["inputs"]["pool"])
        if found is not None:
            return Store.open(found.path, verify=False)
    raise ValueError(
        f"the expansion of round {number} ({EXPANSION_FILES[0]}) or the store behind it is not in "
        f"{settings.stages}: run launch.round again with the same config, which makes it anew"
    )


def _stage_of(root: Path, content: str) -> Stage | None:
    for file in sorted(root.glob("embed-*/manifest.json")):
        stage = open_stage(file.parent, verify=False)
        if stage.content == content:
            return stage
    return None


def ask(
    settings: Settings,
    data: Stage,
    ledger: Ledger,
    number: int,
    candidates: Sequence[Mapping[str, Any]],
    rendered: pa.Table,
    *,
    neighbours: int,
    titles: bool,
) -> list[Question]:
    """One question a clip, in the order of `candidates`.

    Args:
        settings: of the arm.
        data: the prepared data set.
        ledger: of the arm.
        number: of the round.
        candidates: rows of the ledger.
        rendered: see `vlmae.handoff.read_rendered`, of these clips.
        neighbours: how many labelled ones each clip shows.
        titles: whether titles are told.
    """
    ids = sample_ids.from_hex(row["clip_id"] for row in candidates)
    scored = _predictions(pool_of(settings, ledger, number), ids, settings.tasks)
    index = read_index(data)
    title_of = dict(zip(index["id"].to_pylist(), sample_ids.texts(index["title"]), strict=True))
    near = nearest_labelled(
        settings, data, ids, trusted_labels(ledger, number - 1), count=neighbours
    )
    done = {row["id"]: row for row in rendered.to_pylist()}
    questions = []
    for row, clip, predictions in zip(candidates, sample_ids.to_bytes(ids), scored, strict=True):
        questions.append(
            Question(
                clip_id=row["clip_id"],
                round=number,
                tasks=settings.tasks,
                title=title_of[clip] if titles else "",
                media=Media(**media_files(row["clip_id"])),
                anonymisation=_told(done[clip]),
                predictions=predictions,
                why=Reason(
                    reason=row["reason"],
                    rank=row["rank"],
                    seed_id=row["seed_id"],
                    seed_kind=row["seed_kind"],
                    task=row["task"],
                    similarity=row["similarity"],
                    lookalike_threshold=row["lookalike_threshold"],
                ),
                neighbours=tuple(
                    Neighbour(
                        clip_id=other.clip.hex(),
                        title=title_of.get(other.clip, "") if titles else "",
                        similarity=other.similarity,
                        labels=other.labels,
                    )
                    for other in near[clip]
                ),
                alike_in=POOLED,
            )
        )
    return questions


def _told(rendered: Mapping[str, Any]) -> str:
    """What people are told of an anonymisation; its parameters stay."""
    untouched = rendered["method"] == "none" or not json.loads(rendered["parameters"])
    return {"shift": "the voice was changed", "remove": "speech was removed"}.get(
        "none" if untouched else rendered["method"], "as it was"
    )


def _predictions(store: Store, ids: IdArray, tasks: Sequence[str]) -> list[dict[str, Prediction]]:
    """Task -> prediction of each clip; none of clips that were chosen unscored."""
    if store.kind == POOLED:
        return [{} for _ in ids]
    names = [prefix + task for task in tasks for prefix in (PROBABILITY, *UNIMODAL.values())]
    rows = store.take(ids, names).to_pylist()
    return [
        {
            task: Prediction(
                with_audio=row[PROBABILITY + task],
                **{name: row[prefix + task] for name, prefix in UNIMODAL.items()},
            )
            for task in tasks
        }
        for row in rows
    ]
