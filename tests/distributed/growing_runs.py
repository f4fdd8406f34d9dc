"""Trainings that grow between their epochs: a small folder of clips, and commands on it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from small_clips import arguments, run, write_folder

from lsb.artifact import open_stage

CLIPS, SHARD = 80, 16
LABELLED, GOLD = range(0, 64, 4), range(64, CLIPS)
EPOCHS, EVERY, ROUNDS, BUDGET = 5, 2, 2, 7
TASKS = ("relevance", "clickbait")
ZERO3 = (
    "strategy=zero3",
    "strategy.bucket_size=2000",
    "strategy.persist_below=0",
    "whitening.keep_tokens=true",  # under DDP models read the tokens of the cache
)


def write_world(root: Path) -> None:
    """Clips, their frozen tokens in `root / "runs"`, and tables of labels, gold and truth."""
    write_folder(root / "clips", CLIPS)
    for name, numbers in (("labels", LABELLED), ("validation", GOLD), ("truth", range(CLIPS))):
        _write_labels(root / f"{name}.csv", numbers)
    run("vlmae.cache", cached(root, root / "runs"))


def _write_labels(path: Path, numbers: Iterable[int]) -> None:
    with open(path, "w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["key", *(f"label_{task}" for task in TASKS)])
        rows.writerows([f"clip-{n:04d}", n % 2, int(n % 5 == 0)] for n in numbers)


def cached(root: Path, runs: Path) -> list[str]:
    return arguments(root, f"runs={runs}", f"data.shard_clips={SHARD}")


def growing(root: Path, runs: Path, strategy: str, *more: str) -> list[str]:
    """Overrides of a training whose LT is calibrated on gold clips, and finds lookalikes."""
    return [
        *cached(root, runs),
        f"labels={root / 'labels.csv'}",
        f"validation={root / 'validation.csv'}",
        f"task.names=[{','.join(TASKS)}]",
        "model.components=8",
        "fusion.width=16",
        "fusion.heads=2",
        "prefix.use=require",
        "trainer.batch_size=4",
        f"trainer.epochs={EPOCHS}",
        "trainer.validate_every=2",
        "trainer.save_every_steps=3",
        f"trainer.trace={runs / 'trace'}",
        "arm=lsb_lt",
        "broadening.confidence=0.5",
        "seeds.entropy=2",
        "seeds.confident_error=2",
        "threshold.target=0.2",
        "threshold.minimum_pairs=5",
        "growing=every",
        f"growing.every_epochs={EVERY}",
        f"growing.rounds={ROUNDS}",
        f"growing.budget={BUDGET}",
        f"growing.truth={root / 'truth.csv'}",
        *(ZERO3 if strategy == "zero3" else ()),
        *more,
    ]


def training_of(runs: Path) -> Path:
    """The one finished training."""
    (path,) = runs.glob("stages/train-*[0-9a-f]")
    return path


def hashes(runs: Path) -> dict[str, str]:
    """Of all files of the one finished training."""
    files = open_stage(training_of(runs)).manifest["parts"]["model"]["files"]
    return {name: entry["sha256"] for name, entry in files.items()}


def accident(name: str, epoch: int, overrides: list[str]) -> str:
    """Run `growing_driver.py` on 2 ranks; returns what it printed when it had failed."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    driver = str(Path(__file__).with_name("growing_driver.py"))
    ended = subprocess.run(
        [sys.executable, *torchrun, driver, name, str(epoch), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(Path(__file__).parents[2]),  # this checkout, whichever is installed
        },
        timeout=300,
        check=False,
    )
    assert ended.returncode != 0, ended.stdout
    return ended.stdout
