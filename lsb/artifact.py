"""Stages: pure functions from (inputs by content hash, config) to an output directory.

Contract 2 of the design. A stage's directory is named by the hash of what determines its bytes. It
is filled part by part under a temporary name and renamed when complete, so a directory with the
final name is always whole. Killing a stage anywhere and running it again redoes only the unfinished
parts and yields the same bytes; running a finished stage again only verifies it.

    <root>/embed-3f2a.../          a finished stage
        manifest.json              format, version, stage, config, inputs, parts: files, hashes,
        counts timing.json                seconds: the one file that differs between two equal runs
        part-00000.npy ...
    <root>/embed-3f2a....partial/  the same stage, under way or killed
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

FORMAT = "vlmae-stage"
VERSION = 1
RECORDED_PACKAGES = (
    "vlmae",
    "torch",
    "torchaudio",
    "lightning",
    "transformers",
    "numpy",
    "pyarrow",
    "av",
    "webdataset",
    "faiss-cpu",
    "faiss-gpu",
)

Counts = dict[str, int]


class StageError(ValueError):
    """A stage directory that cannot be used; the message names it and the remedy."""


@dataclass(frozen=True)
class Part:
    """One independently made piece of a stage.

    Attributes:
        name: unique in the stage; also the order in which parts are listed.
        files: the names `make` writes into the folder it is given.
        make: picklable; called with an empty folder, writes `files`, returns counts to be summed.
    """

    name: str
    files: tuple[str, ...]
    make: Callable[[Path], Counts]


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


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the form in which configs are hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def fingerprint(value: Any) -> str:
    """Hash of any JSON-like value, 32 hexadecimal digits."""
    return hashlib.blake2b(canonical(value).encode("utf-8"), digest_size=16).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write beside `path`, flush to disk and rename: readers see all of it or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented, keys in the order given."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    write_bytes(path, text.encode("utf-8") + b"\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StageError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StageError(
            f"{path} is not valid JSON ({error}): delete {path.parent} and run again"
        ) from error


def run_stage(
    root: Path,
    stage: str,
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    parts: Sequence[Part],
    processes: int = 1,
    revision: int = 1,
) -> Stage:
    """Make, finish or reuse the directory of one stage.

    Args:
        root: folder of all stages.
        stage: name, e.g. "embed".
        config: everything besides `inputs` that determines the output bytes; JSON-like.
        inputs: name -> `Stage.content` of the stages this one reads.
        parts: pieces to make, each independent of the others.
        processes: parts made at a time; more than one starts spawned worker processes.
        revision: of the stage's code; raised by whoever makes it write other bytes for the same
            config. Together with the release it is part of the name, so that nothing made by
            other code is reused.

    Raises:
        StageError: the finished directory is damaged or of another version, or another process is
            at work on it. The message names the file and the remedy.
    """
    if len({part.name for part in parts}) != len(parts):
        raise ValueError(f"stage {stage}: part names must be unique")
    key = {"stage": stage, "format": VERSION, "config": dict(config), "inputs": dict(inputs)}
    key["code"] = {"release": _versions().get("vlmae"), "revision": revision}
    key["parts"] = [[part.name, list(part.files)] for part in parts]
    digest = fingerprint(key)
    target = root / f"{stage}-{digest[:16]}"
    partial = target.with_name(target.name + ".partial")
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / f".{target.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StageError(
            f"another process is making {target}: wait for it to end, then run again"
        ) from None
    try:
        if target.exists():
            absent = _absent_parts(target)
            if not absent:
                return open_stage(target)
            _remake(target, [part for part in parts if part.name in absent], processes)
            return open_stage(target, reused=False)
        started = time.monotonic()
        (partial / "parts").mkdir(parents=True, exist_ok=True)
        _remove_leftovers(partial)
        if not (
            partial / "manifest.json"
        ).is_file():  # it is written last, when all parts are there
            earlier = _seconds_of_parts(partial)
            missing = [part for part in parts if not _is_recorded(partial, part.name)]
            _make_parts(stage, partial, missing, total=len(parts), processes=processes)
            seconds = earlier + time.monotonic() - started
            write_json(partial / "timing.json", {"seconds": round(seconds, 3)})
            write_json(partial / "manifest.json", _manifest(digest, key, parts, partial))
        shutil.rmtree(partial / "parts", ignore_errors=True)
        os.replace(partial, target)
        return open_stage(target, verify=False, reused=False)
    finally:
        lock.release()


def open_stage(path: Path, *, verify: bool = True, reused: bool = True) -> Stage:
    """Open a finished stage directory, by default after checking every file's hash.

    Raises:
        StageError: it is absent, of another format or version, or a file is missing or altered.
    """
    if not (path / "manifest.json").is_file():
        raise StageError(
            f"{path} has no manifest.json: it is not a finished stage; run the stage again"
        )
    manifest = read_json(path / "manifest.json")
    if not isinstance(manifest, dict) or not {"parts", "content", "counts"} <= set(manifest):
        raise StageError(f"{path}/manifest.json is not a stage's: delete {path} and run again")
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise StageError(
            f"{path} has format {manifest.get('format')!r} version {manifest.get('version')!r}, "
            "this "
            f"release reads {FORMAT!r} version {VERSION}: delete the folder and run the stage again"
        )
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
    _make_parts(target.name, work, parts, total=len(parts), processes=processes)
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


def _make_parts(
    stage: str, folder: Path, parts: Sequence[Part], *, total: int, processes: int
) -> None:
    bar = tqdm(
        total=total, initial=total - len(parts), desc=stage, unit="part", leave=False, disable=None
    )
    with bar:
        if processes <= 1 or len(parts) <= 1:
            for part in parts:
                _make_part(folder, part)
                bar.update()
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            min(processes, len(parts)), context, _exit_with_parent, (os.getpid(),)
        ) as pool:
            futures: list[Future[None]] = [pool.submit(_make_part, folder, part) for part in parts]
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _exit_with_parent(parent: int) -> None:
    """Worker initialiser: end when the parent was killed, so that no orphan goes on writing."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _make_part(folder: Path, part: Part) -> None:
    work = folder / f".tmp-{part.name}-{os.getpid()}"
    work.mkdir()
    started = time.monotonic()
    try:
        counts = part.make(work)
        written = sorted(entry.name for entry in work.iterdir())
        if written != sorted(part.files):
            raise ValueError(f"part {part.name} wrote {written}, expected {sorted(part.files)}")
        record = {
            "files": {
                name: {"bytes": (work / name).stat().st_size, "sha256": file_sha256(work / name)}
                for name in part.files
            },
            "counts": counts,
            "seconds": round(time.monotonic() - started, 3),
            "versions": _versions(),
        }
        for name in part.files:
            os.replace(work / name, folder / name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    write_json(folder / "parts" / f"{part.name}.json", record)


def _remove_leftovers(partial: Path) -> None:
    """Delete what a killed process was writing."""
    for leftover in partial.glob(".tmp-*"):
        shutil.rmtree(leftover)
    for leftover in [*partial.glob(".*.tmp"), *partial.glob("parts/.*.tmp")]:
        leftover.unlink()


def _is_recorded(partial: Path, name: str) -> bool:
    """Whether a part is whole and was made by the versions that are installed now."""
    path = partial / "parts" / f"{name}.json"
    if not path.is_file():
        return False
    record = read_json(path)
    return record["versions"] == _versions() and all(
        (partial / file).is_file() and file_sha256(partial / file) == entry["sha256"]
        for file, entry in record["files"].items()
    )


def _manifest(
    digest: str, key: Mapping[str, Any], parts: Sequence[Part], partial: Path
) -> dict[str, Any]:
    recorded: dict[str, Any] = {}
    totals: Counts = {}
    content = hashlib.sha256()
    for part in parts:
        record = read_json(partial / "parts" / f"{part.name}.json")
        recorded[part.name] = {"files": record["files"], "counts": record["counts"]}
        for name, count in record["counts"].items():
            totals[name] = totals.get(name, 0) + count
        for name, entry in record["files"].items():
            content.update(f"{name}\0{entry['sha256']}\n".encode())
    return {
        "format": FORMAT,
        "version": VERSION,
        "stage": key["stage"],
        "hash": digest,
        "content": content.hexdigest()[:32],
        "counts": totals,
        "code": key["code"],
        "inputs": key["inputs"],
        "config": key["config"],
        "versions": _versions(),
        "parts": recorded,
    }


def _versions() -> dict[str, str]:
    versions = {}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _read_seconds(folder: Path) -> float:
    timing = folder / "timing.json"
    return float(read_json(timing)["seconds"]) if timing.is_file() else 0.0


def _seconds_of_parts(partial: Path) -> float:
    """What a killed process has already spent on whole parts."""
    return sum(float(read_json(record)["seconds"]) for record in partial.glob("parts/*.json"))
