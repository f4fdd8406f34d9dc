"""What a training reads: its manifest, the batches of a rank, and the clips that validate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from lsb import ids as sample_ids
from lsb.ids import IdArray
from vlmae.data.batches import CachedClips, LiveClips
from vlmae.data.encode import QUARANTINE_SCHEMA
from vlmae.data.labels import WEIGHT, label_matrix, labels_fingerprint
from vlmae.data.loader import ClipLoader
from vlmae.data.order import BatchOrder
from vlmae.data.token_source import CachedTokens, LiveTokens, TokenSource, in_source
from vlmae.objectives import Objective
from vlmae.towers import build_towers
from vlmae.validation import ValidationClips

if TYPE_CHECKING:
    from vlmae.training import Training

PLACE = ("split", "shard", "offset", "size", "duration_s")


@dataclass(frozen=True)
class TrainingSet:
    """The clips of a training, all by id.

    Attributes:
        asked: all that are labelled, with their weights.
        labelled: those of them that can be decoded, as far as the source knows.
        manifest: the same, with where each lies.
    """

    asked: pa.Table
    labelled: pa.Table
    manifest: pa.Table


def training_set(training: Training, labelled: pa.Table) -> TrainingSet:
    """The training set of some labels, see `vlmae.data.labels`.

    Raises:
        ValueError: no clip can be decoded, or one is not in the data set.
    """
    asked = training.loader.weighted(labelled, training.tasks)
    usable = in_source(asked, training.source)
    if usable.num_rows == 0:
        raise ValueError(
            f"none of the {asked.num_rows} labelled clips can be decoded: label clips of this data "
            "set"
        )
    return TrainingSet(asked, usable, with_places(usable, training.source.index))


def with_places(labelled: pa.Table, index: pa.Table) -> pa.Table:
    """A training set as manifest: where each clip lies is added to it."""
    order = np.argsort(sample_ids.from_arrow(index["id"]), kind="stable")
    ids = sample_ids.from_arrow(index["id"])[order]
    rows = order[np.searchsorted(ids, sample_ids.from_arrow(labelled["id"]))]
    for column in PLACE:
        labelled = labelled.append_column(column, index[column].take(rows))
    return labelled


def training_loader(training: Training, manifest: pa.Table, objective: Objective) -> ClipLoader:
    """Batches of this rank.

    Args:
        training: what is trained on what.
        manifest: of `with_places`.
        objective: whose loss terms are counted for every step.
    """
    config = training.config
    clips = _clips(training, manifest)
    labels = label_matrix(manifest, training.tasks)
    shards, offsets = np.array(manifest["shard"].to_pylist()), manifest["offset"].to_numpy()
    places = np.empty(len(shards), np.int64)
    places[np.lexsort((offsets, shards))] = np.arange(len(shards))
    order = BatchOrder(
        len(clips),
        world=training.ranks.size,
        config=training.loader.order(config.batch_size, config.seed, config.accumulate),
        weights=manifest[WEIGHT].to_numpy(),
        lengths=manifest["duration_s"].to_numpy(),
        places=places,
    )
    return ClipLoader(
        clips,
        order,
        rank=training.ranks.rank,
        workers=training.loader.workers,
        prefetch=training.loader.prefetch,
        data=labels_fingerprint(manifest, training.tasks),
        terms=objective.terms(torch.from_numpy(labels)).numpy(),
    )


def validation_clips(training: Training) -> ValidationClips | None:
    """Validation batches of this rank; None if it does not validate or there is no such clip."""
    table = in_source(training.validation, training.source)
    if not training.config.validate_every or not table.num_rows:
        return None
    return ValidationClips(
        _clips(training, with_places(table, training.source.index)),
        table.num_rows,
        batch_size=training.config.batch_size,
        rank=training.ranks.rank,
        world=training.ranks.size,
        workers=training.loader.workers,
        prefetch=training.loader.prefetch,
    )


def _clips(training: Training, manifest: pa.Table) -> CachedClips | LiveClips:
    """The clips of a manifest, from the cache or from the media."""
    config, source = training.config, training.source
    labels = label_matrix(manifest, training.tasks)
    if isinstance(source, LiveTokens):
        if config.inputs != "both":
            raise ValueError(
                f"trainer.inputs={config.inputs} needs cached tokens: run python -m vlmae.cache "
                "first"
            )
        towers = build_towers(source.towers["vl"], source.towers["audio"])
        return LiveClips(
            source.prefix.data.path,
            manifest,
            labels,
            policy=source.prefix.policy,
            sample_rate=towers.sample_rate,
            storage_options=source.prefix.storage_options,
        )
    if isinstance(source, CachedTokens):
        rows = source.cache.rows_of(sample_ids.from_arrow(manifest["id"]))
        return CachedClips(source.cache, rows, labels, config.inputs, config.seed)
    raise TypeError(f"no batches from a {type(source).__name__}")


def known_bad(asked: pa.Table, source: TokenSource) -> pa.Table:
    """Quarantine of the labelled clips that a cache has left out."""
    if not isinstance(source, CachedTokens):
        return QUARANTINE_SCHEMA.empty_table()
    quarantine = source.cache.quarantine()
    ids: IdArray = sample_ids.from_arrow(quarantine["id"])
    held = np.isin(ids, sample_ids.from_arrow(asked["id"]))
    return quarantine.take(np.flatnonzero(held))
