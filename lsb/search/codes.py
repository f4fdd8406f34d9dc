"""Int8 codes of a store's part, kept beside its vectors so that a search need not make them.

`<part>.codes.safetensors` holds codes of whole vectors and of prefixes with their measured errors
(`lsb.search.projection`), 3 to 4 times smaller than float32. Every part has a projection of its
own: parts are made independently, and any projection gives the same hits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save_file

from lsb.arrays import map_array
from lsb.search.kernel import library
from lsb.search.kernel.encode import encode
from lsb.search.lists import FloatArray
from lsb.search.projection import CodeArray, Projection, encode_prefix, encode_whole, fit, thinned
from lsb.store import VectorArray

FORMAT = "vlmae-codes"
VERSION = 1
SAMPLE_ROWS = 4096
ROWS_AT_A_TIME = 16_384
CHECKED_ROWS = 16
EXPECTED_SEEDS = 10_000
EXPECTED_LT = 0.8
"""For what searches a prefix is chosen when nobody has asked yet; decides speed only."""


@dataclass(frozen=True)
class BlockCodes:
    """Codes of consecutive rows.

    Attributes:
        projection: that made them.
        codes: (n, padded) int8, of whole vectors.
        code_error: (n,) float32.
        prefix: (n, P) int8; P is 0 without a prefix.
        prefix_error: (n,) float32.
    """

    projection: Projection
    codes: CodeArray
    code_error: FloatArray
    prefix: CodeArray
    prefix_error: FloatArray


def fit_part(vectors_ND: VectorArray) -> Projection:
    """A projection for a part, before its seeds are known: its own rows stand for them."""
    sample = thinned(vectors_ND, SAMPLE_ROWS).astype(np.float32)
    return fit(sample, thinned(sample, 256), wanted=EXPECTED_LT, seeds=EXPECTED_SEEDS)


def write_codes(path: Path, vectors_ND: VectorArray) -> None:
    """Make and write the codes of a part.

    By the compiled kernel where there is one, whose errors may differ in a last bit from those that
    numpy measures: bytes are promised for equal machines, hits for all.

    Args:
        path: `<part>.codes.safetensors`.
        vectors_ND: (N, D) as stored, float32 or float16.
    """
    projection, rows = fit_part(vectors_ND), len(vectors_ND)
    arrays: dict[str, npt.NDArray[Any]] = {
        "codes": np.zeros((rows, projection.padded), np.int8),
        "code_error": np.zeros(rows, np.float32),
        "prefix": np.zeros((rows, projection.prefix), np.int8),
        "prefix_error": np.zeros(rows, np.float32),
        "weights": projection.weights,
    }
    kernel = library.compiled()
    for start in range(0, rows, ROWS_AT_A_TIME):
        part = slice(start, start + ROWS_AT_A_TIME)
        if kernel is None:
            made = make_codes(projection, vectors_ND[part].astype(np.float32))
        else:
            made = BlockCodes(projection, *encode(projection, vectors_ND[part], kernel))
        for name in ("codes", "code_error", "prefix", "prefix_error"):
            arrays[name][part] = getattr(made, name)
    _save(path, arrays, projection)


def make_codes(projection: Projection, vectors_ND: FloatArray) -> BlockCodes:
    """Codes of some rows."""
    whole, code_error = encode_whole(projection, vectors_ND)
    codes = np.zeros((len(whole), projection.padded), np.int8)
    codes[:, : projection.dimension] = whole
    if projection.prefix:
        prefix, prefix_error = encode_prefix(projection, vectors_ND)
    else:
        prefix, prefix_error = np.zeros((len(whole), 0), np.int8), code_error
    return BlockCodes(projection, codes, code_error, prefix, prefix_error)


def cut_codes(source: Path, target: Path, keep_N: npt.NDArray[np.bool_]) -> None:
    """Write the codes of some rows of a part, for a part that loses the others."""
    codes = PartCodes.open(source)
    arrays = {
        name: codes.read(name, 0, codes.rows)[keep_N]
        for name in ("codes", "code_error", "prefix", "prefix_error")
    }
    _save(target, {**arrays, "weights": codes.projection.weights}, codes.projection)


@dataclass(frozen=True)
class PartCodes:
    """The codes of a part, read block by block. Made by `PartCodes.open`."""

    path: Path
    projection: Projection
    rows: int

    @classmethod
    def open(cls, path: Path, vectors_path: Path | None = None) -> PartCodes:
        """Open the codes of a part.

        Args:
            path: of the codes.
            vectors_path: of the part's vectors; a few rows are compared with their codes.

        Raises:
            ValueError: the file is of another format or version, or not of these vectors.
        """
        try:
            with safe_open(path, framework="np") as file:
                told = json.loads((file.metadata() or {}).get("vlmae_codes", "{}"))
                if told.get("format") != FORMAT or told.get("version") != VERSION:
                    raise ValueError(
                        f"{path} has format {told.get('format')!r} version {told.get('version')!r},"
                        f" this release reads {FORMAT!r} version {VERSION}: delete the file, codes "
                        "are then made while searching"
                    )
                rows, padded = file.get_slice("codes").get_shape()
                weights = file.get_tensor("weights")
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} cannot be read ({error}): delete the file") from error
        except Exception as error:
            if type(error).__name__ != "SafetensorError":
                raise
            raise ValueError(
                f"{path} is damaged ({error}): delete the file, codes are then made while searching"
            ) from error
        projection = Projection(
            dimension=int(told["dimension"]),
            step=float(told["step"]),
            weights=weights,
            weight_scale=float(told["weight_scale"]),
            prefix_step=float(told["prefix_step"]),
        )
        codes = cls(path, projection, int(rows))
        if padded != projection.padded:
            raise ValueError(f"{path} has codes of {padded} coordinates: delete the file")
        if vectors_path is not None:
            codes.require_of(map_array(vectors_path), vectors_path)
        return codes

    def read(self, name: str, start: int, end: int) -> npt.NDArray[Any]:
        """Rows [start, end) of one array."""
        with safe_open(self.path, framework="np") as file:
            part: npt.NDArray[Any] = file.get_slice(name)[start:end]
            return part

    def block(self, start: int, end: int) -> BlockCodes:
        """Codes of rows [start, end)."""
        names = ("codes", "code_error", "prefix", "prefix_error")
        return BlockCodes(self.projection, *(self.read(name, start, end) for name in names))

    def require_of(self, vectors_ND: VectorArray, vectors_path: Path) -> None:
        """Refuse codes that were made of other vectors.

        Raises:
            ValueError: another number of rows, or a row with other codes.
        """
        remedy = "delete the codes file, codes are then made while searching"
        if vectors_ND.shape != (self.rows, self.projection.dimension):
            raise ValueError(
                f"{self.path} has codes of shape {(self.rows, self.projection.dimension)}, "
                f"{vectors_path.name} vectors of {vectors_ND.shape}: {remedy}"
            )
        for row in np.unique(np.linspace(0, self.rows - 1, CHECKED_ROWS).astype(int)):
            if self.rows == 0:
                break
            made = make_codes(self.projection, vectors_ND[row : row + 1].astype(np.float32))
            if not np.array_equal(made.codes, self.read("codes", row, row + 1)):
                raise ValueError(
                    f"{self.path}: row {row} has codes of another vector than that in "
                    f"{vectors_path.name}: {remedy}"
                )


def _save(path: Path, arrays: dict[str, npt.NDArray[Any]], projection: Projection) -> None:
    told = {
        "format": FORMAT,
        "version": VERSION,
        "dimension": projection.dimension,
        "step": projection.step,
        "weight_scale": projection.weight_scale,
        "prefix_step": projection.prefix_step,
    }
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(contiguous, path, metadata={"vlmae_codes": json.dumps(told, sort_keys=True)})
