"""Arrays in .npy files, memory-mapped."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

MAGIC_BYTES = 8


class Readable(Protocol):
    """What is read from its start."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; all that are left if it is negative."""
        ...


@dataclass(frozen=True)
class ArrayHeader:
    """What an .npy file says about its array.

    Attributes:
        shape: of the array.
        dtype: of its values.
        fortran: whether the first index changes fastest.
        offset: bytes before the first value.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int


def array_header(stream: Readable, place: object) -> ArrayHeader:
    """Read the header from the start of an .npy file; the stream is left at the first value.

    Args:
        stream: of the file.
        place: path or URL, for messages.

    Raises:
        ValueError: the file is no .npy file, or of another version of the format.
    """
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            length = stream.read(2)
            text = stream.read(int.from_bytes(length, "little"))
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(BytesIO(length + text))
            return ArrayHeader(shape, dtype, fortran, MAGIC_BYTES + 2 + len(text))
    except ValueError as error:
        raise ValueError(f"{place} is not an .npy file ({error}): make its stage again") from error
    raise ValueError(
        f"{place} is an .npy file of version {version}, expected (1, 0): make its stage again"
    )


def map_array(path: Path) -> npt.NDArray[Any]:
    """An array of a .npy file, mapped and not read; one without values, which has no bytes to map,
    is made anew.

    Raises:
        ValueError: the file is no .npy file, or of another version of the format.
    """
    with open(path, "rb") as stream:
        shape = array_header(stream, path).shape
    array: npt.NDArray[Any] = np.load(
        path, mmap_mode=None if 0 in shape else "r", allow_pickle=False
    )
    return array
