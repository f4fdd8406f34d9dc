"""Making one shard: of clips that are copied or encoded again, or of a shard that stays in place.

{split}-{n:05d}.tar                  absent where the shard stays in place
{split}-{n:05d}.index.parquet
{split}-{n:05d}.quarantine.parquet   id, key, reason, detail: the clips that cannot be used
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from lsb.artifact import Counts
from lsb.ids import ID_TYPE, sample_id
from vlmae.data.decode import VIDEO_ENDINGS, BadClipError
from vlmae.data.decode.members import read_title
from vlmae.data.index import INDEX_ENDING, INDEX_SCHEMA
from vlmae.data.prepare.ingest.clips import SourceClip
from vlmae.data.prepare.ingest.config import IngestConfig
from vlmae.data.prepare.ingest.range_file import RangeFile
from vlmae.data.prepare.ingest.reencode import reencode, shrink_image
from vlmae.data.prepare.ingest.scan import ShardSample
from vlmae.data.prepare.media import ClipMembers, clip_members
from vlmae.data.prepare.probe import probe
from vlmae.data.ranges import RangeReader
from vlmae.data.records import END_OF_TAR, write_sample

QUARANTINE_ENDING = ".quarantine.parquet"
_FIELDS: list[tuple[str, pa.DataType]] = [
    ("id", ID_TYPE),
    ("key", pa.string()),
    ("reason", pa.string()),
    ("detail", pa.string()),
]
QUARANTINE_SCHEMA = pa.schema(_FIELDS)
READ_TOGETHER = 1 << 25  # bytes of clips that are fetched at a time
OPENED_TOGETHER = 64  # clips whose small members are fetched at a time
READ_WHOLE = 1 << 18  # members up to so many bytes are read whole when a shard stays in place


@dataclass(frozen=True)
class CopyMaker:
    """Writes one shard of clips that lie in files or in other shards.

    Attributes:
        config: of the data set.
        name: of the shard, `{split}-{number:05d}`.
        clips: in the order they are written.
    """

    config: IngestConfig
    name: str
    clips: tuple[SourceClip, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Files that making this shard writes."""
        return (f"{self.name}.tar", f"{self.name}{INDEX_ENDING}", f"{self.name}{QUARANTINE_ENDING}")

    def __call__(self, folder: Path) -> Counts:
        """Write the shard and its tables into `folder`."""
        tables = _Tables(self.name)
        with (
            RangeReader("", storage_options=self.config.storage_options) as reader,
            open(folder / self.files[0], "wb") as stream,
        ):
            for clip, members in _fetch(reader, self.clips):
                try:
                    if isinstance(members, BadClipError):
                        raise members
                    self._write(clip, members, stream, tables)
                except BadClipError as bad:
                    tables.quarantine(bad)
            stream.write(END_OF_TAR)
        return tables.write(folder)

    def _write(
        self, clip: SourceClip, members: Mapping[str, bytes], stream: BinaryIO, tables: _Tables
    ) -> None:
        parts = _parts(clip)
        told = _told(clip, {ending: members[ending] for ending in parts.titles})
        media = {ending: members[ending] for ending in parts.media}
        if self.config.reencode:
            media = self._reencoded(clip.key, parts, media, tables)
        found = probe(media, clip.key)
        fields = {
            "key": clip.key,
            "title": told.title,
            "split": clip.split,
            "data": self.config.name,
            "synthetic": told.synthetic,
            "duration_s": round(found.duration_s, 3),
        }
        described = json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")
        place = write_sample(stream, clip.key, {**media, "json": described})
        tables.add(clip, f"{self.name}.tar", place, told, found.columns())

    def _reencoded(
        self, key: str, parts: ClipMembers, media: Mapping[str, bytes], tables: _Tables
    ) -> dict[str, bytes]:
        side = self.config.short_side
        made: dict[str, bytes] = {}
        for ending, data in media.items():
            if ending == parts.video:
                new = reencode(data, side, key)
                tables.counts["sound dropped"] += new.sound_dropped
                made["mp4"] = new.media
            else:
                made[ending] = data if ending == parts.sound else shrink_image(data, side, key)
        return made


