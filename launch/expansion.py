"""The expansion stage: `lsb.expand` over a pool's store, every table of its answer written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lsb import ids as sample_ids
from lsb.artifact import Counts, Part, Stage, fingerprint, read_json, run_stage, write_json
from lsb.expand import ExpandConfig, expand
from lsb.ids import IdArray
from lsb.labelled import PROBABILITY, Labelled
from lsb.lookalike_plot import plot_precision
from lsb.media_hashes import MediaHashes
from lsb.search.config import NOT_HASHED, SearchConfig
from lsb.search.faiss_index import open_index
from lsb.store import Store
from vlmae.data.media_hashes import read_media_hashes

REVISION = 2  # raise it when an expansion writes other files or bytes for the same config
EXPANSION_FILES = (
    "candidates.parquet",
    "seeds.parquet",
    "hits.parquet",
    "dropped.parquet",
    "threshold.json",
)
SEED_THRESHOLD_FILE = "seed_thresholds.parquet"
"""Written beside them where LT is scaled: density and LT of every seed."""
CARRIED_FILE = "carried.parquet"
"""Written beside them where labels are carried to near duplicates: which clips, from which."""
CURVE_FILES = ("lookalikes.parquet", "lookalikes.png")
"""Written beside them where LT is calibrated: precision against similarity, and its picture."""
RECALL_FILE = "recall.json"
"""Written beside them where the search is approximate: what it found of the exact result."""


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
    files = [*EXPANSION_FILES]
    if _is_calibrated(config):
        files += CURVE_FILES
    if index is not None:
        files.append(RECALL_FILE)
    if _is_scaled(config):
        files.append(SEED_THRESHOLD_FILE)
    if config.selection.carry_labels:
        files.append(CARRIED_FILE)
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
        parts=[Part("candidates", tuple(files), work)],
        revision=REVISION,
    )


def _is_calibrated(config: ExpandConfig) -> bool:
    return config.threshold.mode == "calibrated" and config.broadening.total > 0


def _is_scaled(config: ExpandConfig) -> bool:
    return config.threshold.scaling != "none" and config.broadening.total > 0


def identity_of(config: ExpandConfig) -> dict[str, Any]:
    """What of the settings can change a result; of an index everything may."""
    values = {**asdict(config)}
    for group in ("acquisition", "broadening", "threshold", "selection"):
        values[group] = getattr(config, group).identity()
    if type(config.search) is SearchConfig:
        for name in NOT_HASHED:
            del values["search"][name]
    return values


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
    output: Path,
) -> Counts:
    """Expand over the pool's store and write every table of the answer."""
    gold_store = Store.open(gold, verify=True)
    ids = sample_ids.from_arrow(labels["id"])
    columns = [PROBABILITY + task for task in thresholds]
    scored = gold_store.take(ids, columns)
    for name in columns:
        labels = labels.append_column(name, scored[name].cast(pa.float64()))
    labelled = Labelled.from_table(labels, gold_store.vectors(ids), thresholds)
    store = Store.open(pool, verify=True)
    expansion = expand(
        store,
        labelled,
        config,
        round=number,
        exclude=exclude,
        index=None if index is None else open_index(index, store),
        media=None if media is None else MediaHashes(read_media_hashes(media)),
    )
    for name in ("candidates", "seeds", "hits", "dropped"):
        pq.write_table(getattr(expansion, name), output / f"{name}.parquet")
    threshold = asdict(expansion.threshold) if expansion.threshold else None
    told: dict[str, Any] = {"threshold": threshold, "refusal": expansion.refusal}
    if expansion.scaling is not None:
        told["scaling"] = asdict(expansion.scaling)
    write_json(output / "threshold.json", told)
    if _is_scaled(config):
        pq.write_table(expansion.seed_thresholds, output / SEED_THRESHOLD_FILE)
    if config.selection.carry_labels:
        pq.write_table(expansion.carried, output / CARRIED_FILE)
    if _is_calibrated(config):
        table, picture = (output / name for name in CURVE_FILES)
        pq.write_table(expansion.curve, table)
        plot_precision(
            picture,
            expansion.curve,
            target=config.threshold.target,
            threshold=expansion.threshold,
            scaled=expansion.scaling is not None,
        )
    if index is not None:
        found = expansion.approximate
        write_json(output / RECALL_FILE, None if found is None else found.evidence())
    return expansion.counts
