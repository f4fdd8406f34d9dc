"""One store of several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from lsb.store.build import Entry, build_store, lend_part
from lsb.store.duplicates import Duplicates
from lsb.store.format import part_files
from lsb.store.store import Store


def merge(output: Path, stores: Sequence[Store]) -> bool:
    """Make a store of the parts of several, in the order given; files are linked, not copied.

    Part names that occur twice get the number of their store in front.

    Returns:
        False if the same store is there already.

    Raises:
        ValueError: the stores differ in kind, dimension, dtype or columns, a clip is in two of
            them, or `output` is something else.
    """
    if len(stores) < 2:
        raise ValueError(f"merge needs two stores or more, got {len(stores)}: name them all")
    _require_alike(stores)
    inputs = {f"store {number}": store.hash for number, store in enumerate(stores)}
    return build_store(output, "merge", {}, inputs, partial(_fill, stores))


def _fill(stores: Sequence[Store], work: Path) -> Mapping[str, Entry]:
    _require_distinct(stores)
    names = _names(stores)
    parts: dict[str, Entry] = {}
    for number, store in enumerate(stores):
        for part in store.parts:
            new, entry = lend_part(store, part.name, work, names[number, part.name])
            parts[new] = entry
    return parts


def _require_alike(stores: Sequence[Store]) -> None:
    first = stores[0]
    for store in stores[1:]:
        for field in ("kind", "dimension", "dtype"):
            if getattr(store, field) != getattr(first, field):
                raise ValueError(
                    f"{store.place} has {field} {getattr(store, field)}, {first.place} has "
                    f"{getattr(first, field)}: merge stores of one checkpoint and one config"
                )
        columns, expected = store.parts[0].expected.columns, first.parts[0].expected.columns
        if columns != expected:
            different = sorted(set(columns) ^ set(expected)) or list(columns)
            raise ValueError(
                f"{store.place} and {first.place} differ in the column {different[0]!r}: merge "
                "stores of one checkpoint and one config"
            )
        for part in store.parts:
            part.require_fit()
    for part in first.parts:
        part.require_fit()


def _require_distinct(stores: Sequence[Store]) -> None:
    """Refuse a clip that is in two places; memory as in `lsb.store.duplicates`."""
    held = [(store, part) for store in stores for part in store.parts]
    ends = np.cumsum([part.rows for _, part in held])
    with Duplicates(int(ends[-1])) as duplicates:
        for (_, part), end in zip(held, ends.tolist(), strict=True):
            duplicates.add(part.ids(), end - part.rows)
        for rows in duplicates.groups():
            numbers = np.searchsorted(ends, rows[:2], side="right").tolist()
            places = []
            key = ""
            for number, row in zip(numbers, rows[:2].tolist(), strict=True):
                store, part = held[number]
                inner = row - (int(ends[number]) - part.rows)
                key = part.take_rows(np.asarray([inner]), ["key"])["key"][0].as_py()
                places.append(f"{store.folder.file(part_files(part.name)[1])} row {inner}")
            raise ValueError(
                f"clip {key!r} is in {places[0]} and in {places[1]}: take it out of one with "
                "python -m lsb.store drop"
            )


def _names(stores: Sequence[Store]) -> dict[tuple[int, str], str]:
    """(number of the store, part) -> name of the part in the merged store."""
    held = [(number, part.name) for number, store in enumerate(stores) for part in store.parts]
    often = Counter(name for _, name in held)
    names = {(number, name): name for number, name in held if often[name] == 1}
    taken = set(names.values())
    for number, name in held:
        if often[name] > 1:
            new = f"{number:02d}-{name}"
            while new in taken:
                new = f"{number:02d}-{new}"
            taken.add(new)
            names[number, name] = new
    return names
