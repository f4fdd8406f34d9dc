"""What all arms of a run share: data, frozen tokens, whitening, and how a model is made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from launch.jobs.launcher import launched_training
from launch.stages.annotators import HandOffConfig
from launch.stages.clips import measured_clips
from launch.stages.data_set import require_labelled_pool
from launch.stages.run_folder import RunFolder
from launch.stages.settings import Settings
from lsb.artifact import Stage
from vlmae.data.index import read_index
from vlmae.data.prefix_cache import Prefix, PrefixCache, cache_prefix
from vlmae.data.token_source import CachedTokens, in_source
from vlmae.data.whitened import WhitenedTokens, keep_whitened
from vlmae.data.whitening import whiten
from vlmae.evaluation import evaluate
from vlmae.growing.config import Growing
from vlmae.towers import build_towers
from vlmae.training import Training

Say = Callable[[str], None]


@dataclass(frozen=True)
class Shared:
    """What all arms read.

    Attributes:
        data: the prepared data set.
        source: frozen tokens of all its clips, from their cache.
        whitened: whitening of the tokens, fitted on unlabelled clips.
        tokens: what models read: the same as `source`, or its whitened tokens where they are kept.
        truth: id, key, split and `label_<task>` of every clip that can be decoded.
        seconds: what these stages cost.
        labels: hash of the table of labels that came with the media; empty for composed clips.
    """

    data: Stage
    source: CachedTokens
    whitened: Stage
    tokens: CachedTokens
    truth: pa.Table
    seconds: dict[str, float]
    labels: str = ""


def prepare_shared(settings: Settings, folder: RunFolder, say: Say) -> Shared:
    """Prepare the data and compute the frozen tokens, or reuse both."""
    say("prepare")
    data = settings.data.prepared(settings.stages)
    truth = settings.data.truth(data, settings.tasks, measured=settings.clips.measured)
    asks = settings.rounds > 0 or settings.growing.on
    if settings.data.composed is None and asks and not isinstance(settings.oracle, HandOffConfig):
        require_labelled_pool(settings.data, truth, read_index(data))
    folder.use(data)  # what is refused by now has no folder
    say("cache")
    towers = build_towers(settings.vl, settings.audio)
    if towers.uncacheable:
        raise ValueError(
            f"a round trains from caches, and this cannot be cached: {towers.uncacheable}; "
            "vlmae.train trains live"
        )
    made = cache_prefix(settings.stages, prefix_of(settings, data))
    assert made is not None, "one share of one is the whole cache"
    cache = folder.use(made)
    source = CachedTokens(PrefixCache(cache))
    whitened = folder.use(
        whiten(
            settings.stages,
            source,
            components=int(settings.model["components"]),
            splits=settings.whitening["splits"],
            clips=settings.whitening["clips"],
        )
    )
    tokens = source
    if settings.whitening["keep_tokens"]:
        processes = settings.prefix.processes
        kept = keep_whitened(settings.stages, source, whitened, processes=processes)
        tokens = WhitenedTokens(source.cache, folder.use(kept))
    truth = in_source(truth, source)  # nobody can label what cannot be decoded
    seconds = {"prepare": data.seconds, "cache": cache.seconds, "whiten": whitened.seconds}
    return Shared(data, source, whitened, tokens, truth, seconds, settings.data.labels_hash())


def prefix_of(settings: Settings, data: Stage) -> Prefix:
    """What the frozen tokens of a data set are made of, by which their cache is found."""
    return Prefix(
        data,
        settings.vl,
        settings.audio,
        settings.decode,
        settings.prefix,
        settings.data.storage_options,
    )


def train_stage(
    settings: Settings,
    shared: Shared,
    labelled: pa.Table,
    gold: pa.Table,
    growing: Growing | None = None,
) -> Stage:
    """Train on labels; gold labels choose the operating thresholds only."""
    return launched_training(
        settings.stages,
        Training(
            source=shared.tokens,
            whitened=shared.whitened,
            labelled=labelled,
            validation=gold,
            model=settings.model,
            objective=settings.objective,
            optimizer=settings.optimizer,
            config=settings.train,
            loader=settings.loader,
            strategy=settings.strategy,
            logs=settings.runs / "logs",
            logger=settings.logger,
            skip_limit=settings.prefix.skip_limit,
            growing=growing,
        ),
    )


def evaluate_stage(settings: Settings, shared: Shared, trained: Stage) -> Stage:
    """Measure a checkpoint on the clips that `clips.measured` names."""
    return evaluate(
        settings.stages,
        shared.tokens,
        trained,
        test=measured_clips(settings, shared.truth),
        config=settings.evaluate,
    )
