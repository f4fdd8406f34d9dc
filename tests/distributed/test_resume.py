"""A training that was killed or told to stop goes on, to the sample: 2 ranks with workers each."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from small_clips import (
    arguments,
    kill_when,
    ranks_of,
    run,
    start,
    training,
    wait_for,
    write_folder,
)

from lsb.artifact import open_stage
from vlmae.preemption import EXIT_CODE
from vlmae.saves import saves_below

# Cached steps take milliseconds: enough epochs to be stopped in the midst of them.
EPOCHS = {("cached", "ddp"): 40, ("live", "ddp"): 4, ("cached", "zero2"): 12}
ZERO = ("strategy=zero2", "strategy.bucket_size=2000")
Calm = Callable[[str, str], Path]


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


def overrides(root: Path, runs: Path, tokens: str, strategy: str, workers: int) -> list[str]:
    return training(
        root,
        runs,
        f"trainer.epochs={EPOCHS[tokens, strategy]}",
        "trainer.save_every_steps=3",
        f"trainer.trace={runs / 'trace'}",
        f"loader.workers={workers}",
        "loader.bucket_batches=2",
        "+loader.positive_weight.unsafe=2",
        f"prefix.use={'require' if tokens == 'cached' else 'off'}",
        *(ZERO if strategy == "zero2" else ()),
    )


@pytest.fixture(scope="module")
def calm(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    """A function from tokens and strategy to the runs of an undisturbed training, made once."""

    @cache
    def make(tokens: str, strategy: str) -> Path:
        runs = tmp_path_factory.mktemp("calm") / "runs"
        shutil.copytree(root / "runs", runs)
        run("vlmae.train", overrides(root, runs, tokens, strategy, workers=2), ranks=2)
        return runs

    return make


@pytest.mark.parametrize(
    ("tokens", "strategy"), [("cached", "ddp"), ("live", "ddp"), ("cached", "zero2")]
)
def test_killed_at_a_random_step_it_ends_as_if_nothing_had_happened(
    root: Path, tmp_path: Path, calm: Calm, tokens: str, strategy: str
) -> None:
    epochs, undisturbed = EPOCHS[tokens, strategy], read_trace(calm(tokens, strategy) / "trace")
    steps = len(undisturbed[0]) // epochs
    assert len(undisturbed[0]) == len(undisturbed[1]) == steps * epochs

    killed = tmp_path / "killed"
    shutil.copytree(root / "runs", killed)
    at = random.Random(f"{tokens}-7").randint(4, 2 * steps)
    process = start("vlmae.train", overrides(root, killed, tokens, strategy, workers=2), ranks=2)
    kill_when(process, killed / "trace" / "rank-0.csv", at)
    assert not list(killed.glob("stages/train-*[0-9a-f]"))
    before = len(read_trace(killed / "trace")[0])
    # The number of workers changes: the cursor belongs to the stream.
    run("vlmae.train", overrides(root, killed, tokens, strategy, workers=1), ranks=2)
    lines = (killed / "trace" / "rank-0.csv").read_text().splitlines()
    repeated = len(lines) - len(undisturbed[0])
    assert 0 <= repeated <= 4, "it went on from the last save, not from the start"
    assert before >= 3
    assert read_trace(killed / "trace") == undisturbed
    assert finished(killed) == finished(calm(tokens, strategy))


@pytest.mark.parametrize(("strategy", "name"), [("ddp", "SIGUSR2"), ("zero2", "SIGTERM")])
def test_a_signal_to_one_rank_makes_all_save_the_same_step_and_leave(
    root: Path, tmp_path: Path, calm: Calm, strategy: str, name: str
) -> None:
    runs = tmp_path / "told"
    shutil.copytree(root / "runs", runs)
    # It never saves by itself: what is there afterwards, the signal has made.
    never = "trainer.save_every_steps=0"
    arguments = [*overrides(root, runs, "cached", strategy, workers=1), never]
    process = start("vlmae.train", arguments, ranks=2)
    wait_for(process, runs / "trace" / "rank-0.csv", 5)
    last = [child for child in ranks_of(process) if child.environ().get("RANK") == "1"]
    last[0].send_signal(getattr(signal, name))
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert output.count("error: stopped by") == 1, output
    assert f"error: stopped by {name} at step" in output
    assert output.count(f"exitcode  : {EXIT_CODE}") >= 1, output
    step = int(output.split(" at step ")[1].split(":")[0])
    (save,) = saves_below(runs / "stages")
    assert save.moment.step == step
    assert save.moment.ranks == 2
    traces = read_trace(runs / "trace")
    assert len(traces[0]) == len(traces[1]) == step, "both left after the same step"
    run("vlmae.train", arguments, ranks=2)
    lines = (runs / "trace" / "rank-0.csv").read_text().splitlines()
    undisturbed = calm("cached", strategy)
    assert len(lines) == len(read_trace(undisturbed / "trace")[0]), "no step is done twice"
    assert finished(runs) == finished(undisturbed)
