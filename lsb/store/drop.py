"""A store without some of its parts or clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lsb.files import fingerprint
from lsb.ids import sample_ids, to_hex
from lsb.order import member
from lsb.store.build import Entry, build_store, lend_file, lend_part, recorded_files
from lsb.store.format import CODES_ENDING, ROWS_PER_GROUP, part_files
from lsb.store.norms import CHECK_ROWS
from lsb.store.part import StorePart
from lsb.store.store import Store
from lsb.store.write import COMPRESSION

KEPT_ENDINGS = (".quarantine.parquet",)
"""Other files of a part that stay true when clips leave it."""


def drop_parts(output: Path, store: Store, names: Sequence[str]) -> bool:
    """Make a store without some parts; the files of the others are linked.

    Returns:
        False if the same store is there already.

    Raises:
        ValueError: a part is unknown, or none would be left.
    """
    known = [part.name for part in store.parts]
    for name in names:
        if name not in known:
            raise ValueError(
                f"{store.place} has no part {name!r}, only {', '.join(known[:5])}"
                f"{', ...' if len(known) > 5 else ''}: give names as manifest.json has them"
            )
    left = [name for name in known if name not in set(names)]
    if not left:
        raise ValueError(f"{store.place} would have no part left: keep one, or delete the store")

    def fill(work: Path) -> Mapping[str, Entry]:
        return dict(lend_part(store, name, work) for name in left)

    config = {"parts": sorted(set(names))}
    return build_store(output, "drop", config, {"store": store.hash}, fill)


def drop_clips(output: Path, store: Store, keys: Sequence[str]) -> bool:
    """Make a store without some clips; only parts that hold one are written anew.

    Such a part keeps its rows, vectors, codes and quarantine; any other file was made of all its
    rows and is left out.

    Returns:
        False if the same store is there already.

    Raises:
        ValueError: a clip is not in the store.
    """
    wanted = sorted(set(keys))
    if not wanted:
        raise ValueError("there is no key to drop: give a file with one clip key a line")
    config = {"clips": fingerprint(to_hex(np.sort(sample_ids(wanted))))}
    return build_store(
        output, "drop", config, {"store": store.hash}, partial(_fill_without, store, wanted)
    )


def _fill_without(store: Store, keys: Sequence[str], work: Path) -> Mapping[str, Entry]:
    ids = sample_ids(keys)
    order = np.argsort(ids)
    seen = np.zeros(len(keys), dtype=np.bool_)
    parts: dict[str, Entry] = {}
    for part in store.parts:
        held = part.ids()
        gone = member(held, ids[order])
        if not gone.any():
            name, entry = lend_part(store, part.name, work)
        else:
            seen[order[np.searchsorted(ids[order], held[gone])]] = True
            name, entry = part.name, _write_without(store, part, ~gone, work)
        parts[name] = entry
    unknown = np.flatnonzero(~seen)
    if unknown.size:
        raise ValueError(
            f"{unknown.size} of {len(keys)} keys are not in {store.place}, first "
            f"{keys[unknown[0]]!r}: give keys as column 'key' has them, one a line"
        )
    return parts


def _write_without(
    store: Store, part: StorePart, keep_N: npt.NDArray[np.bool_], work: Path
) -> Entry:
    vectors_name, rows_name = part_files(part.name)
    entry = store.manifest["parts"][part.name]
    _write_vectors(part, keep_N, work / vectors_name)
    _write_rows(part, keep_N, work / rows_name)
    written = [vectors_name, rows_name]
    if part.has_codes:
        _write_codes(store, part, keep_N, work)
        written.append(f"{part.name}{CODES_ENDING}")
    files = recorded_files(work, written)
    for file, recorded in entry["files"].items():
        if file.endswith(KEPT_ENDINGS):
            lend_file(store, file, work / file, recorded)
            files[file] = recorded
    return {"files": files, "counts": {**entry["counts"], "rows": int(keep_N.sum())}}


def _write_vectors(part: StorePart, keep_N: npt.NDArray[np.bool_], target: Path) -> None:
    """As numpy.save would write the vectors that stay, block by block."""
    vectors_ND = part.vectors()
    header = {
        "descr": np.lib.format.dtype_to_descr(vectors_ND.dtype),
        "fortran_order": False,
        "shape": (int(keep_N.sum()), part.dimension),
    }
    with open(target, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, part.rows, CHECK_ROWS):
            block = np.asarray(vectors_ND[start : start + CHECK_ROWS])
            stream.write(block[keep_N[start : start + CHECK_ROWS]].tobytes())


def _write_rows(part: StorePart, keep_N: npt.NDArray[np.bool_], target: Path) -> None:
    """The rows that stay, in groups of the usual size, header and schema as before."""
    with part.folder.parquet(part_files(part.name)[1]) as file:
        schema = file.schema_arrow
        with pq.ParquetWriter(target, schema, compression=COMPRESSION) as writer:
            waiting: list[pa.Table] = []
            start = 0
            for batch in file.iter_batches(batch_size=ROWS_PER_GROUP):
                keep = pa.array(keep_N[start : start + batch.num_rows])
                waiting.append(pa.Table.from_batches([batch.filter(keep)], schema))
                start += batch.num_rows
                if sum(table.num_rows for table in waiting) >= ROWS_PER_GROUP:
                    table = pa.concat_tables(waiting)
                    writer.write_table(table.slice(0, ROWS_PER_GROUP).combine_chunks())
                    waiting = [table.slice(ROWS_PER_GROUP)]
            rest = pa.concat_tables(waiting or [schema.empty_table()])
            if rest.num_rows or not keep_N.any():
                writer.write_table(rest.combine_chunks())


def _write_codes(store: Store, part: StorePart, keep_N: npt.NDArray[np.bool_], work: Path) -> None:
    # Only codes know what they look like; search stands above the store.
    from lsb.search.codes import cut_codes

    name = f"{part.name}{CODES_ENDING}"
    source = part.codes_path
    if source is None:
        source = work / f".whole-{name}"
        lend_file(store, name, source, store.manifest["parts"][part.name]["files"][name])
    cut_codes(source, work / name, keep_N)
    if source.parent == work:
        source.unlink()
