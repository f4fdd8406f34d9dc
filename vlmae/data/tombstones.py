"""Tombstones: the clips that were taken down and must never return, `<root>/tombstones.jsonl`.

    {"format": "vlmae-tombstones", "version": 1}
    {"id": "5be1...", "key": "pool-17", "reason": "...", "time": "...", "places": []}

`places` are byte ranges outside of the stages where the clip's media still lie: shards that were
indexed where they are. Of several lines of one clip the last counts. The file only grows, and is
replaced as a whole, so that a killed writer leaves the old lines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock

from lsb import ids as sample_ids
from lsb.artifact import Stage, StageError, write_bytes
from lsb.ids import IdArray

FILE = "tombstones.jsonl"
FORMAT = "vlmae-tombstones"
VERSION = 1


@dataclass(frozen=True, order=True)
class Place:
    """The bytes of one clip in a shard that lies elsewhere.

    Attributes:
        shard: URL.
        offset, size: byte range of the whole sample.
    """

    shard: str
    offset: int
    size: int


@dataclass(frozen=True)
class Tombstone:
    """One clip that was taken down.

    Attributes:
        key: of the clip.
        reason: why, in words.
        time: of the takedown, ISO 8601, UTC.
        places: where its media still lie.
    """

    key: str
    reason: str
    time: str
    places: tuple[Place, ...] = ()

    @property
    def id(self) -> bytes:
        """The clip's id."""
        return sample_ids.sample_id(self.key)

    @classmethod
    def now(cls, key: str, reason: str, places: Sequence[Place] = ()) -> Tombstone:
        """One of this moment."""
        time = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(key, reason, time, tuple(sorted(set(places))))


def read_tombstones(root: Path) -> dict[str, Tombstone]:
    """Key -> tombstone, in the order in which the clips were first taken down.

    Raises:
        StageError: the file is damaged, or of another version.
    """
    file = root / FILE
    if not file.is_file():
        return {}
    found: dict[str, Tombstone] = {}
    try:
        header, *lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        if header.get("format") != FORMAT or header.get("version") != VERSION:
            raise StageError(
                f"{file} has format {header.get('format')!r} version {header.get('version')!r}, "
                f"this release reads {FORMAT!r} version {VERSION}: use the release that wrote it"
            )
        for line in lines:
            places = tuple(Place(**place) for place in line["places"])
            found[line["key"]] = Tombstone(line["key"], line["reason"], line["time"], places)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, StageError):
            raise
        raise StageError(
            f"{file} is damaged ({error}): restore it; without it clips that were taken down "
            "would return"
        ) from error
    return found


def add_tombstones(root: Path, tombstones: Sequence[Tombstone]) -> None:
    """Append lines; they are on disk when this returns."""
    root.mkdir(parents=True, exist_ok=True)
    file = root / FILE
    with FileLock(root / ".tombstones.lock"):
        read_tombstones(root)  # never append to what nobody can read
        held = file.read_bytes() if file.is_file() else _line(format=FORMAT, version=VERSION)
        lines = [
            _line(
                id=stone.id.hex(),
                key=stone.key,
                reason=stone.reason,
                time=stone.time,
                places=[vars(place) for place in stone.places],
            )
            for stone in tombstones
        ]
        write_bytes(file, held + b"".join(lines))
        folder = os.open(root, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename too
        finally:
            os.close(folder)


def tombstone_ids(root: Path) -> IdArray:
    """Ids of all clips that were taken down, (N,) S16."""
    return sample_ids.sample_ids(read_tombstones(root))


def without_tombstones(root: Path, table: pa.Table) -> pa.Table:
    """The rows of a table whose clips were not taken down.

    Args:
        root: folder of all stages.
        table: with a column `id`.
    """
    ids = tombstone_ids(root)
    if not len(ids) or not table.num_rows:
        return table
    gone = np.isin(sample_ids.from_arrow(table["id"]), ids)
    return table.filter(pa.array(~gone)) if gone.any() else table


def taken_down_of(root: Path, stage: Stage) -> set[str]:
    """Keys of the clips that were taken out of a finished stage, see `lsb.redaction`."""
    parts = stage.manifest["parts"].values()
    gone = {clip for part in parts for clip in part.get("redacted", ())}
    return {key for key, stone in read_tombstones(root).items() if stone.id.hex() in gone}


def _line(**fields: Any) -> bytes:
    return json.dumps(fields).encode("ascii") + b"\n"
