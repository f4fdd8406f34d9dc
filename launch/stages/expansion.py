"""The expansion stage: `lsb.expand` over a pool's store, every table of its answer written."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from launch.jobs.launcher import made_by_tasks
from lsb import ids as sample_ids
from lsb.artifact import Counts, Part, Stage, fingerprint, read_json, run_stage
from lsb.expand import ExpandConfig, Find
from lsb.expansion_files import (
    CARRIED_FILE,
    CURVE_FILES,
    EXPANSION_FILES,
    RECALL_FILE,
    expand_stores,
    expansion_files,
    identity_of,
    write_expansion,
)
from lsb.ids import IdArray
from lsb.media_hashes import MediaHashes
from lsb.search.array import STAGE as SEARCH_STAGE
from lsb.search.array import search_by_waves
from lsb.search.exact import search
from vlmae.data.media_hashes import read_media_hashes

__all__ = [
    "CARRIED_FILE",
    "CURVE_FILES",
    "EXPANSION_FILES",
    "RECALL_FILE",
    "expand_stage",
    "identity_of",
    "read_threshold",
]

REVISION = 2  # raise it when an expansion writes other files or bytes for the same config


def expand_stage(
    root: Path,
    pool: Stage,
    gold: Stage,
    *,
    gold_labels: pa.Table,
    thresholds: Mapping[str, float],
    config: ExpandConfig,
    round: int,
    exclude: IdArray,
    index: Stage | None = None,
    media: Stage | None = None,
) -> Stage:
    """Choose the clips of one round, or reuse an equal choice.

    Args:
        root: folder of all stages.
        pool: store of the pool, of the model that chooses.
        gold: store of the gold clips, of the same model.
        gold_labels: id, key, `label_<task>`; the model was not trained on these clips.
        thresholds: task -> operating threshold of the model.
        config: acquisition, seeds, LT, search, selection.
        round: number of the round whose labels are chosen.
        exclude: ids of clips that are labelled.
        index: of the pool, where the search is approximate.
        media: hashes of all clips' media, where equal media are near duplicates.

    Returns:
        A stage with the files `EXPANSION_FILES`, see `lsb.expand.Expansion`, `CURVE_FILES` where LT
        is calibrated, `RECALL_FILE` where the search is approximate, `SEED_THRESHOLD_FILE` where LT
        is scaled, and `CARRIED_FILE` where labels are carried.
    """
    files = expansion_files(config, indexed=index is not None)
    others = {} if index is None else {"index": index.content}
    if media is not None:
        others["media"] = media.content
    work = partial(
        _write_expansion,
        pool.path,
        gold.path,
        None if index is None else index.path,
        None if media is None else media.path,
        gold_labels,
        thresholds,
        config,
        round,
        exclude,
        partial(search_by_waves, root) if made_by_tasks(SEARCH_STAGE) else search,
    )
    return run_stage(
        root,
        "expand",
        config={
            "expand": identity_of(config),
            "round": round,
            "thresholds": dict(thresholds),
        },
        inputs={
            "pool": pool.content,
            "gold": gold.content,
            "labelled": fingerprint(sample_ids.to_hex(exclude)),
            "gold labels": fingerprint(gold_labels.to_pylist()),
            **others,
        },
        parts=[Part("candidates", files, work)],
        revision=REVISION,
    )


def read_threshold(stage: Stage) -> dict[str, Any] | None:
    """LT of an expansion as a dictionary, None for none."""
    threshold: dict[str, Any] | None = read_json(stage.path / "threshold.json")["threshold"]
    return threshold


def _write_expansion(
    pool: Path,
    gold: Path,
    index: Path | None,
    media: Path | None,
    labels: pa.Table,
    thresholds: Mapping[str, float],
    config: Any,
    number: int,
    exclude: IdArray,
    find: Find,
    output: Path,
) -> Counts:
    """Expand over the pool's store and write every table of the answer."""
    expansion = expand_stores(
        pool,
        gold,
        labels=labels,
        thresholds=thresholds,
        config=config,
        round=number,
        exclude=exclude,
        index=index,
        media=None if media is None else MediaHashes(read_media_hashes(media)),
        find=find,
    )
    write_expansion(expansion, config, output, indexed=index is not None)
    return expansion.counts
