"""Run a trained model over cached clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from vlmae.data.batches import CachedClips
from vlmae.data.prefix_cache import PrefixCache
from vlmae.model import VlmaeModel

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Predictions:
    """What a model says of N clips, in the order they were asked for.

    Attributes:
        probability: (N, K) float32 of the fused model.
        vl_probability: (N, K) of the vision-language head.
        audio_probability: (N, K) of the audio head.
        embedding: (N, D) fused vectors, not normalised.
    """

    probability: FloatArray
    vl_probability: FloatArray
    audio_probability: FloatArray
    embedding: FloatArray


def predict(
    model: VlmaeModel,
    cache: PrefixCache,
    rows: npt.NDArray[np.int64],
    *,
    inputs: str = "both",
    seed: int = 0,
    batch_size: int = 128,
) -> Predictions:
    """Predictions for rows of the cache, batched in the order given."""
    tasks = len(model.tasks)
    clips = CachedClips(cache, rows, np.full((len(rows), tasks), -1, np.int8), inputs, seed)
    columns: list[list[FloatArray]] = [[], [], [], []]
    model.eval()
    device = next(model.parameters()).device
    with torch.inference_mode():
        for indices in _groups(len(clips), batch_size):
            batch = clips.collate([clips[index] for index in indices]).to(device)
            output = model(batch.streams)
            for column, values in zip(
                columns,
                (
                    output.logits.sigmoid(),
                    output.vl_logits.sigmoid(),
                    output.audio_logits.sigmoid(),
                    output.embedding,
                ),
                strict=True,
            ):
                column.append(values.float().cpu().numpy())
    if not len(clips):
        return Predictions(*(np.zeros((0, tasks), np.float32) for _ in range(4)))
    return Predictions(*(np.concatenate(column) for column in columns))


def _groups(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))
