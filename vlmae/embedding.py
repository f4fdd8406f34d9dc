"""The embedding stage: fused vectors and probabilities of the clips of a split as a store."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from lsb.artifact import Counts, Part, Stage, run_stage
from lsb.store import ROW_FIELDS, part_files, write_part
from vlmae.checkpoint import load_checkpoint
from vlmae.data.prefix_cache import PrefixCache
from vlmae.prediction import predict
from vlmae.training import CHECKPOINT, prediction_columns


def embed(
    root: Path,
    cache: PrefixCache,
    trained: Stage,
    *,
    split: str,
    threads: int,
    inputs: str = "both",
    seed: int = 0,
) -> Stage:
    """Embed a split with a checkpoint into a store of kind "fused", one part a shard.

    Args:
        root: folder of all stages.
        cache: tokens of all clips.
        trained: a finished `train` stage.
        split: name of the split, e.g. "pool".
        threads: torch threads on CPU.
        inputs: what the model was trained on, see `TrainConfig.inputs`.
        seed: of shuffled audio.

    Returns:
        A stage that `lsb.store.Store.open` reads: L2-normalised float32 vectors of the fused
        embedding, rows with the probabilities of every task and head.

    Raises:
        ValueError: the cache has no clip of this split.
    """
    shards = cache.shards_of(split)
    if not shards:
        raise ValueError(f"no clip of split {split!r} is in the cache {cache.stage.path}")
    path = trained.path / CHECKPOINT
    return run_stage(
        root,
        "embed",
        config={"split": split, "threads": threads, "inputs": inputs, "seed": seed},
        inputs={"cache": cache.stage.content, "train": trained.content},
        parts=[
            Part(
                shard,
                part_files(shard),
                partial(_embed_shard, cache, path, shard, threads, inputs, seed),
            )
            for shard in shards
        ],
    )


def _embed_shard(
    cache: PrefixCache,
    path: Path,
    shard: str,
    threads: int,
    inputs: str,
    seed: int,
    output: Path,
) -> Counts:
    torch.set_num_threads(threads)
    checkpoint = load_checkpoint(path, cache.identities)
    rows = cache.rows_of_shard(shard)
    predictions = predict(checkpoint.model, cache, rows, inputs=inputs, seed=seed)
    norms = np.linalg.norm(predictions.embedding, axis=1, keepdims=True)
    table = cache.rows.take(rows).select(list(ROW_FIELDS))
    table = prediction_columns(table, checkpoint.model.tasks, predictions)
    return write_part(output, shard, predictions.embedding / norms, table, kind="fused")
