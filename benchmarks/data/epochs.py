"""An epoch of training from the cache against the fastest live epoch, and when a cache pays."""

from __future__ import annotations

import itertools
import logging
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import lightning
import numpy as np
import pyarrow as pa
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from benchmarks.data.bench import Bench, finished
from benchmarks.measure import Row, Table, Timing, clocked, rates
from benchmarks.report import number
from lsb import ids as sample_ids
from vlmae.checkpoint import CHECKPOINT, build_model, load_checkpoint
from vlmae.data.batches import CachedClips, LiveClips
from vlmae.data.decode import DecodePolicy, why_torchcodec_fails
from vlmae.data.loader import ClipLoader
from vlmae.data.order import BatchOrder, OrderConfig
from vlmae.data.prefix_cache import cache_prefix
from vlmae.data.token_source import LiveTokens
from vlmae.data.whitening import read_whitening
from vlmae.model import VlmaeModel
from vlmae.module import VlmaeModule
from vlmae.objectives import build_objective
from vlmae.prediction import Predictions, predict_clips
from vlmae.tuning import tuning_config

NAME = "epochs"
TOLERANCE = 2e-3
WANTED = 20
AVT_SMALL = 6_000  # clips


@dataclass(frozen=True)
class Setting:
    """How a live epoch is made."""

    backend: str
    workers: int
    threads: int

    def __str__(self) -> str:
        return f"{self.backend}, {self.workers} workers, {self.threads} threads"


def run(bench: Bench) -> list[Table]:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
    labelled = bench.labelled()
    builds, clips = _builds(bench)
    probe = labelled.slice(0, 8 if bench.quick else 96)
    paths = {str(one): partial(_live, bench, probe, one) for one in live_ways(bench)}
    _live(bench, probe.slice(0, 8), live_ways(bench)[0])  # what is made once: cache, whitening
    turns = bench.time(paths, 1, warm=False)
    tried = rates(NAME, "", turns, str(live_ways(bench)[0]), "clips/s")
    fastest = max(tried, key=lambda row: row.value)
    best = next(one for one in live_ways(bench) if str(one) == fastest.what)
    search = (
        f"Fastest of {len(tried)} ways to train live on {probe.num_rows} labels: "
        + "; ".join(f"{row.what} {number(row.value)}/s" for row in tried)
        + "."
    )
    peer = f"live ({best})"
    epochs = _compare(bench, labelled, best, peer)
    live, cached = epochs
    gain = live.value - cached.value
    rows = list(epochs)
    for case, factor in (
        (f"cache of this data set, {clips} clips", 1.0),
        (f"the same for the {AVT_SMALL:,} clips of avt_small", AVT_SMALL / clips),
    ):
        seconds = [factor * build.wall for build in builds]
        cpu = factor * statistics.median(build.cpu for build in builds)
        wall = statistics.median(seconds)
        spread = (min(seconds), max(seconds))
        turns_made = len(builds)
        rows += [
            Row(NAME, case, "build", wall, *spread, "s", "", None, turns_made, wall, cpu),
            Row(
                NAME,
                case,
                "paid for itself after",
                wall / gain,
                spread[0] / gain,
                spread[1] / gain,
                "epochs",
                repeats=turns_made,
            ),
        ]
    verdict = "yes" if cached.ratio is not None and cached.ratio >= WANTED else "NO"
    return [
        Table(
            NAME,
            f"an epoch of training cross-attention on {labelled.num_rows} labels",
            f"{bench.described}; {bench.settings.decode.frames} frames; cache in "
            f"{bench.settings.prefix.dtype}, {bench.cached.cache.bytes_per_clip / 1e3:.1f} kB a "
            "clip, built by "
            f"{bench.settings.prefix.processes} processes",
            f"the fastest live epoch: {best}; torch {torch.__version__}, lightning "
            f"{lightning.__version__}",
            "speed relative to the live epoch",
            rows,
            [
                f"At least {WANTED} times as fast as the fastest live epoch: {verdict} "
                f"({number(cached.ratio or 0.0)}x).",
                search,
                "paid for itself after: seconds to build, start of processes included, / (live "
                "epoch - cached epoch). For 6,000 clips the seconds are scaled, not measured. "
                "Whitening, evaluation and embedding read the same cache and are not counted.",
                _agreement(bench, labelled),
            ],
        )
    ]


def live_ways(bench: Bench) -> list[Setting]:
    """All ways to make a live epoch that are tried."""
    loads = ["pyav"] if why_torchcodec_fails() else ["pyav", "torchcodec"]
    if bench.quick:
        return [Setting(loads[0], 0, 1), Setting(loads[-1], 1, 1)]
    threads = sorted({1, bench.cores})
    return [
        Setting(backend, workers, count)
        for backend, workers, count in itertools.product(loads, (0, 1, 2), threads)
    ]


def _builds(bench: Bench) -> tuple[list[Timing], int]:
    """Times of building the cache of all clips, each in a new folder."""
    turns: list[Timing] = []
    for turn in range(bench.turns(2)):
        root = bench.scratch / f"cache-{turn}"
        with clocked(turns, 1):
            stage = finished(cache_prefix(root, bench.prefix))
    return turns, stage.counts["clips"]


