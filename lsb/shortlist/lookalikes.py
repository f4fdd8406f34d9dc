"""Lookalikes as a shortlist: LSB-LT in pooled space, whose hits the fused model then scores.

The seeds are labelled: held-out clips by the arm's mix, and positives of the training set. What the
model is unsure of in the pool is not known before anything is scored; held-out clips that it is
unsure of stand in for that.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from lsb.acquisition.broadening_config import TRAINING_KIND, BroadeningConfig
from lsb.acquisition.config import AcquisitionConfig
from lsb.acquisition.random import uniform
from lsb.acquisition.seeds import SEEDS
from lsb.acquisition.uncertainty import normalised_weights
from lsb.expand import ExpandConfig, Expansion, SeedsBeside, expand
from lsb.ids import IdArray, to_arrow
from lsb.labelled import Labelled
from lsb.order import descending
from lsb.selection_config import SelectionConfig
from lsb.shortlist.config import ShortlistConfig
from lsb.shortlist.known import Known
from lsb.shortlist.table import SHORTLIST
from lsb.store import Store


def lookalikes(
    store: Store,
    held_out: Labelled,
    known: Known,
    arm: ExpandConfig,
    config: ShortlistConfig,
    *,
    count: int,
    exclude: IdArray,
    round: int,
) -> tuple[pa.Table, Expansion]:
    """The lookalikes of an arm's seeds in pooled space, then others by chance.

    Args:
        store: pooled vectors of the pool.
        held_out: gold clips with pooled vectors and out-of-sample predictions of the fused model.
        known: the training set, in pooled space.
        arm: whose seeds, LT, search and order of neighbours are used.
        config: of the shortlist.
        count: clips wanted.
        exclude: ids to leave out.
        round: of data growth.

    Returns:
        Schema `lsb.shortlist.table.SHORTLIST`, and the expansion that it was taken from.

    Raises:
        ValueError: see `lsb.expand.expand`.
    """
    mix = in_pooled_space(arm.broadening)
    weights = dict(arm.acquisition.task_weights)
    chance = AcquisitionConfig("random", task_weights=weights, seed=config.seed)
    selection = SelectionConfig(
        budget=count,
        per_seed_cap=config.per_seed,
        rank=arm.selection.rank,
        per_cluster_cap=arm.selection.per_cluster_cap,
        clusters=arm.selection.clusters,
        candidates=arm.selection.candidates,
    )
    expansion = expand(
        store,
        held_out,
        replace(arm, acquisition=chance, broadening=mix, selection=selection),
        round=round,
        exclude=np.union1d(exclude, known.ids),
        beside=training_positives(known, mix, weights, seed=config.seed, round=round),
    )
    chosen = expansion.candidates
    columns = [chosen[name] for name in SHORTLIST.names if name != "reason"]
    reason = [
        "lookalike" if kind == "lookalike" else "seed" if kind == "seed" else "random"
        for kind in chosen["reason"].to_pylist()
    ]
    return pa.table([*columns, pa.array(reason, pa.string())], schema=SHORTLIST), expansion


def in_pooled_space(mix: BroadeningConfig) -> BroadeningConfig:
    """A seed mix without uncertain pool clips: unsure held-out clips take their places."""
    return replace(mix, entropy=0, unsure=mix.unsure + mix.entropy)


def training_positives(
    known: Known,
    mix: BroadeningConfig,
    task_weights: dict[str, float],
    *,
    seed: int,
    round: int,
) -> SeedsBeside | None:
    """Positives of the training set, drawn by chance, shared between tasks in proportion.

    Returns:
        None where none are wanted, or there are none.
    """
    shares = normalised_weights(task_weights)
    rows: list[tuple[str, int]] = []
    for task in sorted(shares):
        positive = np.flatnonzero(known.labels[task] == 1)
        drawn = descending(
            uniform(known.ids[positive], "training positives", seed, round), known.ids[positive]
        )
        wanted = int(np.ceil(shares[task] * mix.training_positive))
        rows += [(task, int(row)) for row in positive[drawn[:wanted]]]
    if not rows:
        return None
    number = np.asarray([row for _, row in rows])
    count = len(rows)
    table = pa.table(
        [
            to_arrow(known.ids[number]),
            pa.array([known.keys[row] for row in number], pa.string()),
            pa.array([task for task, _ in rows], pa.string()),
            pa.array([TRAINING_KIND] * count, pa.string()),
            pa.array(np.full(count, mix.training_positive_weight)),
            pa.array(np.ones(count)),
            pa.array(np.ones(count, np.int8)),
        ],
        schema=SEEDS,
    )
    ids, first = np.unique(known.ids[number], return_index=True)
    return SeedsBeside(table, ids, known.vectors[number[first]])
