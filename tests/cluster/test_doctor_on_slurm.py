"""launch.doctor on a real SLURM: a whole cluster, and clusters with one broken node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import Cluster, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DOCTOR = (
    "-m",
    "launch.doctor",
    "launcher=slurm",
    "launcher.resources.default.memory_gb=1",
    "launcher.resources.default.cpus=1",
    "doctor.free_gb=0.1",
)
NODES = [f"node{number}" for number in range(1, 5)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of runs, beside weights that the config names."""
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    (weights / "model.safetensors").write_bytes(bytes(2**21))
    return tmp_path


def examined(cluster: Cluster, folder: Path, *options: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, page, and the record beside it."""
    keys = ("vl=clip", f"vl.model={folder / 'weights'}", *options)
    code, out, err = cluster.python(*DOCTOR, *keys, cwd=folder)
    assert code in (0, 1), f"{out}\n{err}"
    newest = max(
        (folder / "runs" / "doctor").glob("*/doctor.json"), key=lambda f: f.stat().st_mtime
    )
    return code, out, json.loads(newest.read_text())


def broken(record: dict[str, Any]) -> dict[str, set[str]]:
    """Node -> checks that failed there."""
    found = {
        node: {one["check"] for one in findings if one["cause"]}
        for node, findings in record["nodes"].items()
    }
    return {node: checks for node, checks in found.items() if checks}


@contextmanager
def changed(cluster: Cluster, node: str, do: str, undo: str) -> Iterator[None]:
    """A node in another state while the context lasts."""

    def shell(command: str) -> None:
        process = cluster.start("sh", "-ec", command, cwd=cluster.base, host=node)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err

    shell(do)
    try:
        yield
    finally:
        shell(undo)


def test_a_whole_cluster_is_well(cluster: Cluster, folder: Path) -> None:
    code, page, record = examined(cluster, folder)
    assert code == 0, page
    assert "all is well" in page
    assert set(NODES) < set(record["nodes"])
    assert "gloo over 4 nodes" in page
    assert not list((folder / "runs").glob(".doctor-*"))
    _, queue, _ = cluster.run("squeue", "--noheader", cwd=folder)
    assert "doctor" not in queue


def test_a_node_without_weights_is_named(cluster: Cluster, folder: Path) -> None:
    empty = folder / "empty"
    empty.mkdir()
    weights = folder / "weights"
    with changed(cluster, "node2", f"mount --bind {empty} {weights}", f"umount {weights}"):
        code, page, record = examined(cluster, folder)
    assert code == 1
    assert broken(record) == {"node2": {"weights and data"}}
    assert f"node2: weights and data: vl.model: {weights} is another one: nothing there" in page
    assert "mount or copy" in page


def test_a_node_whose_ports_are_closed_is_named(cluster: Cluster, folder: Path) -> None:
    """As by a firewall: srun reaches it, and it does not reach the port of rank 0."""
    ports = "/proc/sys/net/ipv4/ip_local_port_range"
    with (
        changed(  # srun's own ports beside those of trainings
            cluster, "node1", f"echo 40000 60999 >{ports}", f"echo 32768 60999 >{ports}"
        ),
        changed(
            cluster,
            "node3",
            "ip rule add to 10.77.0.11 ipproto tcp dport 20000-39999 unreachable priority 99",
            "ip rule del priority 99",
        ),
    ):
        code, page, record = examined(cluster, folder)
    assert code == 1
    assert broken(record) == {"node3": {"route"}}
    assert "node3: route: no route to rank 0, node1 (node1:" in page
    assert "gloo over 3 nodes" in page  # the others are well


@pytest.mark.parametrize("silent", [False, True])
def test_a_node_without_any_route_is_named(cluster: Cluster, folder: Path, silent: bool) -> None:
    """Neither can srun start anything there; refused at once, or swallowed without a word."""
    do, undo = (
        (
            "ip neigh replace 10.77.0.11 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
            "ip neigh del 10.77.0.11 dev eth0",
        )
        if silent
        else ("ip route add unreachable 10.77.0.11/32", "ip route del unreachable 10.77.0.11/32")
    )
    with changed(cluster, "node3", do, undo):
        code, page, record = examined(cluster, folder)
    assert code == 1
    assert broken(record) == {"node3": {"answers"}}
    assert "node3: answers: no route: the first node of the job cannot start anything" in page


def test_a_node_that_is_down_is_named_and_the_others_are_visited(
    cluster: Cluster, folder: Path
) -> None:
    def state() -> str:
        return cluster.run("sinfo", "--noheader", "--nodes=node4", "--format=%T", cwd=folder)[1]

    try:
        cluster.cut("node4")
        until(lambda: state().startswith("down"), "SLURM gives the node up")
        code, page, record = examined(cluster, folder, "launcher.nodes=4")
    finally:
        cluster.up()
    assert code == 1
    assert broken(record)["node4"] == {"answers"}
    assert set(broken(record)) == {"here", "node4"}  # three nodes are too few for the training
    assert "node4: answers: SLURM has it down*: Not responding" in page
    assert "launcher.nodes is 4, and partition test has 3" in page
    assert "gloo over 3 nodes" in page


def test_faked_gpus_have_no_driver_and_bad_limits_are_told(cluster: Cluster, folder: Path) -> None:
    cluster.run("scontrol", "update", "partitionname=test", "maxtime=60", cwd=folder)
    try:
        code, page, record = examined(
            cluster,
            folder,
            "+launcher.resources.train.gpus=1",
            "launcher.ranks=2",
            "+launcher.resources.train.time='1-00:00:00'",
            "launcher.stages=[train]",
        )
    finally:
        cluster.run("scontrol", "update", "partitionname=test", "maxtime=infinite", cwd=folder)
    assert code == 1
    assert {node for node, checks in broken(record).items() if "gpus" in checks} == set(NODES)
    assert "2 asked, and there is no NVIDIA driver" in page
    assert "train asks for 1-00:00:00, and partition test gives at most 1:00:00" in page


def test_dry_run_prints_the_script(cluster: Cluster, folder: Path) -> None:
    code, out, err = cluster.python(*DOCTOR, "--dry-run", cwd=folder)
    assert code == 0, err
    assert "--nodelist=node1,node2,node3,node4" in out
    assert "launch.doctor.node" in out
    assert not (folder / "runs").exists()
