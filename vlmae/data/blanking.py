"""Samples taken out of a tar, every other byte where it was.

The byte range of the sample becomes one member `__taken_down__` of zeros, which webdataset skips.
So no offset of another clip moves: indexes, caches, stores and manifests that name byte ranges of
the shard stay right, those that nobody here knows of too. In a local file the zeros are a hole,
which takes no room.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from vlmae.data.decode.clip import BadClipError
from vlmae.data.records import BLOCK, tar_members
from vlmae.data.storage import Storage, is_remote, local_path

FILLER = "__taken_down__"
CHUNK = 1 << 22


def filler_header(size: int) -> bytes:
    """The tar header of the member that takes the place of `size` bytes of a sample.

    Raises:
        ValueError: these are no whole tar members.
    """
    if size < BLOCK or size % BLOCK:
        raise ValueError(f"a sample has {size} bytes, which is no multiple of {BLOCK}: index again")
    member = tarfile.TarInfo(FILLER)
    member.size = size - BLOCK
    return member.tobuf(tarfile.USTAR_FORMAT)


def copy_blanked(source: BinaryIO, target: BinaryIO, ranges: Sequence[tuple[int, int]]) -> None:
    """Copy a tar without some samples.

    Args:
        source: the tar.
        target: an empty file.
        ranges: offset and size of each sample.

    Raises:
        ValueError: a range is not in the tar, or overlaps another.
    """
    end = source.seek(0, os.SEEK_END)
    position = source.seek(0)
    for offset, size in sorted(ranges):
        if not position <= offset <= end - size:
            raise ValueError(
                f"no sample can lie at bytes {offset} to {offset + size} of a shard of {end}: its "
                "index is not of this shard"
            )
        _copy(source, target, offset - position)
        target.write(filler_header(size))
        target.seek(size - BLOCK, os.SEEK_CUR)
        position = source.seek(offset + size)
    while data := source.read(CHUNK):
        target.write(data)
    target.truncate()


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size and (data := source.read(min(size, CHUNK))):
        target.write(data)
        size -= len(data)


def blank_elsewhere(shard: str, samples: Sequence[tuple[str, int, int]], storage: Storage) -> int:
    """Take samples out of a shard that lies elsewhere; those that are out already are left.

    The shard is copied to this machine and put back whole: an object store has no other way.

    Args:
        shard: URL or path of the tar.
        samples: key, offset and size of each.
        storage: access to it.

    Returns:
        How many samples were there.

    Raises:
        ValueError: the shard holds something else at such a place, or cannot be read or written.
    """
    place = shard if is_remote(shard) else str(local_path(shard).resolve())
    try:
        return _blank_elsewhere(place, samples, storage)
    except OSError as error:
        raise ValueError(
            f"{shard} cannot be rewritten ({type(error).__name__}: {error}): check the address and "
            "the rights, or remove the clip there yourself"
        ) from error


def _blank_elsewhere(place: str, samples: Sequence[tuple[str, int, int]], storage: Storage) -> int:
    remote = is_remote(place)
    # A local shard is replaced by a rename, which wants the new one beside it.
    beside = None if remote else Path(place).parent
    with tempfile.TemporaryDirectory(prefix=".taking-down-", dir=beside) as folder:
        original, blanked = Path(folder) / "original", Path(folder) / "blanked"
        if remote:
            storage.file_system(place).get_file(place, str(original))
        else:
            original = Path(place)
        with open(original, "rb") as source, open(blanked, "wb") as target:
            ranges = [
                (offset, size)
                for key, offset, size in samples
                if _holds(source, place, key, offset, size)
            ]
            source.seek(0)
            if ranges:
                copy_blanked(source, target, ranges)
                target.flush()
                os.fsync(target.fileno())
        if ranges and remote:
            storage.file_system(place).put_file(str(blanked), place)
        elif ranges:
            blanked.chmod(original.stat().st_mode)
            os.replace(blanked, original)
    return len(ranges)


def _holds(source: BinaryIO, place: str, key: str, offset: int, size: int) -> bool:
    """Whether a sample is at its place; False where it was taken out before."""
    source.seek(offset)
    record = source.read(size)
    if record.startswith(filler_header(size)) and not any(record[BLOCK:]):
        return False
    try:
        tar_members(record, key)
    except BadClipError as error:
        raise ValueError(
            f"{place} no longer holds the clip {key!r} at byte {offset} ({error}): remove it there "
            "yourself"
        ) from error
    return True
