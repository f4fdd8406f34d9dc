"""One sha256 of the result table, whoever searches: one process, tasks, ranks, killed or not."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cut_pools
import numpy as np
import pytest
from cut_pools import CONFIG, CUTS, EXCLUDE, LT, SEED_IDS, result_digest

from lsb.artifact import StageError, fingerprint
from lsb.search.array import STAGE, merge_wave, part_contents, search_array, search_wave
from lsb.search.ask import Hits, seeds_of
from lsb.search.collective import deal
from lsb.search.exact import search
from lsb.search.partial import Wave, lists_file
from lsb.store import Store

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the same pool cut in all ways."""
    folder = tmp_path_factory.mktemp("stores")
    for parts in CUTS:
        cut_pools.build(folder / str(parts), parts)
        cut_pools.build(folder / f"{parts} shuffled", parts, shuffle=parts)
    return folder


@pytest.fixture(scope="module")
def expected(stores: Path) -> str:
    """What the search of one process finds in the pool in one piece."""
    store = opened(stores, "1")
    hits = exact(store)
    assert hits.table.num_rows > 300
    assert 0 < hits.saturated < hits.asked_again, "both branches are taken"
    return result_digest(hits, store)


def opened(stores: Path, name: str) -> Store:
    return Store.open(next((stores / name).glob("embed-*")))


def exact(store: Store, lookalike_threshold: float | None = LT) -> Hits:
    return search(
        SEED_IDS,
        cut_pools.seeds(),
        store,
        CONFIG,
        lookalike_threshold=lookalike_threshold,
        exclude=EXCLUDE,
    )


def array(root: Path, store: Store, share: tuple[int, int] = (0, 1), **changes: Any) -> Hits | None:
    arguments: dict[str, Any] = {"lookalike_threshold": LT, "exclude": EXCLUDE, **changes}
    return search_array(root, SEED_IDS, cut_pools.seeds(), store, CONFIG, share=share, **arguments)


