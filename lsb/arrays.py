"""Arrays in .npy files, memory-mapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def map_array(path: Path) -> npt.NDArray[Any]:
    """An array of a .npy file, mapped and not read; one without values, which has no bytes to map,
    is made anew.

    Raises:
        ValueError: the file is of another version of the format.
    """
    with open(path, "rb") as stream:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(
                f"{path} is an .npy file of version {version}, expected (1, 0): make its stage "
                "again"
            )
        shape, _, _ = np.lib.format.read_array_header_1_0(stream)
    array: npt.NDArray[Any] = np.load(
        path, mmap_mode=None if 0 in shape else "r", allow_pickle=False
    )
    return array
