"""A trained model ready for use: `vlmae.load(folder)`, then clips in, probabilities out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from lsb import ids as sample_ids
from vlmae.calibration import Calibration
from vlmae.checkpoint import Checkpoint, load_checkpoint
from vlmae.data.decode import Clip, DecodePolicy
from vlmae.data.encode import CLIPS_AT_A_TIME, QUARANTINE_SCHEMA, EncodedShard
from vlmae.data.token_table import TokenTable, widths
from vlmae.exported import WEIGHTS, read_settings
from vlmae.media import clips_of, decode_clip
from vlmae.prediction import Predictions, predict
from vlmae.towers import Towers, build_towers

FloatArray = npt.NDArray[np.float32]
Source = Clip | str | Path


class Scorer:
    """Frozen towers and the model behind them.

    It computes as `vlmae.evaluate` without a cache does, in the same groups of clips: equal clips
    in equal order give equal bits. In another order, or beside other clips, the last bits differ.

    Args:
        checkpoint: the model.
        towers: the frozen backbones that it was trained on.
        policy: how files are decoded.
        thresholds: task -> threshold; those of the checkpoint if None.
        inputs: what the model was trained on, see `TrainConfig.inputs`.

    Attributes:
        model: in evaluation mode.
        tasks: names of the columns of all predictions.
        sample_rate: of the sound that clips must have, in Hz.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        towers: Towers,
        policy: DecodePolicy,
        thresholds: Mapping[str, float] | None = None,
        inputs: str = "both",
    ) -> None:
        self.checkpoint, self.towers, self.policy = checkpoint, towers, policy
        self.model, self.inputs = checkpoint.model, inputs
        self.tasks = list(self.model.tasks)
        self.thresholds = dict(thresholds or checkpoint.thresholds)
        self.calibration = Calibration.of(checkpoint)
        self.sample_rate = towers.sample_rate

    def predict(self, clips: Sequence[Source]) -> Predictions:
        """Predictions for clips, in their order.

        Args:
            clips: decoded ones, with sound at `sample_rate`, or media files. A file's title is in
                a .json or .txt of the same name beside it.

        Raises:
            BadClipError: a file cannot be decoded; `vlmae.media_scores` goes on where one cannot.
        """
        table = self.encode([self._clip(clip) for clip in clips])
        rows = np.arange(table.rows.num_rows)
        return predict(self.model, table, rows, inputs=self.inputs, calibration=self.calibration)

    def embed(self, clips: Sequence[Source]) -> FloatArray:
        """(N, D) fused vectors of norm 1, as a store of kind "fused" holds them; see `predict`."""
        vectors = self.predict(clips).embedding
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.where(norms > 0, norms, 1), np.float32)

    def decisions(self, predictions: Predictions) -> npt.NDArray[np.bool_]:
        """(N, K) whether each probability reaches its task's threshold."""
        thresholds = np.array([self.thresholds[task] for task in self.tasks])
        return predictions.probability.astype(np.float64) >= thresholds

    def encode(self, clips: Sequence[Clip]) -> TokenTable:
        """Frozen tokens of decoded clips."""
        streams = self.towers.prefix_streams
        tokens: dict[str, list[Tensor]] = {name: [] for name in widths(streams)}
        for start in range(0, len(clips), CLIPS_AT_A_TIME):
            group = clips[start : start + CLIPS_AT_A_TIME]
            for stream, values in self.towers.prefix(group).items():
                tokens[stream].extend(values)
        keys = [clip.key for clip in clips]
        rows = pa.table({"id": sample_ids.to_arrow(sample_ids.sample_ids(keys))})
        return EncodedShard(
            streams, self.checkpoint.frozen, rows, tokens, QUARANTINE_SCHEMA.empty_table(), {}
        )

    def _clip(self, source: Source) -> Clip:
        if isinstance(source, Clip):
            return source
        (found,) = clips_of([str(source)])
        return decode_clip(found, self.policy, self.sample_rate)


def load(
    folder: str | Path,
    *,
    device: str = "cpu",
    backend: str | None = None,
    towers: Mapping[str, Mapping[str, Any]] | None = None,
) -> Scorer:
    """A model that `python -m vlmae.export` wrote.

    Args:
        folder: of the export.
        device: where towers and model run, e.g. "cuda".
        backend: decoder of pictures instead of the exported one: "pyav", "torchcodec" or "auto".
        towers: tower ("vl", "audio") -> settings of its backbone to change, e.g.
            `{"vl": {"model": "/elsewhere/clip"}}` for weights that have moved. They must be those
            that it was trained on; their name and revision may be others.

    Raises:
        ValueError: not an export of this release, or damaged; weights of a backbone are not there,
            or not those that the model was trained on, with the names of the altered tensors.
    """
    place = Path(folder)
    settings = read_settings(place)
    checkpoint = load_checkpoint(place / WEIGHTS, towers=towers)
    if checkpoint.sha256 != settings.sha256:
        raise ValueError(
            f"{place / WEIGHTS} is not the file that config.json names: export the model again"
        )
    built = build_towers(checkpoint.towers["vl"], checkpoint.towers["audio"])
    built.to(torch.device(device))
    checkpoint.model.to(torch.device(device))
    policy = settings.policy
    if backend is not None:
        policy = replace(policy, backend=backend)  # type: ignore[arg-type]  # checked there
    return Scorer(checkpoint, built, policy.resolved(), settings.thresholds, settings.inputs)
