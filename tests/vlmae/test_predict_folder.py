"""Scores of a folder of media: those of an evaluation, a row a clip, nothing stops at a bad one."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from damage import KINDS, REASONS, damage
from rich.console import Console

from lsb.artifact import Stage
from lsb.ids import from_arrow, texts
from vlmae.checkpoint import CHECKPOINT, load_checkpoint
from vlmae.data.prefix_cache import Prefix
from vlmae.data.prepare import read_index
from vlmae.data.ranges import RangeReader, tar_members
from vlmae.data.token_source import LiveTokens
from vlmae.evaluation import EvaluateConfig, evaluate
from vlmae.media import clips_of
from vlmae.media_scores import Scored, score_media
from vlmae.predict import main, progress
from vlmae.scorer import Scorer
from vlmae.towers import build_towers

LabelTable = Callable[..., pa.Table]
TASKS = ["relevance", "unsafe"]
HEADS = ("probability", "vl_probability", "audio_probability")


@pytest.fixture(scope="module")
def scorer(trained: Stage, prefix_on: Callable[..., Prefix], data: Stage) -> Scorer:
    checkpoint = load_checkpoint(trained.path / CHECKPOINT)
    towers = build_towers(checkpoint.towers["vl"], checkpoint.towers["audio"])
    return Scorer(checkpoint, towers, prefix_on(data).policy)


@pytest.fixture(scope="module")
def folder(data: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clips of a split as files, broken ones among them; every other title is a text file."""
    home = tmp_path_factory.mktemp("media")
    index = read_index(data)
    index = index.take(np.flatnonzero([split == "first" for split in texts(index["split"])]))
    with RangeReader(data.path) as reader:
        records = reader.read(
            texts(index["shard"]), index["offset"].to_pylist(), index["size"].to_pylist()
        )
    for number, (key, record) in enumerate(zip(texts(index["key"]), records, strict=True)):
        for ending, content in tar_members(record, key).items():
            name, data_ = f"{key}.{ending}", content
            if ending == "json" and number % 2:
                name, data_ = f"{key}.txt", json.loads(content)["title"].encode()
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_bytes(data_)
    return home


