"""Stages: pure functions from (inputs by content hash, config) to an output directory.

Contract 2 of the design. A stage's directory is named by the hash of what determines its bytes. It
is filled part by part under a temporary name and renamed when complete, so a directory with the
final name is always whole. Killing a stage anywhere and running it again redoes only the unfinished
parts and yields the same bytes; running a finished stage again only verifies it.

    <root>/embed-3f2a.../          a finished stage
        manifest.json              format, version, stage, config, inputs, parts: files, hashes,
                                   counts
        timing.json                seconds: the one file that differs between two equal runs
        part-00000.npy ...
    <root>/embed-3f2a....partial/  the same stage, under way or killed

Data that grows: a part with a `key` that a finished stage of the same name already has is linked
from there instead of made. Many machines: `work_on_stage` makes one share of the parts; the process
that finds all of them whole seals the stage, and none waits for another.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lsb.delegation import StageCall, offer
from lsb.files import (
    StageError,
    canonical,
    file_sha256,
    fingerprint,
    read_json,
    write_bytes,
    write_json,
)
from lsb.manifest import FILE, VERSION, absent_manifest, make_manifest, parse_manifest
from lsb.parts import (
    Counts,
    OnPart,
    Part,
    Progress,
    borrow,
    is_recorded,
    make_parts,
    remove_leftovers,
    scratch,
    seconds_of_parts,
    versions,
)
from lsb.waiting import waited_for

__all__ = [
    "Counts",
    "OnPart",
    "Part",
    "Progress",
    "Stage",
    "StageError",
    "canonical",
    "file_sha256",
    "fingerprint",
    "open_stage",
    "read_json",
    "run_stage",
    "scratch",
    "share_of",
    "stage_directory",
    "work_on_stage",
    "write_bytes",
    "write_json",
]


_WAIT: ContextVar[bool] = ContextVar("waiting for others", default=False)


@dataclass(frozen=True)
class Stage:
    """A finished stage directory."""

    path: Path
    manifest: dict[str, Any]
    seconds: float
    reused: bool

    @property
    def content(self) -> str:
        """Hash over the names and hashes of all files, by which later stages refer to this one."""
        return str(self.manifest["content"])

    @property
    def counts(self) -> Counts:
        """Counts summed over parts."""
        return dict(self.manifest["counts"])

    @property
    def files(self) -> list[str]:
        """File names in part order."""
        return [name for part in self.manifest["parts"].values() for name in part["files"]]


def run_stage(
    root: Path,
    stage: str,
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    parts: Sequence[Part],
    processes: int = 1,
    revision: int = 1,
    on_part: OnPart | None = None,
) -> Stage:
    """Make, finish or reuse the directory of one stage.

    Args:
        root: folder of all stages.
        stage: name, e.g. "embed".
        config: everything besides `inputs` that determines the output bytes; JSON-like.
        inputs: name -> `Stage.content` of the stages this one reads.
        parts: pieces to make, each independent of the others.
        processes: parts made at a time; more than one starts worker processes.
        revision: of the stage's code; raised by whoever makes it write other bytes for the same
            config. Together with the release it is part of the name, so that nothing made by
            other code is reused.
        on_part: called after every part that was made.

    Raises:
        StageError: the finished directory is damaged or of another version, or another process is
            at work on it. The message names the file and the remedy.
    """
    made = work_on_stage(
        root,
        stage,
        config=config,
        inputs=inputs,
        parts=parts,
        processes=processes,
        revision=revision,
        on_part=on_part,
    )
    assert made is not None, "one share of one is the whole stage"
    return made


def work_on_stage(
    root: Path,
    stage: str,
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    parts: Sequence[Part],
    share: tuple[int, int] = (0, 1),
    dealt: Mapping[str, int] | None = None,
    processes: int = 1,
    revision: int = 1,
    on_part: OnPart | None = None,
) -> Stage | None:
    """Make one share of a stage's parts; see `run_stage` for the other arguments.

    Parts belong to shares by the hash of their name, so that independent processes, on one machine
    or many, need not talk to each other. A stage that is wanted whole may be made by others, see
    `lsb.delegation`.

    Args:
        share: (number, of): this process makes the parts of share `number`, counted from 0.
        dealt: part name -> its share, for processes that have agreed on another division. Such
            parts are work of these processes, also of a single one: they are offered to nobody.

    Returns:
        The finished stage, or None if parts of other shares are not made yet.

    Raises:
        StageError: also where a process with another number of shares is at work.
    """
    number, of = share
    if not 0 <= number < of:
        raise ValueError(f"share {number} of {of}: give a number from 0 to {of - 1}")
    if len({part.name for part in parts}) != len(parts):
        raise ValueError(f"stage {stage}: part names must be unique")
    key = _key(stage, config, inputs, parts, revision)
    digest = fingerprint(key)
    target = root / _directory(stage, digest)
    partial = target.with_name(target.name + ".partial")
    root.mkdir(parents=True, exist_ok=True)
    if of == 1 and dealt is None and not target.exists():
        call = StageCall(root, stage, target, config, inputs, parts, processes, revision)
        if offer(call):
            return replace(open_stage(target), reused=False)
    with _at_work(target, number, of):
        started = time.monotonic()
        shares = dealt or {part.name: share_of(part.name, of) for part in parts}
        mine = [part for part in parts if shares[part.name] == number]
        # Another share may seal the stage at any time outside of `_sealing`, until all see that a
        # part of this one is missing.
        with _sealing(target):
            finished = target.exists()
            if not finished:
                (partial / "parts").mkdir(parents=True, exist_ok=True)
                remove_leftovers(partial, mine)
        if finished:
            return _reopen(target, parts, processes)
        earlier = seconds_of_parts(partial) if of == 1 else 0.0
        missing = [part for part in mine if not is_recorded(partial, part.name)]
        with _sealing(target):
            finished = target.exists()
            if (partial / "manifest.json").is_file():  # written last: killed while sealing
                missing = []
        if finished:
            return _reopen(target, parts, processes)
        if missing:
            siblings = _finished_siblings(root, stage, key["code"], missing)
            missing = borrow(siblings, partial, missing)
            make_parts(
                stage, partial, missing, total=len(mine), processes=processes, on_part=on_part
            )
        # Of one share: the time that passed, parts side by side; of several, the sum over parts.
        seconds = earlier + time.monotonic() - started if of == 1 else None
        return _seal(target, digest, key, parts, seconds)


def stage_directory(
    root: Path,
    stage: str,
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    parts: Sequence[Part],
    revision: int = 1,
) -> Path:
    """Where `run_stage` with the same arguments puts its result, whether it is there or not.

    While the stage is under way, or after it was killed, there is a directory of the same name with
    ".partial" behind it.
    """
    digest = fingerprint(_key(stage, config, inputs, parts, revision))
    return root / _directory(stage, digest)


def _key(
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    parts: Sequence[Part],
    revision: int,
) -> dict[str, Any]:
    """What determines the bytes of a stage."""
    return {
        "stage": stage,
        "format": VERSION,
        "config": dict(config),
        "inputs": dict(inputs),
        "code": {"release": versions().get("vlmae"), "revision": revision},
        "parts": [[part.name, list(part.files)] for part in parts],
    }


def _directory(stage: str, digest: str) -> str:
    return f"{stage}-{digest[:16]}"


@contextmanager
def waiting_for_others() -> Iterator[None]:
    """Within it, a stage that another process is making is waited for, not refused.

    For processes that come to the same stages by their own ways. The lock of a process that dies is
    released by the system, and the stage goes on where that one stopped. Waiting counts as progress
    (`lsb.progress`).
    """
    before = _WAIT.set(True)
    try:
        yield
    finally:
        _WAIT.reset(before)


GLANCE = 2.0
"""Seconds for which a lock may be held by one that only looks whether somebody works: ranks that
come to their shares at the same moment look at each other's."""


