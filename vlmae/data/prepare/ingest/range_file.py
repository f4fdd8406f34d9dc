"""A stretch of a shard as a seekable file that reads by ranges, ahead only where it is read on."""

from __future__ import annotations

import io
import os

from vlmae.data.ranges import RangeReader

FIRST_BLOCK = 1 << 14
LARGEST_BLOCK = 1 << 22


class RangeFile(io.RawIOBase):
    """Read-only.

    Every request begins where something was asked for. Reading on doubles the block that is
    fetched, a jump makes it small again.

    Args:
        reader: that fetches, and counts.
        shard: to read.
        offset: where the file starts in the shard.
        size: of the file in bytes.
    """

    def __init__(self, reader: RangeReader, shard: str, offset: int, size: int) -> None:
        super().__init__()
        self._reader, self._shard, self._offset, self._size = reader, shard, offset, size
        self._position = 0
        self._start = 0
        self._block = b""
        self._length = FIRST_BLOCK // 2

    def seekable(self) -> bool:
        """True."""
        return True

    def readable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Position in the file."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move; nothing is fetched before something is read."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """Fill a buffer as far as the file goes.

        Raises:
            ValueError: see `RangeReader.read`.
        """
        wanted = min(len(buffer), max(0, self._size - self._position))
        filled = 0
        while filled < wanted:
            inside = self._position - self._start
            if not 0 <= inside < len(self._block):
                self._fetch(wanted - filled)
                inside = 0
            piece = self._block[inside : inside + wanted - filled]
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._position += len(piece)
        return filled

    def _fetch(self, wanted: int) -> None:
        end = self._start + len(self._block)
        reads_on = end <= self._position <= end + self._length
        self._length = min(2 * self._length, LARGEST_BLOCK) if reads_on else FIRST_BLOCK
        length = min(max(self._length, wanted), self._size - self._position)
        place = self._offset + self._position
        self._block = self._reader.read([self._shard], [place], [length])[0]
        self._start = self._position
