"""Copies of clips in a round: hashes of the media, what must not be asked, labels that go on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from launch.stages.clips import measured_clips, of_split
from launch.stages.expansion import CARRIED_FILE
from launch.stages.settings import Settings
from launch.stages.shared import Shared
from lsb.artifact import Stage
from lsb.carried import carried_annotations
from lsb.ids import IdArray, from_arrow
from lsb.ledger import Ledger
from vlmae.data.media_hashes import hash_media


def media_of(
    settings: Settings, shared: Shared, run: Callable[[str, Callable[[], Stage]], Stage]
) -> Stage | None:
    """Hashes of all media, where equal ones are near duplicates.

    Args:
        settings: of the arm.
        shared: its data.
        run: called with the name of the stage and what makes it.
    """
    if not settings.expand.selection.media_hashes:
        return None
    hashed = partial(
        hash_media,
        settings.stages,
        shared.data,
        processes=settings.prefix.processes,
        storage_options=settings.data.storage_options,
    )
    return run("media", hashed)


def excluded_clips(settings: Settings, shared: Shared, labelled: IdArray) -> IdArray:
    """Clips that may not be asked for: labelled ones, and measured ones where copies are known.

    These are in no pool, but a copy of one may be, and it must not be trained on.
    """
    if not settings.expand.selection.media_hashes:
        return labelled
    measured = [of_split(shared.truth, "test"), measured_clips(settings, shared.truth)]
    return np.unique(np.concatenate([labelled, *(from_arrow(table["id"]) for table in measured)]))


def with_carried(settings: Settings, ledger: Ledger, expansion: Stage, labelled: Stage) -> pa.Table:
    """A round's labels, and those that near duplicates get from them.

    Args:
        settings: of the arm.
        ledger: of the arm; tells which labels are gold.
        expansion: that chose the clips.
        labelled: the stage with their `annotations.parquet`.
    """
    annotations = pq.read_table(labelled.path / "annotations.parquet")
    if not settings.expand.selection.carry_labels:
        return annotations
    copies = pq.read_table(expansion.path / CARRIED_FILE)
    return pa.concat_tables([annotations, carried_annotations(copies, annotations, ledger.gold())])
