"""What a store is, as a table."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich import box
from rich.table import Table

from lsb.store.format import CODES_ENDING, part_files
from lsb.store.store import Store

SAMPLED_PARTS = 8
SAMPLED_ROWS = 256


def describe(store: Store) -> Table:
    """Names and values; only manifest, headers and a sample of the vectors are read.

    Raises:
        ValueError: a part of the sample does not fit the store.
    """
    table = Table(box=box.SIMPLE, show_header=False, title=store.place, title_justify="left")
    for name, value in _lines(store):
        table.add_row(name, value)
    return table


def norms_of_sample(store: Store) -> tuple[float, float, int] | None:
    """Smallest and largest norm, and of how many rows: the first of parts evenly spread."""
    filled = [part for part in store.parts if part.rows]
    if not filled:
        return None
    chosen = np.unique(np.linspace(0, len(filled) - 1, SAMPLED_PARTS).astype(int)).tolist()
    blocks = [
        np.asarray(filled[number].vectors()[:SAMPLED_ROWS], dtype=np.float32) for number in chosen
    ]
    norms = np.concatenate([np.linalg.norm(block, axis=1) for block in blocks])
    return float(norms.min()), float(norms.max()), len(norms)


def _lines(store: Store) -> Iterator[tuple[str, str]]:
    manifest = store.manifest
    yield "kind", store.kind
    yield "dimension, dtype", f"{store.dimension}, {store.dtype}"
    yield "parts, rows", f"{len(store.parts):,}, {len(store):,}"
    total = {"vectors": 0, "rows": 0, "codes": 0, "other files": 0}
    for name, entry in manifest["parts"].items():
        kinds = dict(zip((*part_files(name, codes=True),), total, strict=False))
        for file, recorded in entry["files"].items():
            total[kinds.get(file, "other files")] += int(recorded["bytes"])
    for kind, count in total.items():
        if count or kind in ("vectors", "rows"):
            yield f"bytes of {kind}", f"{count:,}"
    yield "columns", ", ".join(store.parts[0].expected.columns)
    sample = norms_of_sample(store)
    if sample is not None:
        yield "norms", f"{sample[0]:.6f} to {sample[1]:.6f} in a sample of {sample[2]:,} rows"
    coded = sum(part.has_codes for part in store.parts)
    yield f"codes (*{CODES_ENDING})", f"in {coded:,} of {len(store.parts):,} parts"
    yield "content", store.hash
    for name, content in manifest.get("inputs", {}).items():
        yield f"made from {name}", str(content)
    if "redacted" in manifest:
        yield "taken down", f"{manifest['redacted']:,} clips"
