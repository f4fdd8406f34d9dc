"""Validation during training: clips dealt over ranks, metrics equal to the exact ones."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch

from lsb.ids import sample_ids
from vlmae.data.batches import Batch
from vlmae.data.order import Indices
from vlmae.metrics import average_precision, recall_at_precision
from vlmae.objectives import MISSING, GroupedSoftmax, MultiTaskBinary
from vlmae.tokens import Tokens
from vlmae.validation import BEST, ValidationClips, ValidationMetrics

HALF = float(np.nextafter(np.float32(0.5), np.float32(1)))
ADVERSARIAL: dict[str, tuple[list[float], list[int]]] = {
    "all tied": ([0.5] * 4, [1, 0, 1, 0]),
    "one clip": ([0.3], [1]),
    "one negative": ([0.3], [0]),
    "all positive": ([0.3, 0.3, 0.2], [1, 1, 1]),
    "no positive": ([0.3, 0.2], [0, 0]),
    "no label": ([0.3, 0.2], [-1, -1]),
    "ties at the cut": ([0.9, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4], [1, 1, 0, 1, 1, 0, 1]),
    "exactly four fifths": ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [1, 1, 1, 0, 1, 0]),
    "neighbours in float32": ([0.5, HALF, 0.5, HALF], [1, 1, 0, 0]),
    "out of reach": ([0.9, 0.8, 0.1], [0, 1, 1]),
    "saturated": ([1.0, 1.0, 1.0, 0.0, 0.0], [1, 1, 0, 1, 0]),
    "tiny": ([1e-38, 2e-38, 3e-38, 1e-45, 0.0], [1, 0, 1, 1, 0]),
    "missing between": ([0.9, 0.8, 0.7, 0.6], [1, -1, 0, 1]),
}


class Identity(MultiTaskBinary):
    """Takes logits for probabilities, so that a test says what they are."""

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


def values_of(
    scores: np.ndarray, labels: np.ndarray, target: float = 0.8, pieces: int = 1
) -> dict[str, float]:
    tasks = [f"t{column}" for column in range(scores.shape[1])]
    metrics = ValidationMetrics(Identity(tasks, {}), target)
    for rows in np.array_split(np.arange(len(scores)), pieces):
        metrics.update(torch.from_numpy(scores[rows]), torch.from_numpy(labels[rows]))
    return metrics.compute()


def same(ours: float, exact: float) -> bool:
    return (math.isnan(ours) and math.isnan(exact)) or abs(ours - exact) < 1e-6


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("target", [0.5, 0.8, 1.0])
def test_equal_the_exact_ones_in_adversarial_cases(name: str, target: float) -> None:
    scores, labels = (np.array(part)[:, None] for part in ADVERSARIAL[name])
    scores = scores.astype(np.float32)
    found = values_of(scores, labels, target)
    present = labels[:, 0] >= 0
    exact = scores[present, 0], labels[present, 0] == 1
    assert same(found["val/ap/t0"], average_precision(*exact))
    expected = recall_at_precision(*exact, target)
    assert same(found[f"val/recall_at_p{100 * target:.0f}/t0"], expected)
    assert same(found[BEST], found["val/ap/t0"])


@pytest.mark.parametrize("seed", range(40))
def test_equal_the_exact_ones_on_random_data(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clips = int(rng.integers(1, 300))
    grid = int(rng.choice([2, 10, 10**6]))  # from many ties to hardly any
    scores = (rng.integers(0, grid + 1, (clips, 3)) / grid).astype(np.float32)
    labels = np.where(rng.random((clips, 3)) < [0.03, 0.4, 0.97], 1, 0)
    labels[rng.random((clips, 3)) < 0.3] = MISSING
    target = float(rng.choice([0.6, 0.7, 0.8, 0.9, 0.95]))
    found = values_of(scores, labels, target, pieces=int(rng.integers(1, 4)))
    exact = []
    for column in range(3):
        present = labels[:, column] >= 0
        case = scores[present, column], labels[present, column] == 1
        exact.append(average_precision(*case))
        assert same(found[f"val/ap/t{column}"], exact[-1])
        recall = recall_at_precision(*case, target)
        assert same(found[f"val/recall_at_p{100 * target:.0f}/t{column}"], recall)
    defined = [value for value in exact if not math.isnan(value)]
    assert same(found[BEST], float(np.mean(defined)) if defined else math.nan)


def test_loss_and_probabilities_are_the_objectives() -> None:
    tasks = ["x", "y", "z"]
    objective = GroupedSoftmax(tasks, {}, {"all": tasks}, weighting="uncertainty")
    objective.weighting.get_parameter("log_variance").data.fill_(0.3)
    metrics = ValidationMetrics(objective, 0.8)
    assert not list(metrics.parameters()), "the objective is not trained twice"
    assert metrics.state_dict() == {}
    logits = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.nn.functional.one_hot(logits.argmax(dim=1).roll(1), 3)
    with torch.inference_mode():
        for rows in torch.arange(40).split(7):
            metrics.update(logits[rows], labels[rows])
    found = metrics.compute()
    assert found["val/loss"] == pytest.approx(float(objective(logits, labels).detach()), rel=1e-6)
    shares = logits.float().softmax(dim=1).numpy()
    for column, task in enumerate(tasks):
        exact = average_precision(shares[:, column], labels[:, column].numpy() == 1)
        assert found[f"val/ap/{task}"] == pytest.approx(exact, abs=1e-6)
    metrics.reset()
    metrics.update(torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[1, 0, 0]]))
    assert metrics.compute()["val/ap/x"] == 1.0, "nothing is left of the epoch before"


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_at_all_is_undefined() -> None:
    found = ValidationMetrics(MultiTaskBinary(["a"], {}), 0.8).compute()
    assert list(found) == ["val/loss", BEST, "val/ap/a", "val/recall_at_p80/a"]
    assert all(math.isnan(value) for value in found.values())
    none = values_of(np.zeros((2, 1), np.float32), np.full((2, 1), MISSING))
    assert list(none) == ["val/loss", BEST, "val/ap/t0", "val/recall_at_p80/t0"]
    assert none["val/loss"] == 0.0
    assert math.isnan(none[BEST])


class Numbers:
    """Batches whose tokens and labels say which clips they are of."""

    def batch(self, rows: Indices, seed: int) -> Batch:
        values = torch.from_numpy(rows)[:, None, None].float()
        labels = torch.from_numpy(rows)[:, None] % 2
        tokens = Tokens(values, torch.ones(len(rows), 1, dtype=torch.bool))
        return Batch({"numbers": tokens}, labels, sample_ids([str(row) for row in rows]))


@pytest.mark.parametrize(
    ("clips", "world", "workers"), [(11, 2, 0), (11, 2, 1), (8, 2, 0), (1, 3, 0), (9, 1, 0)]
)
def test_every_clip_has_its_labels_once_and_ranks_equal_batches(
    clips: int, world: int, workers: int
) -> None:
    seen: list[int] = []
    lengths = set()
    for rank in range(world):
        loader = ValidationClips(
            Numbers(), clips, batch_size=2, rank=rank, world=world, workers=workers
        )
        assert loader.batch_size == 2
        for _ in range(2):  # every epoch is the same
            batches = list(loader)
        lengths.add(len(batches))
        assert len(loader) == len(batches)
        for batch in batches:
            assert batch.labels.shape == (2, 1), "batches are equally large"
            labelled = batch.labels[:, 0] != MISSING
            numbers = batch.streams["numbers"].values[labelled, 0, 0].long()
            assert batch.labels[labelled, 0].tolist() == (numbers % 2).tolist()
            seen += numbers.tolist()
    assert len(lengths) == 1
    assert sorted(seen) == list(range(clips))


def test_loader_draws_nothing_and_pickles() -> None:
    loader = ValidationClips(Numbers(), 5, batch_size=2)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    list(loader)
    assert torch.get_rng_state().equal(state), "training draws what it would have drawn"
    assert len(pickle.loads(pickle.dumps(loader))) == 3


def test_no_clip_and_no_such_rank_are_refused() -> None:
    with pytest.raises(ValueError, match="no validation clip: give labelled ones"):
        ValidationClips(Numbers(), 0, batch_size=2)
    with pytest.raises(ValueError, match="rank 2 of 2: give one from 0 to 1"):
        ValidationClips(Numbers(), 3, batch_size=2, rank=2, world=2)
