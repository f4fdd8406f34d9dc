"""Run a trained model over clips whose frozen tokens are at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from lsb import ids as sample_ids
from lsb.ids import IdArray
from lsb.progress import progressed
from vlmae.calibration import Calibration
from vlmae.data.batches import CachedClips
from vlmae.data.token_source import CachedTokens, TokenSource
from vlmae.data.token_table import Rows, TokenTable
from vlmae.model import Output, VlmaeModel, drawing_modules
from vlmae.tokens import Tokens

FloatArray = npt.NDArray[np.float32]
Forward = Callable[[Mapping[str, Tokens]], Output]
BATCH_SIZE = 128
ARRAYS = ("logits", "vl_logits", "audio_logits", "embedding", "dropout_logits")


@dataclass(frozen=True)
class Predictions:
    """What a model says of N clips, in the order they were asked for.

    Attributes:
        logits: (N, K) float32 of the fused model.
        vl_logits: (N, K) of the vision-language head.
        audio_logits: (N, K) of the audio head.
        embedding: (N, D) fused vectors, not normalised.
        dropout_logits: (N, K, T) fused logits of T passes with dropout; T may be 0.
        calibration: what makes probabilities of logits.
    """

    logits: FloatArray
    vl_logits: FloatArray
    audio_logits: FloatArray
    embedding: FloatArray
    dropout_logits: FloatArray
    calibration: Calibration = field(default_factory=Calibration)

    @property
    def probability(self) -> FloatArray:
        """(N, K) of the fused model, calibrated."""
        return self.calibration.probabilities(self.logits)

    @property
    def vl_probability(self) -> FloatArray:
        """(N, K) of the vision-language head; temperatures are the fused model's, not its."""
        return self.calibration.uncalibrated.probabilities(self.vl_logits)

    @property
    def audio_probability(self) -> FloatArray:
        """(N, K) of the audio head, not calibrated either."""
        return self.calibration.uncalibrated.probabilities(self.audio_logits)


def predict(
    model: VlmaeModel,
    table: TokenTable,
    rows: Rows,
    *,
    inputs: str = "both",
    seed: int = 0,
    dropout_samples: int = 0,
    batch_size: int = BATCH_SIZE,
    calibration: Calibration | None = None,
    forward: Forward | None = None,
) -> Predictions:
    """Predictions for rows of a table, batched in the order given.

    Args:
        model: in any mode; left in evaluation mode.
        table: frozen tokens.
        rows: (N,) row numbers.
        inputs: see `vlmae.data.batches.CachedClips`.
        seed: of shuffled audio and of dropout.
        dropout_samples: T, passes with dropout (Gal and Ghahramani 2016, arXiv 1506.02142).
        batch_size: clips at a time.
        calibration: of the checkpoint; a sigmoid if None.
        forward: what to call with the tokens instead of `model`, whose parameters it uses; it is
            called once a batch and once more for each of the passes with dropout. None: what lies
            in front of all dropout is computed once a batch (`VlmaeModel.passes`).
    """
    calibration = calibration or Calibration()
    tasks = len(model.tasks)
    clips = CachedClips(table, rows, np.full((len(rows), tasks), -1, np.int8), inputs, seed)
    columns: dict[str, list[FloatArray]] = {name: [] for name in ARRAYS}
    model.eval()
    device = next(model.parameters()).device
    # ZeRO-3 keeps tensors of a forward pass that a later backward pass may use.
    quiet = torch.inference_mode() if forward is None else torch.no_grad()
    with quiet, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(clips), batch_size):
            numbers = np.arange(start, min(start + batch_size, len(clips)))
            batch = clips.batch(numbers).to(device)
            streams = batch.streams
            run = model.passes(streams) if forward is None else partial(forward, streams)
            output = run()
            samples = torch.zeros(len(numbers), tasks, dropout_samples)
            if dropout_samples:
                _only_dropout(model)
                for sample in range(dropout_samples):
                    samples[..., sample] = run().logits.float().cpu()
                model.eval()
            for name, column in columns.items():
                values = samples if name == "dropout_logits" else getattr(output, name)
                column.append(values.float().cpu().numpy())
            progressed(f"{start + len(numbers)} of {len(clips)} clips scored")
    if not len(clips):
        return _no_predictions(model, calibration, dropout_samples)
    arrays = {name: np.concatenate(column) for name, column in columns.items()}
    return Predictions(**arrays, calibration=calibration)


def forward_passes(clips: int, dropout_samples: int, batch_size: int = BATCH_SIZE) -> int:
    """How often `predict` calls the model for so many clips."""
    return -(-clips // batch_size) * (1 + dropout_samples)


def predict_clips(
    model: VlmaeModel,
    source: TokenSource,
    ids: IdArray,
    *,
    inputs: str = "both",
    seed: int = 0,
    calibration: Calibration | None = None,
) -> tuple[Predictions, npt.NDArray[np.bool_]]:
    """Predictions for clips of a data set, whether their tokens are cached or not.

    Args:
        model: in any mode; left in evaluation mode.
        source: of the tokens.
        ids: (N,) clips wanted.
        inputs, seed, calibration: see `predict`.

    Returns:
        Predictions of the clips that can be decoded, in the order of `ids`, and (N,) which those
        are.

    Raises:
        ValueError: a clip is not in the data set, or the control needs a cache.
    """
    if inputs == "shuffled_audio" and not isinstance(source, CachedTokens):
        raise ValueError(
            "inputs=shuffled_audio needs cached tokens: run python -m vlmae.cache first"
        )
    calibration = calibration or Calibration()
    pieces: list[Predictions] = []
    found: list[IdArray] = []
    for table, rows in source.tables(ids):
        pieces.append(predict(model, table, rows, inputs=inputs, seed=seed))
        found.append(sample_ids.from_arrow(table.rows["id"].take(rows)))
    if not pieces:
        pieces.append(_no_predictions(model, calibration))
        found.append(ids[:0])
    held = np.concatenate(found)
    order = np.argsort(held, kind="stable")
    present = np.isin(ids, held)
    places = order[np.searchsorted(held[order], ids[present])]
    joined = {
        name: np.concatenate([getattr(piece, name) for piece in pieces])[places] for name in ARRAYS
    }
    return Predictions(**joined, calibration=calibration), present


def prediction_columns(table: pa.Table, tasks: Sequence[str], predictions: Predictions) -> pa.Table:
    """A table of clips with the probabilities of all three heads appended."""
    for prefix in ("probability", "vl_probability", "audio_probability"):
        values = getattr(predictions, prefix)
        for column, task in enumerate(tasks):
            table = table.append_column(
                f"{prefix}_{task}", pa.array(values[:, column], pa.float32())
            )
    return table


def _no_predictions(
    model: VlmaeModel, calibration: Calibration, dropout_samples: int = 0
) -> Predictions:
    logits = np.zeros((0, len(model.tasks)), np.float32)
    embedding = np.zeros((0, model.fusion.embedding_width), np.float32)
    samples = np.zeros((0, len(model.tasks), dropout_samples), np.float32)
    return Predictions(logits, logits, logits, embedding, samples, calibration)


def _only_dropout(model: VlmaeModel) -> None:
    """Training mode for what draws at random, not for what keeps statistics."""
    for module in drawing_modules(model):
        module.train()