@contextmanager
def _at_work(target: Path, number: int, of: int) -> Iterator[None]:
    """Hold the lock of one share.

    Raises:
        StageError: a process holds it, or one with another number of shares is at work.
    """
    own = _lock_file(target, number, of)
    others = {target.with_name(f".{target.name}.lock")} - {own}
    others |= {
        file
        for file in target.parent.glob(f".{target.name}.*-of-*.lock")
        if of == 1 or not file.name.endswith(f"-of-{of}.lock")
    }
    held = own
    try:
        with waited_for(own, target.name) if _WAIT.get() else FileLock(own, timeout=GLANCE):
            for held in others:
                FileLock(held).acquire(timeout=GLANCE).lock.release()
            yield
    except Timeout:
        raise StageError(
            f"another process is making {target} ({held.name[1:]} is held): wait for it to end, "
            "then run again; processes that share a stage must agree on the number of shares"
        ) from None


def _lock_file(target: Path, number: int, of: int) -> Path:
    return target.with_name(
        f".{target.name}.lock" if of == 1 else f".{target.name}.{number}-of-{of}.lock"
    )


def _sealing(target: Path) -> FileLock:
    return FileLock(target.with_name(f".{target.name}.seal.lock"))


def share_of(name: str, of: int) -> int:
    """Number of the share, from 0 to `of` - 1, that a part belongs to: by the hash of its name."""
    return int(hashlib.blake2b(name.encode("utf-8"), digest_size=8).hexdigest(), 16) % of


def _reopen(target: Path, parts: Sequence[Part], processes: int) -> Stage:
    """A finished stage, with parts that were lost since made again."""
    absent = _absent_parts(target)
    if not absent:
        return open_stage(target)
    _remake(target, [part for part in parts if part.name in absent], processes)
    return open_stage(target, reused=False)


