"""Take clips down: `python -m vlmae.takedown KEY [KEY ...] --reason "..." [--runs runs]`.

Removes the media, tokens and vectors of the clips from every stage under `<runs>/stages` and leaves
a tombstone for each, so that none ever returns (docs/life_of_data.md). Killed at any point it goes
on when it is run again, with the same keys or with none. Refused while a process is at work.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from lsb import ids as sample_ids
from lsb.artifact import Counts, open_stage
from lsb.files import link
from lsb.ids import IdArray
from lsb.redaction import (
    PARTIAL,
    drop_parts,
    recorded_parts,
    redact_stage,
    require_idle,
    seal_whole,
    settle,
)
from vlmae.data.blanking import blank_elsewhere
from vlmae.data.redaction import (
    KINDS,
    held_clips,
    part_edit,
    places_elsewhere,
    redact_part,
)
from vlmae.data.storage import Storage
from vlmae.data.tombstones import Place, Tombstone, add_tombstones, read_tombstones
from vlmae.part_keys import new_key

LOCK = ".takedown.lock"
REMAKE = ".remake"
# Vectors of a killed training that was expanding; without these clips it is another training.
EXPANDING = "train-*.partial/.scratch-*/growing/*/*.partial"
# Tables of a finished training with the ids of clips that shaped its checkpoint.
TRAINED_ON = ("training_set.parquet", "validation.parquet")


@dataclass
class Takedown:
    """What a takedown found and did.

    Attributes:
        held: stage -> part -> ids of the clips in it.
        trained: train stage -> table -> how many of the clips it names; these records stay.
        recorded: ids of the clips that these tables name.
        places: key -> where its media lie outside of the stages.
        unknown: keys that no stage names.
        rewritten: samples taken out of shards elsewhere.
    """

    held: dict[str, dict[str, set[bytes]]] = field(default_factory=dict)
    trained: dict[str, dict[str, int]] = field(default_factory=dict)
    recorded: set[bytes] = field(default_factory=set)
    places: dict[str, set[Place]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    rewritten: int = 0

    @property
    def clips(self) -> set[bytes]:
        """Ids of the clips that some stage holds."""
        return {clip for parts in self.held.values() for clips in parts.values() for clip in clips}


def take_down(
    runs: Path,
    keys: Sequence[str],
    *,
    reason: str = "",
    force: bool = False,
    dry_run: bool = False,
    rewrite_remote: bool = False,
    storage: Storage | None = None,
) -> Takedown:
    """Take clips down, and finish every takedown before.

    Args:
        runs: folder of runs and stages.
        keys: of the clips; with none, earlier takedowns are only finished.
        reason: for the tombstones.
        force: also for keys that no stage has seen yet.
        dry_run: only look.
        rewrite_remote: also rewrite shards that were indexed where they lie.
        storage: access to those.

    Returns:
        What was found, before anything was changed.

    Raises:
        ValueError: no reason, an unknown key, a process at work (the tombstones are written by
            then), a missing or damaged file.
    """
    root = runs / "stages"
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}: give the runs that hold the clip with --runs")
    if keys and not reason.strip():
        raise ValueError("--reason is not given: say in a few words why, for the tombstones")
    try:
        with FileLock(root / LOCK, timeout=0):
            return _take_down(
                root, keys, reason, force, dry_run, rewrite_remote, storage or Storage()
            )
    except Timeout:
        raise ValueError("another takedown is under way: wait for it to end") from None


def _take_down(
    root: Path,
    keys: Sequence[str],
    reason: str,
    force: bool,
    dry_run: bool,
    rewrite_remote: bool,
    storage: Storage,
) -> Takedown:
    before = read_tombstones(root)
    wanted = list(dict.fromkeys([*before, *keys]))
    ids = sample_ids.sample_ids(wanted)
    found = _find(root, ids)
    known = found.clips | found.recorded
    found.unknown = [
        key for key in keys if sample_ids.sample_id(key) not in known and key not in before
    ]
    if found.unknown and not force:
        raise ValueError(
            f"no stage in {root} knows the clip {found.unknown[0]!r} ({len(found.unknown)} of "
            f"{len(keys)} keys): check its key in an index.parquet; --force takes down clips that "
            "are yet to come"
        )
    if dry_run:
        return found
    # First of all: from here on the clips can only go, whatever happens.
    stones = [Tombstone.now(key, reason) for key in keys if key not in before]
    stones = [_with_places(stone, found) for stone in [*before.values(), *stones]]
    add_tombstones(root, [stone for stone in stones if before.get(stone.key) != stone])
    require_idle(root, "run the same takedown again (its tombstones stand)", besides=root / LOCK)
    _tidy(root)
    _redact(root, _find(root, ids))
    if rewrite_remote:
        found.rewritten = _rewrite(root, stones, storage)
    return found


def _with_places(stone: Tombstone, found: Takedown) -> Tombstone:
    places = {*stone.places, *found.places.get(stone.key, ())}
    return replace(stone, places=tuple(sorted(places)))


def _folders(root: Path, *endings: str) -> Iterator[tuple[str, Path]]:
    """Kind and path of the stages that hold clips; finished ones, or those with an ending."""
    for kind in KINDS:
        for path in sorted(root.glob(f"{kind}-*")):
            if path.is_dir() and path.suffix in (endings or ("",)):
                yield kind, path


def _parts(path: Path) -> dict[str, list[str]]:
    """Part -> files of a stage, finished or not."""
    if not (path / "manifest.json").is_file():
        return recorded_parts(path)
    parts = open_stage(path, verify=False).manifest["parts"]
    return {part: list(entry["files"]) for part, entry in parts.items()}


def _find(root: Path, ids: IdArray) -> Takedown:
    """Where clips are."""
    found = Takedown()
    for kind, path in _folders(root, "", PARTIAL):
        for part, files in _parts(path).items():
            clips = held_clips(path, files, ids)
            if clips:
                found.held.setdefault(path.name, {})[part] = clips
            if clips and kind == "prepare":
                for key, places in places_elsewhere(path, files, ids).items():
                    found.places.setdefault(key, set()).update(places)
    for path in sorted(root.glob("train-*/manifest.json")):
        for name in TRAINED_ON:
            if named := _named(path.parent / name, ids):
                found.trained.setdefault(path.parent.name, {})[name] = len(named)
                found.recorded |= named
    return found


def _named(table: Path, ids: IdArray) -> set[bytes]:
    """Those of `ids` that a table names."""
    if not table.is_file():
        return set()
    held = sample_ids.from_arrow(pq.read_table(table, columns=["id"])["id"])
    return set(sample_ids.to_bytes(held[np.isin(held, ids)]))


def _tidy(root: Path) -> None:
    """Bring what killed processes left into one of two states: finished, or made of whole parts."""
    settle(root)
    for _, path in _folders(root, REMAKE):
        shutil.rmtree(path)
    for _, path in _folders(root, PARTIAL):
        if seal_whole(path) is None:
            drop_parts(path, [])


def _redact(root: Path, found: Takedown) -> None:
    """Take the clips out, sources before what was made from them."""
    for _, path in _folders(root, PARTIAL):
        drop_parts(path, found.held.get(path.name, ()))
    for path in root.glob(EXPANDING):
        shutil.rmtree(path)
    made: dict[str, list[Mapping[str, Any]]] = {}
    sharing = _Sharing()
    for kind, path in _folders(root):
        manifest = open_stage(path, verify=False).manifest
        held = found.held.get(path.name, {})
        edits = {}
        for part, entry in manifest["parts"].items():
            key = new_key(manifest, part, made)
            if part in held or key not in (None, entry.get("key")):
                write = partial(sharing.redact, entry["files"])
                edits[part] = part_edit(kind, part, held.get(part, ()), key=key, write=write)
        if edits:
            manifest = redact_stage(path, edits).manifest
        made.setdefault(manifest["content"], []).append(manifest)


class _Sharing:
    """Writes parts so that files which stages shared stay shared: once, then linked."""

    def __init__(self) -> None:
        self._written: dict[tuple[str, ...], tuple[list[Path], Counts]] = {}

    def redact(
        self, recorded: Mapping[str, Mapping[str, Any]], source: Path, target: Path, **options: Any
    ) -> Counts:
        """As `vlmae.data.redaction.redact_part`; `recorded` are the files of the manifest."""
        hashes = tuple(str(told["sha256"]) for told in recorded.values())
        if hashes in self._written:
            files, gone = self._written[hashes]
            for file, name in zip(files, recorded, strict=True):
                link(file, target / name)
            return gone
        gone = redact_part(source, target, **options)
        # By the time another stage asks, the new files bear the names of the old.
        self._written[hashes] = ([source / name for name in recorded], gone)
        return gone


def _rewrite(root: Path, stones: Sequence[Tombstone], storage: Storage) -> int:
    """Take clips out of shards elsewhere; each tombstone then says that it is done."""
    shards: dict[str, list[tuple[str, int, int]]] = {}
    for stone in stones:
        for place in stone.places:
            samples = shards.setdefault(place.shard, [])
            samples.append((stone.key, place.offset, place.size))
    done = sum(blank_elsewhere(shard, samples, storage) for shard, samples in shards.items())
    add_tombstones(root, [replace(stone, places=()) for stone in stones if stone.places])
    return done


def report(found: Takedown, stones: Sequence[Tombstone], *, dry_run: bool) -> list[str]:
    """What a takedown found and did, in lines for people.

    Args:
        found: by `take_down`.
        stones: all tombstones, as they are now.
        dry_run: whether it only looked.
    """
    did = "would be removed" if dry_run else "removed"
    lines = [
        f"{stage}: {len(set().union(*parts.values()))} clips {did}, from {', '.join(parts)}"
        for stage, parts in found.held.items()
    ]
    for stage, tables in found.trained.items():
        named = ", ".join(f"{count} in {table}" for table, count in tables.items())
        lines.append(f"{stage}: its checkpoint was made with them ({named}); the record stays")
    elsewhere = found.places if dry_run else {s.key: s.places for s in stones if s.places}
    for key, places in elsewhere.items():
        lines += [
            f"media of {key!r} remain at {place.shard}, bytes {place.offset} to "
            f"{place.offset + place.size}: remove them there, or run again with --rewrite-remote"
            for place in sorted(places)
        ]
    if found.rewritten:
        lines.append(f"{found.rewritten} clips removed from shards that lie elsewhere")
    if dry_run:
        return [*lines, f"{len(found.clips)} clips would be taken down; nothing was changed"]
    return [*lines, f"{len(found.clips)} clips taken down, {len(stones)} tombstones"]


def main() -> None:
    """Read the arguments, take down, and say what was done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("keys", nargs="*", metavar="KEY", help="none: finish what was stopped")
    parser.add_argument("--reason", default="", help="why, for the tombstones")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument("--force", action="store_true", help="also keys that no stage knows yet")
    parser.add_argument(
        "--rewrite-remote", action="store_true", help="also rewrite shards indexed in place"
    )
    parser.add_argument(
        "--storage-options", type=json.loads, default={}, help="of fsspec, as JSON, for those"
    )
    arguments = parser.parse_args()
    try:
        found = take_down(
            arguments.runs,
            arguments.keys,
            reason=arguments.reason,
            force=arguments.force,
            dry_run=arguments.dry_run,
            rewrite_remote=arguments.rewrite_remote,
            storage=Storage(arguments.storage_options),
        )
        stones = list(read_tombstones(arguments.runs / "stages").values())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print("\n".join(report(found, stones, dry_run=arguments.dry_run)))


if __name__ == "__main__":
    main()
