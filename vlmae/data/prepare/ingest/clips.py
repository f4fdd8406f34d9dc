"""Clips to be ingested: where their files are, and how they are dealt to shards."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lsb.files import fingerprint
from vlmae.data.records import fits
from vlmae.data.storage import FileInfo

LONGEST_NAME = 60  # characters kept of a name that no tar header holds


@dataclass(frozen=True, slots=True)
class SourceMember:
    """One member of a clip: bytes `offset` to `offset + size` of a file.

    Attributes:
        ending: its name after the key, lower case.
        place: local path or URL of the file.
        offset, size: bytes; size -1 if the file was absent when it was listed.
        version: of the file.
    """

    ending: str
    place: str
    offset: int
    size: int
    version: str

    @classmethod
    def whole(cls, ending: str, file: FileInfo) -> SourceMember:
        """A whole file as a member."""
        return cls(ending, file.place, 0, file.size, file.version)


@dataclass(frozen=True, slots=True)
class SourceClip:
    """One clip to be.

    Attributes:
        key: in the data set.
        origin: what its identity in the source is, e.g. the path relative to the folder.
        split: it goes to.
        title: given by a manifest; None if a member has it.
        members: its files.
    """

    key: str
    origin: str
    split: str
    title: str | None
    members: tuple[SourceMember, ...]

    @property
    def size(self) -> int:
        """Bytes of all members."""
        return sum(max(0, member.size) for member in self.members)


def clip_key(stem: str, endings: Iterable[str]) -> str:
    """The key of a file: its relative path without ending, such that a tar can hold it.

    Dots become `_` (in a tar the key ends at the first), names that are too long for a tar header
    are cut and get a hash.
    """
    text = stem.encode("utf-8", "backslashreplace").decode("utf-8")
    parts = [part for part in text.replace(".", "_").split("/") if part]
    key = re.sub(r"^_+", "", "/".join(parts)) or "_"
    if fits(key, tuple(endings)):
        return key
    digest = hashlib.blake2b(stem.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()
    start = key.replace("/", "_").encode("utf-8")[:LONGEST_NAME].decode("utf-8", "ignore")
    return f"{start}-{digest}"


def require_unique_keys(clips: Iterable[SourceClip]) -> None:
    """Refuse two clips of one key.

    Raises:
        ValueError: names the key, both files and how many more there are.
    """
    seen: dict[str, SourceClip] = {}
    copies: list[tuple[SourceClip, SourceClip]] = []
    for clip in clips:
        if clip.key in seen:
            copies.append((seen[clip.key], clip))
        else:
            seen[clip.key] = clip
    if copies:
        first, second = copies[0]
        raise ValueError(
            f"{len(copies)} clips have a key that another has, first {first.key!r}: "
            f"{first.members[0].place} and {second.members[0].place}: rename or drop one"
        )


def identity(clips: Sequence[SourceClip]) -> str:
    """Hash of what is to be ingested: origins, sizes and versions of files, not their bytes."""
    return fingerprint(
        [
            [c.key, c.origin, c.split, c.title]
            + [[m.ending, m.offset, m.size, m.version] for m in c.members]
            for c in sorted(clips, key=lambda clip: clip.key)
        ]
    )


def deal(
    clips: Iterable[SourceClip], *, seed: int, shard_clips: int, shard_bytes: int
) -> Iterator[tuple[SourceClip, ...]]:
    """Clips of one split in shards, in an order that hides how they lay in their source.

    Args:
        clips: of one split.
        seed: of the order, which else depends on the keys alone.
        shard_clips: clips in a shard, at most.
        shard_bytes: bytes of source files in a shard, at most, unless one clip has more.
    """

    def rank(clip: SourceClip) -> bytes:
        return hashlib.blake2b(f"{seed}\0{clip.key}".encode(), digest_size=16).digest()

    shard: list[SourceClip] = []
    held = 0
    for clip in sorted(clips, key=rank):
        if shard and (len(shard) == shard_clips or held + clip.size > shard_bytes):
            yield tuple(shard)
            shard, held = [], 0
        shard.append(clip)
        held += clip.size
    if shard:
        yield tuple(shard)
