"""One expansion from stores on disk to files on disk: what a round asks for, and why.

The stage of a round (`launch.stages.expansion`) and a training that grows (`vlmae.growing`) both go
through here, so that equal stores give equal files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lsb import ids as sample_ids
from lsb.expand import ExpandConfig, Expansion, Find, expand
from lsb.files import write_json
from lsb.ids import IdArray
from lsb.labelled import Labelled, with_probabilities
from lsb.lookalike_plot import plot_precision
from lsb.media_hashes import MediaHashes
from lsb.search.config import NOT_HASHED, SearchConfig
from lsb.search.exact import search
from lsb.search.faiss_index import open_index
from lsb.store import Store

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


def expansion_files(config: ExpandConfig, *, indexed: bool = False) -> tuple[str, ...]:
    """Names of the files that `write_expansion` writes."""
    curve = CURVE_FILES if is_calibrated(config) else ()
    return (
        *EXPANSION_FILES,
        *curve,
        *([RECALL_FILE] if indexed else []),
        *([SEED_THRESHOLD_FILE] if is_scaled(config) else []),
        *([CARRIED_FILE] if config.selection.carry_labels else []),
    )


def is_calibrated(config: ExpandConfig) -> bool:
    """Whether LT is calibrated, and read."""
    return config.threshold.mode == "calibrated" and config.broadening.total > 0


def is_scaled(config: ExpandConfig) -> bool:
    """Whether each seed has an LT of its own."""
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


def expand_stores(
    pool: Path,
    gold: Path,
    *,
    labels: pa.Table,
    thresholds: Mapping[str, float],
    config: ExpandConfig,
    round: int,
    exclude: IdArray,
    index: Path | None = None,
    media: MediaHashes | None = None,
    find: Find = search,
    verify: bool = True,
) -> Expansion:
    """Expand over a pool's store, with gold clips from a store of the same model.

    Args:
        pool: folder of the pool's store.
        gold: folder of a store that holds the gold clips.
        labels: id, key, `label_<task>` of the gold clips; the model was not trained on them.
        thresholds: task -> operating threshold of the model.
        config: acquisition, seeds, LT, search, selection.
        round: number of the round whose labels are chosen.
        exclude: ids of clips that are labelled.
        index: folder of an index of the pool, where the search is approximate.
        media: hashes of all clips' media, where equal media are near duplicates.
        find: see `lsb.expand.expand`.
        verify: read both stores whole first, and check their hashes.
    """
    gold_store = Store.open(gold, verify=verify)
    ids = sample_ids.from_arrow(labels["id"])
    labels = with_probabilities(labels, gold_store, thresholds)
    labelled = Labelled.from_table(labels, gold_store.vectors(ids), thresholds)
    store = Store.open(pool, verify=verify)
    return expand(
        store,
        labelled,
        config,
        round=round,
        exclude=exclude,
        index=None if index is None else open_index(index, store),
        media=media,
        find=find,
    )


def write_expansion(
    expansion: Expansion, config: ExpandConfig, output: Path, *, indexed: bool = False
) -> None:
    """Write every table of an expansion, the files of `expansion_files`."""
    for name in ("candidates", "seeds", "hits", "dropped"):
        pq.write_table(getattr(expansion, name), output / f"{name}.parquet")
    threshold = asdict(expansion.threshold) if expansion.threshold else None
    told: dict[str, Any] = {"threshold": threshold, "refusal": expansion.refusal}
    if expansion.scaling is not None:
        told["scaling"] = asdict(expansion.scaling)
    write_json(output / "threshold.json", told)
    if is_scaled(config):
        pq.write_table(expansion.seed_thresholds, output / SEED_THRESHOLD_FILE)
    if config.selection.carry_labels:
        pq.write_table(expansion.carried, output / CARRIED_FILE)
    if is_calibrated(config):
        table, picture = (output / name for name in CURVE_FILES)
        pq.write_table(expansion.curve, table)
        plot_precision(
            picture,
            expansion.curve,
            target=config.threshold.target,
            threshold=expansion.threshold,
            scaled=expansion.scaling is not None,
        )
    if indexed:
        found = expansion.approximate
        write_json(output / RECALL_FILE, None if found is None else found.evidence())