@pytest.fixture(scope="module")
def table(scorer: Scorer, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    output = tmp_path_factory.mktemp("scores") / "scores.parquet"
    score_media(scorer, clips_of([str(folder)]), output, decoders=2)
    return pq.read_table(output)


def test_probabilities_are_those_of_an_evaluation_without_a_cache(
    stages: Path,
    trained: Stage,
    data: Stage,
    table: pa.Table,
    prefix_on: Callable[..., Prefix],
    labels_of: LabelTable,
) -> None:
    live = LiveTokens(prefix_on(data, use="off"))
    config = EvaluateConfig(0.8, resamples=2, seed=0, inputs="both", threads=1)
    stage = evaluate(stages, live, trained, test=labels_of("first"), config=config)
    wanted = {
        row["key"]: row for row in pq.read_table(stage.path / "predictions.parquet").to_pylist()
    }
    found = {row["key"]: row for row in table.to_pylist()}
    assert table.num_rows == 24
    assert found.keys() > wanted.keys(), "evaluation leaves out what it cannot decode"
    thresholds = load_checkpoint(trained.path / CHECKPOINT).thresholds
    for key, row in found.items():
        assert (row["error"] is None) == (key in wanted)
        for task in TASKS:
            if key not in wanted:
                assert row[f"decision_{task}"] is None
                assert row["error_detail"] is None or row["error_detail"]
                continue
            for head in HEADS:
                name = f"{head}_{task}"
                assert row[name] == pytest.approx(wanted[key][name], rel=0, abs=1e-6)
            assert row[f"decision_{task}"] == (row[f"probability_{task}"] >= thresholds[task])
    ids = from_arrow(table["id"].combine_chunks())
    assert len(np.unique(ids)) == 24


def test_titles_are_read_beside_the_media(table: pa.Table, folder: Path, data: Stage) -> None:
    index = read_index(data)
    told = dict(zip(texts(index["key"]), texts(index["title"]), strict=True))
    rows = [row for row in table.to_pylist() if row["error"] is None]
    assert rows
    assert all(row["title"] == told[row["key"]].strip() for row in rows)
    assert any((folder / f"{row['key']}.txt").is_file() for row in rows)


def test_every_bad_file_is_a_row_with_its_reason(
    tmp_path: Path, scorer: Scorer, make_media: Callable[..., bytes]
) -> None:
    home = tmp_path / "media"
    home.mkdir()
    media = make_media(8, sound=np.zeros((1, 16_000), np.float32))
    for kind in KINDS:
        members = damage(media, kind, 3)
        for ending, content in members.items():
            (home / f"{kind}.{ending}").write_bytes(content)
    (home / "deep" / "er").mkdir(parents=True)
    (home / "deep" / "er" / "good.MP4").write_bytes(media)
    (home / "deep" / "er" / "good.txt").write_bytes(b"a fine title")
    (home / "large.mp4").write_bytes(media + bytes(1_000_000))
    (home / "twice.mp4").write_bytes(media)
    (home / "twice.webm").write_bytes(media)
    (home / "notes.pdf").write_bytes(b"no medium")
    (home / ".hidden.mp4").write_bytes(media)
    clips = clips_of([str(home)])
    reports: list[Scored] = []
    scored = score_media(
        scorer, clips, tmp_path / "out.parquet", largest=1_000_000, on_group=reports.append
    )
    rows = {row["path"]: row for row in pq.read_table(tmp_path / "out.parquet").to_pylist()}
    errors = {Path(path).stem: row["error"] for path, row in rows.items()}
    expected: dict[str, Any] = {kind: REASONS[kind] for kind in KINDS if kind != "no_media"}
    expected |= {"good": None, "large": "file too large", "twice": "several media of one name"}
    assert errors == expected
    good = rows["deep/er/good.MP4"]
    assert good["key"] == "deep/er/good"
    assert good["title"] == "a fine title"
    assert 0 < good["probability_unsafe"] < 1
    bad = rows["empty.mp4"]
    assert bad["probability_unsafe"] is None
    assert scored.clips == len(rows) == reports[-1].clips
    assert scored.bad.total() == len(rows) - 1
    assert scored.bad["undecodable file"] == 2


def test_faults_of_decoder_and_encoder_cost_one_row(
    tmp_path: Path,
    scorer: Scorer,
    make_media: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.mp4").write_bytes(make_media(4))
    prefix, decode = type(scorer.towers).prefix, sys.modules["vlmae.media_scores"].decode_clip

    def failing_prefix(self: Any, clips: Any) -> Any:
        if any(clip.key == "b" for clip in clips):
            raise RuntimeError("the encoder has no kernel for this")
        return prefix(self, clips)

    def failing_decode(clip: Any, *rest: Any) -> Any:
        if clip.key == "c":
            raise KeyError("stream")
        return decode(clip, *rest)

    monkeypatch.setattr(type(scorer.towers), "prefix", failing_prefix)
    monkeypatch.setattr("vlmae.media_scores.decode_clip", failing_decode)
    score_media(scorer, clips_of([str(tmp_path)]), tmp_path / "out.parquet")
    rows = {row["key"]: row for row in pq.read_table(tmp_path / "out.parquet").to_pylist()}
    assert {key: row["error"] for key, row in rows.items()} == {
        "a": None,
        "b": "encoder failed",
        "c": "decoder failed",
        "d": None,
    }
    assert rows["b"]["error_detail"] == "the encoder has no kernel for this"
    assert rows["c"]["error_detail"] == "KeyError: 'stream'"


def test_a_group_too_large_for_the_device_is_scored_clip_by_clip(
    tmp_path: Path, scorer: Scorer, folder: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = type(scorer.towers).prefix
    filling: list[weakref.ref[Any]] = []
    groups: list[int] = []

    def full(self: Any, clips: Any) -> Any:
        groups.append(len(clips))
        assert not [held for held in filling if held() is not None], "memory is not given back"
        if len(clips) > 1:
            activations = np.zeros(8)
            filling.append(weakref.ref(activations))
            raise torch.OutOfMemoryError(f"CUDA out of memory beside {activations.nbytes} bytes")
        return prefix(self, clips)

    monkeypatch.setattr(type(scorer.towers), "prefix", full)
    score_media(scorer, clips_of([str(folder)]), tmp_path / "out.parquet")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert len(filling) == 2
    assert groups.count(1) == sum(row["error"] is None for row in rows)
    for row, wanted in zip(rows, table.to_pylist(), strict=True):
        assert (row["key"], row["error"]) == (wanted["key"], wanted["error"])
        for task in TASKS:
            for head in HEADS:
                name = f"{head}_{task}"
                if wanted[name] is None:
                    assert row[name] is None
                else:
                    assert row[name] == pytest.approx(wanted[name], rel=0, abs=1e-6)


def test_clips_that_all_fail_are_rows_of_the_table_and_an_error_of_the_command(
    tmp_path: Path,
    scorer: Scorer,
    make_media: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home, output = tmp_path / "media", tmp_path / "out.parquet"
    home.mkdir()
    for name in ("a", "b"):
        (home / f"{name}.mp4").write_bytes(make_media(4))

    def failing(self: Any, clips: Any) -> Any:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(type(scorer.towers), "prefix", failing)
    monkeypatch.setattr("vlmae.predict.load", lambda *_, **__: scorer)
    arguments = ["vlmae.predict", "model=m", f"media={home}", f"output={output}"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error == (f"error: none of 2 clips has scores: the column error of {output} says why\n")
    rows = pq.read_table(output).to_pylist()
    assert [row["error"] for row in rows] == ["encoder failed"] * 2
    assert [row["probability_unsafe"] for row in rows] == [None, None]


def test_command_takes_weights_that_have_moved(
    tmp_path: Path,
    scorer: Scorer,
    make_media: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a.mp4").write_bytes(make_media(4))
    given: list[Any] = []

    def loading(_: str, **settings: Any) -> Scorer:
        given.append(settings["towers"])
        return scorer

    monkeypatch.setattr("vlmae.predict.load", loading)
    arguments = ["vlmae.predict", "model=m", f"media={tmp_path}", f"output={tmp_path}/out.parquet"]
    for more in ([], ["+towers.vl.model=/new/clip", "+towers.audio.pool=5"]):
        monkeypatch.setattr(sys, "argv", [*arguments, *more])
        main()
    assert given == [{}, {"vl": {"model": "/new/clip"}, "audio": {"pool": 5}}]
    monkeypatch.setattr(sys, "argv", [*arguments, "+towers.vl=/new/clip"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main()
    assert "towers.vl: Input should be a valid dictionary" in capsys.readouterr().err


def test_a_killed_run_leaves_no_table_and_an_older_one_alone(
    tmp_path: Path, scorer: Scorer, folder: Path
) -> None:
    output = tmp_path / "out.parquet"
    output.write_bytes(b"an older table")

    def kill(_: Scored) -> None:
        raise KeyboardInterrupt

    clips = clips_of([str(folder)])
    with pytest.raises(KeyboardInterrupt):
        score_media(scorer, clips[:3], output, on_group=kill)
    assert output.read_bytes() == b"an older table"
    score_media(scorer, clips[:3], output)
    assert pq.read_table(output).num_rows == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_files_and_lists_can_be_named(tmp_path: Path, make_media: Callable[..., bytes]) -> None:
    home = tmp_path / "in"
    (home / "sub").mkdir(parents=True)
    for name in ("a.mp4", "sub/b.mkv", "sub/b.wav"):
        (home / name).write_bytes(b"x")
    (home / "sub" / "b.txt").write_text("title")
    (home / "list.txt").write_text("a.mp4\n\nsub/b.mkv\nsub/b.wav\ngone.mp4\nreport.pdf\nsub\n")
    clips = clips_of([str(home / "list.txt")])
    assert [Path(clip.path).name for clip in clips] == ["a.mp4", "b.mkv", "gone.mp4", "report.pdf"]
    assert sorted(clips[1].files) == ["mkv", "txt", "wav"]
    problems = [clip.problem and clip.problem[0] for clip in clips]
    assert problems == [None, None, "absent file", "no media member"]
    assert [clip.key for clip in clips_of([str(home)])] == ["a", "sub/b"]
    assert len(clips_of([str(home / "a.mp4"), str(home)])) == 2
    for place, message in (
        (home / "typo", "there is no .*typo"),
        (tmp_path / "empty", "no media of a known ending"),
        (tmp_path / "blank.txt", "names no file"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "blank.txt").write_text("\n")
        with pytest.raises(ValueError, match=message):
            clips_of([str(place)])


def test_command_scores_a_folder_and_says_how_it_went(
    tmp_path: Path,
    scorer: Scorer,
    folder: Path,
    table: pa.Table,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("vlmae.predict.load", lambda *_, **__: scorer)
    output = tmp_path / "out.parquet"
    arguments = ["vlmae.predict", "model=m", f"media={folder}", f"output={output}"]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    bad = table.num_rows - table["error"].null_count
    assert bad > 0
    said = capsys.readouterr().out
    assert f"24 clips, {bad} bad (" in said
    assert (
        pq.read_table(output)
        .drop_columns(["error_detail"])
        .equals(table.drop_columns(["error_detail"]))
    )
    monkeypatch.setattr(sys, "argv", [*arguments, "skip_limit=0.0"])
    with pytest.raises(SystemExit):
        main()
    assert f"{bad} of 24 clips have no scores, more than skip_limit=0.0" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", arguments[:-1])
    with pytest.raises(SystemExit):
        main()
    assert "output is not set" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(terminal: bool) -> None:
    stream = StringIO()
    console = Console(file=stream, force_terminal=terminal, width=80, log_path=False)
    with progress(console, 64) as show:
        for clips, seconds in ((16, 1.0), (32, 12.0), (48, 13.0), (64, 23.0)):
            show(Scored(clips, 64, seconds=seconds))
    lines = [line for line in stream.getvalue().splitlines() if "of 64 clips" in line]
    assert len(lines) == (0 if terminal else 2)
    if not terminal:
        assert "32 of 64 clips, 0 bad, 2.7 a second, 0 min 12 s to go" in lines[0]
