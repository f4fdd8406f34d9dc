"""The demo in tiny form, end to end: what it writes, that it is reused, that it survives kills."""

from __future__ import annotations

import json
import re
import shutil
import signal
import textwrap
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tiny_run import TinyRun, run_python

from lsb.artifact import open_stage
from lsb.ledger import Ledger

pytestmark = pytest.mark.slow

ONLY_THE_ROUND = ("experiment=tiny", "arms=[]", "controls=false")

# Each kills the process with SIGKILL in the middle of one stage, then hands over to launch.round.
KILLS = {
    "training": """
        from vlmae.module import VlmaeModule
        step = VlmaeModule.training_step
        def killed(self, batch, index):
            if index == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, batch, index)
        VlmaeModule.training_step = killed
    """,
    "embedding": """
        import vlmae.embedding as embedding
        write, written = embedding.write_part, []
        def killed(*arguments, **options):
            counts = write(*arguments, **options)
            written.append(counts)
            if len(written) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return counts
        embedding.write_part = killed
    """,
    "the ledger": """
        from sqlalchemy import Engine, event
        seen = []
        @event.listens_for(Engine, "after_cursor_execute")
        def killed(connection, cursor, statement, parameters, context, executemany):
            if statement.startswith("INSERT INTO candidates"):
                os.kill(os.getpid(), signal.SIGKILL)
    """,
}


def without_times(value: Any) -> Any:
    """A summary without its seconds."""
    if isinstance(value, dict):
        return {key: without_times(entry) for key, entry in value.items() if key != "seconds"}
    if isinstance(value, list):
        return [without_times(entry) for entry in value]
    return value


def driver(folder: Path, patch: str) -> Path:
    """A script that applies a patch and runs launch.round with its own arguments."""
    path = folder / "driver.py"
    start = (
        "if __name__ == '__main__':\n    runpy.run_module('launch.round', run_name='__main__')\n"
    )
    path.write_text(f"import os, signal, runpy\n{textwrap.dedent(patch)}\n{start}")
    return path


def test_summary_has_rounds_arms_and_controls(tiny: TinyRun) -> None:
    summary = tiny.summary
    assert summary["experiment"] == "tiny"
    assert summary["data"]["media"].startswith("SYNTHETIC")
    assert [entry["round"] for entry in summary["rounds"]] == [0, 1, 2]
    first = summary["rounds"][0]["labels"]
    assert [entry["labels"] for entry in summary["rounds"]] == [first, first + 16, first + 32]
    assert set(summary["arms"]) == {"random", "entropy", "lsb_lt"}
    assert set(summary["controls"]) == {
        "with audio",
        "without audio",
        "audio only",
        "audio shuffled",
    }
    for entry in summary["rounds"]:
        for metrics in entry["tasks"].values():
            assert {"recall_at_p80", "average_precision"} <= set(metrics)
    assert {"prepare", "cache", "train", "evaluate", "embed", "expand"} <= set(
        summary["rounds"][0]["seconds"]
    )


def test_arms_start_equal_and_spend_equal_budgets(tiny: TinyRun) -> None:
    arms = {arm: entry["rounds"] for arm, entry in tiny.summary["arms"].items()}
    first = {json.dumps(without_times(rounds[0]["tasks"])) for rounds in arms.values()}
    assert len(first) == 1
    assert len({tuple(entry["labels"] for entry in rounds) for rounds in arms.values()}) == 1
    asked = {
        arm: set(ledger_keys(tiny, arm)) - set(ledger_keys(tiny, arm, through=0)) for arm in arms
    }
    assert asked["random"] != asked["entropy"]
    assert asked["lsb_lt"] != asked["entropy"]


def ledger_keys(tiny: TinyRun, arm: str, through: int | None = None) -> list[str]:
    with Ledger.open(tiny.runs / "tiny" / arm / "ledger.sqlite", create=False) as ledger:
        return ledger.training_set(through)["key"].to_pylist()


def test_lsb_arm_labels_seeds_and_lookalikes(tiny: TinyRun) -> None:
    for entry in tiny.summary["arms"]["lsb_lt"]["rounds"][1:]:
        counts = entry["expansion"]
        assert counts["seeds_entropy"] + counts["seeds_confident_error"] > 0
        assert counts["chosen"] == 16
        assert entry["lookalike_threshold"]["value"] is not None
    for entry in tiny.summary["arms"]["random"]["rounds"][1:]:
        assert entry["expansion"]["acquisition"] == 16


def test_no_gold_or_test_clip_is_trained_on(tiny: TinyRun) -> None:
    for stage in (tiny.runs / "stages").glob("train-*"):
        keys = pq.read_table(stage / "training_set.parquet", columns=["key"])["key"].to_pylist()
        numbers = [int(key.rsplit("-", 1)[1]) for key in keys]
        assert max(numbers) < 800_000, "gold clips start at 800000, test clips at 900000"


