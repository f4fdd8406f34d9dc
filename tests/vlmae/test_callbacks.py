"""Beside the steps: history and quarantine survive a kill, traces tell what was trained on."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lsb.artifact import Stage
from lsb.ids import sample_ids, to_hex
from vlmae.callbacks import (
    AnotherWorld,
    History,
    Quarantine,
    SaveForResume,
    Trace,
    write_history,
)
from vlmae.data.batches import Batch, ClipBatch
from vlmae.data.decode import BadClipError
from vlmae.data.loader import LoaderConfig
from vlmae.module import VlmaeModule
from vlmae.saves import Moment, Saves
from vlmae.trainer import TrainConfig

TrainIn = Callable[..., Stage]
LOSSES = {(epoch, step): 1 / (1 + epoch + 0.1 * step) for epoch in range(3) for step in range(4)}


def trainer(epoch: int = 0, rank: int = 0, **more: Any) -> Any:
    return SimpleNamespace(current_epoch=epoch, global_rank=rank, **more)


def clips(*keys: str, bad: dict[str, str] | None = None) -> ClipBatch:
    errors = [BadClipError(key, why, f"detail of {key}") for key, why in (bad or {}).items()]
    return ClipBatch((), torch.zeros(len(keys), 1), sample_ids(list(keys)), errors)


def train_on(history: History, steps: list[tuple[int, int]]) -> None:
    for epoch, step in steps:
        outputs = {"fused": torch.tensor(LOSSES[epoch, step]), "loss": torch.tensor(9.0)}
        history.on_train_batch_end(trainer(epoch), None, outputs, None, step)  # type: ignore[arg-type]


def resumed(callback: Any, state: Any) -> Any:
    callback.load_state_dict(json.loads(json.dumps(state)))
    return callback


def test_history_is_the_mean_loss_of_every_epoch_wherever_it_was_resumed() -> None:
    steps = sorted(LOSSES)
    whole = History()
    train_on(whole, steps)
    expected = [np.mean([LOSSES[epoch, step] for step in range(4)]) for epoch in range(3)]
    np.testing.assert_allclose(whole.losses(), expected, rtol=1e-6)
    for stop in range(len(steps) + 1):
        killed = History()
        train_on(killed, steps[:stop])
        state = killed.state_dict()
        train_on(killed, steps[stop : stop + 2])  # after the last save: done again
        again = resumed(History(), state)
        train_on(again, steps[stop:])
        assert again.losses() == whole.losses()
    assert History().losses() == []


def test_history_file(tmp_path: Path) -> None:
    write_history(tmp_path / "history.csv", [0.5, 0.25])
    with open(tmp_path / "history.csv", encoding="utf-8", newline="") as stream:
        assert list(csv.reader(stream)) == [["epoch", "loss"], ["0", "0.5"], ["1", "0.25"]]


def bad_clips(quarantine: Quarantine, *batches: Any) -> Quarantine:
    for number, batch in enumerate(batches):
        quarantine.on_train_batch_start(trainer(), None, batch, number)  # type: ignore[arg-type]
    return quarantine


def test_quarantine_lists_each_clip_once_by_key() -> None:
    batches = [
        clips("a", "d", bad={"d": "empty file"}),
        clips("b"),
        Batch({}, torch.zeros(1, 1), sample_ids(["cached"])),
        clips("d", "c", bad={"d": "empty file", "c": "truncated file"}),
    ]
    table = bad_clips(Quarantine(10, 0.2), *batches).table()
    assert table.column_names == ["id", "key", "reason", "detail"]
    assert table["key"].to_pylist() == ["c", "d"]
    assert table["reason"].to_pylist() == ["truncated file", "empty file"]
    assert table["detail"].to_pylist() == ["detail of c", "detail of d"]
    assert table["id"].to_pylist() == [bytes.fromhex(i) for i in to_hex(sample_ids(["c", "d"]))]
    assert Quarantine(10, 0.2).table().schema.equals(table.schema)


def test_more_bad_clips_than_the_limit_stop_the_training_with_counts_by_reason() -> None:
    first = clips("a", "b", bad={"a": "empty file", "b": "truncated file"})
    message = (
        r"3 of 10 clips cannot be decoded \(\{'empty file': 2, 'truncated file': 1\}; "
        r".*detail of a.*\), more than prefix\.skip_limit=0\.25: mend the data or raise the limit"
    )
    quarantine = bad_clips(Quarantine(10, 0.25), first, first, first)
    with pytest.raises(ValueError, match=message):
        bad_clips(quarantine, clips("c", bad={"c": "empty file"}))
    again = resumed(Quarantine(10, 0.25), bad_clips(Quarantine(10, 0.25), first).state_dict())
    with pytest.raises(ValueError, match=message):
        bad_clips(again, clips("c", bad={"c": "empty file"}))
    bad_clips(Quarantine(2, 1.0), first)
    with pytest.raises(ValueError, match=r"1 of 4 clips .*skip_limit=0\.0"):
        bad_clips(Quarantine(4, 0.0), clips("c", bad={"c": "empty file"}))


def test_a_state_of_fewer_ranks_leaves_the_others_as_they_are() -> None:
    history = History()
    train_on(history, [(0, 0)])
    before = history.losses()
    history.load_state_dict({"ranks": []})
    assert history.losses() == before


def test_trace_has_a_file_a_rank_and_a_line_a_step(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "trace"
    for rank in (0, 1):
        for step in (0, 1):
            batch = clips(f"a{rank}{step}", f"b{rank}{step}")
            Trace(folder).on_train_batch_start(trainer(2, rank), None, batch, step)  # type: ignore[arg-type]
    assert sorted(path.name for path in folder.iterdir()) == ["rank-0.csv", "rank-1.csv"]
    for rank in (0, 1):
        lines = (folder / f"rank-{rank}.csv").read_text().splitlines()
        for step, line in enumerate(lines):
            ids = to_hex(sample_ids([f"a{rank}{step}", f"b{rank}{step}"]))
            assert line.split(",") == ["2", str(step), *ids]
        assert len(lines) == 2


@pytest.mark.parametrize("first", [True, False])
def test_saves_come_every_so_many_steps_and_never_within_one(tmp_path: Path, first: bool) -> None:
    saves, written, barriers = Saves(tmp_path / "saves", keep=2), [], []

    def write(target: Path) -> None:
        written.append(target)
        assert len(barriers) % 3 == 1, "when the first rank has made room"
        if first:
            target.write_text(f"step {len(written) * 3}")

    callback = SaveForResume(saves, Moment("this", 0, 2, 2, "ddp"), 3)
    strategy = SimpleNamespace(barrier=barriers.append)
    never = SimpleNamespace(_should_check_val_fx=lambda fetcher: False)
    loop = SimpleNamespace(epoch_loop=never, _data_fetcher=None)
    callback.on_train_start(trainer(global_step=0), None)  # type: ignore[arg-type]
    for micro_batch in range(1, 23):  # two a step
        at = trainer(
            global_step=micro_batch // 2,
            save_checkpoint=write,
            is_global_zero=first,
            strategy=strategy,
            fit_loop=loop,
        )
        callback.on_train_batch_end(at, None, {}, None, micro_batch)  # type: ignore[arg-type]
        assert len(written) == micro_batch // 6
    assert len(barriers) == 3 * len(written) == 9, "all ranks save together"
    kept = {save.moment.step: save.state.read_text() for save in saves.finished()}
    assert kept == ({6: "step 6", 9: "step 9"} if first else {})
    callback.save(at)
    assert len(written) == 4, "when told to, at any step"
    callback.save(at)
    assert len(written) == 4, "but each once"


def test_fewer_ranks_take_over_the_states_of_all() -> None:
    ranks = []
    for rank in (0, 1, 2):
        history = History()
        train_on(history, [(0, rank), (1, rank)])
        ranks.append(history.own_state())
    whole = History()
    train_on(whole, [(epoch, rank) for epoch in (0, 1) for rank in (0, 1, 2)])
    assert resumed(History(), {"ranks": ranks}).losses() == pytest.approx(whole.losses())
    quarantines = [bad_clips(Quarantine(9, 1.0), clips("a", bad={key: "broken"})) for key in "bcb"]
    states = [quarantine.own_state() for quarantine in quarantines]
    assert sorted(resumed(Quarantine(9, 1.0), {"ranks": states}).bad) == ["b", "c"]


@pytest.mark.parametrize(
    ("ranks", "accumulate", "ready"), [(1, 4, 24), (1, 2, 24), (4, 1, 6), (3, 3, 6), (2, 2, 12)]
)
def test_counts_of_micro_batches_fit_other_ranks(ranks: int, accumulate: int, ready: int) -> None:
    def counts(ready: int) -> dict[str, int]:
        return {"ready": ready, "started": ready, "processed": ready, "completed": ready - 1}

    loop: dict[str, Any] = {
        "epoch_loop.batch_progress": {"current": counts(12), "total": counts(28)},
        "state_dict": {"combined_loader": [{"consumed": 24, "steps": 12}]},
    }
    checkpoint = {"loops": {"fit_loop": loop}}
    saved = Moment("this", 6, 2, 2, "ddp")
    another = AnotherWorld(saved, Moment("this", 0, ranks, accumulate, "ddp"))
    another.on_load_checkpoint(None, None, checkpoint)  # type: ignore[arg-type]
    progress = loop["epoch_loop.batch_progress"]
    assert progress["current"] == counts(ready), "a multiple of accumulate, behind it as before"
    assert progress["total"] == counts(28 * 2 // ranks)
    assert loop["state_dict"]["combined_loader"] == [{"consumed": 24, "steps": ready}]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, train_in: TrainIn) -> Stage:
    return train_in(tmp_path_factory.mktemp("calm"), config=every_step(), loader=LOADER)


LOADER = LoaderConfig(bucket_batches=2, positive_weight={"unsafe": 1.5})


def every_step(trace: Path | None = None) -> TrainConfig:
    folder = None if trace is None else str(trace)
    return TrainConfig(0, 2, 8, "cpu", 1, 0.8, "both", save_every_steps=1, trace=folder)


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_training_that_failed_at_any_step_ends_like_an_undisturbed_one(
    tmp_path: Path,
    train_in: TrainIn,
    undisturbed: Stage,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
) -> None:
    done: list[int] = []
    step = VlmaeModule.training_step

    def failing(self: VlmaeModule, batch: Any, number: int) -> Any:
        done.append(number)
        if len(done) == stop + 1:
            raise OSError("the machine is gone")
        return step(self, batch, number)

    config = every_step(tmp_path / "trace")
    arguments = {"config": config, "loader": LOADER}
    with monkeypatch.context() as patch:
        patch.setattr(VlmaeModule, "training_step", failing)
        with pytest.raises(OSError, match="the machine is gone"):
            train_in(tmp_path, **arguments)
    stage = train_in(tmp_path, **arguments)
    assert stage.content == undisturbed.content
    lines = (tmp_path / "trace" / "rank-0.csv").read_text().splitlines()
    steps = [tuple(map(int, line.split(",")[:2])) for line in lines]
    total = [(epoch, number) for epoch in (0, 1) for number in range(len(set(steps)) // 2)]
    assert steps == [*total[: stop + 1], *total[stop:]], "only the step that failed is done again"
    assert lines[stop] == lines[stop + 1], "with the same clips"


def test_a_validation_that_failed_is_done_again_and_the_best_epoch_is_the_same(
    tmp_path: Path, train_in: TrainIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(every_step(), epochs=3, validate_every=1, keep="best")
    calm = train_in(tmp_path / "calm", config=config)
    measured: list[int] = []
    step = VlmaeModule.validation_step

    def failing(self: VlmaeModule, *arguments: Any) -> Any:
        measured.append(self.current_epoch)
        if len(measured) in (1, 4):  # of epoch 0, and again of a later one
            raise OSError("the machine is gone")
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(VlmaeModule, "validation_step", failing)
        for _ in range(2):
            with pytest.raises(OSError, match="the machine is gone"):
                train_in(tmp_path / "killed", config=config)
        stage = train_in(tmp_path / "killed", config=config)
    assert sorted(set(measured)) == [0, 1, 2], f"{measured}: no epoch goes without"
    assert stage.counts["best epoch"] == calm.counts["best epoch"]
    assert stage.content == calm.content