def _compare(bench: Bench, labelled: pa.Table, best: Setting, peer: str) -> list[Row]:
    """Seconds of a live and a cached epoch, in turns."""
    turns: dict[str, list[Timing]] = {peer: [], "cached": []}
    for _ in range(bench.turns(3)):
        loader = live_loader(bench, labelled, best)
        turns[peer] += fit_epochs(bench, loader, 1, best.threads, live=True)[0]
        loader = cached_loader(bench, labelled)
        found, _ = fit_epochs(bench, loader, 2 if bench.quick else 11, 1, live=False)
        turns["cached"].append(_median(found[1:]))  # the first has Lightning's own start
    case = f"{labelled.num_rows} labels"
    rows = []
    for name, timings in turns.items():
        values = [timing.wall for timing in timings]
        pairs = zip(timings, turns[peer], strict=True)
        rows.append(
            Row(
                NAME,
                case,
                name,
                statistics.median(values),
                min(values),
                max(values),
                "s",
                peer,
                statistics.median(other.wall / own.wall for own, other in pairs),
                len(timings),
                statistics.median(values),
                statistics.median(timing.cpu for timing in timings),
            )
        )
    return rows


def _median(epochs: Sequence[Timing]) -> Timing:
    return Timing(
        statistics.median(epoch.wall for epoch in epochs),
        statistics.median(epoch.cpu for epoch in epochs),
        1,
    )


def _live(bench: Bench, labelled: pa.Table, setting: Setting) -> int:
    fit_epochs(bench, live_loader(bench, labelled, setting), 1, setting.threads, live=True)
    return labelled.num_rows


def live_loader(bench: Bench, labelled: pa.Table, setting: Setting) -> ClipLoader:
    """Batches of clips that are decoded when they are asked for."""
    policy: DecodePolicy = replace(bench.settings.decode, backend=setting.backend)  # type: ignore[arg-type]
    source = LiveClips(
        bench.data.path,
        labelled,
        bench.labels(labelled),
        policy=policy,
        sample_rate=bench.towers.sample_rate,
    )
    return ClipLoader(source, _order(bench, labelled.num_rows), workers=setting.workers)


def cached_loader(bench: Bench, labelled: pa.Table) -> ClipLoader:
    """The same batches from the cache."""
    cache = bench.cached.cache
    rows = cache.rows_of(sample_ids.from_arrow(labelled["id"]))
    source = CachedClips(cache, rows, bench.labels(labelled))
    return ClipLoader(source, _order(bench, len(rows)))


def _order(bench: Bench, clips: int) -> BatchOrder:
    size = min(bench.settings.train.batch_size, clips)
    return BatchOrder(clips, world=1, config=OrderConfig(size))


class _Clock(Callback):
    """Wall and CPU seconds of every epoch; the first begins with the fit."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the loader is asked for anything."""
        self._mark()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last step of an epoch."""
        self._mark()

    def _mark(self) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))


def fit_epochs(
    bench: Bench, loader: ClipLoader, epochs: int, threads: int, *, live: bool
) -> tuple[list[Timing], VlmaeModel]:
    """Train with the parts that `vlmae.training` trains with; a time for each epoch.

    Args:
        bench: settings, towers, whitening.
        loader: closed at the end.
        epochs: how many.
        threads: of torch.
        live: whether it gives clips and not tokens.
    """
    settings = bench.settings
    torch.set_num_threads(threads)
    model = build_model(settings.model, bench.cached.towers)
    model.set_whitening(read_whitening(bench.whitened))
    module = VlmaeModule(
        model,
        build_objective(settings.objective, list(settings.tasks)),
        settings.optimizer,
        epochs * loader.order.steps(),
        bench.towers if live else None,
        tuning=tuning_config(settings.model.get("tuning")),
    )
    clock = _Clock()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        use_distributed_sampler=False,
        deterministic=True,
        gradient_clip_val=settings.optimizer.clip_norm,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        logger=False,
        callbacks=[clock],
        default_root_dir=bench.scratch,
    )
    whole: list[Timing] = []
    with clocked(whole, epochs):
        trainer.fit(module, loader)
        loader.close()
    torch.set_num_threads(1)
    # Workers' seconds are known when they have ended: they are dealt to all epochs alike.
    own = clock.marks[-1][1] - clock.marks[0][1]
    elsewhere = max(0.0, whole[0].cpu - own) / epochs if loader.workers else 0.0
    timings = [
        Timing(after[0] - before[0], after[1] - before[1] + elsewhere, 1)
        for before, after in itertools.pairwise(clock.marks)
    ]
    return timings, model


def _agreement(bench: Bench, labelled: pa.Table) -> str:
    """Largest differences between the outputs of one model from the cache and from the media."""
    ids = sample_ids.from_arrow(labelled["id"])[: 16 if bench.quick else 256]
    cached = bench.cached
    model = load_checkpoint(bench.trained.path / CHECKPOINT, cached.identities).model
    stored, found = predict_clips(model, cached, ids)
    fresh, also = predict_clips(model, LiveTokens(bench.prefix), ids)
    if not (found == also).all():
        raise ValueError("the cache and the media hold different clips")
    logits = _furthest(stored, fresh, ("logits", "vl_logits", "audio_logits"))
    probabilities = _furthest(stored, fresh, ("probability", "vl_probability", "audio_probability"))
    within = "yes" if max(logits, probabilities) <= TOLERANCE else "NO"
    return (
        f"Outputs from the cache and live, {len(ids)} clips, all heads: within {TOLERANCE:g}: "
        f"{within} (largest difference of logits {logits:.1e}, of probabilities "
        f"{probabilities:.1e})."
    )


def _furthest(a: Predictions, b: Predictions, names: Sequence[str]) -> float:
    return max(float(np.abs(getattr(a, name) - getattr(b, name)).max()) for name in names)
