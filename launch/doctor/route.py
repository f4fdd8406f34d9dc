"""Checks of the network between nodes: rank 0, each other, and a collective of torch.

Rank 0 listens where the first rank of a training does. Whoever reaches it says so in its store;
those who have are then told to each other, so that one node without a route is named by itself and
the others still compute together.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from launch.doctor.collective import all_reduce
from launch.doctor.finding import Finding, one_line

PAUSE = 0.1
AT_ONCE = 16
SLOWEST = timedelta(minutes=2)


@dataclass(frozen=True)
class Meeting:
    """Where nodes meet.

    Attributes:
        nodes: names; the first is rank 0.
        rank: of this node.
        address: of rank 0.
        port: there.
        patience: seconds for each step.
        gpus: of this node.
    """

    nodes: tuple[str, ...]
    rank: int
    address: str
    port: int
    patience: float
    gpus: int

    @classmethod
    def from_environment(
        cls, nodes: tuple[str, ...], rank: int, patience: float, gpus: int
    ) -> Meeting:
        """As the batch script says."""
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return cls(nodes, rank, address, port, patience, gpus)

    @property
    def timeout(self) -> timedelta:
        """`patience` for torch."""
        return timedelta(seconds=self.patience)


def check_route(
    at: Meeting, doing: Callable[[str], None], loads: Callable[[str], bool]
) -> Iterator[Finding]:
    """Whether this node reaches rank 0 and the others, and computes with them. Collective.

    Args:
        at: where nodes meet.
        doing: called with the name of each step before it.
        loads: whether a node is known to be on its way, loading torch.
    """
    doing("route")
    if at.rank == 0:
        try:
            door = socket.create_server(("", at.port), backlog=1024)
        except OSError as error:
            yield Finding(
                "route",
                f"rank 0 cannot listen on port {at.port}: {one_line(error)}",
                "another program has it: run the doctor again, the next job has another port",
            )
            return
        own = _address_of(socket.gethostname(), at.address)
    else:
        try:
            own = reach(at.address, at.port, at.patience)
        except OSError as error:
            yield no_route(at, error)
            return
        door = None
    yield from _meet(at, door, own, doing, loads)


def reach(address: str, port: int, patience: float, pause: float = PAUSE) -> str:
    """Connect, again and again while nobody listens; returns the address of this end.

    Raises:
        OSError: it could not be reached in `patience` seconds; of the last try.
    """
    deadline = time.monotonic() + patience
    while True:
        left = deadline - time.monotonic()
        try:
            with socket.create_connection((address, port), timeout=max(0.5, left)) as reached:
                return str(reached.getsockname()[0])
        except OSError:
            if time.monotonic() + pause >= deadline:
                raise
        time.sleep(pause)


def no_route(at: Meeting, error: OSError) -> Finding:
    """What it means that rank 0 was not reached."""
    if isinstance(error, ConnectionRefusedError):
        return Finding(
            "route",
            f"it reaches {at.nodes[0]} ({at.address}), where nobody listens on port {at.port}",
            f"see what {at.nodes[0]} says; if it is well, a firewall there refuses ports "
            "20000-39999 to this node",
        )
    why = "no answer" if isinstance(error, TimeoutError) else one_line(error)
    return Finding(
        "route",
        f"no route to rank 0, {at.nodes[0]} ({at.address}:{at.port}): {why}",
        f"ip route get {at.address} and nc -vz {at.address} {at.port} on that node; open ports "
        "20000-39999 and 32768-60999 between nodes, or leave it out: "
        f"'launcher.options=[--exclude={at.nodes[at.rank]}]'",
    )


def _meet(
    at: Meeting,
    door: socket.socket | None,
    own: str,
    doing: Callable[[str], None],
    loads: Callable[[str], bool],
) -> Iterator[Finding]:
    doing("torch")
    from torch import distributed

    yield Finding("torch")
    doing("route")
    with socket.create_server(("", 0), backlog=1024) as listener:
        here = json.dumps([own, listener.getsockname()[1]])
        try:
            store = distributed.TCPStore(  # type: ignore[attr-defined]
                at.address,
                at.port,
                is_master=door is not None,
                wait_for_workers=False,
                timeout=at.timeout,
                master_listen_fd=None if door is None else door.detach(),
            )
            store.set(f"here/{at.rank}", here)
            members = _members(at, store, loads)
        except RuntimeError as error:
            yield Finding(
                "route",
                f"it reached {at.nodes[0]} once, and then not its store: {one_line(error)}",
                "run the doctor again; if it stays, the network between both loses packets",
            )
            return
        if at.rank not in members:
            yield Finding(
                "route",
                f"it came {at.patience:g} s or more after the others",
                "its file system or network is slow: doctor.patience=60 waits longer",
            )
            return
        others = {rank: json.loads(store.get(f"here/{rank}")) for rank in members}
        apart = list(unreached(others, at.rank, at.nodes, at.patience))
        store.set(f"mesh/{at.rank}", json.dumps(apart))
        if apart:
            yield Finding(
                "route",
                f"it does not reach {', '.join(apart)}",
                "open all ports between nodes (gloo and NCCL choose theirs), or name the network "
                "they share: 'launcher.setup=[\"export GLOO_SOCKET_IFNAME=<interface>\"]'",
            )
        else:
            yield Finding("route", told=f"to {at.address}:{at.port}")
        doing("all-reduce")
        try:
            store.wait([f"mesh/{rank}" for rank in members], at.timeout)
            broken = [rank for rank in members if json.loads(store.get(f"mesh/{rank}"))]
        except RuntimeError as error:
            yield Finding("all-reduce", f"others fell silent: {one_line(error)}", _SEE_OTHERS)
            return
        if broken:
            if not apart:
                told = "not tried, for some nodes do not reach others"
                yield Finding("all-reduce", told=told)
            return
        yield all_reduce(store, members.index(at.rank), len(members), at.patience, at.gpus)
        # Rank 0's store lives until all have left it.
        store.set(f"left/{at.rank}", "")
        if at.rank == 0:
            _wait_for(store, [f"left/{rank}" for rank in members], at.patience)


def _members(at: Meeting, store: Any, loads: Callable[[str], bool]) -> list[int]:
    """Ranks that came to the store until none came for a while, as rank 0 saw it."""
    if at.rank == 0:
        came: list[int] = []
        last = deadline = time.monotonic() + at.patience
        last += SLOWEST.total_seconds() / 2
        while len(came) < len(at.nodes) and time.monotonic() < deadline:
            before = len(came)
            came = [rank for rank in range(len(at.nodes)) if store.check([f"here/{rank}"])]
            away = [name for rank, name in enumerate(at.nodes) if rank not in came]
            if len(came) > before or any(loads(name) for name in away):
                deadline = min(time.monotonic() + at.patience, last)
            time.sleep(PAUSE)
        store.set("members", json.dumps(came))
        return came
    # The others may load torch for long, and rank 0 waits for them.
    store.wait(["members"], SLOWEST)
    members: list[int] = json.loads(store.get("members"))
    return members


def _wait_for(store: Any, keys: Sequence[str], patience: float) -> None:
    deadline = time.monotonic() + patience
    while not store.check(list(keys)) and time.monotonic() < deadline:
        time.sleep(PAUSE)


def unreached(
    places: dict[int, tuple[str, int]], own: int, nodes: Sequence[str], patience: float
) -> Iterator[str]:
    """Names of the others that cannot be connected to.

    Args:
        places: rank -> address and port where it listens.
        own: rank of this node.
        nodes: names by rank.
        patience: seconds for each.
    """

    def connects(rank: int) -> bool:
        address, port = places[rank]
        try:
            with socket.create_connection((address, port), timeout=patience / 2):
                return True
        except OSError:
            return False

    ranks = [rank for rank in places if rank != own]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for rank, well in zip(ranks, pool.map(connects, ranks), strict=True):
            if not well:
                yield f"{nodes[rank]} ({places[rank][0]})"


def _address_of(name: str, fallback: str) -> str:
    """Where others reach this host, as gloo would find it."""
    try:
        return socket.gethostbyname(name)
    except OSError:
        return fallback


_SEE_OTHERS = "see what is wrong with the others first"
