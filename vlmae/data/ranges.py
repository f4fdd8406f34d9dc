"""Sparse samples by byte range: few requests, little beside what was asked for, and all counted.

Neighbouring ranges of a shard are read in one request where the gap between them is small. Shards
lie in a folder (read with `pread`) or wherever fsspec reaches (`s3://...`; requests run side by
side where the file system is asynchronous).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from vlmae.data.records import tar_members
from vlmae.data.storage import Storage, is_remote, local_path

__all__ = ["RangeReader", "Span", "Traffic", "join_ranges", "tar_members"]

OPEN_FILES = 64
SMALL_GAP = 4096  # bytes that are always cheaper to read than to ask around


@dataclass(frozen=True)
class Traffic:
    """What a reader was asked for and what it read, in bytes, and in how many requests.

    Bytes that were asked for twice count twice in `wanted`.
    """

    wanted: int = 0
    read: int = 0
    requests: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.wanted + other.wanted, self.read + other.read, self.requests + other.requests
        )


@dataclass(frozen=True)
class Span:
    """One request: bytes `start` to `stop` of a shard, and the numbers of the ranges within."""

    shard: str
    start: int
    stop: int
    ranges: tuple[int, ...]


def join_ranges(
    shards: Sequence[str],
    offsets: Sequence[int],
    sizes: Sequence[int],
    *,
    max_gap: int,
    max_request: int,
) -> list[Span]:
    """Requests that cover all ranges, each range within one of them.

    Args:
        shards, offsets, sizes: (N,) of each range.
        max_gap: ranges of a shard at most so many bytes apart are read together, unless the gap is
            longer than the range behind it (and than `SMALL_GAP`): reading never costs much more
            than twice what was asked for, however small the clips are.
        max_request: bytes of a request that joins ranges; a longer range is a request of its own.

    Raises:
        ValueError: columns of unequal length, or a negative offset or size.
    """
    if not len(shards) == len(offsets) == len(sizes):
        raise ValueError(
            f"{len(shards)} shards, {len(offsets)} offsets, {len(sizes)} sizes: give equally many"
        )
    negative = [n for n in range(len(shards)) if offsets[n] < 0 or sizes[n] < 0]
    if negative:
        first = negative[0]
        raise ValueError(
            f"{shards[first]}: offset {offsets[first]}, size {sizes[first]}: neither can be "
            "negative; make the index again"
        )
    spans: list[Span] = []
    shard, start, stop = "", 0, 0
    held: list[int] = []
    for number in sorted(range(len(shards)), key=lambda n: (shards[n], offsets[n], sizes[n])):
        begin, end = int(offsets[number]), int(offsets[number] + sizes[number])
        joined = max(stop, end)
        allowed = min(max_gap, max(SMALL_GAP, end - begin))
        near = bool(held) and shards[number] == shard and begin - stop <= allowed
        if near and (joined == stop or joined - start <= max_request):
            stop = joined
        else:
            if held:
                spans.append(Span(shard, start, stop, tuple(held)))
            shard, start, stop, held = shards[number], begin, end, []
        held.append(number)
    if held:
        spans.append(Span(shard, start, stop, tuple(held)))
    return spans


class RangeReader:
    """Reads byte ranges of shards. It can be pickled and forked: every process opens its own.

    Args:
        base: folder or URL that shard names are relative to; names that are URLs or absolute paths
            stand for themselves.
        max_gap: ranges at most so many bytes apart are read together, see `join_ranges`.
        max_request: bytes of one request, unless a single range is longer.
        storage_options: of the fsspec file system; what is absent comes from the environment.
    """

    def __init__(
        self,
        base: Path | str,
        *,
        max_gap: int = 1 << 16,
        max_request: int = 1 << 24,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if max_gap < 0 or max_request < 1:
            raise ValueError(
                f"max_gap is {max_gap}, max_request {max_request}: give bytes, a request at least 1"
            )
        self.base = str(base)
        self.max_gap = max_gap
        self.max_request = max_request
        self._storage = Storage(storage_options)
        self._traffic = Traffic()
        self._files: OrderedDict[str, int] = OrderedDict()
        self._process = os.getpid()

    @property
    def traffic(self) -> Traffic:
        """Summed over all calls of `read` in this process."""
        return self._traffic

    def read(
        self, shards: Sequence[str], offsets: Sequence[int], sizes: Sequence[int]
    ) -> list[bytes]:
        """The bytes of each range, in the order asked; ranges may repeat and overlap.

        Args:
            shards: (N,) names below `base`, or URLs.
            offsets, sizes: (N,) in bytes.

        Raises:
            ValueError: a shard is absent, cannot be read or ends too early; names shard and range.
        """
        spans = join_ranges(
            shards, offsets, sizes, max_gap=self.max_gap, max_request=self.max_request
        )
        answers = [b""] * len(shards)
        for span, data in zip(spans, self._fetch(spans), strict=True):
            for number in span.ranges:
                begin = int(offsets[number]) - span.start
                answers[number] = data[begin : begin + int(sizes[number])]
        self._traffic += Traffic(
            sum(map(int, sizes)), sum(span.stop - span.start for span in spans), len(spans)
        )
        return answers

    def _fetch(self, spans: Sequence[Span]) -> list[bytes]:
        """The bytes of each span."""
        found: dict[int, bytes] = {}
        remote: list[int] = []
        for number, span in enumerate(spans):
            place = self._place(span.shard)
            if is_remote(place):
                remote.append(number)
            else:
                found[number] = self._read_local(local_path(place), span)
        places = [self._place(spans[number].shard) for number in remote]
        starts = [spans[number].start for number in remote]
        stops = [spans[number].stop for number in remote]
        fetched = self._storage.ranges(places, starts, stops)
        for number, place, data in zip(remote, places, fetched, strict=True):
            if isinstance(data, FileNotFoundError):
                raise _absent(place) from data
            if isinstance(data, BaseException):
                raise _failed(place, spans[number], data) from data
            found[number] = _whole(place, spans[number], data)
        return [found[number] for number in range(len(spans))]

    def _place(self, shard: str) -> str:
        """Path or URL of a shard."""
        if "://" in shard or Path(shard).is_absolute():
            return shard
        return f"{self.base.rstrip('/')}/{shard}"

    def _read_local(self, path: Path, span: Span) -> bytes:
        try:
            descriptor = self._descriptor(str(path))
            pieces: list[bytes] = []
            position = span.start
            while position < span.stop:
                piece = os.pread(descriptor, span.stop - position, position)
                if not piece:
                    break
                pieces.append(piece)
                position += len(piece)
        except FileNotFoundError as error:
            raise _absent(str(path)) from error
        except OSError as error:
            raise _failed(str(path), span, error) from error
        return _whole(str(path), span, b"".join(pieces))

    def _descriptor(self, path: str) -> int:
        if self._process != os.getpid():
            self.close()  # the copies that a fork left in this process
        descriptor = self._files.pop(path, None)
        if descriptor is None:
            while len(self._files) >= OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._files[path] = descriptor
        return descriptor

    def close(self) -> None:
        """Close this process's descriptors; reading again opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])
        self._process = os.getpid()

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict(), "_traffic": Traffic()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _process=os.getpid())


def _whole(place: str, span: Span, data: bytes) -> bytes:
    if len(data) != span.stop - span.start:
        raise ValueError(
            f"{place} gave {len(data)} of the bytes {span.start} to {span.stop} that its index "
            "names: the shard is cut or not the one that was indexed; restore it, or prepare the "
            "data set again"
        )
    return data


def _absent(place: str) -> ValueError:
    return ValueError(
        f"there is no shard {place}: restore it, or prepare the data set again (a finished stage "
        "makes only what is absent)"
    )


def _failed(place: str, span: Span, error: BaseException) -> ValueError:
    return ValueError(
        f"bytes {span.start} to {span.stop} of {place} cannot be read "
        f"({type(error).__name__}: {error}): check the address, the rights and the network "
        "(storage options, AWS_*)"
    )
