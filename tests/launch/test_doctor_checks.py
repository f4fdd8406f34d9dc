"""Each check of launch.doctor on what is bad: it names the thing, and says what to do."""

from __future__ import annotations

import os
import shlex
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from filelock import FileLock

from launch.doctor import folders
from launch.doctor.asked import (
    Choice,
    check_array,
    check_asked,
    check_settings,
    check_time,
    gpus_asked,
    memory_asked,
    not_answering,
)
from launch.doctor.examination import Examination
from launch.doctor.finding import HERE, Finding
from launch.doctor.folders import (
    check_lock,
    check_nonce,
    check_place,
    listed,
    listing,
    nonce_file,
)
from launch.doctor.machine import (
    check_gpus,
    check_memory,
    check_names,
    check_open_files,
    check_shared_memory,
    check_versions,
)
from launch.doctor.node import clock_of
from launch.doctor.places import places_of
from launch.doctor.question import LOCK, Limits, Place, Question
from launch.doctor.route import Meeting, no_route, reach, unreached
from launch.doctor.verdict import CHECKS, blamed, verdicts
from launch.doctor.within import within
from launch.jobs.launcher_config import SlurmConfig, launcher_config
from launch.slurm.partition import Node, Partition, parse_node, seconds_of
from vlmae.config import as_dict, compose_config


def question(**changes: object) -> Question:
    values: dict[str, object] = {
        "token": "t",
        "nodes": ("a", "b"),
        "versions": {},
        "places": (Place("runs", "/runs", writes=True),),
        "gpus": 0,
        "memory_gb": 1.0,
        "patience": 1.0,
        "free_gb": 0.0,
        "shm_gb": 0.0,
        "open_files": 0,
    }
    return Question(**{**values, **changes})  # type: ignore[arg-type]


