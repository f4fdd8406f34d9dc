"""A clip that is taken down is gone from every stage, never returns, and nothing else changes."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import webdataset
from filelock import FileLock
from takedown_world import DATA, HELD, World, files_with, made, tree, world

from lsb.artifact import Part, Stage, open_stage, run_stage
from lsb.store import Store
from vlmae import takedown
from vlmae.checkpoint import CHECKPOINT, load_checkpoint
from vlmae.data.index import read_index
from vlmae.data.prefix_cache import PrefixCache
from vlmae.data.prepare import prepare, read_truth
from vlmae.data.ranges import RangeReader
from vlmae.data.redaction import require_redacted
from vlmae.data.token_source import CachedTokens
from vlmae.data.tombstones import read_tombstones, without_tombstones
from vlmae.data.whitened import WhitenedCache
from vlmae.evaluation import EvaluateConfig, evaluate
from vlmae.optimizers import OptimizerConfig
from vlmae.takedown import report, take_down
from vlmae.trainer import TrainConfig
from vlmae.training import Training, train

__all__ = ["made", "world"]


def test_nothing_of_the_clip_remains_and_every_other_clip_does(world: World, made: World) -> None:
    for name, payload in world.payload.items():
        assert len(files_with(world.root, payload)) == 1, name
    found = take_down(world.runs, [world.victim], reason="asked by its owner")
    for name, payload in world.payload.items():
        assert files_with(world.root, payload) == [], name
    for stage in (world.data, world.cache, world.kept, world.pooled, world.fused):
        new = world.stage(stage)
        assert new.content == stage.content
        assert new.manifest["redacted"] == 1
        for part, entry in stage.manifest["parts"].items():
            if part != "first-00001":
                assert new.manifest["parts"][part]["files"] == entry["files"]
    for file in world.root.rglob("*.parquet"):
        if file.parent.name.split("-")[0] in HELD:
            assert world.victim not in pq.read_table(file, columns=["key"])["key"].to_pylist()
    assert found.trained == {world.trained.path.name: {"training_set.parquet": 1}}
    assert any("first-00001" in line for line in report(found, [], dry_run=False))
    stone = read_tombstones(world.root)[world.victim]
    assert (stone.reason, stone.places) == ("asked by its owner", ())

    index, before = read_index(world.stage(world.data)), read_index(made.data)
    others = before.filter(pc.not_equal(before["key"], world.victim))
    assert index.equals(others)
    places = [others[name].to_pylist() for name in ("shard", "offset", "size")]
    assert RangeReader(world.root / world.data.path.name).read(*places) == RangeReader(
        made.root / made.data.path.name
    ).read(*places)
    wide = PrefixCache(world.stage(world.cache)), PrefixCache(made.cache)
    stages = world.stage(world.kept), made.kept
    kept = [WhitenedCache(*each) for each in zip(wide, stages, strict=True)]
    for new, old in (wide, kept):
        for stream in ("image", "text", "audio"):
            one = new.batch(new.rows_of(new.ids), stream)
            other = old.batch(old.rows_of(new.ids), stream)
            assert np.array_equal(one.values.numpy(), other.values.numpy())
            assert np.array_equal(one.mask.numpy(), other.mask.numpy())
    for stage in (world.pooled, world.fused):
        one, other = (
            Store.open(world.root / stage.path.name),
            Store.open(made.root / stage.path.name),
        )
        assert len(one) == len(other) - 1
        assert np.array_equal(one.vectors(one.ids), other.vectors(one.ids))
        assert one.rows().equals(other.take(one.ids, list(other.columns)))


def test_vectors_of_a_killed_expansion_are_gone_and_what_it_asked_before_stays(
    world: World,
) -> None:
    growing = world.root / "train-0123.partial" / ".scratch-model-ab" / "growing" / "epoch-0004"
    stores = growing / "grow-01.partial" / ".scratch-expansion-ab" / "embed-01.partial"
    whole = growing.with_name("epoch-0002") / "grow-02"
    for folder in (stores, whole):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"of clips")
    take_down(world.runs, [world.victim], reason="asked by its owner")
    assert not stores.exists()
    assert (whole / "file").is_file()


def test_counts_are_those_of_the_clips_that_are_left(world: World, made: World) -> None:
    take_down(world.runs, [world.victim], reason="x")
    truth = read_truth(world.stage(world.data))
    counts, before = world.stage(world.data).counts, made.data.counts
    assert counts["first.clips"] == before["first.clips"] - 1
    for split in ("first", "pool", "gold", "test"):
        rows = truth.filter(pc.equal(truth["split"], split))
        for task in ("relevance", "clickbait", "unsafe", "policy"):
            assert counts.get(f"{split}.{task}", 0) == pc.sum(rows[task]).as_py()
    cached = world.stage(world.cache)
    assert cached.counts["clips"] == PrefixCache(cached).rows.num_rows
    assert world.stage(world.kept).counts["clips"] == cached.counts["clips"]
    assert world.stage(world.pooled).counts["rows"] == made.pooled.counts["rows"] - 1


def test_a_quarantined_clip_leaves_the_quarantine(world: World, made: World) -> None:
    bad = PrefixCache(made.cache).quarantine().to_pylist()[0]
    take_down(world.runs, [bad["key"]], reason="x")
    cached = world.stage(world.cache)
    assert bad["id"] not in PrefixCache(cached).quarantine()["id"].to_pylist()
    reason = f"skipped: {bad['reason']}"
    for count in ("skipped", reason):
        assert cached.counts.get(count, 0) == made.cache.counts[count] - 1
    assert cached.counts["clips"] == made.cache.counts["clips"]


def test_plain_readers_skip_what_was_taken_out(world: World) -> None:
    take_down(world.runs, [world.victim], reason="x")
    tar = world.root / world.data.path.name / "first-00001.tar"
    with tarfile.open(tar) as archive:
        members = archive.getmembers()
    assert [member.name for member in members if member.name.startswith("__")] == ["__taken_down__"]
    read = webdataset.WebDataset(f"file:{tar}", shardshuffle=False)
    keys = [sample["__key__"] for sample in read]
    index = read_index(world.stage(world.data), ["first"])
    assert keys == index.filter(pc.equal(index["shard"], tar.name))["key"].to_pylist()


def test_several_clips_and_a_second_takedown(world: World, made: World) -> None:
    first = read_index(made.data, ["first"])["key"].to_pylist()
    whole_shard = first[8:16]
    take_down(world.runs, whole_shard[:5], reason="x")
    take_down(world.runs, [*whole_shard[3:], first[0]], reason="y")
    assert read_index(world.stage(world.data), ["first"])["key"].to_pylist() == [
        *first[1:8],
        *first[16:],
    ]
    cached = PrefixCache(world.stage(world.cache))
    assert len(cached.rows_of_shard("first-00001")) == 0
    cached.batch(np.arange(len(cached.ids)), "image")
    Store.open(world.root / world.pooled.path.name, verify=True)
    assert [stone.reason for stone in read_tombstones(world.root).values()] == ["x"] * 5 + ["y"] * 4
    # A shard that lost clips twice is made again as it is.
    tar = world.root / world.data.path.name / "first-00001.tar"
    blank = tar.read_bytes()
    tar.unlink()
    assert open_stage(prepare(world.root, DATA).path).content == made.data.content
    assert tar.read_bytes() == blank


@pytest.mark.parametrize("call", ["replace", "rmtree"])
def test_killed_anywhere_and_run_again_it_ends_the_same(
    made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    undisturbed = made.copy(tmp_path / "undisturbed")
    take_down(undisturbed.runs, [made.victim], reason="x")
    wanted = tree(undisturbed.root)
    module = os if call == "replace" else shutil
    real: Callable[..., None] = getattr(module, call)
    kills = 0
    while True:
        world = made.copy(tmp_path / f"killed-{kills}")
        left = kills

        def killed(*arguments: Any, **options: Any) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            real(*arguments, **options)

        with monkeypatch.context() as patched:
            patched.setattr(module, call, killed)
            try:
                take_down(world.runs, [world.victim], reason="x")
            except KeyboardInterrupt:
                kills += 1
            else:
                break
        written = bool(read_tombstones(world.root))
        # Half the time with the key again, half without.
        take_down(world.runs, [] if written and kills % 2 else [world.victim], reason="x")
        assert tree(world.root) == wanted
        shutil.rmtree(world.runs)
    assert kills == {"replace": 1 + 5 * 3, "rmtree": 5}[call]


def test_running_it_again_changes_nothing(world: World) -> None:
    take_down(world.runs, [world.victim], reason="x")
    before = tree(world.root), (world.root / "tombstones.jsonl").read_bytes()
    take_down(world.runs, [world.victim], reason="x")
    take_down(world.runs, [])
    assert (tree(world.root), (world.root / "tombstones.jsonl").read_bytes()) == before


def test_dry_run_and_refusals_change_nothing(world: World) -> None:
    before = tree(world.root)
    found = take_down(world.runs, [world.victim], reason="x", dry_run=True)
    assert found.clips == {world.id}
    with pytest.raises(ValueError, match=r"knows the clip 'nobody' \(1 of 2 keys\).*--force"):
        take_down(world.runs, [world.victim, "nobody"], reason="x")
    with pytest.raises(ValueError, match="--reason is not given"):
        take_down(world.runs, [world.victim])
    with pytest.raises(ValueError, match="there is no folder"):
        take_down(world.runs / "other", [world.victim], reason="x")
    assert not (world.root / "tombstones.jsonl").exists()
    assert tree(world.root) == before


def test_refused_while_a_process_is_at_work_but_the_tombstone_stands(world: World) -> None:
    busy = world.root / ".train-0123.1-of-2.lock"
    with FileLock(busy), pytest.raises(ValueError, match=r"at work on train-0123.*same takedown"):
        take_down(world.runs, [world.victim], reason="x")
    assert list(read_tombstones(world.root)) == [world.victim]
    assert files_with(world.root, world.payload["media"])
    take_down(world.runs, [])
    assert not files_with(world.root, world.payload["media"])


def test_a_damaged_list_of_tombstones_stops_everything(world: World) -> None:
    take_down(world.runs, [world.victim], reason="x")
    file = world.root / "tombstones.jsonl"
    text = file.read_text()
    for damaged in (text[:-9], text.replace('"version": 1', '"version": 2'), "[]\n"):
        file.write_text(damaged)
        with pytest.raises(ValueError, match=r"tombstones\.jsonl"):
            prepare(world.root, DATA)


def test_prepared_again_it_does_not_return(world: World, made: World) -> None:
    take_down(world.runs, [world.victim], reason="x")
    again = prepare(world.root, DATA)
    assert again.reused
    assert again.content == made.data.content
    for name in ("first-00001.tar", "first-00001.index.parquet", "first-00001.truth.parquet"):
        whole = (again.path / name).read_bytes()
        (again.path / name).unlink()
        assert prepare(world.root, DATA).path == again.path
        assert (again.path / name).read_bytes() == whole
    shutil.rmtree(again.path)
    anew = prepare(world.root, DATA)
    assert not anew.reused
    assert anew.counts == again.counts
    assert world.victim not in read_index(anew)["key"].to_pylist()
    assert not files_with(world.root, world.payload["media"])


def test_a_data_set_that_no_takedown_met_is_mended_when_it_is_prepared(
    world: World, made: World
) -> None:
    take_down(world.runs, [world.victim], reason="x")
    target = world.root / made.data.path.name
    shutil.rmtree(target)
    shutil.copytree(made.root / made.data.path.name, target)
    with pytest.raises(ValueError, match=r"holds clips that were taken down.*vlmae\.takedown"):
        require_redacted(world.root, open_stage(target))
    mended = prepare(world.root, DATA)
    assert mended.manifest["redacted"] == 1
    assert require_redacted(world.root, open_stage(target)).manifest == mended.manifest
    assert not files_with(world.root, world.payload["media"])


def test_unfinished_stages_lose_the_part_that_holds_it(world: World, made: World) -> None:
    for stage in (made.data, made.cache, made.pooled):
        target = world.root / f"{stage.path.name}.partial"
        (world.root / stage.path.name).rename(target)
        (target / "parts").mkdir()
        manifest = json.loads((target / "manifest.json").read_text())
        for part, entry in manifest["parts"].items():
            (target / "parts" / f"{part}.json").write_text(json.dumps(entry))
        (target / "manifest.json").unlink()
        (target / ".tmp-first-00001-0123").mkdir()
        (target / ".tmp-first-00001-0123" / "x").write_bytes(world.payload["media"])
    take_down(world.runs, [world.victim], reason="x")
    for stage in (made.data, made.cache, made.pooled):
        target = world.root / f"{stage.path.name}.partial"
        left = {file.stem for file in target.glob("parts/*.json")}
        assert left == set(stage.manifest["parts"]) - {"first-00001"}
        assert not list(target.glob("first-00001*"))
    for name in ("media", "image tokens", "pooled vector"):
        assert not files_with(world.root, world.payload[name])


def small_training(world: World, source: CachedTokens, whitened: Stage, **tables: Any) -> Training:
    config = world.trained.manifest["config"]
    return Training(
        source=source,
        whitened=whitened,
        model=config["model"],
        objective={"_target_": "vlmae.objectives.MultiTaskBinary", "weights": {}},
        optimizer=OptimizerConfig(3e-3, 0.0, 0.1, 1.0),
        config=TrainConfig(0, 1, 8, "cpu", 1, 0.8, "both"),
        **tables,
    )


def test_training_goes_on_without_it(
    world: World, whitened: Stage, labels_of: Callable[..., Any]
) -> None:
    labels, gold = labels_of("first"), labels_of("gold")
    victims = [world.victim, gold["key"].to_pylist()[1], labels_of("test")["key"].to_pylist()[2]]
    take_down(world.runs, victims, reason="x")
    assert without_tombstones(world.root, labels).num_rows == labels.num_rows - 1
    source = CachedTokens(PrefixCache(world.stage(world.cache)))
    here = world.stage(whitened)
    training = small_training(world, source, here, labelled=labels, validation=gold)
    trained = train(world.root, training)
    measured = evaluate(
        world.root,
        source,
        trained,
        test=labels_of("test"),
        config=EvaluateConfig(0.8, 10, 0, "both", 1),
    )
    for stage in (trained, measured):
        for file in stage.path.glob("*.parquet"):
            assert not set(pq.read_table(file)["key"].to_pylist()) & set(victims), file
    load_checkpoint(trained.path / CHECKPOINT, source.identities)
    assert train(world.root, training).reused


def test_the_same_labels_without_it_reuse_the_checkpoint(
    world: World, made: World, labels_of: Callable[..., Any], whitened: Stage
) -> None:
    pool = read_index(made.data, ["pool"])["key"].to_pylist()[0]
    take_down(world.runs, [pool], reason="x")
    source = CachedTokens(PrefixCache(world.stage(world.cache)))
    training = small_training(
        world,
        source,
        world.stage(whitened),
        labelled=labels_of("first"),
        validation=labels_of("gold"),
    )
    training = replace(training, config=replace(training.config, epochs=2))
    assert train(world.root, training).path.name == world.trained.path.name


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["takedown", *arguments])
    takedown.main()


def test_the_command_says_what_it_did(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ("--runs", str(world.runs))
    run_command(monkeypatch, world.victim, "--reason", "x", *runs, "--dry-run")
    assert "1 clips would be taken down; nothing was changed" in capsys.readouterr().out
    run_command(monkeypatch, world.victim, "--reason", "x", *runs)
    told = capsys.readouterr().out
    assert f"{world.cache.path.name}: 1 clips removed, from first-00001" in told
    assert f"{world.trained.path.name}: its checkpoint was made with them" in told
    assert "1 clips taken down, 1 tombstones" in told
    with pytest.raises(SystemExit) as ended:
        run_command(monkeypatch, "nobody", "--reason", "x", *runs)
    assert ended.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_other_stages_are_left_alone(world: World) -> None:
    def write(folder: Path) -> dict[str, int]:
        (folder / "word.txt").write_text(world.victim)
        return {"words": 1}

    other = run_stage(
        world.root, "label", config={}, inputs={}, parts=[Part("w", ("word.txt",), write)]
    )
    before = {path: path.read_bytes() for path in other.path.iterdir()}
    take_down(world.runs, [world.victim], reason="x")
    assert {path: path.read_bytes() for path in other.path.iterdir()} == before
    training = pq.read_table(world.root / world.trained.path.name / "training_set.parquet")
    assert world.id in training["id"].to_pylist()
