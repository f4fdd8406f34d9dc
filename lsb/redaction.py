"""Taking something out of finished stages: the new one is built beside the old and swapped in.

    <root>/cache-3f2a..../                        a finished stage
    <root>/cache-3f2a....redacting/               its successor; whole when it has a manifest.json
    <root>/cache-3f2a....redacting/.replaced/     the old one, in between two renames

Files that do not change are linked. The manifest's `content` stays: it says what the stage was made
from, so that nothing that was made from it is made again. Its `redacted`, and that of each changed
part, say what is gone. A process that is killed leaves a stage that is whole, old or new, or one
that `settle` puts back; whoever redacts starts again from there.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lsb.artifact import Stage, open_stage
from lsb.files import StageError, file_sha256, link, read_json, write_json
from lsb.parts import Counts

REDACTING = ".redacting"
REPLACED = ".replaced"
PARTIAL = ".partial"


@dataclass(frozen=True)
class Edited:
    """What an edit made of one part.

    Attributes:
        counts: of the part, all of them.
        key: under which the part is lent, see `lsb.parts.Part`.
        removed: what was taken out of it, hexadecimal ids.
    """

    counts: Counts
    key: str | None
    removed: tuple[str, ...] = ()


# Called with the stage's folder, the new one and the part's entry in the manifest; writes the files
# that change into the new folder.
Edit = Callable[[Path, Path, Mapping[str, Any]], Edited]


def redact_stage(path: Path, edits: Mapping[str, Edit], *, wait: bool = False) -> Stage:
    """Replace some parts of a finished stage.

    Args:
        path: of the stage.
        edits: part name -> what is done to it.
        wait: for a process that is at work on the stage, instead of refusing.

    Raises:
        StageError: a process is at work on the stage, or a file of a part to edit is missing.
    """
    work = path.with_name(path.name + REDACTING)
    with _locked(path, wait):
        _settle_one(path)
        manifest = copy.deepcopy(open_stage(path, verify=False).manifest)
        work.mkdir()
        for name, edit in edits.items():
            _edit(path, work, manifest["parts"][name], edit)
        for file in path.iterdir():
            if file.is_file() and file.name != "manifest.json" and not (work / file.name).exists():
                link(file, work / file.name)
        parts = manifest["parts"].values()
        totals: Counts = {}
        for part in parts:
            for count, number in part["counts"].items():
                totals[count] = totals.get(count, 0) + number
        manifest["counts"] = totals
        manifest["redacted"] = len({gone for part in parts for gone in part.get("redacted", ())})
        write_json(work / "manifest.json", manifest)
        os.replace(path, work / REPLACED)
        os.replace(work, path)
        shutil.rmtree(path / REPLACED)
    return open_stage(path, verify=False)


def _edit(path: Path, work: Path, part: dict[str, Any], edit: Edit) -> None:
    """Edit one part and its entry of the manifest."""
    missing = [name for name in part["files"] if not (path / name).is_file()]
    if missing:
        raise StageError(
            f"{path / missing[0]} is missing: run the command that made it again, then take down"
        )
    edited = edit(path, work, part)
    for name in part["files"]:
        new = work / name
        if new.is_file():
            with open(new, "rb") as stream:
                os.fsync(stream.fileno())
            part["files"][name] = {"bytes": new.stat().st_size, "sha256": file_sha256(new)}
    part["counts"] = dict(edited.counts)
    if edited.key is not None:
        part["key"] = edited.key
    if edited.removed:
        part["redacted"] = sorted({*part.get("redacted", ()), *edited.removed})


def settle(root: Path) -> list[Path]:
    """Finish or undo every swap under `root` that was killed.

    Returns:
        The stages concerned. They are whole now, and may still hold what was to be taken out.
    """
    names = {work.name.removesuffix(REDACTING) for work in root.glob(f"*{REDACTING}")}
    names |= {old.parent.name for old in root.glob(f"*/{REPLACED}")}
    for name in sorted(names):
        _settle_one(root / name)
    return [root / name for name in sorted(names)]


def unsettled(root: Path) -> list[Path]:
    """Folders that a killed swap left under `root`, in order."""
    return sorted([*root.glob(f"*{REDACTING}"), *root.glob(f"*/{REPLACED}")])


def _settle_one(path: Path) -> None:
    work = path.with_name(path.name + REDACTING)
    if (work / REPLACED).is_dir() and not path.exists():
        os.replace(work, path)
    elif work.exists():
        shutil.rmtree(work)
    if (path / REPLACED).exists():
        shutil.rmtree(path / REPLACED)


def seal_whole(partial: Path) -> Path | None:
    """Finish a killed stage of which nothing but the last rename is missing.

    Returns:
        The finished stage, None if more than that is missing.
    """
    target = partial.with_name(partial.name.removesuffix(PARTIAL))
    if not (partial / "manifest.json").is_file() or target.exists():
        return None
    for leftover in (partial / "parts", *partial.glob(".scratch-*"), *partial.glob(".tmp-*")):
        shutil.rmtree(leftover, ignore_errors=True)
    os.replace(partial, target)
    return target


def recorded_parts(partial: Path) -> dict[str, list[str]]:
    """Part name -> files of the parts of an unfinished stage that are whole."""
    return {
        file.stem: list(read_json(file)["files"]) for file in sorted(partial.glob("parts/*.json"))
    }


def drop_parts(partial: Path, names: Iterable[str]) -> None:
    """Delete parts of an unfinished stage, and all that belongs to no whole part.

    Args:
        partial: folder of the stage; no process may be at work on it.
        names: of whole parts.
    """
    for name in names:
        (partial / "parts" / f"{name}.json").unlink()  # first: files without it are leftovers
    whole = {file for files in recorded_parts(partial).values() for file in files}
    for entry in partial.iterdir():
        if entry.name == "parts":
            for leftover in entry.glob(".*.tmp"):
                leftover.unlink()
        elif entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name not in whole:
            entry.unlink()


def require_idle(root: Path, then: str, *, besides: Path | None = None) -> None:
    """Refuse while a process is at work on a stage.

    Args:
        root: folder of all stages.
        then: what to do when it has ended, for the message.
        besides: a lock that may be held.

    Raises:
        StageError: names the stage.
    """
    for file in root.glob(".*.lock"):
        if file == besides:
            continue
        try:
            FileLock(file).acquire(timeout=0).lock.release()
        except Timeout:
            raise StageError(
                f"a process is at work on {file.name[1:-5]}: wait for it to end, then {then}"
            ) from None


@contextmanager
def _locked(path: Path, wait: bool) -> Iterator[None]:
    """Hold the lock of a stage against those who make it, alone or in shares."""
    shares = sorted(path.parent.glob(f".{path.name}.*-of-*.lock"))
    try:
        with ExitStack() as held:
            for file in (path.with_name(f".{path.name}.lock"), *shares):
                held.enter_context(FileLock(file, timeout=-1 if wait else 0))
            yield
    except Timeout:
        raise StageError(
            f"a process is at work on {path.name}: wait for it to end, then run this again"
        ) from None
