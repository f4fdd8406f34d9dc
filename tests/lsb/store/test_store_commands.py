from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lsb.artifact import Stage
from lsb.store import Store
from lsb.store.commands import main

StageOf = Callable[..., Stage]
Unit = Callable[..., np.ndarray]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def store(tmp_path: Path, stage_of: StageOf, unit: Unit) -> Path:
    keys = [f"clip-{index}" for index in range(6)]
    scores = {"probability_x": np.linspace(0, 1, 6)}
    return stage_of(tmp_path / "root", unit(6, 8), keys, scores, parts=2).path


def test_verify(store: Path, capsys: Capture) -> None:
    assert main(["verify", str(store)]) == 0
    assert capsys.readouterr().out == f"{store} is whole: 2 parts, 6 rows\n"
    (store / "part-00000.npy").unlink()
    file = store / "part-00001.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    assert main(["verify", str(store)]) == 1
    told = capsys.readouterr()
    assert [line.split(" ")[0].rstrip(":") for line in told.out.splitlines()] == [
        str(store / "part-00000.npy"),
        str(file),
        str(file),
    ]
    assert told.err == f"{store}: 3 faults\n"


def test_stat(store: Path, capsys: Capture) -> None:
    assert main(["stat", str(store)]) == 0
    told = {
        line[: line.index("  ", 4)].strip(): line[line.index("  ", 4) :].strip()
        for line in capsys.readouterr().out.splitlines()
        if "  " in line[4:]
    }
    assert told["kind"] == "fused"
    assert told["dimension, dtype"] == "8, float32"
    assert told["parts, rows"] == "2, 6"
    assert told["bytes of vectors"] == str(2 * (128 + 3 * 8 * 4))
    assert told["norms"] == "1.000000 to 1.000000 in a sample of 6 rows"
    assert told["codes (*.codes.safetensors)"] == "in 0 of 2 parts"
    assert told["content"] == Store.open(store).hash
    assert "probability_x: double" in told["columns"]


def test_drop_and_merge_undo_each_other(tmp_path: Path, store: Path, capsys: Capture) -> None:
    one, other, both = (str(tmp_path / name) for name in ("one", "other", "both"))
    keys = tmp_path / "keys.txt"
    keys.write_text("clip-0\nclip-1\nclip-2\n", "utf-8")
    assert main(["drop", one, str(store), "--part", "part-00000"]) == 0
    assert main(["drop", other, str(store), "--part", "part-00001"]) == 0
    assert main(["merge", both, other, one]) == 0
    assert main(["merge", both, other, one]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith(f"{both}: 2 parts, 6 rows, content ")
    assert lines[3].startswith(f"{both} was there already: 2 parts, 6 rows")
    assert Store.open(Path(both)).hash == Store.open(store).hash
    assert main(["drop", str(tmp_path / "rest"), both, "--keys", str(keys)]) == 0
    assert Store.open(tmp_path / "rest", verify=True).rows(["key"]).num_rows == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "none"], "error: none has no manifest.json: it is not a finished stage"),
        (["stat", "memory://nothing/here"], "error: memory://nothing/here has no manifest.json"),
        (["drop", "OUT", "STORE", "--part", "x"], "has no part 'x', only part-00000, part-00001"),
        (["drop", "OUT", "STORE", "--keys", "none.txt"], "none.txt"),
        (["merge", "OUT", "STORE"], "merge needs two stores or more, got 1"),
        (["merge", "OUT", "STORE", "STORE"], "clip 'clip-"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, store: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    places = {"OUT": str(tmp_path / "out"), "STORE": str(store)}
    assert main([places.get(word, word) for word in arguments]) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert not (tmp_path / "out").exists()


def test_it_is_a_command(store: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "lsb.store", "verify", str(store)], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.endswith("is whole: 2 parts, 6 rows\n")