def test_report_is_a_picture(tiny: TinyRun) -> None:
    picture = (tiny.runs / "tiny" / "report.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n")
    assert len(picture) > 20_000


def test_second_run_reuses_every_stage(tiny: TinyRun) -> None:
    before = (tiny.runs / "tiny" / "summary.json").read_bytes()
    done = run_python("-m", "launch.round", "experiment=tiny", cwd=tiny.folder)
    assert done.returncode == 0, done.stderr
    assert " 0 made, " in done.stdout
    assert (tiny.runs / "tiny" / "summary.json").read_bytes() == before


def test_killed_in_three_places_it_ends_with_the_same_summary(
    tiny: TinyRun, tmp_path: Path
) -> None:
    folder = tiny.copy_of_shared_stages(tmp_path)
    for place, patch in KILLS.items():
        killed = run_python(str(driver(folder, patch)), *ONLY_THE_ROUND, cwd=folder)
        assert killed.returncode == -signal.SIGKILL, f"not killed in {place}: {killed.stderr}"
        assert not (folder / "runs" / "tiny" / "summary.json").exists()
    done = run_python("-m", "launch.round", *ONLY_THE_ROUND, cwd=folder)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "runs" / "tiny" / "summary.json").read_text())
    assert without_times(summary["rounds"]) == without_times(tiny.summary["rounds"])
    assert not list((folder / "runs" / "stages").glob("*.partial"))
    for stage in (folder / "runs" / "stages").glob("[a-z]*-*"):
        undisturbed = tiny.runs / "stages" / stage.name
        assert open_stage(stage).content == open_stage(undisturbed).content


def test_changed_config_under_the_same_name_is_refused(tiny: TinyRun) -> None:
    done = run_python(
        "-m", "launch.round", "experiment=tiny", "optimizer.learning_rate=0.5", cwd=tiny.folder
    )
    assert done.returncode == 1
    assert "optimizer.learning_rate: 0.001 -> 0.5" in done.stderr
    assert "name=<name>" in done.stderr


def test_corrupted_shard_is_one_line_and_mends_when_deleted(tiny: TinyRun, tmp_path: Path) -> None:
    folder = tiny.copy_of_shared_stages(tmp_path)
    shard = next((folder / "runs" / "stages").glob("prepare-*/pool-00001.tar"))
    sound = shard.read_bytes()
    shard.write_bytes(sound[:5000] + bytes(100) + sound[5100:])
    overrides = ("experiment=tiny", "arms=[]", "controls=false", "rounds=0")
    done = run_python("-m", "launch.round", *overrides, cwd=folder)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert "pool-00001.tar" in errors[0]
    assert "delete this file" in errors[0]
    shard.unlink()
    done = run_python("-m", "launch.round", *overrides, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert shard.read_bytes() == sound


def test_store_part_of_another_dimension_is_one_line(tiny: TinyRun, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny.folder, folder)
    import numpy as np

    part = sorted((folder / "runs" / "stages").glob("embed-*/pool-00000.npy"))[0]
    np.save(part, np.load(part)[:, :-1])
    for expansion in (folder / "runs" / "stages").glob("expand-*"):
        shutil.rmtree(expansion)
    done = run_python("-m", "launch.round", "experiment=tiny", cwd=folder)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(errors) == 1
    assert "pool-00000.npy" in errors[0]


def test_missing_sources_are_one_line_and_leave_nothing(tmp_path: Path) -> None:
    done = run_python(
        "-m", "launch.round", "experiment=avt_small", "data.sources=/nowhere", cwd=tmp_path
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert "/nowhere" in errors[0]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_why_prints_the_chain_of_a_lookalike(tiny: TinyRun) -> None:
    with Ledger.open(tiny.runs / "tiny" / "lsb_lt" / "ledger.sqlite", create=False) as ledger:
        keys = ledger.training_set(2, ["oracle"])["key"].to_pylist()
        chosen = next(
            (key, rows[0])
            for key in keys
            if (rows := ledger.candidacies(key)) and rows[0]["seed_key"]
        )
    key, row = chosen
    done = run_python("-m", "lsb.why", key, cwd=tiny.folder)
    assert done.returncode == 0, done.stderr
    for expected in (key, row["seed_key"], row["checkpoint_hash"][:12], "oracle"):
        assert expected in done.stdout


def test_sigterm_in_training_is_no_success(tiny: TinyRun, tmp_path: Path) -> None:
    folder = tiny.copy_of_shared_stages(tmp_path)
    patch = KILLS["training"].replace("SIGKILL", "SIGTERM")
    done = run_python(str(driver(folder, patch)), *ONLY_THE_ROUND, cwd=folder)
    assert done.returncode == 75, done.stderr
    assert re.search(r"stopped by SIGTERM at step \d+: run the same command to go on", done.stderr)
    assert not (folder / "runs" / "tiny" / "summary.json").exists()
