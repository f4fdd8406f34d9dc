"""Ranks: who this process is, and stages that the first rank makes for all of them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from torch import distributed

from lsb.artifact import Counts, Part, Stage, run_stage
from vlmae.callbacks import History, Quarantine, gather
from vlmae.ranks import OtherRankError, Ranks

VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
WHOLE = {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
WHOLE |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
Body = Callable[[Ranks, Path], Any]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """A function that sets these variables of a launcher and no others."""

    def put(values: dict[str, str]) -> None:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


def test_without_a_launcher_there_is_one_rank(environment: Callable[..., None]) -> None:
    for values in ({}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}):
        environment(values)
        ranks = Ranks.from_environment()
        assert (ranks, ranks.first) == (Ranks(0, 1, 1), True)


def test_what_a_launcher_says_is_taken(environment: Callable[..., None]) -> None:
    environment(WHOLE)
    assert Ranks.from_environment() == Ranks(2, 4, 2)
    assert not Ranks.from_environment().first
    environment({name: value for name, value in WHOLE.items() if name != "LOCAL_WORLD_SIZE"})
    assert Ranks.from_environment() == Ranks(2, 4, 4)


@pytest.mark.parametrize("absent", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_an_environment_is_refused(absent: str, environment: Callable[..., None]) -> None:
    environment({name: value for name, value in WHOLE.items() if name != absent})
    with pytest.raises(ValueError, match=rf"WORLD_SIZE is 4, and {absent} is not set: start every"):
        Ranks.from_environment()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two': give a whole number"),
        ({"RANK": "-1"}, "RANK is '-1': give a whole number"),
        ({"RANK": "4"}, "RANK is 4, WORLD_SIZE 4, LOCAL_WORLD_SIZE 2"),
        ({"WORLD_SIZE": "1"}, "RANK is 2, WORLD_SIZE 1"),
        ({"LOCAL_WORLD_SIZE": "3"}, "WORLD_SIZE 4, LOCAL_WORLD_SIZE 3"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE 0"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(
    changes: dict[str, str], message: str, environment: Callable[..., None]
) -> None:
    environment({**WHOLE, **changes})
    with pytest.raises(ValueError, match=message):
        Ranks.from_environment()


def test_a_rank_whose_launcher_says_no_size_is_not_taken_for_the_only_one(
    environment: Callable[..., None],
) -> None:
    environment({"RANK": "1"})
    with pytest.raises(ValueError, match=r"WORLD_SIZE is 1, and LOCAL_RANK.* is not set"):
        Ranks.from_environment()


def stage_of(root: Path, work: Callable[[Path], Counts]) -> Stage:
    return run_stage(root, "s", config={}, inputs={}, parts=[Part("p", ("a.txt",), work)])


def write(output: Path) -> Counts:
    (output / "a.txt").write_text("whole")
    return {"rows": 1}


def broken(output: Path) -> Counts:
    raise ValueError("the first rank's own words")


def once(ranks: Ranks, root: Path) -> Any:
    made = ranks.once(lambda: stage_of(root, write))
    again = ranks.once(lambda: stage_of(root, broken))  # reused: nothing is made
    return made.path == again.path, made.content, again.reused


def failing_once(ranks: Ranks, root: Path) -> Any:
    ranks.once(lambda: stage_of(root, broken))


def together(ranks: Ranks, root: Path) -> Any:
    calls = []

    def work(output: Path) -> Counts:
        calls.append([entry["rank"] for entry in gather({"rank": ranks.rank})])
        return write(output) if ranks.first else {}

    made = [ranks.all(lambda make: stage_of(root, make), work) for _ in range(2)]
    return calls, made[0].content, made[1].content


def failing_before(ranks: Ranks, root: Path) -> Any:
    def make(work: Callable[[Path], Counts]) -> Stage:
        raise ValueError("the first rank's own words")

    ranks.all(make, write)


def failing_then_whole(ranks: Ranks, root: Path) -> Any:
    seen = ""
    try:
        failing_once(ranks, root)
    except (OtherRankError, ValueError) as error:
        seen = type(error).__name__
    return seen, ranks.once(lambda: stage_of(root, write)).content


def failing_at_work(ranks: Ranks, root: Path) -> Any:
    def work(output: Path) -> Counts:
        if ranks.first:
            raise ValueError("the first rank's own words")
        return {}

    ranks.all(lambda make: stage_of(root, make), work)


def callbacks(ranks: Ranks, root: Path) -> Any:
    history, quarantine = History(), Quarantine(4, 1.0)
    history.set_own_state([[0, 1.0 + 2 * ranks.rank, 2], [1, 3.0 * ranks.rank, 1]])
    quarantine.set_own_state([[f"k{1 - ranks.rank}", "reason", ""], ["shared", "reason", ""]])
    states = history.state_dict(), quarantine.state_dict()
    again = History()
    again.load_state_dict(states[0])
    own = again.own_state() == history.own_state()
    return own, states, history.losses(), quarantine.table()["key"].to_pylist()


def rank_main(body: Body, rank: int, port: int, root: Path, told: Queue[Any]) -> None:
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = Ranks.from_environment()
    try:
        with ranks.together():
            result = ("returned", body(ranks, root))
    except Exception as error:
        result = (type(error).__name__, str(error))
    told.put((rank, result, distributed.is_initialized()))


def on_two_ranks(body: Body, root: Path) -> list[Any]:
    """What each of two gloo processes returned or raised; none is left behind."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = get_context("fork")
    told = context.Queue()
    processes = [
        context.Process(target=rank_main, args=(body, rank, port, root, told), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    answers = sorted(told.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert [initialized for _, _, initialized in answers] == [False, False]
    return [result for _, result, _ in answers]


def test_a_stage_is_made_once_and_opened_by_all(tmp_path: Path) -> None:
    first, second = on_two_ranks(once, tmp_path)
    assert first[0] == second[0] == "returned"
    assert first[1][:2] == second[1][:2]
    assert first[1][0], "the same path on both"
    assert len(list(tmp_path.glob("s-*"))) == 1


def test_all_ranks_work_on_a_stage_and_none_on_a_finished_one(tmp_path: Path) -> None:
    first, second = on_two_ranks(together, tmp_path)
    assert first == second
    calls, made, reused = first[1]
    assert calls == [[0, 1]], "each worked once, and they met"
    assert made == reused


@pytest.mark.parametrize("body", [failing_once, failing_before])
def test_the_first_rank_says_what_failed_and_the_others_that_it_did(
    tmp_path: Path, body: Body
) -> None:
    first, second = on_two_ranks(body, tmp_path)
    assert first == ("ValueError", "the first rank's own words")
    assert second == ("OtherRankError", "the first rank failed: see what it says")
    assert not list(tmp_path.glob("s-*[0-9a-f]"))


def test_after_a_failure_the_ranks_still_understand_each_other(tmp_path: Path) -> None:
    first, second = on_two_ranks(failing_then_whole, tmp_path)
    assert (first[0], second[0]) == ("returned", "returned")
    assert (first[1][0], second[1][0]) == ("ValueError", "OtherRankError")
    assert first[1][1] == second[1][1]


def test_a_first_rank_that_fails_at_work_leaves_no_rank_waiting(tmp_path: Path) -> None:
    first, second = on_two_ranks(failing_at_work, tmp_path)
    assert first == ("ValueError", "the first rank's own words")
    assert second[0] != "returned"


def test_states_of_callbacks_are_those_of_all_ranks(tmp_path: Path) -> None:
    first, second = on_two_ranks(callbacks, tmp_path)
    assert first == second
    own, (history, quarantine), losses, keys = first[1]
    assert own, "each goes on with its own"
    assert len(history["ranks"]) == len(quarantine["ranks"]) == 2
    assert losses == [1.0, 1.5]
    assert keys == ["k0", "k1", "shared"]


def test_one_rank_alone_needs_no_process_group(tmp_path: Path) -> None:
    alone = Ranks()
    with alone.together():
        assert not distributed.is_initialized()
        made = alone.all(lambda make: stage_of(tmp_path, make), write)
        assert alone.once(lambda: stage_of(tmp_path, broken)).path == made.path
    with pytest.raises(AssertionError, match="no collective work"):
        alone.all(lambda make: stage_of(tmp_path / "other", make), None)
