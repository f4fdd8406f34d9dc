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
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lsb.artifact import Counts, Part, Stage, run_stage
from vlmae.data.prefix_cache import PrefixCache

FILE = "whitening.safetensors"


def whiten(root: Path, cache: PrefixCache, *, components: int, splits: Sequence[str]) -> Stage:
    """Fit, or reuse, the whitening of every stream.

    Args:
        root: folder of all stages.
        cache: frozen tokens.
        components: principal components kept in each stream.
        splits: whose clips are used; never test clips.

    Raises:
        ValueError: fewer clips than components, or more components than a stream is wide.
    """
    narrowest = min(cache.stream_widths.values())
    if not 1 <= components <= narrowest:
        raise ValueError(
            f"model.components is {components}: give one from 1 to {narrowest}, the width of "
            "the narrowest stream"
        )
    return run_stage(
        root,
        "whiten",
        config={"components": components, "splits": list(splits)},
        inputs={"cache": cache.stage.content},
        parts=[Part("streams", (FILE,), partial(_fit, cache, components, list(splits)))],
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


def _fit(cache: PrefixCache, components: int, splits: Sequence[str], output: Path) -> Counts:
    torch.set_num_threads(1)
    held = np.isin(np.array(cache.rows["split"].to_pylist()), splits)
    rows = np.flatnonzero(held)
    # Sorted by id: the sums do not depend on how clips lie in shards.
    rows = rows[np.argsort(cache.ids[rows], kind="stable")]
    tensors, counts = {}, {}
    for stream, width in cache.stream_widths.items():
        tokens = (cache.tokens(int(row), stream) for row in rows)
        means = [values.double().mean(dim=0).numpy() for values in tokens if len(values)]
        if len(means) <= components:
            raise ValueError(
                f"stream {stream!r} has {len(means)} clips in {list(splits)} for "
                f"model.components={components}: prepare more clips or keep fewer components"
            )
        mean, mapping = principal_map(np.stack(means).reshape(-1, width), components)
        tensors[f"{stream}.mean"], tensors[f"{stream}.map"] = mean, mapping.contiguous()
        counts[f"clips: {stream}"] = len(means)
    save_file(tensors, output / FILE)
    return counts
