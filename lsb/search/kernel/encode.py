"""Codes of rows by the compiled kernel: as `lsb.search.projection`, many times faster."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from lsb.search.kernel import library
from lsb.search.projection import AUGMENTED, CodeArray, Projection

Arrays = tuple[CodeArray, npt.NDArray[np.float32], CodeArray, npt.NDArray[np.float32]]


class PackedProjection:
    """A projection as the kernel wants it; `struct` points into arrays that this object holds."""

    def __init__(self, projection: Projection, kernel: library.Library):
        weights = np.zeros((projection.prefix, projection.padded), np.int8)
        weights[: len(projection.weights), : projection.dimension] = projection.weights
        self._weights = packed(weights, kernel)
        self.struct = library.Projection(
            dimension=projection.dimension,
            padded=projection.padded,
            prefix=projection.prefix,
            augmented=AUGMENTED,
            step=projection.step,
            weight_scale=projection.weight_scale * projection.step,
            prefix_step=projection.prefix_step,
            weights=self._weights.ctypes.data,
        )


def encode(
    projection: Projection,
    vectors_ND: npt.NDArray[np.floating[Any]],
    kernel: library.Library,
    threads: int = 1,
) -> Arrays:
    """Codes (N, padded), their errors (N,), prefixes (N, P), their errors (N,)."""
    vectors = np.ascontiguousarray(vectors_ND)
    made = PackedProjection(projection, kernel)
    rows = library.Rows(
        count=len(vectors), vectors=vectors.ctypes.data, half=vectors.dtype == np.float16
    )
    codes = np.zeros((len(vectors), projection.padded), np.int8)
    prefix = np.zeros((len(vectors), projection.prefix), np.int8)
    code_error, prefix_error = (np.zeros(len(vectors), np.float32) for _ in range(2))
    kernel.calls.scan_encode(
        ctypes.byref(made.struct),
        ctypes.byref(rows),
        *(array.ctypes.data for array in (codes, code_error, prefix, prefix_error)),
        threads,
    )
    return codes, code_error, prefix, prefix_error if projection.prefix else code_error


def seed_codes(codes_QP: CodeArray, kernel: library.Library) -> npt.NDArray[np.integer[Any]]:
    """Codes as the kernel multiplies them: unsigned with an offset, or widened to 16 bits."""
    wide = codes_QP.astype(np.int16) + np.int16(kernel.offset)
    return np.ascontiguousarray(wide.astype(np.uint8 if kernel.offset else np.int16))


def packed(codes_QP: CodeArray, kernel: library.Library) -> npt.NDArray[np.integer[Any]]:
    """Panels of seeds, (panel, P / step, vectors, lanes, step), filled up with zeros."""
    panels, length = -(-len(codes_QP) // kernel.panel), codes_QP.shape[1]
    full = np.zeros((panels * kernel.panel, length), np.int8)
    full[: len(codes_QP)] = codes_QP
    vectors = kernel.panel // kernel.lanes
    shaped = seed_codes(full, kernel).reshape(
        panels, vectors, kernel.lanes, length // kernel.step, kernel.step
    )
    return np.ascontiguousarray(shaped.transpose(0, 3, 1, 2, 4))
