"""Validation metrics on two gloo ranks with uneven shares: the values of one process, exactly."""

from __future__ import annotations

import os
import socket
from multiprocessing import get_context
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import torch
from torch import distributed

from lsb.ids import sample_ids
from vlmae.data.batches import Batch
from vlmae.data.order import Indices
from vlmae.metrics import average_precision, recall_at_precision
from vlmae.objectives import MISSING, MultiTaskBinary
from vlmae.ranks import Ranks
from vlmae.tokens import Tokens
from vlmae.validation import BEST, ValidationClips, ValidationMetrics

TASKS = ["often", "rare", "one rank only", "never"]
CLIPS, BATCH = 37, 4
LOGITS = "logits"


class Scored:
    """Clips whose tokens are their logits, with ties, and labels that the ranks share unevenly."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.logits = (rng.integers(-6, 7, (CLIPS, 4)) / 2).astype(np.float32)
        labels = (rng.random((CLIPS, 4)) < [0.4, 0.1, 0.5, 0.0]).astype(np.int64)
        labels[rng.random((CLIPS, 4)) < 0.2] = MISSING
        # The second rank has none of this task: batches go to the ranks in turn.
        labels[np.arange(CLIPS) // BATCH % 2 == 1, 2] = MISSING
        self.labels = labels

    def batch(self, rows: Indices, seed: int) -> Batch:
        values = torch.from_numpy(self.logits[rows])[:, None]
        tokens = Tokens(values, torch.ones(len(rows), 1, dtype=torch.bool))
        ids = sample_ids([str(row) for row in rows])
        return Batch({LOGITS: tokens}, torch.from_numpy(self.labels[rows]), ids)


def measure(rank: int, world: int) -> tuple[int, dict[str, float]]:
    """Labels that this rank saw, and the metrics."""
    objective = MultiTaskBinary(TASKS, {"rare": 3.0}, {"often": [1.0, 2.0]})
    metrics = ValidationMetrics(objective, 0.8)
    labels = 0
    for batch in ValidationClips(Scored(), CLIPS, batch_size=BATCH, rank=rank, world=world):
        labels += int((batch.labels != MISSING).sum())
        metrics.update(batch.streams[LOGITS].values[:, 0], batch.labels)
    return labels, metrics.compute()


def rank_main(rank: int, port: int, told: Queue[Any]) -> None:
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)  # a fork has none of the threads that torch may have started
    with Ranks.from_environment().together():
        told.put((rank, *measure(rank, distributed.get_world_size())))


def test_two_ranks_with_uneven_shares_have_the_values_of_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = get_context("fork")
    told = context.Queue()
    processes = [context.Process(target=rank_main, args=(rank, port, told)) for rank in range(2)]
    for process in processes:
        process.start()
    answers = sorted(told.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    (_, first, ours), (_, second, others) = answers
    labels, alone = measure(0, 1)
    assert first + second == labels
    assert first > second + 10, "the shares are uneven"
    assert list(ours) == list(alone)
    for name, value in alone.items():
        np.testing.assert_equal(ours[name], others[name], f"all ranks have the same {name}")
        if name == "val/loss":  # a sum of floats, in another order
            np.testing.assert_allclose(ours[name], value, rtol=1e-6)
        else:
            np.testing.assert_equal(ours[name], value, name)
    clips = Scored()
    scores = torch.from_numpy(clips.logits).sigmoid().numpy()
    exact = []
    for column, task in enumerate(TASKS):
        present = clips.labels[:, column] != MISSING
        case = scores[present, column], clips.labels[present, column] == 1
        exact.append(average_precision(*case))
        np.testing.assert_allclose(ours[f"{BEST}/{task}"], exact[-1], atol=1e-6)
        recall = recall_at_precision(*case, 0.8)
        np.testing.assert_allclose(ours[f"val/recall_at_p80/{task}"], recall, atol=1e-6)
    assert np.isnan(exact).tolist() == [False, False, False, True]
    np.testing.assert_allclose(ours[BEST], np.nanmean(exact), atol=1e-6)
