"""`python -m lsb.search`: its files, its shares, its ranks, and its one-line errors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import cut_pools
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lsb.ids import from_arrow, to_arrow
from lsb.search.__main__ import main
from lsb.search.result import digest, read_result

FILES = ("result.parquet", "hits.png", "summary.json")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cut_pools.build(tmp_path_factory.mktemp("store"), 3)


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the seeds and the ids to leave out, as a text and as a table."""
    folder = tmp_path_factory.mktemp("lists")
    (folder / "seeds.txt").write_text("\n".join([*cut_pools.KEYS[:30], "", cut_pools.KEYS[0]]))
    pq.write_table(pa.table({"key": cut_pools.KEYS[:30]}), folder / "seeds.parquet")
    pq.write_table(pa.table({"id": to_arrow(cut_pools.EXCLUDE)}), folder / "labelled.parquet")
    return folder


def arguments(store: Path, lists: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--store", str(store), "--seeds", str(lists / "seeds.txt"), "--lt", str(cut_pools.LT)),
        *("--neighbours", "4", "--max-neighbours", "40", "--per-seed-cap", "3"),
        *("--exclude", str(lists / "labelled.parquet"), "--output", str(output), *more),
    ]


@pytest.fixture(scope="module")
def alone(store: Path, lists: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone")
    assert main(arguments(store, lists, output)) == 0
    return output


def test_it_writes_the_table_the_plot_and_a_summary(alone: Path, store: Path) -> None:
    table, header = read_result(alone / "result.parquet")
    summary = json.loads((alone / "summary.json").read_text())
    assert summary["hits"] == table.num_rows > 300
    assert summary["digest"] == digest(table)
    assert summary["seeds"] == 30
    assert summary["kept"] == sum(table["kept"].to_pylist())
    assert 0 < summary["saturated"] < summary["asked_again"] <= 30
    assert header["lookalike_threshold"] == cut_pools.LT
    assert summary["source"]["store"] == header["store"]
    found = set(from_arrow(table["id"]).tolist())
    assert not found & set(cut_pools.EXCLUDE.tolist())
    assert (alone / "hits.png").stat().st_size > 10_000


def test_shares_and_seeds_from_elsewhere_end_in_the_same_bytes(
    alone: Path, store: Path, lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--seeds", str(lists / "seeds.parquet"), "--seed-store", str(store)]
    said = []
    for turn in range(12):
        share = ["--share", f"{turn % 2}/2"]
        assert main(arguments(store, lists, tmp_path, *more, *share)) == 0
        said.append(capsys.readouterr().out)
        if (tmp_path / "result.parquet").is_file():
            break
    assert "this share is done" in said[0]
    assert "result.parquet" in said[-1]
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (alone / name).read_bytes()


def test_ranks_end_in_the_same_bytes(alone: Path, store: Path, lists: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "lsb.search"]
    command += arguments(store, lists, tmp_path, "--collective")
    processes = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                **{"RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            },
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "result.parquet" in said[0]
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (alone / name).read_bytes()
    assert not (tmp_path / "waves").exists()


def test_all_clips_of_another_store_are_seeds(store: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    seeds = ["--seeds", str(store), "--lt", "0.99"]
    assert main(["--store", str(store), *seeds, "--output", str(output)]) == 0
    summary = json.loads((output / "summary.json").read_text())
    assert summary["seeds"] == cut_pools.CLIPS


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seeds", "/nowhere"], "--seeds is /nowhere, which is no file"),
        (["--exclude", "/nowhere"], "--exclude is /nowhere, which is no file"),
        (["--store", "/nowhere"], "/nowhere has no manifest.json"),
        (["--lt", "2"], "--lt is 2.0: give a cosine similarity"),
        (["--neighbours", "0"], "need 1 <= neighbours <= max_neighbours"),
        (["--per-seed-cap", "0"], "per_seed_cap is 0"),
        (["--collective"], "--collective needs ranks: start with torchrun"),
    ],
)
def test_wrong_input_is_one_line(
    store: Path,
    lists: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    assert main(arguments(store, lists, tmp_path, *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_files_without_clips_or_with_unknown_ones_are_refused(
    store: Path, lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "seeds.txt"
    for text, message in (("\n", "names no clip"), ("nobody\n", "1 of 1 ids are not in store")):
        file.write_text(text)
        assert main(arguments(store, lists, tmp_path, "--seeds", str(file))) == 2
        assert message in capsys.readouterr().err
    table = tmp_path / "seeds.parquet"
    pq.write_table(pa.table({"name": ["a"]}), table)
    assert main(arguments(store, lists, tmp_path, "--seeds", str(table))) == 2
    assert "none is 'id' or 'key'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(arguments(store, lists, tmp_path, "--share", "2/2"))
    assert "give I/N" in capsys.readouterr().err
