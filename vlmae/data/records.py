"""Samples in webdataset tars: what belongs to one, writing members, reading them from a byte range.

A sample is a run of adjacent members with the same key. As in webdataset, the key is a member's
path up to the first dot of its last component, the rest in lower case is the ending.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Mapping
from typing import BinaryIO

from lsb.progress import progressed
from vlmae.data.decode.clip import BadClipError

BLOCK = tarfile.BLOCKSIZE
END_OF_TAR = bytes(2 * BLOCK)
DAMAGED_SAMPLE = "damaged sample"
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_META = re.compile(r"__[^/]*__($|/)")  # what webdataset skips as metadata


def split_name(name: str) -> tuple[str, str] | None:
    """Key and ending of a tar member, None where webdataset would skip it.

    Bytes that are not UTF-8 stand as `\\udcff` in the key: a table holds no others.
    """
    match = None if _META.match(name) else _NAME.match(name)
    if match is None:
        return None
    return match[1].encode("utf-8", "backslashreplace").decode("utf-8"), match[2].lower()


def fits(key: str, endings: tuple[str, ...]) -> bool:
    """Whether plain USTAR headers can hold these names, and webdataset finds this key in them."""
    for ending in endings:
        if split_name(f"{key}.{ending}") != (key, ending):
            return False
        try:
            tarfile.TarInfo(f"{key}.{ending}").tobuf(tarfile.USTAR_FORMAT)
        except ValueError:  # too long
            return False
    return True


def write_member(stream: BinaryIO, name: str, data: bytes) -> None:
    """Append one file: a single 512-byte USTAR header with no time or owner, data, padding."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    stream.write(member.tobuf(tarfile.USTAR_FORMAT))
    stream.write(data)
    stream.write(bytes(-len(data) % BLOCK))


def write_sample(stream: BinaryIO, key: str, members: Mapping[str, bytes]) -> tuple[int, int]:
    """Append the members of one sample, ending -> bytes; returns its offset and size."""
    offset = stream.tell()
    for ending, data in members.items():
        write_member(stream, f"{key}.{ending}", data)
    progressed(f"clip {key} written")
    return offset, stream.tell() - offset


def tar_members(record: bytes, key: str) -> dict[str, bytes]:
    """The members of one sample.

    Args:
        record: the byte range of the sample as its index gives it.
        key: of the sample.

    Returns:
        Ending (after the first dot, lower case) -> bytes, in stored order.

    Raises:
        BadClipError: "damaged sample": the bytes are not whole tar members of this key.
    """
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(record), mode="r:") as archive:
            for member in archive:
                if not member.isreg() or (name := split_name(member.name)) is None:
                    continue
                if name[0] != key or name[1] in members:
                    problem = "another key" if name[0] != key else "a second member of this name"
                    raise BadClipError(key, DAMAGED_SAMPLE, f"{member.name!r}: {problem}")
                stream = archive.extractfile(member)
                members[name[1]] = stream.read() if stream is not None else b""
            # tarfile takes a damaged header for the end.
            whole = archive.offset == len(record)
    except BadClipError:
        raise
    except (tarfile.TarError, ValueError, OverflowError, EOFError, OSError) as error:
        raise BadClipError(key, DAMAGED_SAMPLE, str(error)) from error
    if not whole or not members:
        raise BadClipError(key, DAMAGED_SAMPLE, "a tar header is not one, or there is no member")
    return members
