"""A training set that grows between epochs on 2 ranks: what it asks for, kills, signals."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from growing_runs import (
    BUDGET,
    CLIPS,
    LABELLED,
    ROUNDS,
    SHARD,
    TASKS,
    accident,
    growing,
    hashes,
    training_of,
    write_world,
)
from small_clips import run, start

from launch.stages.expansion import EXPANSION_FILES, expand_stage
from lsb import ids as sample_ids
from lsb.artifact import Stage, open_stage, read_json
from lsb.labelled import LABEL
from lsb.search.collective import deal
from vlmae.checkpoint import CHECKPOINT, load_checkpoint
from vlmae.config import as_dict, compose_config
from vlmae.data.labels import read_labels
from vlmae.data.prefix_cache import PrefixCache
from vlmae.data.token_source import CachedTokens
from vlmae.embedding import EmbedConfig, Scoring, embed_fused
from vlmae.growing.settings import expand_config
from vlmae.preemption import EXIT_CODE
from vlmae.saves import saves_below

Calm = Callable[[str], Path]
GROW = "stages/train-*.partial/.scratch-model-*/growing/epoch-000{epoch}/grow-*"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("growing")
    write_world(folder)
    return folder


@pytest.fixture(scope="module")
def calm(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    """A function from a strategy to the runs of an undisturbed training, made once."""

    @cache
    def make(strategy: str) -> Path:
        runs = tmp_path_factory.mktemp("calm") / "runs"
        shutil.copytree(root / "runs", runs)
        run("vlmae.train", growing(root, runs, strategy), ranks=2)
        return runs

    return make


def trace_of(runs: Path, rank: int) -> list[str]:
    return (runs / "trace" / f"rank-{rank}.csv").read_text().splitlines()


def as_trained(path: Path, number: int, folder: Path) -> Stage:
    """The checkpoint that chose, as a training that ended there would have left it."""
    folder.mkdir()
    shutil.copyfile(path / f"expansion-{number}.{CHECKPOINT}", folder / CHECKPOINT)
    return Stage(folder, {"content": f"of expansion {number}"}, 0.0, reused=True)


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_an_expansion_is_that_of_the_stages_between_rounds(
    root: Path, tmp_path: Path, calm: Calm, strategy: str, number: int
) -> None:
    runs = calm(strategy)
    path = training_of(runs)
    evidence = read_json(path / f"expansion-{number}.expansion.json")
    (tokens,) = runs.glob("stages/cache-*[0-9a-f]")
    source = CachedTokens(PrefixCache(open_stage(tokens)))
    trained = as_trained(path, number, tmp_path / "trained")
    checkpoint = load_checkpoint(trained.path / CHECKPOINT, source.identities)
    assert checkpoint.sha256 == evidence["checkpoint"]
    tasks = list(TASKS)
    gold = read_labels(str(root / "validation.csv"), "validation", tasks)
    gold = gold.take(np.argsort(sample_ids.from_arrow(gold["id"])))
    wanted = Scoring(seed=0, only=sample_ids.from_arrow(gold["id"]))
    stores = [
        embed_fused(tmp_path, source, trained, EmbedConfig("pool"), scoring)
        for scoring in (Scoring(seed=0), wanted)
    ]
    pool, scored = stores
    assert pool is not None
    assert scored is not None
    known = read_labels(str(root / "labels.csv"), "labels", tasks)
    asked = [pq.read_table(path / f"expansion-{k}.labels.parquet") for k in range(1, number)]
    exclude = [sample_ids.from_arrow(table["id"]) for table in (known, *asked)]
    values = dict(as_dict(compose_config("train", growing(root, runs, strategy))))
    config = expand_config({**values, "selection": {**values["selection"], "budget": BUDGET}})
    offline = expand_stage(
        tmp_path,
        pool,
        scored,
        gold_labels=gold,
        thresholds=checkpoint.thresholds,
        config=config,
        round=number,
        exclude=np.concatenate(exclude),
    )
    for name in EXPANSION_FILES:
        kept = path / f"expansion-{number}.{name}"
        if name.endswith(".json"):
            assert read_json(kept) == read_json(offline.path / name)
        elif strategy == "ddp":
            assert pq.read_table(kept).equals(pq.read_table(offline.path / name)), name
        else:
            ours, theirs = (pq.read_table(f) for f in (kept, offline.path / name))
            assert same_but_rounding(ours, theirs), name
    if strategy == "ddp":  # the vectors of whole weights are the same to the last bit
        assert evidence["pool"] == pool.content
        assert evidence["gold"] == scored.content
    counts = evidence["counts"]
    assert counts == offline.counts
    assert counts["chosen"] == BUDGET
    assert counts["lookalike"] > 0
    assert counts["seeds_confident_error"] > 0


def same_but_rounding(ours: pa.Table, theirs: pa.Table) -> bool:
    """Equal ids, texts and ranks in equal order; numbers to within 1e-6."""
    if ours.schema != theirs.schema or ours.num_rows != theirs.num_rows:
        return False
    for field in ours.schema:
        one, other = ours[field.name].to_pylist(), theirs[field.name].to_pylist()
        if pa.types.is_floating(field.type):
            for a, b in zip(one, other, strict=True):
                if (a is None) != (b is None) or abs((a or 0) - (b or 0)) > 1e-6:
                    return False
        elif one != other:
            return False
    return True


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_the_training_set_grows_and_the_loader_follows(
    root: Path, calm: Calm, strategy: str
) -> None:
    path = training_of(calm(strategy))
    manifest = pq.read_table(path / "training_set.parquet")
    rounds = manifest["round"].to_pylist()
    assert [rounds.count(number) for number in range(ROUNDS + 1)] == [len(LABELLED), BUDGET, BUDGET]
    truth = read_labels(str(root / "truth.csv"), "truth", list(TASKS))
    answers = {row["key"]: row for row in truth.to_pylist()}
    for row in manifest.to_pylist():
        for task in TASKS:
            assert row[LABEL + task] == answers[row["key"]][LABEL + task]
        assert row["source"] == ("oracle" if row["round"] else "human")
    stage = open_stage(path)
    assert stage.counts["labels"] == len(LABELLED) + ROUNDS * BUDGET
    assert stage.counts["labels added"] == ROUNDS * BUDGET
    # 16, 23 and 30 clips in steps of 8: the last step of an epoch is filled up.
    lines = [trace_of(calm(strategy), rank) for rank in (0, 1)]
    steps = [[int(line.split(",")[0]) for line in one] for one in lines]
    assert steps[0] == steps[1] == [0] * 2 + [1] * 2 + [2] * 3 + [3] * 3 + [4] * 4
    seen = {clip for one in lines for line in one[-4:] for clip in line.split(",")[2:]}
    ids = sample_ids.from_arrow(manifest["id"])
    assert seen == set(sample_ids.to_hex(ids)), "the last epoch has all clips"


def test_the_pools_of_the_ranks_are_unequal() -> None:
    shards = deal([SHARD] * (CLIPS // SHARD), 2)
    assert sorted((shards.count(0), shards.count(1))) == [2, 3]
    assert len(deal([SHARD], 2)) == 1, "all gold clips lie in one shard: a rank has none"


@pytest.mark.parametrize(
    ("strategy", "name", "epoch"),
    [("ddp", "embedding", 4), ("zero3", "embedding", 2), ("ddp", "adopting", 2)],
)
def test_killed_within_an_expansion_it_ends_as_if_nothing_had_happened(
    root: Path, tmp_path: Path, calm: Calm, strategy: str, name: str, epoch: int
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(root / "runs", runs)
    overrides = growing(root, runs, strategy)
    said = accident(name, epoch, overrides)
    assert "exitcode  : -9" in said, said
    assert not list(runs.glob("stages/train-*[0-9a-f]"))
    whole = list(runs.glob(f"{GROW.format(epoch=epoch)}[0-9a-f]"))
    assert len(whole) == (name == "adopting")
    parts = list(runs.glob(f"{GROW.format(epoch=epoch)}.partial/.scratch-*/embed-*/parts/*.json"))
    assert bool(parts) == (name == "embedding"), "some parts of the pool are whole"
    (save,) = saves_below(runs / "stages")
    # The step before an expansion is saved; every third is besides.
    assert save.moment.step == {2: 4, 4: 10}[epoch]
    if epoch == 4:
        refused_beside_another(runs, overrides)
    run("vlmae.train", overrides, ranks=2)
    assert hashes(runs) == hashes(calm(strategy))
    for rank in (0, 1):  # no step is done twice
        assert trace_of(runs, rank) == trace_of(calm(strategy), rank)


def refused_beside_another(runs: Path, overrides: list[str]) -> None:
    """A save that rests on an expansion is of no use without it."""
    (made,) = runs.glob(f"{GROW.format(epoch=2)}[0-9a-f]")
    gone = made.with_name("elsewhere")
    made.rename(gone)
    process = start("vlmae.train", overrides, ranks=2)
    output, _ = process.communicate(timeout=200)
    gone.rename(made)
    assert process.returncode != 0
    assert f"error: the save rests on the expansion {made}" in output, output
    assert "which is gone: bring it back, or delete" in output


def test_a_signal_within_an_expansion_makes_all_leave_and_nothing_is_lost(
    root: Path, tmp_path: Path, calm: Calm
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(root / "runs", runs)
    # It saves by itself only what an expansion needs.
    overrides = growing(root, runs, "ddp", "trainer.save_every_steps=0")
    output = accident("signal", 4, overrides)
    assert f"exitcode  : {EXIT_CODE}" in output, output
    assert output.count("error: stopped by SIGUSR2 at step 10") == 1, output
    (save,) = saves_below(runs / "stages")
    assert save.moment.step == 10
    assert not list(runs.glob(f"{GROW.format(epoch=4)}[0-9a-f]"))
    assert "made, 30 labels" in run("vlmae.train", overrides, ranks=2)
    assert hashes(runs) == hashes(calm("ddp"))
    assert [len(trace_of(runs, rank)) for rank in (0, 1)] == [14, 14]
