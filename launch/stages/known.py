"""Labelled clips in pooled space, from whichever store holds them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from lsb import ids as sample_ids
from lsb.artifact import fingerprint
from lsb.ids import IdArray
from lsb.labelled import label_array
from lsb.shortlist.known import Known
from lsb.store import Store


def known_clips(labelled: pa.Table, stores: Sequence[Store], tasks: Sequence[str]) -> Known:
    """Labelled clips with their vectors; a clip that was taken down since is in no store.

    Args:
        labelled: id, key, and `label_<task>` of each task.
        stores: of one kind; the first that holds a clip gives its vector.
        tasks: names.
    """
    ids = sample_ids.from_arrow(labelled["id"])
    vectors = np.empty((len(ids), stores[0].dimension), np.float32)
    waiting = np.ones(len(ids), np.bool_)
    for store in stores:
        held = np.flatnonzero(waiting & np.isin(ids, store.ids))
        vectors[held] = store.vectors(ids[held])
        waiting[held] = False
    kept = np.flatnonzero(~waiting)
    labels = {task: label_array(labelled, task)[kept] for task in tasks}
    keys = sample_ids.texts(labelled["key"])
    return Known(ids[kept], [keys[row] for row in kept], vectors[kept], labels)


def inputs_of(labelled: pa.Table, exclude: IdArray) -> dict[str, str]:
    """What a shortlist rests on beside stores: the training set, and the ids it leaves out."""
    return {
        "labelled": fingerprint(labelled.to_pylist()),
        "exclude": fingerprint(sample_ids.to_hex(np.sort(exclude))),
    }
