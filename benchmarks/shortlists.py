"""What each shortlist brings before anything is scored: `python -m benchmarks.shortlists`.

The data, tokens and labels are those of an experiment (avt_policy unless another is named; its
overrides follow): the first labels of a seed and the gold clips are known, and each method names as
many clips of the pool as a scoring budget holds. Prints the share of positives of each task among
them, the mean over seeds with the smallest and the largest. No model is trained.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from launch.stages.clips import first_clips, gold_clips
from launch.stages.known import known_clips
from launch.stages.run_folder import RunFolder
from launch.stages.settings import Settings
from launch.stages.shared import prepare_shared
from launch.stages.shortlist import embed_frozen
from lsb import ids as sample_ids
from lsb.ids import IdArray
from lsb.labelled import label_array
from lsb.shortlist.config import ShortlistConfig
from lsb.shortlist.known import Known
from lsb.shortlist.proxy import by_proxy
from lsb.shortlist.streams import stream_lookalikes
from lsb.store import Store
from lsb.threshold import ThresholdConfig
from lsb.views import Views, fit_views
from vlmae.config import compose_config
from vlmae.embedding import pooled_widths

NO_LT = ThresholdConfig(mode="none")
BASE = ShortlistConfig(limited="streams", share=0.02)


def by_chance(store: Store, views: Views, first: Known, gold: Known, task: str, n: int) -> IdArray:
    """Clips by their ids, which are hashes."""
    return np.setdiff1d(store.ids, np.union1d(first.ids, gold.ids))[:n]


def by_cosine(store: Store, views: Views, first: Known, gold: Known, task: str, n: int) -> IdArray:
    """The clips nearest to any labelled positive, whole vectors compared as they are stored."""
    seeds = np.concatenate([known.vectors[known.labels[task] == 1] for known in (first, gold)])
    similarity = np.concatenate(
        [(seeds @ part.vectors().astype(np.float32).T).max(axis=0) for part in store.parts]
    )
    similarity[np.isin(store.ids, np.union1d(first.ids, gold.ids))] = -np.inf
    return store.ids[np.argsort(-similarity, kind="stable")[:n]]


def decorrelated(
    store: Store, views: Views, first: Known, gold: Known, task: str, n: int
) -> IdArray:
    """The same, whole vectors decorrelated: one view that holds all streams end to end."""
    whole = fit_views(store, {"whole": store.dimension}, shrinkage=BASE.shrinkage)
    return by_streams(store, whole, first, gold, task, n, config=replace(BASE, negatives=0))


def by_streams(
    store: Store,
    views: Views,
    first: Known,
    gold: Known,
    task: str,
    n: int,
    *,
    config: ShortlistConfig = BASE,
) -> IdArray:
    """Lookalikes in the view that the labels choose."""
    table, _ = stream_lookalikes(
        store,
        views,
        first,
        gold,
        NO_LT,
        config,
        count=n,
        task_weights={task: 1.0},
        exclude=sample_ids.sample_ids([]),
    )
    return sample_ids.from_arrow(table["id"])


def by_heads(
    store: Store, views: Views, first: Known, gold: Known, task: str, n: int, *, whiten: bool
) -> IdArray:
    """The clips that a logistic head on pooled vectors is least sure of."""
    table = by_proxy(
        store,
        np.concatenate([first.ids, gold.ids]),
        np.concatenate([first.vectors, gold.vectors]),
        {task: np.concatenate([first.labels[task], gold.labels[task]])},
        {task: 1.0},
        n,
        penalty=BASE.penalty,
        exclude=np.union1d(first.ids, gold.ids),
        views=views if whiten else None,
    )
    return sample_ids.from_arrow(table["id"])


METHODS: dict[str, Callable[..., IdArray]] = {
    "by chance": by_chance,
    "cosine of whole vectors": by_cosine,
    "whole vectors, decorrelated": decorrelated,
    "streams, no negatives": partial(by_streams, config=replace(BASE, negatives=0)),
    "streams": by_streams,
    "proxy": partial(by_heads, whiten=False),
    "proxy, streams whitened": partial(by_heads, whiten=True),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.shortlists")
    parser.add_argument("--experiment", default="avt_policy")
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--clips", type=int, default=480, help="named for each task")
    parser.add_argument("overrides", nargs="*", help="of the experiment")
    options = parser.parse_args()
    overrides = [f"experiment={options.experiment}", "name=shortlists", *options.overrides]
    settings = [
        Settings.from_config(compose_config("round", [*overrides, f"seed={seed}"]))
        for seed in options.seeds.split(",")
    ]
    shared = prepare_shared(settings[0], RunFolder(settings[0].folder, {}), _tell)
    store, first_store, gold_store = (
        Store.open(embed_frozen(settings[0], shared, split).path, verify=False)
        for split in ("pool", "first", "gold")
    )
    views = fit_views(store, pooled_widths(shared.source), shrinkage=BASE.shrinkage)
    tasks = sorted(settings[0].tasks)
    truth = {task: _positives(shared.truth, task) for task in tasks}
    found: dict[tuple[str, str], list[float]] = {}
    for one in settings:
        known = known_clips(first_clips(one, shared.truth), [store, first_store], tasks)
        gold = known_clips(gold_clips(one, shared.truth), [gold_store], tasks)
        for name, method in METHODS.items():
            for task in tasks:
                ids = sample_ids.to_bytes(method(store, views, known, gold, task, options.clips))
                share = float(np.mean([clip in truth[task] for clip in ids]))
                found.setdefault((name, task), []).append(share)
    table = Table(title=f"positives among {options.clips} clips of the pool, in %")
    for column in ("method", *tasks):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name in METHODS:
        cells = [100 * np.asarray(found[name, task]) for task in tasks]
        table.add_row(name, *(f"{c.mean():.1f} [{c.min():.0f},{c.max():.0f}]" for c in cells))
    Console().print(table)


def _positives(truth: pa.Table, task: str) -> set[bytes]:
    positive = label_array(truth, task) == 1
    ids = sample_ids.to_bytes(sample_ids.from_arrow(truth["id"]))
    return {name for name, yes in zip(ids, positive, strict=True) if yes}


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
