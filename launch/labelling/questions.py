"""What people are asked about the clips of a round, from the ledger and the stores behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from launch.stages.expansion import EXPANSION_FILES
from launch.stages.recorded import expansion_of
from launch.stages.settings import Settings
from launch.stages.shortlist import expand_of
from lsb import ids as sample_ids
from lsb.annotate import PSEUDO, SOURCES
from lsb.annotate.questions import Media, Neighbour, Prediction, Question, Reason
from lsb.artifact import Stage, open_stage
from lsb.ids import IdArray
from lsb.labelled import PROBABILITY
from lsb.ledger import Ledger
from lsb.order import descending
from lsb.search.rescore import proposal_error, similarity
from lsb.store import Store
from vlmae.data.index import read_index
from vlmae.handoff import media_files

POOLED = "pooled"
TRUSTED = tuple(source for source in SOURCES if source != PSEUDO)
"""Sources of labels that people are shown."""
UNIMODAL = {"without_audio": f"vl_{PROBABILITY}", "audio_only": f"audio_{PROBABILITY}"}


@dataclass(frozen=True)
class Stores:
    """Stores of the model that chose a round: of the pool, and of the gold clips."""

    pool: Store
    gold: Store


def stores_of(settings: Settings, ledger: Ledger, number: int) -> Stores:
    """The stores behind a recorded round.

    Raises:
        ValueError: one of them is no longer there.
    """
    held = next(record for record in ledger.rounds() if record.round == number)
    expanded = expansion_of(settings.stages, held, expand_of(settings.in_round(number)))
    if expanded is not None:
        inputs = expanded.manifest["inputs"]
        found = [_stage_of(settings.stages, inputs[name]) for name in ("pool", "gold")]
        if found[0] is not None and found[1] is not None:
            pool, gold = (Store.open(stage.path, verify=False) for stage in found if stage)
            return Stores(pool, gold)
    raise ValueError(
        f"the expansion of round {number} ({EXPANSION_FILES[0]}) or a store behind it is not in "
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
    stores = stores_of(settings, ledger, number)
    ids = sample_ids.from_hex(row["clip_id"] for row in candidates)
    scored = _predictions(stores.pool, ids, settings.tasks)
    index = read_index(data)
    title_of = dict(zip(index["id"].to_pylist(), sample_ids.texts(index["title"]), strict=True))
    near = _Labelled.known(stores, ledger, number)
    done = {row["id"]: row for row in rendered.to_pylist()}
    questions = []
    for row, clip, predictions, vector in zip(
        candidates, sample_ids.to_bytes(ids), scored, stores.pool.vectors(ids), strict=True
    ):
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
                        clip_id=other.hex(),
                        title=title_of.get(other, "") if titles else "",
                        similarity=alike,
                        labels=near.labels[other],
                    )
                    for other, alike in near.nearest(vector, neighbours)
                ),
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


@dataclass(frozen=True)
class _Labelled:
    """Labelled clips whose vectors are at hand.

    Attributes:
        ids: (L,) S16, ascending.
        vectors: (L, D) float32.
        labels: id -> task -> label.
    """

    ids: IdArray
    vectors: npt.NDArray[np.float32]
    labels: dict[bytes, dict[str, int]]

    @classmethod
    def known(cls, stores: Stores, ledger: Ledger, number: int) -> _Labelled:
        """Clips of the pool and gold clips that had a label before a round, of anybody but a model.

        People who saw a model's pseudo-label beside what they judge would repeat it.
        """
        labels: dict[bytes, dict[str, int]] = {}
        for (clip, task), row in sorted(ledger.counted(number - 1, TRUSTED).items()):
            if row["label"] is not None:
                labels.setdefault(bytes.fromhex(clip), {})[task] = int(row["label"])
        wanted = sample_ids.from_bytes(sorted(labels))
        ids, vectors = [], []
        for store in (stores.pool, stores.gold):
            held = wanted[np.isin(wanted, store.ids)]
            ids.append(held)
            vectors.append(store.vectors(held))
        every, rows = np.unique(np.concatenate(ids), return_index=True)
        return cls(every, np.concatenate(vectors)[rows], labels)

    def nearest(self, vector_D: npt.NDArray[np.float32], count: int) -> list[tuple[bytes, float]]:
        """The most similar ones, by (-similarity, id)."""
        count = min(count, len(self.ids))
        if not count:
            return []
        # The float32 product proposes, the rescoring kernel decides.
        rough = self.vectors @ vector_D
        limit = np.partition(rough, -count)[-count] - 2 * proposal_error(len(vector_D))
        rows = np.flatnonzero(rough >= limit)
        exact = similarity(self.vectors[rows], vector_D[None])
        order = descending(exact, self.ids[rows])[:count]
        names = sample_ids.to_bytes(self.ids[rows[order]])
        return list(zip(names, map(float, exact[order]), strict=True))