@dataclass(frozen=True)
class InPlaceMaker:
    """Indexes one shard where it is; nothing is copied.

    Attributes:
        config: of the data set.
        name: of the shard in this data set.
        url: of the tar.
        samples: of it that belong to the data set.
    """

    config: IngestConfig
    name: str
    url: str
    samples: tuple[ShardSample, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Files that indexing this shard writes."""
        return (f"{self.name}{INDEX_ENDING}", f"{self.name}{QUARANTINE_ENDING}")

    def __call__(self, folder: Path) -> Counts:
        """Write the tables into `folder`."""
        tables = _Tables(self.name)
        with RangeReader("", storage_options=self.config.storage_options) as reader:
            for sample, members in _open_all(reader, self.samples):
                clip = sample.clip
                try:
                    parts = _parts(clip)
                    told = _told(clip, {name: _read_all(members[name]) for name in parts.titles})
                    found = probe({ending: members[ending] for ending in parts.media}, clip.key)
                    place = (sample.offset, sample.size)
                    tables.add(clip, self.url, place, told, found.columns())
                except BadClipError as bad:
                    tables.quarantine(bad)
            tables.counts["bytes read"] = reader.traffic.read
        return tables.write(folder)


@dataclass(frozen=True)
class _Told:
    """What a clip's text members say."""

    title: str
    synthetic: bool


class _Tables:
    """Rows of the index and the quarantine of one shard, and counts."""

    def __init__(self, name: str) -> None:
        self.name, self.split = name, name.rsplit("-", 1)[0]
        self.counts: Counter[str] = Counter()
        self._index: list[dict[str, Any]] = []
        self._bad: list[dict[str, Any]] = []

    def add(
        self,
        clip: SourceClip,
        shard: str,
        place: tuple[int, int],
        told: _Told,
        columns: Mapping[str, Any],
    ) -> None:
        row = {"id": sample_id(clip.key), "key": clip.key, "shard": shard, "split": clip.split}
        place_and_title = {"offset": place[0], "size": place[1], "title": told.title}
        self._index.append({**row, **place_and_title, **columns})
        self.counts[f"{self.split}.synthetic"] += told.synthetic

    def quarantine(self, bad: BadClipError) -> None:
        row = {"id": sample_id(bad.key), "key": bad.key}
        self._bad.append({**row, "reason": bad.reason, "detail": bad.detail})

    def write(self, folder: Path) -> Counts:
        for ending, rows, schema in (
            (INDEX_ENDING, self._index, INDEX_SCHEMA),
            (QUARANTINE_ENDING, self._bad, QUARANTINE_SCHEMA),
        ):
            table = pa.Table.from_pylist(rows, schema=schema)
            pq.write_table(table, folder / f"{self.name}{ending}")
        self.counts[f"{self.split}.clips"] = len(self._index)
        self.counts[f"{self.split}.skipped"] = len(self._bad)
        self.counts.update(f"skipped: {row['reason']}" for row in self._bad)
        return {name: count for name, count in self.counts.items() if count}


def _parts(clip: SourceClip) -> ClipMembers:
    """The clip's members by their part in it.

    Raises:
        BadClipError: there are no media, or two members that a clip can have only one of.
    """
    endings = [member.ending for member in clip.members]
    if len(set(endings)) < len(endings):
        raise BadClipError(clip.key, "duplicate member", ", ".join(endings))
    parts = clip_members(endings)
    if parts is None:
        raise BadClipError(clip.key, "no media member", f"it has {', '.join(endings)}")
    if parts.rivals is not None:
        kind = "video" if parts.rivals[0] in VIDEO_ENDINGS else "sound"
        raise BadClipError(clip.key, f"several {kind} members", ", ".join(parts.rivals))
    return parts


def _told(clip: SourceClip, titles: Mapping[str, bytes]) -> _Told:
    """Title of a clip: the manifest's, else its json's or its text file's; "" if it has none.

    Raises:
        BadClipError: see `read_title`.
    """
    if clip.title is not None:
        return _Told(clip.title, False)
    title = read_title(titles, clip.key)
    try:
        fields = json.loads(titles.get("json", b"{}"))
    except ValueError:  # an encoding that `read_title` knows and json does not
        fields = {}
    return _Told(title, fields.get("synthetic") is True)


def _fetch(
    reader: RangeReader, clips: Sequence[SourceClip]
) -> Iterator[tuple[SourceClip, dict[str, bytes] | BadClipError]]:
    """Clips with their members' bytes, or why they cannot be read; some are fetched at a time."""
    group: list[SourceClip] = []
    held = 0
    for clip in clips:
        if group and held + clip.size > READ_TOGETHER:
            yield from _fetch_group(reader, group)
            group, held = [], 0
        group.append(clip)
        held += clip.size
    yield from _fetch_group(reader, group)


def _fetch_group(
    reader: RangeReader, clips: Sequence[SourceClip]
) -> Iterator[tuple[SourceClip, dict[str, bytes] | BadClipError]]:
    absent = {clip.key: m for clip in clips for m in clip.members if m.size < 0}
    members = [m for clip in clips if clip.key not in absent for m in clip.members]
    try:
        read = reader.read(
            [m.place for m in members], [m.offset for m in members], [m.size for m in members]
        )
    except ValueError as error:
        if len(clips) == 1:
            yield clips[0], BadClipError(clips[0].key, "unreadable file", str(error))
        else:  # find out which of them it is
            for clip in clips:
                yield from _fetch_group(reader, [clip])
        return
    data = iter(read)
    for clip in clips:
        if clip.key in absent:
            yield clip, BadClipError(clip.key, "absent file", absent[clip.key].place)
        else:
            yield clip, {member.ending: next(data) for member in clip.members}


def _open_all(
    reader: RangeReader, samples: Sequence[ShardSample]
) -> Iterator[tuple[ShardSample, dict[str, bytes | BinaryIO]]]:
    """Members of samples that stay in place: small ones read, many at a time, large ones opened.

    A large one is read by ranges, as far as its probe needs it.
    """
    for start in range(0, len(samples), OPENED_TOGETHER):
        group = samples[start : start + OPENED_TOGETHER]
        small = [m for s in group for m in s.clip.members if m.size <= READ_WHOLE]
        read = iter(
            reader.read(
                [m.place for m in small], [m.offset for m in small], [m.size for m in small]
            )
        )
        for sample in group:
            members: dict[str, bytes | BinaryIO] = {}
            for m in sample.clip.members:
                large: Any = RangeFile(reader, m.place, m.offset, m.size)
                members[m.ending] = next(read) if m.size <= READ_WHOLE else large
            yield sample, members


def _read_all(source: bytes | BinaryIO) -> bytes:
    return source if isinstance(source, bytes) else source.read()