def _finished_siblings(
    root: Path, stage: str, code: Mapping[str, Any], parts: Sequence[Part]
) -> list[tuple[Path, dict[str, Any]]]:
    """Directory and manifest of the finished stages of one name that the same code made, of those
    that have one of some parts."""
    wanted = {part.key for part in parts if part.key}
    found = []
    for file in sorted(root.glob(f"{stage}-*/manifest.json")) if wanted else []:
        if file.parent.suffix in (".partial", ".remake"):
            continue
        if wanted.isdisjoint(_keys_of(file, file.stat().st_mtime_ns)):
            continue
        manifest = read_json(file)
        if manifest.get("version") == VERSION and manifest.get("code") == code:
            found.append((file.parent, manifest))
    return found


@lru_cache(maxsize=4096)
def _keys_of(manifest: Path, changed: int) -> frozenset[str]:
    """Keys of a stage's parts; a process that makes many stages reads each manifest once.

    Args:
        manifest: of a finished stage.
        changed: when, in nanoseconds: another file is read again.
    """
    parts = read_json(manifest).get("parts", {})
    return frozenset(entry["key"] for entry in parts.values() if entry.get("key"))


def _seal(
    target: Path,
    digest: str,
    key: Mapping[str, Any],
    parts: Sequence[Part],
    seconds: float | None,
) -> Stage | None:
    """Rename a stage whose parts are all there, whoever made them."""
    partial = target.with_name(target.name + ".partial")
    with _sealing(target):
        if target.exists():  # another share was faster
            return open_stage(target, verify=False, reused=False)
        if not (partial / "manifest.json").is_file():
            if any(not (partial / "parts" / f"{part.name}.json").is_file() for part in parts):
                return None
            if seconds is None:
                seconds = seconds_of_parts(partial)
            write_json(partial / "timing.json", {"seconds": round(seconds, 3)})
            write_json(partial / "manifest.json", _manifest(digest, key, parts, partial))
        shutil.rmtree(partial / "parts", ignore_errors=True)
        for leftover in partial.glob(".scratch-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        os.replace(partial, target)
        return open_stage(target, verify=False, reused=False)


def open_stage(path: Path, *, verify: bool = True, reused: bool = True) -> Stage:
    """Open a finished stage directory, by default after checking every file's hash.

    Raises:
        StageError: it is absent, of another format or version, or a file is missing or altered.
    """
    if not (path / FILE).is_file():
        raise absent_manifest(str(path))
    manifest = parse_manifest((path / FILE).read_bytes(), str(path))
    if verify:
        for part in manifest["parts"].values():
            for name, recorded in part["files"].items():
                _verify_file(path / name, recorded)
    return Stage(path, manifest, _read_seconds(path), reused=reused)


def _verify_file(path: Path, recorded: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise StageError(
            f"{path} is missing: run the command that made it again, only this part is redone"
        )
    if path.stat().st_size != recorded["bytes"] or file_sha256(path) != recorded["sha256"]:
        raise StageError(
            f"{path} is damaged (its sha256 is not the one in manifest.json): delete this file "
            "and run again, only this part is redone"
        )


def _absent_parts(target: Path) -> set[str]:
    manifest = open_stage(target, verify=False).manifest
    return {
        name
        for name, part in manifest["parts"].items()
        if any(not (target / file).is_file() for file in part["files"])
    }


def _remake(target: Path, parts: Sequence[Part], processes: int) -> None:
    """Make absent parts of a finished stage again beside it and move their files in."""
    work = target.with_name(target.name + ".remake")
    shutil.rmtree(work, ignore_errors=True)
    (work / "parts").mkdir(parents=True)
    make_parts(target.name, work, parts, total=len(parts), processes=processes)
    recorded = read_json(target / "manifest.json")["parts"]
    for part in parts:
        for name in part.files:
            if file_sha256(work / name) != recorded[part.name]["files"][name]["sha256"]:
                raise StageError(
                    f"{target / name} was remade with other bytes than its manifest records "
                    f"(another library version or machine?): delete {target} and run again"
                )
            os.replace(work / name, target / name)
    shutil.rmtree(work)


def _manifest(
    digest: str, key: Mapping[str, Any], parts: Sequence[Part], partial: Path
) -> dict[str, Any]:
    recorded: dict[str, Any] = {}
    for part in parts:
        record = read_json(partial / "parts" / f"{part.name}.json")
        recorded[part.name] = {"files": record["files"], "counts": record["counts"]}
        if part.key is not None:
            recorded[part.name]["key"] = part.key
    return make_manifest(digest, key, recorded)


def _read_seconds(folder: Path) -> float:
    timing = folder / "timing.json"
    return float(read_json(timing)["seconds"]) if timing.is_file() else 0.0
