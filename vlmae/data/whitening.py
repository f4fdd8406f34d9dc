"""Whitening of frozen tokens: a linear map of each stream, fitted on unlabelled clips.

Features of a frozen encoder are far from white: a few directions carry most of the variance, and a
head that sees a few hundred labels fits them first. Principal components of the clips' mean tokens,
scaled to unit variance, need no label and take that burden from it (docs/decisions.md has the
numbers). The map is linear, so it acts on every token alike: it commutes with the mean.

Source: PCA whitening is textbook; fitting it on the pool rather than on the labels is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lsb import ids as sample_ids
from lsb.artifact import Counts, Part, Stage, run_stage
from vlmae.data.token_source import TokenSource
from vlmae.data.token_table import frozen_tokens, widths
from vlmae.tokens import Tokens
from vlmae.towers import build_suffix, build_towers

FILE = "whitening.safetensors"
CLIPS_AT_A_TIME = 64


def whiten(
    root: Path, source: TokenSource, *, components: int, splits: Sequence[str], clips: int
) -> Stage:
    """Fit, or reuse, the whitening of every stream.

    Where a tower has tuned blocks, their output with the weights as loaded is whitened.

    Args:
        root: folder of all stages.
        source: frozen tokens.
        components: principal components kept in each stream.
        splits: whose clips are used; never test clips.
        clips: at most so many, those of smallest id, which is a hash of their key.

    Raises:
        ValueError: fewer clips than components, or more components than a stream is wide.
    """
    towers = build_towers(source.towers["vl"], source.towers["audio"])
    narrowest = min(widths(towers.streams).values())
    if not 1 <= components <= narrowest:
        raise ValueError(
            f"model.components is {components}: give one from 1 to {narrowest}, the width of "
            "the narrowest stream"
        )
    return run_stage(
        root,
        "whiten",
        config={"components": components, "splits": list(splits), "clips": clips},
        inputs=source.inputs,
        parts=[Part("streams", (FILE,), partial(_fit, source, components, list(splits), clips))],
    )


def read_whitening(stage: Stage) -> dict[str, tuple[Tensor, Tensor]]:
    """Stream -> mean (width,) and map (width, components), float32."""
    tensors = load_file(stage.path / FILE)
    streams = sorted({name.split(".")[0] for name in tensors})
    return {name: (tensors[f"{name}.mean"], tensors[f"{name}.map"]) for name in streams}


def principal_map(means_ND: np.ndarray, components: int) -> tuple[Tensor, Tensor]:
    """Mean (D,) and map (D, components) under which `means_ND` gets zero mean and unit covariance.

    Args:
        means_ND: (N, D) float64, N > components.
        components: how many, largest variance first. Directions without variance map to zero.
    """
    mean = means_ND.mean(axis=0)
    centred = means_ND - mean
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    variances, directions = variances[::-1][:components], directions[:, ::-1][:, :components]
    # eigh leaves the sign of a direction open: its largest entry is made positive.
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[largest, np.arange(directions.shape[1])])
    floor = 1e-10 * max(float(variances[0]), np.finfo(np.float64).tiny)
    scale = np.where(variances > floor, 1 / np.sqrt(np.maximum(variances, floor)), 0.0)
    return (
        torch.from_numpy(mean.astype(np.float32)),
        torch.from_numpy((directions * scale).astype(np.float32)),
    )


def _fit(
    source: TokenSource, components: int, splits: Sequence[str], clips: int, output: Path
) -> Counts:
    torch.set_num_threads(1)
    index = source.index
    held = np.isin(np.array(index["split"].to_pylist()), splits)
    # Smallest ids first: a sample, and sums that do not depend on how clips lie in shards.
    wanted = np.sort(sample_ids.from_arrow(index["id"].filter(pa.array(held))))[:clips]
    suffix = build_suffix(source.towers["vl"], source.towers["audio"])
    means: dict[str, dict[bytes, npt.NDArray[np.float64]]] = {}
    for table, rows in source.tables(wanted):
        ids = sample_ids.to_bytes(sample_ids.from_arrow(table.rows["id"].take(rows)))
        for start in range(0, len(rows), CLIPS_AT_A_TIME):
            some = slice(start, start + CLIPS_AT_A_TIME)
            for stream, tokens in frozen_tokens(table, rows[some], suffix).items():
                # In float64: how far a batch is padded must not show in the result.
                values = Tokens(tokens.values.double(), tokens.mask).mean().cpu().numpy()
                held_means = means.setdefault(stream, {})
                for clip, mean, present in zip(ids[some], values, tokens.present, strict=True):
                    if present:
                        held_means[clip] = mean
    tensors, counts = {}, {}
    for stream in means:
        by_id = [means[stream][clip] for clip in sorted(means[stream])]
        if len(by_id) <= components:
            raise ValueError(
                f"stream {stream!r} has {len(by_id)} clips in {list(splits)} for "
                f"model.components={components}: prepare more clips or keep fewer components"
            )
        mean, mapping = principal_map(np.stack(by_id), components)
        tensors[f"{stream}.mean"], tensors[f"{stream}.map"] = mean, mapping.contiguous()
        counts[f"clips: {stream}"] = len(by_id)
    save_file(tensors, output / FILE)
    return counts
