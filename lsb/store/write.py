"""One part of a store, checked before it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lsb.ids import ID_TYPE, from_arrow, require_unique, sample_ids, to_arrow
from lsb.parts import Counts
from lsb.store.format import (
    DTYPES,
    KINDS,
    ROW_FIELDS,
    ROWS_PER_GROUP,
    VectorArray,
    header_metadata,
    part_files,
)
from lsb.store.norms import require_unit

COMPRESSION: Final = "zstd"


def write_part(
    folder: Path, name: str, vectors_ND: VectorArray, rows: pa.Table, *, kind: str
) -> Counts:
    """Check and write one part of a store.

    Args:
        folder: existing folder, usually the one `lsb.artifact.run_stage` hands to a part.
        name: part name, e.g. "part-00000".
        vectors_ND: (N, D) float32 or float16, finite, rows of norm 1 within `NORM_TOLERANCE`.
        rows: N rows: key, shard (strings), offset, size (bytes, int64), then any number of float
            columns such as `probability_<task>`. An `id` column is added where it is absent.
        kind: "pooled" or "fused".

    Returns:
        Counts for the stage's manifest: {"rows": N}.

    Raises:
        ValueError: anything above does not hold; the message names the part, the value, the remedy.
    """
    if kind not in KINDS:
        raise ValueError(f"store kind {kind!r} is unknown: use one of {', '.join(KINDS)}")
    vectors_ND = np.ascontiguousarray(vectors_ND)
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] == 0:
        raise ValueError(
            f"{name}: vectors have shape {vectors_ND.shape}, expected (N, D) with D > 0"
        )
    if vectors_ND.dtype.name not in DTYPES:
        raise ValueError(
            f"{name}: vectors are {vectors_ND.dtype.name}: convert them to {' or '.join(DTYPES)}"
        )
    if len(vectors_ND) != rows.num_rows:
        raise ValueError(
            f"{name}: {len(vectors_ND)} vectors but {rows.num_rows} rows: give one row each"
        )
    require_unit(vectors_ND, name)
    table = _checked_rows(name, rows)
    table = table.replace_schema_metadata(header_metadata(kind, vectors_ND))
    vectors_name, rows_name = part_files(name)
    np.save(folder / vectors_name, vectors_ND, allow_pickle=False)
    pq.write_table(
        table, folder / rows_name, compression=COMPRESSION, row_group_size=ROWS_PER_GROUP
    )
    return {"rows": len(vectors_ND)}


def _checked_rows(name: str, rows: pa.Table) -> pa.Table:
    if "key" not in rows.column_names:
        raise ValueError(f"{name}: rows have no column 'key', only {rows.column_names}")
    keys = [str(key) for key in rows["key"].to_pylist()]
    ids = sample_ids(keys)
    require_unique(ids, keys)
    if "id" in rows.column_names:
        if not np.array_equal(from_arrow(rows["id"].cast(ID_TYPE)), ids):
            raise ValueError(f"{name}: column 'id' is not the id of 'key': use lsb.ids.sample_ids")
        rows = rows.drop_columns(["id"])
    rows = rows.add_column(0, "id", to_arrow(ids))
    absent = [field for field in ROW_FIELDS if field not in rows.column_names]
    if absent:
        raise ValueError(f"{name}: rows have no column {absent[0]!r}, only {rows.column_names}")
    scores = [column for column in rows.column_names if column not in ROW_FIELDS]
    for column in scores:
        if not pa.types.is_floating(rows.schema.field(column).type):
            raise ValueError(
                f"{name}: column {column!r} is {rows.schema.field(column).type}: columns after "
                f"{', '.join(ROW_FIELDS)} must be floats"
            )
    fields = [pa.field(field, kind) for field, kind in ROW_FIELDS.items()]
    fields += [rows.schema.field(column) for column in scores]
    # Same values, same bytes: the file must not remember how the table was put together.
    return rows.select([*ROW_FIELDS, *scores]).cast(pa.schema(fields)).combine_chunks()
