"""Checks of what has to be the same on every node: weights, data, and the folders of runs."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from launch.doctor.finding import Finding, one_line
from launch.doctor.question import LOCK, NONCE, Place
from lsb.artifact import fingerprint, read_json

GB = 1024**3
SMALL = 2**20
MOST, READ = 2_000, 200
"""Files of a folder that are compared, and small ones that are read for it: a data set may have
millions. The hash of all weights is compared when they load."""


def located(place: Place) -> Path:
    """Where a place is on this machine.

    Raises:
        OSError: the cache of the hub has no such model.
    """
    if not place.hub:
        return Path(place.path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(place.path, revision=place.revision, local_files_only=True))


def listing(path: Path) -> str:
    """Names and sizes of what lies there first, and what small files hold, in one short line."""
    rows: list[tuple[str, int, str]] = []
    read = 0
    for file in islice(_files(path), MOST):
        size, held = file.stat().st_size, ""
        if size <= SMALL and read < READ:
            held, read = fingerprint(file.read_bytes().hex()), read + 1
        rows.append((str(file.relative_to(path)), size, held))
    total = sum(size for _, size, _ in rows)
    first = "the first " if len(rows) == MOST else ""
    return f"{first}{len(rows)} files, {total} bytes, {fingerprint(rows)[:8]}"


def _files(path: Path) -> Iterator[Path]:
    """Files below a path in an order that all nodes have; folders are read as they come."""
    if path.is_file():
        yield path
        return
    try:
        with os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except PermissionError:  # lost+found
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path))
        elif entry.is_file():
            yield Path(entry.path)


def listed(place: Place) -> Place:
    """A place with what lies in it on this machine.

    Raises:
        ValueError: it is not there; says what to do.
    """
    if place.writes:
        return place
    try:
        path = located(place)
        if not path.exists():
            raise FileNotFoundError(f"there is no {path}")
        return replace(place, listing=listing(path))
    except OSError as error:
        raise ValueError(f"{place.key}: {one_line(error)}; {_remedy(place)}") from error


def check_place(place: Place, free_gb: float, token: str, node: str) -> Finding:
    """Whether a place is there, and the one that the command sees.

    Args:
        place: as the command found it.
        free_gb: that a folder must have free which is written to.
        token: of the visit; a folder that is written to has a file of that name from the command.
        node: name of this one.
    """
    check = "folders" if place.writes else "weights and data"
    try:
        path = located(place)
        if place.writes:
            return _check_written(place, path, free_gb, token, node)
        if not path.exists():
            return Finding(check, f"{place.key}: there is no {path}", _remedy(place))
        found = listing(path)
    except OSError as error:
        return Finding(check, f"{place.key}: {one_line(error)}", _remedy(place))
    if found != place.listing:
        return Finding(
            check,
            f"{place.key}: {path} is another one: {_short(found)} there, and "
            f"{_short(place.listing or '')} where the command runs",
            _remedy(place),
        )
    return Finding(check, told=_short(found))


def _short(found: str) -> str:
    if found.startswith("0 files"):
        return "nothing"
    return found


def _remedy(place: Place) -> str:
    if place.hub:
        revision = f" --revision {place.revision}" if place.revision else ""
        return (
            f"hf download {place.path}{revision}, with HF_HOME on a folder that all nodes see "
            "('launcher.setup=[\"export HF_HOME=<folder>\"]')"
        )
    return (
        f"mount or copy {place.path} there as it is where the command runs, or set {place.key} to "
        "a folder that all nodes see"
    )


def nonce_file(place: Place, token: str) -> Path:
    """What the command writes into a folder that jobs write to, for nodes to find."""
    return Path(place.path) / f".doctor-{token}"


def node_file(place: Place, token: str, node: str) -> Path:
    """What a node writes into such a folder, for the command to find."""
    return Path(place.path) / f".doctor-{token}-{node}"


def _check_written(place: Place, path: Path, free_gb: float, token: str, node: str) -> Finding:
    if not path.is_dir():
        return Finding("folders", f"{place.key}: there is no {path}", _remedy(place))
    if not nonce_file(place, token).is_file():
        return Finding(
            "folders",
            f"{place.key}: {path} is another folder there: what the command has written is not in "
            f"it (file system {file_system(path)})",
            _remedy(place),
        )
    own = node_file(place, token, node)
    temporary = own.with_name(f"{own.name}.tmp")
    try:
        temporary.write_text(node, encoding="utf-8")
        os.replace(temporary, own)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return Finding(
            "folders",
            f"{place.key}: {path} cannot be written: {one_line(error)}",
            "make room there, or have the quota raised" if full else f"chmod or remount {path}",
        )
    finally:
        temporary.unlink(missing_ok=True)
    free = psutil.disk_usage(str(path)).free / GB
    if free < free_gb:
        return Finding(
            "folders",
            f"{place.key}: {path} has {free:.1f} GB free, and {free_gb:g} are wanted",
            "python -m launch.clean, or another folder by runs=<folder>, or doctor.free_gb",
        )
    return Finding("folders", told=f"{free:.0f} GB free")


def file_system(path: Path) -> str:
    """Kind and source of the file system of a path."""
    wanted = path.resolve()
    mounts = [
        mount
        for mount in psutil.disk_partitions(all=True)
        if wanted.is_relative_to(mount.mountpoint)
    ]
    if not mounts:
        return "unknown"
    best = max(mounts, key=lambda mount: len(mount.mountpoint))
    return f"{best.fstype} from {best.device}"


def check_nonce(folder: Path, token: str) -> Finding:
    """Whether a file that was written over another one is seen as the new one."""
    held = read_json(folder / NONCE)
    if held != token:
        return Finding(
            "renames",
            f"{folder / NONCE} holds {held!r} there, {token!r} where the command runs: what is "
            "renamed is seen late",
            "mount the folder with less caching (NFS: actimeo=3, lookupcache=positive)",
        )
    return Finding("renames")


def check_lock(folder: Path) -> Finding:
    """Whether a lock that the command holds is one for this node as well."""
    try:
        with FileLock(folder / LOCK, timeout=0):
            pass
    except Timeout:
        return Finding("locks", told="flock is shared")
    except (OSError, NotImplementedError) as error:
        return Finding("locks", f"flock on {folder} fails: {one_line(error)}", _MOUNT)
    return Finding(
        "locks",
        f"a lock that the command holds on {folder} can be taken there as well: two commands could "
        f"work on one run (file system {file_system(folder)})",
        _MOUNT,
    )


_MOUNT = (
    "mount the folder so that flock crosses nodes (Lustre: -o flock; NFS 4, without nolock or "
    "local_lock), or start commands from one host only"
)
