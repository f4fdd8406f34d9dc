"""Partial lists: the neighbours that one part of a store has for all seeds of a wave, as a file.

    <part>.neighbours.parquet   seed_id, id, row (in the part), similarity; ordered by
                                (seed_id, -similarity, id)

Its metadata tell format, version and what was asked, so that lists are merged only with lists of
the same wave. A part without neighbours has a file without rows; no file is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lsb.files import StageError
from lsb.ids import ID_TYPE, IdArray, from_arrow, to_arrow
from lsb.order import descending, id_words, member
from lsb.search.lists import NeighbourLists
from lsb.search.scan import Seeds

FORMAT = "vlmae-neighbours"
VERSION = 1
METADATA_KEY = b"vlmae_neighbours"
ENDING = ".neighbours.parquet"
LISTS_FIELDS: dict[str, pa.DataType] = {
    "seed_id": ID_TYPE,
    "id": ID_TYPE,
    "row": pa.int64(),
    "similarity": pa.float32(),
}
LISTS = pa.schema(LISTS_FIELDS)


def seeds_hash(seeds: Seeds) -> str:
    """Hash of ids and vectors, 32 hexadecimal digits."""
    return _hash(seeds.ids, seeds.vectors)


def _hash(*arrays: np.ndarray[Any, Any]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).data if array.size else b"")
    return digest.hexdigest()


@dataclass(frozen=True)
class Wave:
    """What is asked of every part at a time.

    Attributes:
        seeds: in the order of their ids.
        limit: most neighbours of a seed.
        floor: smallest score of a neighbour, -inf for none.
        excluded: ascending ids that must not be found.
    """

    seeds: Seeds
    limit: int
    floor: float
    excluded: IdArray

    @cached_property
    def key(self) -> dict[str, Any]:
        """All that determines the lists of a given part, JSON-like."""
        return {
            "seeds": seeds_hash(self.seeds),
            "limit": self.limit,
            "floor": None if np.isneginf(self.floor) else float(self.floor),
            "excluded": _hash(self.excluded),
        }


def lists_file(part: str) -> str:
    """Name of the file with the lists of a part."""
    return part + ENDING


def write_lists(path: Path, wave: Wave, lists: NeighbourLists) -> None:
    """Write the lists of one part.

    Args:
        path: of the file.
        wave: that the lists answer.
        lists: with rows counted in the part.
    """
    assert (lists.queries, lists.limit) == (len(wave.seeds), wave.limit)
    columns = [
        to_arrow(wave.seeds.ids[lists.query]),
        to_arrow(lists.id),
        pa.array(lists.row),
        pa.array(lists.score),
    ]
    _write(path, pa.table(columns, schema=LISTS), wave.key)


def _write(path: Path, table: pa.Table, asked: Mapping[str, Any], **told: Any) -> None:
    header = {"format": FORMAT, "version": VERSION, "asked": dict(asked), **told}
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(header).encode()})
    pq.write_table(table, path, compression="zstd")


def read_lists(path: Path, wave: Wave, rows: int) -> NeighbourLists | None:
    """Read the lists of one part.

    Args:
        path: of the file.
        wave: that they must answer.
        rows: of the part.

    Returns:
        The lists; None where they are void (see `void_lists`) and the part must be searched anew.

    Raises:
        StageError: the file is missing, not ours, answers another wave, or contradicts itself.
    """
    header = _header(path)
    for name, value in wave.key.items():
        if header["asked"].get(name) != value:
            raise StageError(
                f"{path} answers another question ({name} is {header['asked'].get(name)}, asked is "
                f"{value}): delete it and search this part again"
            )
    if header.get("void"):
        return None
    table = pq.read_table(path, schema=LISTS)
    seed_ids, ids = from_arrow(table["seed_id"]), from_arrow(table["id"])
    score, row = table["similarity"].to_numpy(), table["row"].to_numpy()
    known = member(seed_ids, wave.seeds.ids)
    query = np.searchsorted(wave.seeds.ids, seed_ids)
    whole = known.all() and bool(((row >= 0) & (row < rows)).all())
    if not whole or not _ordered(query, score, ids, len(wave.seeds), wave.limit):
        raise StageError(
            f"{path} is damaged (seeds, rows or order are not those of a list): delete it and "
            "search this part again"
        )
    return NeighbourLists(len(wave.seeds), wave.limit, query, score, ids, row)


def _ordered(query: Any, score: Any, ids: IdArray, queries: int, limit: int) -> bool:
    if np.isnan(score).any() or np.bincount(query, minlength=queries).max(initial=0) > limit:
        return False
    order = descending(score, ids, query)
    high, low = id_words(ids)
    return all(np.array_equal(column, column[order]) for column in (query, score, high, low))


def void_lists(source: Path, target: Path) -> None:
    """Write lists without any neighbour that tell so: those of a part whose rows were taken out.

    A list that lost a neighbour may lack one that was cut off behind it, so all of them go.
    """
    _write(target, LISTS.empty_table(), _header(source)["asked"], void=True)


def _header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise StageError(
            f"{path} is missing: lists are merged only when every part has its own; run the "
            "command that made the others again"
        )
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise StageError(
            f"{path} is not a parquet file ({error}): delete it and search this part again"
        ) from error
    header = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    found = header.get("format"), header.get("version")
    if found != (FORMAT, VERSION) or schema.remove_metadata() != LISTS:
        raise StageError(
            f"{path} has format {found[0]!r} version {found[1]!r}, this release reads {FORMAT!r} "
            f"version {VERSION}: delete it and search this part again"
        )
    return dict(header)


def merge_part(merged: NeighbourLists, lists: NeighbourLists, first_row: int = 0) -> None:
    """Add the lists of one part to those of others, in any order.

    Args:
        merged: of the same wave; changed.
        lists: of a part that is not in it yet.
        first_row: number of the part's first row in the store.
    """
    # Most of what a part found is worse than what others did: it need not be sorted.
    keep = lists.score >= merged.bound[lists.query]
    merged.merge(lists.query[keep], lists.score[keep], lists.id[keep], lists.row[keep] + first_row)
