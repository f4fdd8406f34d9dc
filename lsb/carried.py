"""Near duplicates that get their representative's label: a re-upload need not be asked about twice.

Only where `selection.carry_labels` says so: a copy of the same media under another title may have
another label in a task that reads titles.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import pyarrow as pa

from lsb.annotate import ANNOTATIONS
from lsb.annotate.carried import carried_labeller
from lsb.ids import ID_TYPE, IdArray, from_arrow, from_bytes, to_bytes
from lsb.media_hashes import UNKNOWN, MediaHashes
from lsb.order import member
from lsb.search.config import SearchConfig
from lsb.search.exact import search
from lsb.selection_config import SelectionConfig
from lsb.store import Store

CARRIED_FIELDS: dict[str, pa.DataType] = {
    "id": ID_TYPE,
    "key": pa.string(),
    "representative_id": ID_TYPE,
    "representative_key": pa.string(),
    "similarity": pa.float32(),
}
CARRIED = pa.schema(CARRIED_FIELDS)
"""`similarity` is null where both clips have the same media."""


def carried_clips(
    chosen: pa.Table,
    store: Store,
    config: SelectionConfig,
    search_config: SearchConfig,
    *,
    exclude: IdArray,
    media: MediaHashes | None,
) -> pa.Table:
    """All clips of the pool that are copies of a chosen one, whether or not their turn came.

    Near duplicates cost one exact search of the pool, for the chosen clips.

    Args:
        chosen: schema `lsb.selection.CHOSEN`.
        store: the pool.
        config: what counts as a copy.
        search_config: widths; a chosen clip has at most `max_neighbours` near duplicates.
        exclude: ids that get no label (labelled and gold clips).
        media: groups of clips with equal media, where they count.

    Returns:
        Schema `CARRIED`, by id. The representative has the same media, or else is the most similar
        chosen clip, the smaller id of several.
    """
    chosen_ids = from_arrow(chosen["id"])
    taken = np.unique(np.concatenate([exclude, chosen_ids]))
    found: dict[bytes, tuple[bytes, float | None]] = {}
    if config.near_duplicate is not None and len(chosen_ids):
        hits = search(
            chosen_ids,
            store.vectors(chosen_ids),
            store,
            search_config,
            lookalike_threshold=config.near_duplicate,
            exclude=taken,
        ).table
        # Hits are by (seed id, rank): the first of equals has the smaller id.
        for row in hits.select(["seed_id", "id", "similarity"]).to_pylist():
            held = found.get(row["id"])
            if held is None or row["similarity"] > (held[1] or -1.0):
                found[row["id"]] = (row["seed_id"], row["similarity"])
    if media is not None and config.media_hashes:
        in_pool = np.sort(store.ids)
        names = to_bytes(chosen_ids)
        for name, group in zip(names, media.groups(chosen_ids).tolist(), strict=True):
            if group != UNKNOWN:
                members = media.members(group)
                free = member(members, in_pool) & ~member(members, taken)
                found |= dict.fromkeys(to_bytes(members[free]), (name, None))
    ids = sorted(found)
    keys = dict(zip(to_bytes(chosen_ids), chosen["key"].to_pylist(), strict=True))
    rows = [
        {
            "id": name,
            "key": key,
            "representative_id": found[name][0],
            "representative_key": keys[found[name][0]],
            "similarity": found[name][1],
        }
        for name, key in zip(ids, store.keys(from_bytes(ids)), strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=CARRIED)


def carried_annotations(
    carried: pa.Table, annotations: pa.Table, gold: Container[tuple[str, str]]
) -> pa.Table:
    """The labels that go on to copies.

    A copy's label keeps the source of its representative's, and its labeller says from where it
    came, see `lsb.annotate.carried`. Gold labels go nowhere, and no item whose label is known gets
    one.

    Args:
        carried: schema `CARRIED`.
        annotations: schema `lsb.annotate.ANNOTATIONS`, of the representatives.
        gold: items (clip id in hexadecimal digits, task) whose label is known, see `Ledger.gold`.

    Returns:
        Schema `ANNOTATIONS`, ordered by (id, task, labeller).

    Raises:
        ValueError: two annotators labelled a representative; merge their answers first.
    """
    of_clip: dict[bytes, list[dict[str, object]]] = {}
    for row in annotations.to_pylist():
        if row["source"] != "gold" and (row["id"].hex(), row["task"]) not in gold:
            of_clip.setdefault(row["id"], []).append(row)
    rows = []
    for copy in carried.to_pylist():
        labels = of_clip.get(copy["representative_id"], [])
        tasks = [row["task"] for row in labels]
        if len(set(tasks)) < len(tasks):
            raise ValueError(
                f"clip {copy['representative_key']!r} has several labels of a task: merge them "
                "before they are carried to its copies"
            )
        for row in labels:
            if (copy["id"].hex(), row["task"]) not in gold:
                labeller = carried_labeller(copy["representative_id"])
                rows.append({**row, "id": copy["id"], "key": copy["key"], "labeller": labeller})
    rows.sort(key=lambda row: (row["id"], row["task"]))
    return pa.Table.from_pylist(rows, schema=ANNOTATIONS)