def test_a_question_is_read_as_it_was_written(tmp_path: Path) -> None:
    asked = question()
    asked.write(tmp_path)
    assert Question.read(tmp_path) == asked
    (tmp_path / "question.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="not of this release"):
        Question.read(tmp_path)


@pytest.mark.parametrize("key", ["patience", "queue_seconds", "clock_seconds", "free_gb"])
def test_limits_are_checked(key: str) -> None:
    with pytest.raises(ValueError, match=rf"doctor\.{key} is -1"):
        Limits(**{key: -1})


def test_other_versions() -> None:
    assert check_versions({"torch": "2"}, {"torch": "2", "more": "1"}).fine
    found = check_versions({"torch": "2", "lightning": "3"}, {"torch": "1"})
    assert found.cause == (
        "torch is 1 and 2 where the command runs; lightning is absent and 3 where the command runs"
    )
    assert "launcher.python" in found.remedy


def test_gpus_without_a_driver(tmp_path: Path) -> None:
    assert check_gpus(0).fine
    found = check_gpus(2, tmp_path / "absent")
    assert "2 asked, and there is no NVIDIA driver" in found.cause


def test_fewer_gpus_than_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    driver = tmp_path / "version"
    driver.touch()
    assert check_gpus(2, driver).cause == "torch sees 1 of 2 GPUs"


def test_memory_and_shared_memory(tmp_path: Path) -> None:
    assert check_memory(0.1).fine
    assert "its ranks ask for 1000000.0" in check_memory(1e6).cause
    assert check_shared_memory(0, tmp_path).fine
    assert "want 1e+06" in check_shared_memory(1e6, tmp_path).cause
    assert "there is no" in check_shared_memory(0, tmp_path / "absent").cause


def test_open_files() -> None:
    assert check_open_files(100, (-1, -1)).fine
    assert check_open_files(100, (100, 100)).fine
    low = check_open_files(100, (99, -1))
    assert "may open 99" in low.cause
    assert "ulimit -n 100" in low.remedy
    assert "have the hard limit" in check_open_files(100, (99, 99)).remedy


def test_names() -> None:
    known = {"a": "10.0.0.1", "b": "10.0.0.2", "loop": "127.0.1.1"}

    def resolve(name: str) -> str:
        if name not in known:
            raise OSError("unknown")
        return known[name]

    assert check_names(["a", "b"], "a", resolve).fine
    assert "cannot resolve c" in check_names(["a", "c"], "a", resolve).cause
    assert "loop, 127.0.1.1" in check_names(["a", "b"], "loop", resolve).cause
    assert check_names(["loop"], "loop", resolve).fine  # one node tells nobody


def test_clocks() -> None:
    assert clock_of(100, 103, 101, limit=5).fine
    assert clock_of(100, 112, 108, limit=5).fine  # the way took 8 s: it may lie within
    assert clock_of(100, 130, 101, limit=5).cause == "it is 30 s behind that of the command"
    assert "ahead" in clock_of(100, 50, 101, limit=5).cause


def weights(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.bin").write_bytes(bytes(100))
    return folder


def test_weights_that_are_absent_or_others(tmp_path: Path) -> None:
    here = listed(Place("vl.model", str(weights(tmp_path / "weights"))))
    assert check_place(here, 0, "t", "a").fine
    (tmp_path / "weights" / "config.json").write_text("[]")  # as large as before
    found = check_place(here, 0, "t", "a")
    assert "is another one: 2 files, 102 bytes" in found.cause
    assert "mount or copy" in found.remedy
    for file in list((tmp_path / "weights").iterdir()):
        file.unlink()
    assert "is another one: nothing there" in check_place(here, 0, "t", "a").cause
    (tmp_path / "weights").rmdir()
    assert "there is no" in check_place(here, 0, "t", "a").cause
    with pytest.raises(ValueError, match=r"vl\.model: .*there is no .*; mount or copy"):
        listed(here)


def test_a_model_of_the_hub_that_no_cache_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    place = Place("audio.model", "nobody/nothing", hub=True)
    with pytest.raises(ValueError, match="hf download nobody/nothing"):
        listed(place)


def test_a_folder_that_is_written_to(tmp_path: Path) -> None:
    place = Place("runs", str(tmp_path), writes=True)
    assert "is another folder there" in check_place(place, 0, "t", "a").cause
    nonce_file(place, "t").touch()
    assert check_place(place, 0, "t", "a").fine
    assert (tmp_path / ".doctor-t-a").read_text() == "a"
    found = check_place(place, 1e9, "t", "a")
    assert "GB free, and 1e+09 are wanted" in found.cause
    assert "launch.clean" in found.remedy
    gone = Place("runs", str(tmp_path / "gone"), writes=True)
    assert "there is no" in check_place(gone, 0, "t", "a").cause


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("runs", str(tmp_path), writes=True)
    nonce_file(place, "t").touch()

    def refuse(source: object, target: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    found = check_place(place, 0, "t", "a")
    assert "cannot be written: OSError: [Errno 30] Read-only file system" in found.cause


def test_a_listing_is_of_names_sizes_and_small_files(tmp_path: Path) -> None:
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert listing(first) == listing(second)
    (second / "model.bin").rename(second / "other.bin")
    assert listing(first) != listing(second)
    assert listing(first / "config.json").startswith("1 files, 2 bytes")


def test_renames_and_locks_that_are_not_seen(tmp_path: Path) -> None:
    question(token="new").write(tmp_path)
    assert check_nonce(tmp_path, "new").fine
    assert "'new'" in check_nonce(tmp_path, "newer").cause
    assert "can be taken there as well" in check_lock(tmp_path).cause
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with FileLock(tmp_path / LOCK):
            held.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    try:
        assert check_lock(tmp_path).fine
    finally:
        leave.set()
        thread.join()


def meeting(**changes: object) -> Meeting:
    values: dict[str, object] = {
        "nodes": ("a", "b", "c"),
        "rank": 1,
        "address": "127.0.0.1",
        "port": 1,
        "patience": 0.5,
        "gpus": 0,
    }
    return Meeting(**{**values, **changes})  # type: ignore[arg-type]


def test_who_listens_is_reached_and_who_does_not_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        assert reach("127.0.0.1", port, 10) == "127.0.0.1"
        places = {0: ("127.0.0.1", port), 1: ("127.0.0.1", port)}
        assert not list(unreached(places, 1, ("a", "b"), 10))
    with pytest.raises(ConnectionRefusedError):
        reach("127.0.0.1", port, 0.2)
    assert list(unreached(places, 1, ("a", "b"), 10)) == ["a (127.0.0.1)"]


def test_no_route_says_which_way_it_failed() -> None:
    at = meeting(port=4567)
    refused = no_route(at, ConnectionRefusedError())
    assert "it reaches a (127.0.0.1), where nobody listens on port 4567" in refused.cause
    silent = no_route(at, TimeoutError())
    assert silent.cause == "no route to rank 0, a (127.0.0.1:4567): no answer"
    told = no_route(at, OSError(113, "No route to host"))
    assert "No route to host" in told.cause
    assert "--exclude" in told.remedy


def test_what_hangs_is_given_up() -> None:
    forever = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer in 0\.05 s"):
        within(0.05, forever.wait)
    forever.set()
    with pytest.raises(ZeroDivisionError):
        within(60, lambda: 1 // 0)
    assert within(60, lambda: 3) == 3


def test_a_first_node_that_nobody_reaches_is_blamed_alone() -> None:
    cut = Finding("route", "no route to rank 0, a (a:1): no answer", "mend it")
    well = Finding("route", told="to a:1")
    found = {HERE: [Finding("settings")], "a": [well], "b": [cut], "c": [cut]}
    moved = blamed(found, "a")
    assert [one.cause for one in moved["a"]] == [f"no other node reaches it: {cut.cause}"]
    assert moved["b"] == moved["c"] == []
    some = {**found, "c": [well]}
    assert blamed(some, "a") == some
    only = {"a": [well], "b": [cut]}  # either may be the broken one
    assert blamed(only, "a") == only


def test_verdicts_are_by_check_in_their_order() -> None:
    bad = Finding("versions", "torch is 1", "upgrade")
    rows = verdicts({"a": [bad, Finding("answers")], "b": [Finding("versions", told="torch 2")]})
    assert [row.check for row in rows] == ["answers", "versions"]
    assert (rows[1].fine, rows[1].failed, rows[1].told) == (("b",), {"a": (bad,)}, "torch 2")
    assert len(set(CHECKS)) == len(CHECKS)


def test_lines_of_sinfo() -> None:
    node = parse_node("n1|mixed|gpu:h100:4(S:0-1),gpu:a40:2|ib,h100|none")
    assert (node.ready, node.busy, node.broken, node.reason) == (True, False, False, "")
    assert (node.gpus_of("h100"), node.gpus_of(None), node.gpus_of("b200")) == (4, 6, 0)
    assert node.fits("h100&ib")
    assert node.fits("b200|ib")
    assert not node.fits("b200&ib")
    assert node.fits("[rack1*2]")  # SLURM's to decide
    down = parse_node("n2|down*|(null)|(null)|a|b")
    assert (down.broken, down.ready, down.reason) == (True, False, "a|b")
    assert "SLURM has it down*: a|b" in not_answering(down).cause
    assert "nodename=n2 state=resume" in not_answering(down).remedy
    assert parse_node("n3|allocated|gpu:2|(null)|none").busy
    assert parse_node("n3|idle*|gpu:2|(null)|none").broken
    assert not parse_node("n3|maint|gpu:2|(null)|none").ready


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("01:30:00", 5400),
        ("1-00:00:00", 86400),
        ("2-12", 216000),
        ("UNLIMITED", None),
        ("infinite", None),
    ],
)
def test_times_of_slurm(time: str, seconds: int | None) -> None:
    assert seconds_of(time) == seconds


def test_limits_of_slurm() -> None:
    node = Node("n", "idle", {}, frozenset(), "")
    short = Partition("short", (node,), 3600, None)
    assert check_time("embed", "01:00:00", short).fine
    assert check_time("embed", None, short).fine
    found = check_time("embed", "04:00:00", short)
    assert found.cause == "embed asks for 04:00:00, and partition short gives at most 1:00:00"
    assert "launcher.resources.embed.time" in found.remedy
    assert not check_time("embed", "UNLIMITED", short).fine
    assert check_time("embed", "UNLIMITED", Partition("long", (node,), None, None)).fine
    assert check_array(16, 1001).fine
    assert check_array(16, None).fine
    assert "takes no arrays" in check_array(16, 0).cause


def test_a_training_on_gpus_asks_for_some() -> None:
    gpu = {"trainer": {"accelerator": "gpu"}}
    assert check_settings(8, gpu).fine
    assert "+launcher.resources.train.gpus=1" in check_settings(0, gpu).remedy


def test_places_of_a_config(tmp_path: Path) -> None:
    values = {
        "runs": str(tmp_path / "runs"),
        "vl": {"image": "efficientnet_lite0", "text": "nobody/text", "text_revision": "v1"},
        "audio": {"model": str(tmp_path)},
        "data": {"sources": "download", "cache": "~/cache", "path": "s3://bucket/{0..9}.tar"},
        "labels": "labels.csv",
        "validation": None,
    }
    found = {place.key: place for place in places_of(values)}
    assert set(found) == {"runs", "data.cache", "vl.text", "audio.model", "labels"}
    assert found["vl.text"] == Place("vl.text", "nobody/text", revision="v1", hub=True)
    assert found["data.cache"].path == str(Path("~/cache").expanduser())
    assert found["runs"].writes
    assert Path(found["labels"].path).is_absolute()


def chosen(*nodes: str, gpus: int = 0) -> Choice:
    """A choice of all nodes of a partition."""
    known = tuple(Node(name, "idle", {}, frozenset(), "") for name in nodes)
    return Choice(Partition("test", known, None, None), nodes, {}, {}, gpus)


def test_the_visit_is_not_ended_before_its_time_is_up(tmp_path: Path) -> None:
    config = SlurmConfig(name="slurm", signal_seconds=300)  # longer than a visit may take
    examination = Examination({}, config, Limits(), print)
    script = examination.script(chosen("a", "b"), tmp_path, tmp_path)
    assert "--time=4" in script
    assert "--signal" not in script
    assert '"${SLURM_RESTART_COUNT:-0}" -lt 0 ]' in script  # nor does it come again


def test_another_stage_than_the_training_is_asked_for_its_own_alone() -> None:
    own = {"train": {"gpus": 1, "partition": "gpu"}, "default": {"memory_gb": 10}}
    config = SlurmConfig(name="slurm", nodes=2, ranks=8, stages=(), resources=own)
    gpu = {"trainer": {"accelerator": "gpu"}}
    # One node, without GPUs, is enough for tasks of `prepare`.
    prepare, train = Limits(stage="prepare"), Limits()
    assert all(one.fine for one in check_asked(config, chosen("a"), prepare, gpu))
    told = [one.cause for one in check_asked(config, chosen("a", gpus=8), train, gpu)]
    assert told == ["", "launcher.nodes is 2, and partition test has 1 that work and fit"]
    assert (gpus_asked(config, "prepare"), memory_asked(config, "prepare")) == (0, 10)
    assert (gpus_asked(config, "train"), memory_asked(config, "train")) == (8, 80)
    forgotten = SlurmConfig(name="slurm", stages=(), resources={"prepare": {"gpus": 1}})
    assert not all(one.fine for one in check_asked(forgotten, chosen("a", gpus=1), prepare, gpu))


@pytest.mark.parametrize("known", [(), ("gpus=0", 'time="04:00:00"')])
def test_remedies_can_be_typed_whether_a_preset_has_the_key_or_not(known: tuple[str, ...]) -> None:
    preset = ["launcher=slurm", *(f"+launcher.resources.train.{key}" for key in known)]
    gpus = check_settings(0, {"trainer": {"accelerator": "gpu"}})
    time = check_time("train", "04:00:00", Partition("short", (), 3600, None))
    typed = [shlex.split(finding.remedy)[0] for finding in (gpus, time)]
    values = cast(dict[str, Any], as_dict(compose_config("doctor", [*preset, *typed])))
    asked = launcher_config(values["launcher"])
    assert isinstance(asked, SlurmConfig)
    assert (asked.of("train").gpus, asked.of("train").time) == (1, "60")


def test_a_listing_of_a_large_folder_ends_with_its_first_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("a", "a/b", "c"):
        (tmp_path / folder).mkdir()
        for number in range(3):
            (tmp_path / folder / f"{number}.txt").write_text("clip")
    monkeypatch.setattr(folders, "MOST", 5)
    monkeypatch.setattr(folders, "READ", 2)
    seen: list[str] = []
    for of, name in ((os, "scandir"), (Path, "read_bytes")):
        real = getattr(of, name)

        def tell(path: Path, real: Callable[[Path], Any] = real) -> Any:
            seen.append(Path(path).name)
            return real(path)

        monkeypatch.setattr(of, name, tell)
    found = listing(tmp_path)
    assert found.startswith("the first 5 files, 20 bytes")
    assert seen == [tmp_path.name, "a", "0.txt", "1.txt", "b"]
    (tmp_path / "a" / "2.txt").write_text("clap")  # not read
    (tmp_path / "c" / "0.txt").unlink()  # behind them
    assert listing(tmp_path) == found
    (tmp_path / "a" / "1.txt").write_text("clap")
    assert listing(tmp_path) != found
