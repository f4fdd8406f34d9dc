"""A training that was killed goes on, to the sample: 2 ranks with 2 workers each."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from small_clips import arguments, kill_when, run, start, training, write_folder

from lsb.artifact import open_stage

# Cached steps take milliseconds: enough epochs to be killed in the midst of them.
EPOCHS = {"cached": 40, "live": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_folder(folder / "clips", 48)
    # The cache is of no use to the live training, which must not look at it.
    assert "kB a clip" in run("vlmae.cache", arguments(folder, f"runs={folder / 'runs'}"))
    return folder


def read_trace(folder: Path) -> list[dict[tuple[int, int], list[str]]]:
    """Of each rank: (epoch, step) -> ids; where a step is there twice, the later one."""
    ranks = []
    for rank in range(2):
        steps = {}
        for line in (folder / f"rank-{rank}.csv").read_text().splitlines():
            epoch, step, *ids = line.split(",")
            if len(ids) == 4:  # the line that a kill broke off
                steps[int(epoch), int(step)] = ids
        ranks.append(steps)
    return ranks


def finished(runs: Path) -> dict[str, str]:
    """Hashes of the files of the one training."""
    (path,) = runs.glob("stages/train-*[0-9a-f]")
    files = open_stage(path).manifest["parts"]["model"]["files"]
    return {name: entry["sha256"] for name, entry in files.items()}


@pytest.mark.parametrize("tokens", ["cached", "live"])
def test_killed_at_a_random_step_it_ends_as_if_nothing_had_happened(
    root: Path, tmp_path: Path, tokens: str
) -> None:
    epochs = EPOCHS[tokens]

    def overrides(runs: Path, workers: int) -> list[str]:
        return training(
            root,
            runs,
            f"trainer.epochs={epochs}",
            "trainer.save_every_steps=3",
            f"trainer.trace={runs / 'trace'}",
            f"loader.workers={workers}",
            "loader.bucket_batches=2",
            "+loader.positive_weight.unsafe=2",
            f"prefix.use={'require' if tokens == 'cached' else 'off'}",
        )

    calm, killed = tmp_path / "calm", tmp_path / "killed"
    for runs in (calm, killed):
        shutil.copytree(root / "runs", runs)
    run("vlmae.train", overrides(calm, workers=2), ranks=2)
    undisturbed = read_trace(calm / "trace")
    steps = len(undisturbed[0]) // epochs
    assert len(undisturbed[0]) == len(undisturbed[1]) == steps * epochs

    at = random.Random(f"{tokens}-7").randint(4, 2 * steps)
    process = start("vlmae.train", overrides(killed, workers=2), ranks=2)
    kill_when(process, killed / "trace" / "rank-0.csv", at)
    assert not list(killed.glob("stages/train-*[0-9a-f]"))
    before = len(read_trace(killed / "trace")[0])
    # The number of workers changes: the cursor belongs to the stream.
    run("vlmae.train", overrides(killed, workers=1), ranks=2)
    lines = (killed / "trace" / "rank-0.csv").read_text().splitlines()
    repeated = len(lines) - steps * epochs
    assert 0 <= repeated <= 4, "it went on from the last save, not from the start"
    assert before >= 3
    assert read_trace(killed / "trace") == undisturbed
    assert finished(killed) == finished(calm)
