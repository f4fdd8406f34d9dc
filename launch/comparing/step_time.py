"""What a training step of each variant costs on cached tokens, as a ratio within one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import torch

from launch.stages.settings import Settings
from launch.stages.shared import Shared
from lsb import ids as sample_ids
from vlmae.checkpoint import build_model
from vlmae.data.batches import CachedClips
from vlmae.data.labels import label_matrix
from vlmae.data.whitening import read_whitening
from vlmae.objectives import build_objective
from vlmae.optimizers import build_optimizer
from vlmae.tuning import tuning_config

TURNS, STEPS = 15, 4


def step_times(
    settings: Mapping[str, Settings], shared: Shared, labelled: pa.Table, say: Callable[[str], None]
) -> dict[str, float]:
    """Variant -> median seconds of a step (forward, backward, optimiser) on one batch.

    Variants take turns, so that whatever else the machine does falls on all of them.

    Args:
        settings: variant -> its settings.
        shared: data and tokens.
        labelled: clips to make the batch of.
        say: called once.
    """
    say(f"timing {len(settings)} variants, {TURNS} turns of {STEPS} steps each")
    steps = {name: _step(own, shared, labelled) for name, own in settings.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(next(iter(settings.values())).train.threads)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(TURNS + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(STEPS):
                step()
            if turn:  # the first warms up
                seconds[name].append((time.perf_counter() - started) / STEPS)
    torch.set_num_threads(threads)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def _step(settings: Settings, shared: Shared, labelled: pa.Table) -> Callable[[], None]:
    tasks = list(settings.tasks)
    some = labelled.slice(0, settings.train.batch_size)
    rows = shared.tokens.cache.rows_of(sample_ids.from_arrow(some["id"]))
    labels = label_matrix(some, tasks)
    clips = CachedClips(shared.tokens.cache, rows, labels, settings.train.inputs)
    batch = clips.batch(np.arange(len(clips)))
    model = build_model(settings.model, shared.source.towers)
    model.set_whitening(read_whitening(shared.whitened))
    objective = build_objective(settings.objective, tasks)
    tuning = tuning_config(settings.model["tuning"])
    optimizer, _ = build_optimizer(
        model, settings.optimizer, tuning, total_steps=1000, extra=objective
    )
    model.train()

    def step() -> None:
        output = model(batch.streams)
        loss = (
            objective(output.logits, batch.labels)
            + objective(output.vl_logits, batch.labels, auxiliary=True)
            + objective(output.audio_logits, batch.labels, auxiliary=True)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
