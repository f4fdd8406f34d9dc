"""The stores that a round chooses from: everything scored, a shortlist scored, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from launch.stages.expansion import identity_of
from launch.stages.known import inputs_of, known_clips
from launch.stages.recorded import expansion_of
from launch.stages.settings import Settings
from launch.stages.shared import Shared
from launch.stages.stream_shortlist import (
    SHORTLIST_FILE,
    read_task_thresholds,
    stream_shortlist_stage,
)
from lsb import ids as sample_ids
from lsb.acquisition.broadening_config import BroadeningConfig
from lsb.artifact import Counts, Part, Stage, fingerprint, open_stage, run_stage, write_json
from lsb.expand import ExpandConfig
from lsb.expansion_files import is_calibrated
from lsb.ids import IdArray
from lsb.labelled import Labelled, with_probabilities
from lsb.ledger import Round, TaskThreshold
from lsb.lookalike_plot import plot_precision
from lsb.shortlist.config import EVERY, UNSCORED
from lsb.shortlist.lookalikes import lookalikes
from lsb.shortlist.shortlist import shortlist
from lsb.shortlist.table import SHORTLIST
from lsb.store import Store
from lsb.threshold import ThresholdConfig
from lsb.views import fit_views
from vlmae.embedding import EmbedConfig, Scoring, embed_fused, embed_pooled, pooled_widths

LOOKALIKES, STREAMS = "lookalikes", "streams"
THRESHOLD_FILE = "threshold.json"
CURVE_FILE, PLOT_FILE = "lookalikes.parquet", "lookalikes.png"
"""Beside a shortlist of lookalikes: LT in pooled space, and the evidence it was calibrated on, the
picture where it was calibrated."""
DRAWN = 2  # revision of shortlists with a picture; those without have the bytes they always had
NO_SEEDS = BroadeningConfig(entropy=0, confident_error=0)
Run = Callable[[str, Callable[[], Stage]], Stage]
"""Runs one stage under a name, as the clock of a round does."""


@dataclass(frozen=True)
class Choice:
    """What a round chooses from.

    Attributes:
        pool: store of the clips that may be chosen.
        gold: store of the gold clips, of the same kind.
        thresholds: task -> operating threshold; empty where nothing is scored.
        expand: how to choose among them.
        shortlist: stage of the shortlist; None where there is none.
    """

    pool: Stage
    gold: Stage
    thresholds: Mapping[str, float]
    expand: ExpandConfig
    shortlist: Stage | None = None

    @property
    def broadened(self) -> Stage | None:
        """The stage with the LT of seeds that were searched in pooled space; None for none."""
        listed = self.shortlist
        return listed if listed and (listed.path / THRESHOLD_FILE).is_file() else None

    @property
    def task_thresholds(self) -> tuple[TaskThreshold, ...]:
        """LT of each task, where seeds were searched stream by stream; else none."""
        return read_task_thresholds(self.shortlist) if self.shortlist else ()


def choice(
    settings: Settings,
    shared: Shared,
    trained: Stage,
    *,
    thresholds: Mapping[str, float],
    labelled: pa.Table,
    gold: pa.Table,
    exclude: IdArray,
    number: int,
    run: Run,
) -> Choice:
    """Embed what the round may score.

    Args:
        settings: of the arm.
        shared: data and tokens.
        trained: the model that chooses.
        thresholds: its operating thresholds.
        labelled: training set.
        gold: gold labels.
        exclude: ids that are labelled.
        number: of the round whose labels are chosen.
        run: runs a stage.

    Raises:
        ValueError: nothing is scored, but the arm reads scores.
    """
    config = settings.shortlist
    if config.method == EVERY:
        pool, held = (
            run("embed", partial(embed_scored, settings, shared, trained, split, None))
            for split in ("pool", "gold")
        )
        return Choice(pool, held, thresholds, settings.expand)
    if config.method == UNSCORED:
        _require_unscored(settings)
        pool, held = (
            run("pooled", partial(embed_frozen, settings, shared, split))
            for split in ("pool", "gold")
        )
        return Choice(pool, held, {}, settings.expand)
    gold_ids = np.sort(sample_ids.from_arrow(gold["id"]))
    held = run("embed", partial(embed_scored, settings, shared, trained, "gold", gold_ids))
    if config.method == LOOKALIKES:
        make = partial(lookalikes_stage, gold=gold, scored=held, thresholds=thresholds)
    elif config.method == STREAMS:
        make = partial(_streams, gold=gold)
    else:
        make = partial(shortlist_stage)
    listed = run("shortlist", partial(make, settings, shared, labelled, exclude, number, run))
    ids = sample_ids.from_arrow(pq.read_table(listed.path / SHORTLIST_FILE, columns=["id"])["id"])
    pool = run("embed", partial(embed_scored, settings, shared, trained, "pool", ids))
    return Choice(pool, held, thresholds, expand_of(settings), listed)


def expand_of(settings: Settings) -> ExpandConfig:
    """How a round chooses among what may be chosen.

    What was broadened in pooled space is not broadened again: the acquisition's order chooses.

    Args:
        settings: of the arm, `Settings.in_round`.
    """
    if settings.shortlist.method in (LOOKALIKES, STREAMS):
        none = ThresholdConfig(mode="none")
        return replace(settings.expand, broadening=NO_SEEDS, threshold=none)
    return settings.expand


def broadened_of(settings: Settings, held: Round) -> Stage | None:
    """The stage with the LT of a recorded round, see `Choice.broadened`; None if it was deleted.

    Args:
        settings: of the arm, `Settings.in_round`.
        held: the round.
    """
    expanded = expansion_of(settings.stages, held, expand_of(settings))
    if expanded is None or settings.shortlist.method != LOOKALIKES:
        return expanded
    wanted = {"round": held.round, "expand": fingerprint(identity_of(settings.expand))}
    for file in sorted(settings.stages.glob("shortlist-*/manifest.json")):
        stage = open_stage(file.parent, verify=False)
        config: Mapping[str, Any] = stage.manifest["config"]
        same = "expand" in config and wanted == {
            "round": config["round"],
            "expand": fingerprint(config["expand"]),
        }
        # Both rest on the gold clips as the model scored them.
        if same and stage.manifest["inputs"]["scored"] == expanded.manifest["inputs"]["gold"]:
            return stage
    return None


def with_provenance(candidates: pa.Table, listed: Stage) -> pa.Table:
    """Candidates with what brought each of them into the shortlist.

    Args:
        candidates: schema `lsb.selection.CHOSEN`, of a choice among a shortlist.
        listed: the shortlist.
    """
    table = pq.read_table(listed.path / SHORTLIST_FILE)
    row = {name: index for index, name in enumerate(table["id"].to_pylist())}
    brought = table.take([row[name] for name in candidates["id"].to_pylist()])
    for name in SHORTLIST.names[2:]:
        if name != "reason":
            place = candidates.schema.get_field_index(name)
            column = brought[name].cast(candidates.schema.field(name).type)
            candidates = candidates.set_column(place, candidates.schema.field(name), column)
    return candidates


def shortlist_stage(
    settings: Settings,
    shared: Shared,
    labelled: pa.Table,
    exclude: IdArray,
    number: int,
    run: Run,
) -> Stage:
    """The shortlist of a round, or an equal one: `shortlist.parquet`."""
    config, weights = settings.shortlist, dict(settings.expand.acquisition.task_weights)
    pool, first = (
        run("pooled", partial(embed_frozen, settings, shared, split)) for split in ("pool", "first")
    )
    budget = settings.expand.selection.budget
    widths = pooled_widths(shared.source) if settings.shortlist.whiten else {}
    stores = (pool.path, first.path)
    work = partial(_write, settings, stores, widths, labelled, exclude, number, budget)
    return run_stage(
        settings.stages,
        "shortlist",
        config={"shortlist": config.identity(), "weights": weights, "round": number, "of": budget},
        inputs={**inputs_of(labelled, exclude), "pool": pool.content, "first": first.content},
        parts=[Part("shortlist", (SHORTLIST_FILE,), work)],
    )


def lookalikes_stage(
    settings: Settings,
    shared: Shared,
    labelled: pa.Table,
    exclude: IdArray,
    number: int,
    run: Run,
    *,
    gold: pa.Table,
    scored: Stage,
    thresholds: Mapping[str, float],
) -> Stage:
    """The shortlist of an arm that broadens: `shortlist.parquet`, LT, and its evidence.

    Args:
        settings: of the arm.
        shared: data and tokens.
        labelled: training set.
        exclude: ids that are labelled.
        number: of the round.
        run: runs a stage.
        gold: gold labels.
        scored: the gold clips as the model scores them, which was not trained on them.
        thresholds: operating thresholds of the model.
    """
    stores = _pooled(settings, shared, run)
    paths = {split: stage.path for split, stage in stores.items()}
    work = partial(
        _write_lookalikes,
        settings,
        paths,
        scored.path,
        dict(thresholds),
        labelled,
        gold,
        exclude,
        number,
    )
    files = lookalike_files(settings)
    return run_stage(
        settings.stages,
        "shortlist",
        config={
            "shortlist": settings.shortlist.identity(),
            "expand": identity_of(settings.expand),
            "thresholds": dict(thresholds),
            "round": number,
        },
        inputs={
            **inputs_of(labelled, exclude),
            **{split: stage.content for split, stage in stores.items()},
            "gold labels": fingerprint(gold.to_pylist()),
            "scored": scored.content,
        },
        parts=[Part("shortlist", files, work)],
        revision=DRAWN if PLOT_FILE in files else 1,
    )


def lookalike_files(settings: Settings) -> tuple[str, ...]:
    """Names of the files of a shortlist of lookalikes; without a calibrated LT nothing is drawn."""
    picture = (PLOT_FILE,) if is_calibrated(settings.expand) else ()
    return (SHORTLIST_FILE, THRESHOLD_FILE, CURVE_FILE, *picture)


def _streams(
    settings: Settings,
    shared: Shared,
    labelled: pa.Table,
    exclude: IdArray,
    number: int,
    run: Run,
    *,
    gold: pa.Table,
) -> Stage:
    stores = _pooled(settings, shared, run)
    return stream_shortlist_stage(settings, shared, stores, labelled, exclude, number, gold=gold)


def _pooled(settings: Settings, shared: Shared, run: Run) -> dict[str, Stage]:
    return {
        split: run("pooled", partial(embed_frozen, settings, shared, split))
        for split in ("pool", "first", "gold")
    }


def embed_scored(
    settings: Settings, shared: Shared, trained: Stage, split: str, only: IdArray | None
) -> Stage:
    """Vectors and scores of a split, or of some of its clips, by the model that chooses.

    Passes with dropout are made where the acquisition reads them: of the pool.
    """
    passes = settings.expand.acquisition.dropout_samples if split == "pool" else 0
    stage = embed_fused(
        settings.stages,
        shared.tokens,
        trained,
        EmbedConfig(split, threads=settings.train.threads),
        Scoring(
            inputs=settings.train.inputs,
            seed=settings.train.seed,
            dropout_samples=passes,
            only=only,
        ),
    )
    assert stage is not None, "one share of one is the whole store"
    return stage


def embed_frozen(settings: Settings, shared: Shared, split: str) -> Stage:
    """Pooled vectors of a split: of the frozen towers, computed once."""
    config = EmbedConfig(split, threads=settings.train.threads)
    stage = embed_pooled(settings.stages, shared.source, config)
    assert stage is not None, "one share of one is the whole store"
    return stage


def _require_unscored(settings: Settings) -> None:
    expand = settings.expand
    if expand.broadening.total or expand.acquisition.reads_scores:
        raise ValueError(
            f"arm {settings.arm!r} reads scores, but shortlist.limited=pooled scores nothing: use "
            "shortlist=all or lookalikes with it, or acquisition=random, core_set or typiclust "
            "and broadening=none"
        )


def _write(
    settings: Settings,
    stores: tuple[Path, Path],
    widths: Mapping[str, int],
    labelled: pa.Table,
    exclude: IdArray,
    number: int,
    budget: int,
    output: Path,
) -> Counts:
    store, first = (Store.open(path, verify=False) for path in stores)
    config, weights = settings.shortlist, settings.expand.acquisition.task_weights
    known = known_clips(labelled, [store, first], list(weights))
    views = None
    if config.whiten:
        views = fit_views(store, widths, shrinkage=config.shrinkage, seed=config.seed)
    table = shortlist(
        store,
        known,
        config,
        count=config.clips(len(store), budget),
        task_weights=weights,
        exclude=exclude,
        round=number,
        views=views,
    )
    pq.write_table(table, output / SHORTLIST_FILE)
    return {"clips": table.num_rows}


def _write_lookalikes(
    settings: Settings,
    stores: Mapping[str, Path],
    scored: Path,
    thresholds: Mapping[str, float],
    labelled: pa.Table,
    gold: pa.Table,
    exclude: IdArray,
    number: int,
    output: Path,
) -> Counts:
    pool, first, held = (
        Store.open(stores[split], verify=False) for split in ("pool", "first", "gold")
    )
    ids = sample_ids.from_arrow(gold["id"])
    gold = with_probabilities(gold, Store.open(scored, verify=False), thresholds)
    table, found = lookalikes(
        pool,
        Labelled.from_table(gold, held.vectors(ids), thresholds),
        known_clips(labelled, [pool, first], list(settings.expand.acquisition.task_weights)),
        settings.expand,
        settings.shortlist,
        count=settings.shortlist.clips(len(pool), settings.expand.selection.budget),
        exclude=exclude,
        round=number,
    )
    pq.write_table(table, output / SHORTLIST_FILE)
    pq.write_table(found.curve, output / CURVE_FILE)
    threshold = asdict(found.threshold) if found.threshold else None
    write_json(output / THRESHOLD_FILE, {"threshold": threshold, "refusal": found.refusal})
    if PLOT_FILE in lookalike_files(settings):
        plot_precision(
            output / PLOT_FILE,
            found.curve,
            target=settings.expand.threshold.target,
            threshold=found.threshold,
            scaled=found.scaling is not None,
        )
    counts = {name: found.counts[name] for name in found.counts if name.startswith("seeds_")}
    return {"clips": table.num_rows, "lookalikes": found.counts["lookalike"], **counts}
