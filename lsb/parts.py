"""Parts of a stage: made one by one, recorded when whole, borrowed where they exist already.

A part is made in a folder of its own, its files are moved beside those of the others, and a record
of their hashes is written last: a killed process leaves whole parts and leftovers, never a file of
which nobody knows whether it is complete.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

from tqdm import tqdm

from lsb.files import file_sha256, fingerprint, link, read_json, write_json
from lsb.progress import progressed
from lsb.workers import worker_pool

RECORDED_PACKAGES = (
    "vlmae",
    "torch",
    "torchaudio",
    "lightning",
    "transformers",
    "numpy",
    "pyarrow",
    "av",
    "torchcodec",
    "webdataset",
    "faiss-cpu",
    "faiss-gpu",
)

Counts = dict[str, int]


@dataclass(frozen=True)
class Part:
    """One independently made piece of a stage.

    Attributes:
        name: unique in the stage; also the order in which parts are listed.
        files: the names `make` writes into the folder it is given.
        make: picklable; called with an empty folder, writes `files`, returns counts to be summed.
        key: hash of all that determines the files' bytes, or None. A finished stage of the same
            name that has a part with this key lends its files.
    """

    name: str
    files: tuple[str, ...]
    make: Callable[[Path], Counts]
    key: str | None = None


@dataclass(frozen=True)
class Progress:
    """How far a process is with its parts.

    Attributes:
        parts: finished, of those this process has to make.
        of: parts this process has to make.
        counts: summed over the finished ones.
        seconds: since the first began.
    """

    parts: int
    of: int
    counts: Counts
    seconds: float

    @property
    def remaining(self) -> float:
        """Estimated seconds to go, at the pace so far."""
        return self.seconds * (self.of - self.parts) / max(1, self.parts)


OnPart = Callable[[Progress], None]


def scratch(output: Path) -> Path:
    """A folder for unfinished work of a part, that outlives a killed `make`.

    Args:
        output: the folder that `make` was given.

    Returns:
        A folder beside it, made if absent, the same when the part is made again by the same
        versions of the libraries, and deleted when the stage is finished.
    """
    name = output.name.removeprefix(".tmp-").rsplit("-", 1)[0]
    folder = output.parent / f".scratch-{name}-{fingerprint(versions())[:8]}"
    folder.mkdir(exist_ok=True)
    return folder


def make_parts(
    stage: str,
    folder: Path,
    parts: Sequence[Part],
    *,
    total: int,
    processes: int,
    on_part: OnPart | None = None,
) -> None:
    """Make parts one by one, or several at a time in worker processes.

    Args:
        stage: name, for the bar.
        folder: of the stage under way.
        parts: to make.
        total: of which they are the ones missing, for the bar.
        processes: at a time.
        on_part: called after each.
    """
    bar = tqdm(
        total=total, initial=total - len(parts), desc=stage, unit="part", leave=False, disable=None
    )
    started, counts = time.monotonic(), Counter[str]()

    def finished(done: int, part_counts: Counts) -> None:
        bar.update()
        counts.update(part_counts)
        if on_part is not None:
            on_part(Progress(done, len(parts), dict(counts), time.monotonic() - started))

    with bar:
        if processes <= 1 or len(parts) <= 1:
            for done, part in enumerate(parts, 1):
                finished(done, _make_part(folder, part))
            return
        others = set(multiprocessing.active_children())
        pool = worker_pool(min(processes, len(parts)))
        try:
            futures: list[Future[Counts]] = [
                pool.submit(_make_part, folder, part) for part in parts
            ]
            for done, future in enumerate(as_completed(futures), 1):
                finished(done, future.result())
        except BaseException as error:
            if not isinstance(error, Exception):  # told to stop: no part is waited for
                for worker in set(multiprocessing.active_children()) - others:
                    worker.terminate()
            raise
        finally:
            # Once: a second call, as at the end of `with`, would take the cancelling back.
            pool.shutdown(cancel_futures=True)


def borrow(
    siblings: Sequence[tuple[Path, Mapping[str, Any]]], folder: Path, parts: Sequence[Part]
) -> list[Part]:
    """Link parts that other stages have under the same key; returns those that none has.

    Libraries may have been upgraded since: like a finished stage, a part is kept through that.

    Args:
        siblings: directory and manifest of finished stages of the same name and code.
        folder: the stage under way.
        parts: those wanted.
    """
    held: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    for path, manifest in siblings:
        for entry in manifest["parts"].values():
            if entry.get("key"):
                held[entry["key"]] = (path, entry)
    left = []
    for part in parts:
        source, entry = held.get(part.key or "", (None, {}))
        # The files of a part bear its name, which may differ between the two data sets.
        pairs = list(zip(entry.get("files", {}), part.files, strict=False))
        if source is None or len(entry["files"]) != len(part.files):
            left.append(part)
        elif all(_is_whole(source / name, entry["files"][name]) for name, _ in pairs):
            for name, own in pairs:
                (folder / own).unlink(missing_ok=True)
                link(source / name, folder / own)
            files = {own: entry["files"][name] for name, own in pairs}
            _record(folder, part, files, entry["counts"], seconds=0.0)
        else:
            left.append(part)
    return left


def _is_whole(path: Path, recorded: Mapping[str, Any]) -> bool:
    return path.is_file() and file_sha256(path) == recorded["sha256"]


def _make_part(folder: Path, part: Part) -> Counts:
    work = folder / f".tmp-{part.name}-{uuid4().hex[:12]}"
    work.mkdir()
    started = time.monotonic()
    try:
        counts = part.make(work)
        written = sorted(entry.name for entry in work.iterdir())
        if written != sorted(part.files):
            raise ValueError(f"part {part.name} wrote {written}, expected {sorted(part.files)}")
        files = {
            name: {"bytes": (work / name).stat().st_size, "sha256": file_sha256(work / name)}
            for name in part.files
        }
        for name in part.files:
            os.replace(work / name, folder / name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _record(folder, part, files, counts, seconds=time.monotonic() - started)
    progressed(f"part {part.name} is whole")
    return counts


def _record(
    folder: Path, part: Part, files: Mapping[str, Any], counts: Counts, *, seconds: float
) -> None:
    """Write that a part is whole."""
    record = {
        "files": dict(files),
        "counts": counts,
        "key": part.key,
        "seconds": round(seconds, 3),
        "versions": versions(),
    }
    write_json(folder / "parts" / f"{part.name}.json", record)


def remove_leftovers(partial: Path, parts: Sequence[Part]) -> None:
    """Delete what a killed process was writing for some parts."""
    names = {part.name for part in parts}
    for leftover in partial.glob(".tmp-*"):
        if leftover.name.removeprefix(".tmp-").rsplit("-", 1)[0] in names:
            shutil.rmtree(leftover)
    for leftover in partial.glob("parts/.*.tmp"):
        if leftover.name[1:].split(".json.")[0] in names:
            leftover.unlink()
    for leftover in partial.glob(".*.json.*.tmp"):
        leftover.unlink()


def is_recorded(partial: Path, name: str) -> bool:
    """Whether a part is whole and was made by the versions that are installed now.

    It is not where its files go meanwhile, as they do when another process seals the stage.
    """
    try:
        record = read_json(partial / "parts" / f"{name}.json")
        return record["versions"] == versions() and all(
            file_sha256(partial / file) == entry["sha256"]
            for file, entry in record["files"].items()
        )
    except FileNotFoundError:
        return False


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Installed versions of the packages that may change what a stage writes. Not to be changed:
    asking for them takes longer than many a part, so it is done once."""
    found = {}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def seconds_of_parts(partial: Path) -> float:
    """Seconds spent on whole parts so far, by whomever."""
    return sum(float(read_json(file)["seconds"]) for file in partial.glob("parts/*.json"))
