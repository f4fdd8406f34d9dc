"""The embedding stages: clips of a split as a store, one part a shard.

Two kinds (design, contract 3). `pooled`: mean tokens of the frozen towers, computed once for every
clip; when shards are added, the parts of the others are linked. `fused`: the joint vector of one
checkpoint with the predictions of every head, for the clips that a round scores. Shards are
independent of each other: any number of processes share them and none waits for another. Given
seeds, each shard is searched while its vectors are at hand, and its part holds the lists too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from lsb import ids as sample_ids
from lsb.artifact import Counts, OnPart, Part, Stage, fingerprint, work_on_stage
from lsb.ids import IdArray
from lsb.search.codes import write_codes
from lsb.store import CODES_ENDING, DTYPES, ROW_FIELDS, part_files, write_part
from vlmae.calibration import Calibration
from vlmae.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint
from vlmae.data.prefix_cache import require_few_skipped
from vlmae.data.token_source import TokenSource, in_source
from vlmae.data.token_table import Rows, TokenTable, frozen_tokens, widths
from vlmae.devices import check_accelerator, device_of
from vlmae.part_keys import embed_key
from vlmae.prediction import Predictions, predict, prediction_columns
from vlmae.towers import build_suffix, build_towers

if TYPE_CHECKING:  # faiss is needed only where there are seeds
    from lsb.search.streaming import SeedSearch

REVISION = 2
CLIPS_AT_A_TIME = 64


@dataclass(frozen=True)
class EmbedConfig:
    """What is embedded, and how hard the machine works for it.

    Attributes:
        split: name of the split, e.g. "pool".
        dtype: of the vectors, "float32" or "float16".
        threads: torch threads of a process.
        processes: shards at a time.
        share: number and count of independent processes that share the shards.
        skip_limit: largest share of undecodable clips.
        accelerator: "cpu" or "gpu", where blocks behind the cut, fusion and heads run.
        codes: also keep int8 codes of the vectors, which spare a search most of its reading.
    """

    split: str
    dtype: str = "float32"
    threads: int = 1
    processes: int = 1
    share: tuple[int, int] = (0, 1)
    skip_limit: float = 1.0
    accelerator: str = "cpu"
    codes: bool = False

    def __post_init__(self) -> None:
        check_accelerator(self.accelerator, "embed.accelerator")
        if self.dtype not in DTYPES:
            raise ValueError(f"embed.dtype is {self.dtype!r}: use {' or '.join(DTYPES)}")
        if self.threads < 1 or self.processes < 1:
            raise ValueError(
                f"embed has threads {self.threads}, processes {self.processes}: give at least 1 "
                "each"
            )


@dataclass(frozen=True)
class Scoring:
    """How a checkpoint scores clips.

    Attributes:
        inputs: what it was trained on, see `TrainConfig.inputs`.
        seed: of shuffled audio and of dropout.
        dropout_samples: T passes with dropout, stored as `dropout_logit_<task>_<t>`.
        only: ids of the clips to score; None scores the whole split.
    """

    inputs: str = "both"
    seed: int = 0
    dropout_samples: int = 0
    only: IdArray | None = field(default=None)

    def __post_init__(self) -> None:
        if self.dropout_samples < 0:
            raise ValueError(
                f"embed.dropout_samples is {self.dropout_samples}: give 0 or more passes"
            )


Make = Callable[[str, Path], Counts]
Predict = Callable[[TokenTable, Rows], Predictions]


def embed_pooled(
    root: Path,
    source: TokenSource,
    config: EmbedConfig,
    on_part: OnPart | None = None,
    search: SeedSearch | None = None,
) -> Stage | None:
    """Embed a split with the frozen towers into a store of kind "pooled".

    A vector is the mean token of every stream, each L2-normalised, end to end, L2-normalised again;
    a stream that a clip lacks is zero. Where a tower has tuned blocks they are those as loaded.

    Args:
        root: folder of all stages.
        source: frozen tokens.
        config: split, dtype, parallelism.
        on_part: called after every shard.
        search: made of every shard while it is embedded; part of the stage's hash.

    Returns:
        A stage that `lsb.store.Store.open` reads; None while shards of other shares are missing.

    Raises:
        ValueError: the data set has no such split, or too many clips cannot be decoded.
    """
    work = partial(_embed_pooled_shard, source, config, search)
    return _embed(root, source, config, "pooled", {}, {}, work, on_part, search)


def pooled_widths(source: TokenSource) -> dict[str, int]:
    """Stream -> elements, in the order in which they lie in a vector of `embed_pooled`."""
    streams = widths(build_towers(source.towers["vl"], source.towers["audio"]).streams)
    return {name: streams[name] for name in sorted(streams)}


def pooled_vectors(
    source: TokenSource, ids: IdArray, threads: int = 1
) -> tuple[IdArray, npt.NDArray[np.float32]]:
    """Vectors of some clips as `embed_pooled` has them, without a store.

    Args:
        source: frozen tokens.
        ids: of the clips, in any order.
        threads: torch threads, which may decide the last bit.

    Returns:
        Those of the ids whose clips can be decoded, ascending, (N,) S16, and (N, D) float32.

    Raises:
        ValueError: a clip is not in the data set.
    """
    torch.set_num_threads(threads)
    suffix = build_suffix(source.towers["vl"], source.towers["audio"])
    found = [sample_ids.from_bytes([])]
    vectors = [np.zeros((0, sum(pooled_widths(source).values())), np.float32)]
    for table, rows in source.tables(np.unique(ids)):
        found.append(sample_ids.from_arrow(_clips(table, rows)["id"]))
        vectors.append(_pooled(source, table, rows, suffix))
    every, order = np.unique(np.concatenate(found), return_index=True)
    return every, _unit(np.concatenate(vectors)[order])


def embed_fused(
    root: Path,
    source: TokenSource,
    trained: Stage,
    config: EmbedConfig,
    scoring: Scoring | None = None,
    on_part: OnPart | None = None,
    search: SeedSearch | None = None,
) -> Stage | None:
    """Embed a split with a checkpoint into a store of kind "fused".

    Args:
        root: folder of all stages.
        source: frozen tokens.
        trained: a finished `train` stage.
        config: split, dtype, parallelism.
        scoring: which clips, with which inputs, and how often with dropout.
        on_part: called after every shard.
        search: made of every shard while it is embedded; part of the stage's hash.

    Returns:
        A stage that `lsb.store.Store.open` reads: L2-normalised vectors of the fused embedding;
        rows with `probability_<task>` and `logit_<task>` of the model and, with the prefixes `vl_`
        and `audio_`, of the two unimodal heads. None while shards of other shares are missing.

    Raises:
        ValueError: the data set has no such split or clip, too many clips cannot be decoded, or the
            checkpoint was trained on other towers.
    """
    scoring = scoring or Scoring()
    if scoring.only is not None:  # an unknown clip is refused, not left out
        in_source(pa.table({"id": sample_ids.to_arrow(scoring.only)}), source)
    settings = _settings_of(scoring)
    file = trained.path / CHECKPOINT
    work = partial(_embed_fused_shard, source, config, file, _ordered(scoring), search)
    inputs = {"train": trained.content}
    return _embed(root, source, config, "fused", settings, inputs, work, on_part, search)


def embed_predicted(
    root: Path,
    source: TokenSource,
    config: EmbedConfig,
    scoring: Scoring,
    score: Predict,
    tasks: list[str],
    inputs: dict[str, str],
    *,
    shards: list[str],
    dealt: Mapping[str, int],
) -> Stage | None:
    """As `embed_fused`, by a model that is at hand; equal weights give equal files.

    Args:
        root: folder of all stages.
        source: frozen tokens.
        config: split, dtype, threads; `share` says which rank of how many this is.
        scoring: which clips, with which inputs, and how often with dropout.
        score: called with the clips of one shard, as often as this rank makes parts.
        tasks: of the model.
        inputs: what the model is known by.
        shards: to embed.
        dealt: shard -> rank that embeds it.

    Returns:
        The store, on the rank that found it whole; None on the others.
    """
    settings = _settings_of(scoring)
    only = _ordered(scoring).only
    work = partial(_write_fused, source, config, only, score, tasks, None)
    return _embed(root, source, config, "fused", settings, inputs, work, None, None, shards, dealt)


def _ordered(scoring: Scoring) -> Scoring:
    """With ascending clips: sorted once, not by every shard."""
    return scoring if scoring.only is None else replace(scoring, only=np.sort(scoring.only))


def _settings_of(scoring: Scoring) -> dict[str, object]:
    """What of the scoring names a stage."""
    return {
        "inputs": scoring.inputs,
        "seed": scoring.seed,
        "dropout_samples": scoring.dropout_samples,
        "only": None if scoring.only is None else fingerprint(sample_ids.to_hex(scoring.only)),
    }


def _embed(
    root: Path,
    source: TokenSource,
    config: EmbedConfig,
    kind: str,
    settings: dict[str, object],
    inputs: dict[str, str],
    make: Make,
    on_part: OnPart | None,
    search: SeedSearch | None,
    shards: list[str] | None = None,
    dealt: Mapping[str, int] | None = None,
) -> Stage | None:
    shards = source.shards_of(config.split) if shards is None else shards
    if not shards:
        splits = sorted(set(sample_ids.texts(source.index["split"])))
        raise ValueError(f"no clip is in split {config.split!r}: the data set has {splits}")
    hashed = {"kind": kind, "dtype": config.dtype, "threads": config.threads, **settings}
    if config.accelerator != "cpu":
        hashed["accelerator"] = config.accelerator
    if config.codes:
        hashed["codes"] = True
    if search is not None:
        hashed["search"] = search.key
    stage = work_on_stage(
        root,
        "embed",
        config={**hashed, "split": config.split},
        inputs={**source.inputs, **inputs},
        parts=[
            Part(
                shard,
                (
                    *part_files(shard, config.codes),
                    f"{shard}.quarantine.parquet",
                    *(search.files(shard) if search is not None else ()),
                ),
                partial(make, shard),
                key=embed_key(hashed, inputs, source.shard_key(shard), shard, REVISION),
            )
            for shard in shards
        ],
        share=config.share,
        dealt=dealt,
        processes=config.processes,
        revision=REVISION,
        on_part=on_part,
    )
    if stage is not None:
        counts = {**stage.counts, "clips": stage.counts["rows"]}
        require_few_skipped(counts, config.skip_limit, stage.path)
    return stage


def _embed_pooled_shard(
    source: TokenSource,
    config: EmbedConfig,
    search: SeedSearch | None,
    shard: str,
    output: Path,
) -> Counts:
    torch.set_num_threads(config.threads)
    table, rows, quarantine = source.shard(shard)
    suffix = build_suffix(source.towers["vl"], source.towers["audio"])
    if suffix is not None:
        suffix = suffix.to(device_of(config.accelerator, "embed.accelerator"))
    vectors = _pooled(source, table, rows, suffix)
    clips = _clips(table, rows)
    return _write(output, shard, vectors, clips, quarantine, config, "pooled", search)


def _pooled(
    source: TokenSource, table: TokenTable, rows: Rows, suffix: nn.Module | None
) -> npt.NDArray[np.float32]:
    """(N, D) mean tokens of every stream, each L2-normalised, end to end."""
    groups = [
        rows[start : start + CLIPS_AT_A_TIME] for start in range(0, len(rows), CLIPS_AT_A_TIME)
    ]
    pieces = [
        np.concatenate(
            [_unit(tokens[name].mean().cpu().numpy()) for name in sorted(tokens)], axis=1
        )
        for tokens in (frozen_tokens(table, group, suffix) for group in groups)
    ]
    empty = np.zeros((0, sum(pooled_widths(source).values())), np.float32)
    return np.concatenate([empty, *pieces])


def _embed_fused_shard(
    source: TokenSource,
    config: EmbedConfig,
    path: Path,
    scoring: Scoring,
    search: SeedSearch | None,
    shard: str,
    output: Path,
) -> Counts:
    torch.set_num_threads(config.threads)
    checkpoint, calibration = _checkpoint(path, source.identities)
    score = partial(
        predict,
        checkpoint.model.to(device_of(config.accelerator, "embed.accelerator")),
        inputs=scoring.inputs,
        seed=scoring.seed,
        dropout_samples=scoring.dropout_samples,
        calibration=calibration,
    )
    tasks = checkpoint.model.tasks
    return _write_fused(source, config, scoring.only, score, tasks, search, shard, output)


_LOADED: dict[tuple[str, int, str], tuple[Checkpoint, Calibration]] = {}


def _checkpoint(path: Path, frozen: Mapping[str, Any]) -> tuple[Checkpoint, Calibration]:
    """The checkpoint that the shards of a store have in common, loaded once a process.

    Building a model and its objective takes longer than scoring a few hundred clips with it.
    """
    key = (str(path), path.stat().st_mtime_ns, fingerprint(frozen))
    if key not in _LOADED:
        _LOADED.clear()  # one at a time
        checkpoint = load_checkpoint(path, frozen)
        _LOADED[key] = checkpoint, Calibration.of(checkpoint)
    return _LOADED[key]


def _write_fused(
    source: TokenSource,
    config: EmbedConfig,
    only: IdArray | None,
    score: Predict,
    tasks: list[str],
    search: SeedSearch | None,
    shard: str,
    output: Path,
) -> Counts:
    table, rows, quarantine = source.shard(shard, only)
    predictions = score(table, rows)
    clips = prediction_columns(_clips(table, rows), tasks, predictions)
    clips = _logit_columns(clips, tasks, predictions)
    embedding = predictions.embedding
    return _write(output, shard, embedding, clips, quarantine, config, "fused", search)


def _logit_columns(clips: pa.Table, tasks: list[str], predictions: Predictions) -> pa.Table:
    for prefix in ("", "vl_", "audio_"):
        logits = getattr(predictions, f"{prefix}logits")
        for column, task in enumerate(tasks):
            values = pa.array(logits[:, column], pa.float32())
            clips = clips.append_column(f"{prefix}logit_{task}", values)
    for sample in range(predictions.dropout_logits.shape[2]):
        for column, task in enumerate(tasks):
            values = pa.array(predictions.dropout_logits[:, column, sample], pa.float32())
            clips = clips.append_column(f"dropout_logit_{task}_{sample}", values)
    return clips


def _clips(table: TokenTable, rows: Rows) -> pa.Table:
    return table.rows.select(list(ROW_FIELDS)).take(rows)


def _write(
    output: Path,
    shard: str,
    vectors: npt.NDArray[np.float32],
    clips: pa.Table,
    quarantine: pa.Table,
    config: EmbedConfig,
    kind: str,
    search: SeedSearch | None,
) -> Counts:
    pq.write_table(quarantine, output / f"{shard}.quarantine.parquet")
    unit = _unit(vectors).astype(config.dtype)
    counts = write_part(output, shard, unit, clips, kind=kind)
    if config.codes:
        write_codes(output / f"{shard}{CODES_ENDING}", unit)
    if search is not None:  # in the vectors as they are stored
        search.write(output, shard, sample_ids.from_arrow(clips["id"]), unit)
    reasons = Counter(f"skipped: {reason}" for reason in quarantine["reason"].to_pylist())
    return {**counts, "skipped": quarantine.num_rows, **reasons}


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows of norm 1; rows of zeros stay."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1), np.float32)
