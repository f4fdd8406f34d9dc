"""Which clips a file or a store names: seeds with their vectors, and ids to leave out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from lsb.ids import ID_TYPE, IdArray, from_arrow, sample_ids, texts
from lsb.search.ask import seeds_of
from lsb.search.scan import Seeds
from lsb.store import Store


def read_ids(path: Path, option: str) -> IdArray:
    """Ids of the clips that a file names, ascending, each once.

    Args:
        path: a parquet table with a column `id` or `key`, or a text with a key a line.
        option: what the file was given as, for messages.

    Raises:
        ValueError: the file is absent, has no such column, or names no clip.
    """
    if not path.is_file():
        raise ValueError(f"{option} is {path}, which is no file: give one with clip keys")
    if path.suffix == ".parquet":
        names = pq.read_schema(path).names
        column = next((name for name in ("id", "key") if name in names), None)
        if column is None:
            raise ValueError(f"{option}: {path} has columns {names}, none is 'id' or 'key'")
        values = pq.read_table(path, columns=[column])[column]
        ids = from_arrow(values.cast(ID_TYPE)) if column == "id" else sample_ids(texts(values))
    else:
        lines = path.read_text("utf-8").splitlines()
        ids = sample_ids([line.strip() for line in lines if line.strip()])
    if not len(ids):
        raise ValueError(f"{option}: {path} names no clip")
    return np.unique(ids)


def read_seeds(path: Path, store: Store | None, option: str) -> Seeds:
    """Seeds with their vectors.

    Args:
        path: folder of a store, all of whose clips are seeds, or a file as in `read_ids`.
        store: where the clips of a file are looked up.
        option: what the path was given as, for messages.

    Raises:
        ValueError: neither, or a clip is not in the store.
    """
    if path.is_dir():
        store = Store.open(path)
        return seeds_of(store.ids, store.vectors(store.ids))
    ids = read_ids(path, option)
    if store is None:
        raise ValueError(f"{option} is the file {path}: also name the store that has its clips")
    return seeds_of(ids, store.vectors(ids))