def ranks_told(folder: Path, ranks: int) -> list[dict[str, Any]]:
    processes = [
        subprocess.Popen(
            [sys.executable, HERE / "rank_cases.py", folder, str(rank), str(ranks)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=ENVIRONMENT,
        )
        for rank in range(ranks)
    ]
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(said)
    return [json.loads((folder / f"told-{ranks}-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.parametrize("shuffled", ["", " shuffled"])
@pytest.mark.parametrize("parts", CUTS)
def test_tasks_give_one_digest(
    tmp_path: Path, stores: Path, expected: str, parts: int, shuffled: str
) -> None:
    store = opened(stores, f"{parts}{shuffled}")
    assert result_digest(exact(store), store) == expected
    alone = array(tmp_path / "alone", store)
    assert alone is not None
    assert result_digest(alone, store) == expected
    assert np.array_equal(alone.row, exact(store).row)
    # Three tasks, more than there are parts at first, started again and again in any order.
    chance = random.Random(parts)
    tries, hits = 0, None
    while hits is None:
        hits = array(tmp_path / "shared", store, (chance.randrange(3), 3))
        tries += 1
    assert result_digest(hits, store) == expected
    assert parts == 1 or tries > 3
    waves = sorted(path.name for path in (tmp_path / "alone").glob(f"{STAGE}-*"))
    assert waves == sorted(path.name for path in (tmp_path / "shared").glob(f"{STAGE}-*"))
    assert len(waves) == 3, "4, 16 and 40 neighbours"
    for file in (tmp_path / "alone").glob(f"{STAGE}-*/*.parquet"):
        twin = tmp_path / "shared" / file.parent.name / file.name
        assert twin.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_give_the_digest_of_tasks(stores: Path, expected: str, ranks: int) -> None:
    told = ranks_told(stores, ranks)
    nearest = exact(opened(stores, "7"), lookalike_threshold=None)
    for rank in told:
        assert set(rank["digests"].values()) == {expected}
        assert len(rank["digests"]) == 2 * 2 * len(CUTS)
        assert rank["nearest"] == result_digest(nearest, opened(stores, "7"))
        assert rank["empty"] == 0
        failed = f"rank {ranks - 1} of {ranks}: "
        assert rank["bad block"] == failed + "OSError: a block cannot be read"
        assert "rank 1 searches with other seeds, LT" in rank["other LT"]
        assert "rank 1 searches with other rows_per_block than rank 0" in rank["other blocks"]


def test_killed_tasks_are_started_again_and_give_the_same_digest(
    tmp_path: Path, stores: Path, expected: str
) -> None:
    store = opened(stores, "7 shuffled").path

    def start(number: int, patience: int) -> subprocess.Popen[str]:
        task = [sys.executable, HERE / "array_task.py", store, tmp_path, str(number), "2"]
        return subprocess.Popen(
            [*task, str(patience)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )

    for number in (0, 1):
        process = start(number, 0)
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(f"{STAGE}-*.partial/.tmp-*")):
            assert time.monotonic() < deadline
            assert process.poll() is None, "it was to be killed at work"
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.3))  # anywhere: the outcome is the same
        process.send_signal(signal.SIGKILL)
        process.communicate()
    both = [start(number, 120) for number in (0, 1)]
    said = [process.communicate(timeout=240)[0] for process in both]
    assert said == [f"digest {expected}\n"] * 2


def test_a_missing_part_is_an_error_never_a_shorter_answer(tmp_path: Path, stores: Path) -> None:
    store = opened(stores, "7")
    wave = Wave(seeds_of(SEED_IDS, cut_pools.seeds()), 5, LT, np.unique(EXCLUDE))
    stage = search_wave(tmp_path, wave, store, part_contents(store), CONFIG)
    assert stage is not None
    whole = merge_wave(stage.path, wave, store)
    for part in (store.parts[1], store.parts[2]):  # also one without rows
        file = stage.path / lists_file(part.name)
        kept = file.read_bytes()
        file.unlink()
        with pytest.raises(StageError, match=rf"{part.name}\S* is missing: lists are merged only"):
            merge_wave(stage.path, wave, store)
        again = search_wave(tmp_path, wave, store, part_contents(store), CONFIG)
        assert again is not None
        assert file.read_bytes() == kept, "only this part is searched again"
    assert np.array_equal(merge_wave(stage.path, wave, store).id, whole.id)
    store.parts[1].vectors_path.rename(tmp_path / "away.npy")
    try:
        with pytest.raises((ValueError, FileNotFoundError), match=store.parts[1].name):
            array(tmp_path / "other", store)
    finally:
        (tmp_path / "away.npy").rename(store.parts[1].vectors_path)


def test_a_finished_wave_is_reused_and_other_questions_are_other_waves(
    tmp_path: Path, stores: Path
) -> None:
    store = opened(stores, "3")
    array(tmp_path, store)
    waves = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"{STAGE}-*")}
    array(tmp_path, store)
    assert waves == {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"{STAGE}-*")}
    array(tmp_path, store, lookalike_threshold=0.8)
    array(tmp_path, store, exclude=EXCLUDE[:-1])
    assert len(list(tmp_path.glob(f"{STAGE}-*"))) >= len(waves) + 4


def test_a_pool_that_grew_is_searched_in_its_new_part_alone(tmp_path: Path, stores: Path) -> None:
    store = opened(stores, "3")
    wave = Wave(seeds_of(SEED_IDS, cut_pools.seeds()), 5, LT, np.unique(EXCLUDE))
    contents = part_contents(store)
    smaller = Store.open(store.path)
    smaller.parts, smaller.hash = store.parts[:2], fingerprint("smaller")
    first = search_wave(tmp_path, wave, smaller, contents, CONFIG)
    second = search_wave(tmp_path, wave, store, contents, CONFIG)
    assert first is not None
    assert second is not None
    assert second.path != first.path
    for part in smaller.parts:
        name = lists_file(part.name)
        assert (second.path / name).samefile(first.path / name)


def test_rows_are_dealt_evenly() -> None:
    assert deal([10, 10, 10, 10], 2) == [0, 1, 0, 1]
    assert deal([1, 50, 2, 40, 3], 2) == [1, 0, 1, 1, 1]
    assert deal([5, 0], 4) == [0, 1]
    assert deal([], 2) == []


def test_widths_do_not_change_the_result(tmp_path: Path, stores: Path) -> None:
    store = opened(stores, "7")
    table = None
    for neighbours in (1, 40):
        config = dataclasses.replace(CONFIG, neighbours=neighbours)
        hits = search_array(
            tmp_path,
            SEED_IDS,
            cut_pools.seeds(),
            store,
            config,
            lookalike_threshold=LT,
            exclude=EXCLUDE,
        )
        assert hits is not None
        assert table is None or hits.table.equals(table)
        table = hits.table
