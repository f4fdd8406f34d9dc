"""The shortlist of an arm that compares clips stream by stream, as a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from launch.stages.known import inputs_of, known_clips
from launch.stages.settings import Settings
from launch.stages.shared import Shared
from lsb import ids as sample_ids
from lsb.artifact import Counts, Part, Stage, fingerprint, read_json, run_stage, write_json
from lsb.ids import IdArray
from lsb.ledger import TaskThreshold
from lsb.ledger.task_threshold import NONE, REFUSED
from lsb.lookalike_plot import plot_precision
from lsb.shortlist.shortlist import filled
from lsb.shortlist.streams import TaskView, stream_lookalikes
from lsb.store import Store
from lsb.views import Views, fit_views
from vlmae.embedding import pooled_widths

REVISION = 2  # raise it when a shortlist has other clips for the same config
SHORTLIST_FILE = "shortlist.parquet"
VIEWS_FILE = "views.json"
"""Of each task: the view that was searched, the bounds of all views, and LT or its refusal."""
CURVE_FILE = "lookalikes.parquet"
"""Of all tasks: the evidence of LT, schema `lsb.threshold.CURVE` behind a column `task`."""


def stream_shortlist_stage(
    settings: Settings,
    shared: Shared,
    stores: Mapping[str, Stage],
    labelled: pa.Table,
    exclude: IdArray,
    number: int,
    *,
    gold: pa.Table,
) -> Stage:
    """`shortlist.parquet`, `views.json`, and where LT is calibrated its evidence.

    The evidence is `lookalikes.parquet` and a picture a task, `lookalikes-<task>.png`.

    Args:
        settings: of the arm.
        shared: data and tokens.
        stores: "pool", "first" and "gold" -> pooled vectors.
        labelled: training set.
        exclude: ids that are labelled.
        number: of the round.
        gold: gold labels.
    """
    paths = {split: stage.path for split, stage in stores.items()}
    work = partial(_write, settings, shared, paths, labelled, gold, exclude, number)
    expand = settings.expand
    return run_stage(
        settings.stages,
        "shortlist",
        config={
            "shortlist": settings.shortlist.identity(),
            "threshold": expand.threshold.identity(),
            "weights": dict(expand.acquisition.task_weights),
            "of": expand.selection.budget,
            "round": number,
        },
        inputs={
            **inputs_of(labelled, exclude),
            "gold labels": fingerprint(gold.to_pylist()),
            **{split: stage.content for split, stage in stores.items()},
        },
        parts=[Part("shortlist", (SHORTLIST_FILE, VIEWS_FILE, *_evidence_files(settings)), work)],
        revision=REVISION,
    )


def read_task_thresholds(stage: Stage) -> tuple[TaskThreshold, ...]:
    """LT of every task of a shortlist made stream by stream, by task; none of another shortlist."""
    if not (stage.path / VIEWS_FILE).is_file():
        return ()
    calibrated = stage.manifest["config"]["threshold"]["mode"] == "calibrated"
    told = read_json(stage.path / VIEWS_FILE)
    return tuple(_task_threshold(one, calibrated) for one in sorted(told, key=_task))


def _task_threshold(told: Mapping[str, Any], calibrated: bool) -> TaskThreshold:
    task, view, refusal = told["task"], "+".join(told["view"]), told["refusal"]
    if told["threshold"] is not None:
        return TaskThreshold(task, view, refusal=refusal, **told["threshold"])
    # Without a positive there is nothing to compare with, whether LT is wanted or not.
    return TaskThreshold(task, view, REFUSED if calibrated else NONE, refusal=refusal)


def _task(told: Mapping[str, Any]) -> str:
    return str(told["task"])


def _evidence_files(settings: Settings) -> tuple[str, ...]:
    if settings.expand.threshold.mode != "calibrated":
        return ()
    weights = settings.expand.acquisition.task_weights
    tasks = sorted(task for task, weight in weights.items() if weight > 0)
    return (CURVE_FILE, *(f"lookalikes-{task}.png" for task in tasks))


@lru_cache(maxsize=2)
def _views(pool: Path, widths: tuple[tuple[str, int], ...], shrinkage: float, seed: int) -> Views:
    """Of a pool's stage, whose name tells its content: rounds of a run have the same one."""
    store = Store.open(pool, verify=False)
    return fit_views(store, dict(widths), shrinkage=shrinkage, seed=seed)


def _write(
    settings: Settings,
    shared: Shared,
    stores: Mapping[str, Path],
    labelled: pa.Table,
    gold: pa.Table,
    exclude: IdArray,
    number: int,
    output: Path,
) -> Counts:
    pool, first, held = (
        Store.open(stores[split], verify=False) for split in ("pool", "first", "gold")
    )
    config, weights = settings.shortlist, dict(settings.expand.acquisition.task_weights)
    widths = tuple(pooled_widths(shared.source).items())
    views = _views(stores["pool"], widths, config.shrinkage, config.seed)
    count = config.clips(len(pool), settings.expand.selection.budget)
    table, told = stream_lookalikes(
        pool,
        views,
        known_clips(labelled, [pool, first], list(weights)),
        known_clips(gold, [held], list(weights)),
        settings.expand.threshold,
        config,
        count=count - round(config.chance * count),
        task_weights=weights,
        exclude=exclude,
    )
    lookalikes = table.num_rows
    taken = np.union1d(exclude, sample_ids.from_arrow(gold["id"]))
    table = filled(pool, table, count, exclude=taken, seed=config.seed, round=number)
    pq.write_table(table, output / SHORTLIST_FILE)
    write_json(output / VIEWS_FILE, [one.as_dict() for one in told])
    if _evidence_files(settings):
        _write_evidence(told, settings.expand.threshold.target, output)
    seeds = {f"seeds_{one.task}": one.seeds for one in told}
    return {"clips": table.num_rows, "lookalikes": lookalikes, **seeds}


def _write_evidence(told: Sequence[TaskView], target: float, output: Path) -> None:
    tables = [
        one.curve.add_column(0, "task", pa.array([one.task] * one.curve.num_rows, pa.string()))
        for one in told
    ]
    pq.write_table(pa.concat_tables(tables), output / CURVE_FILE)
    for one in told:
        picture = output / f"lookalikes-{one.task}.png"
        plot_precision(picture, one.curve, target=target, threshold=one.threshold)
