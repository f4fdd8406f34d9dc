"""Which clips of a data set are labelled first, are gold, and are measured."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from launch.stages.settings import Settings
from lsb import ids as sample_ids
from lsb.acquisition.random import uniform
from lsb.order import descending


def of_split(truth: pa.Table, split: str) -> pa.Table:
    """Rows of one split, with the source under which their labels are known."""
    kept = [index for index, name in enumerate(truth["split"].to_pylist()) if name == split]
    rows = truth.take(kept)
    source = pa.array(["gold"] * rows.num_rows, pa.string())
    return rows.drop_columns(["split"]).append_column("source", source)


def first_clips(settings: Settings, truth: pa.Table) -> pa.Table:
    """Clips that are labelled before the first round: the split first, or drawn from it and pool.

    Raises:
        ValueError: fewer clips than `clips.first`.
    """
    first, wanted = of_split(truth, "first"), settings.clips.first
    if wanted is None:
        return first
    every = pa.concat_tables([first, of_split(truth, "pool")])
    if every.num_rows < wanted:
        raise ValueError(
            f"clips.first is {wanted}, the splits first and pool have {every.num_rows} clips: give "
            "fewer, or null for the split first"
        )
    ids = sample_ids.from_arrow(every["id"])
    drawn = descending(uniform(ids, "first labels", settings.train.seed), ids)[:wanted]
    return every.take(np.sort(drawn))


def gold_clips(settings: Settings, truth: pa.Table) -> pa.Table:
    """Gold clips that are labelled; never trained on."""
    gold = of_split(truth, "gold")
    return gold if settings.clips.gold is None else by_id(gold).slice(0, settings.clips.gold)


def measured_clips(settings: Settings, truth: pa.Table) -> pa.Table:
    """Clips the model is measured on: the test, or gold clips that are not labelled.

    Raises:
        ValueError: no gold clip is left.
    """
    if settings.clips.measured == "test":
        return of_split(truth, "test")
    rest = by_id(of_split(truth, "gold")).slice(settings.clips.gold or 0)
    if not rest.num_rows:
        raise ValueError(
            f"clips.measured is development, but clips.gold is {settings.clips.gold} and the split "
            "has no more: set data.gold higher or clips.gold lower"
        )
    return rest


def by_id(table: pa.Table) -> pa.Table:
    """A table of clips in the order of their ids, which are hashes."""
    return table.take(np.argsort(sample_ids.from_arrow(table["id"]), kind="stable"))
