"""The index of a data set: where each clip lies, its title, and what a probe of its media found.

A data set is a finished `prepare` stage with one `{split}-{number:05d}.index.parquet` for each
shard. Most shards are tars beside it; shards that were indexed in place stay where they are, and
`shard` is then their URL.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from lsb.artifact import Stage
from lsb.ids import ID_TYPE

INDEX_ENDING = ".index.parquet"
# Given to run_stage: raise it when the composer writes other bytes for the same config.
PREPARE_REVISION = 2
_PLACE: list[tuple[str, pa.DataType]] = [
    ("id", ID_TYPE),
    ("key", pa.string()),
    # File name in the stage's folder, or a URL.
    ("shard", pa.string()),
    # Byte range of the whole sample: tar headers, members and padding.
    ("offset", pa.int64()),
    ("size", pa.int64()),
    ("title", pa.string()),
    # 0 where the media cannot be opened.
    ("duration_s", pa.float32()),
    ("split", pa.string()),
]
# What `prepare.probe.Probe` holds, null where it does not apply or the media cannot be opened.
_PROBE: list[tuple[str, pa.DataType]] = [
    ("media", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("frames", pa.int32()),
    ("fps", pa.float32()),
    ("video_codec", pa.string()),
    ("audio_codec", pa.string()),
    ("audio_rate", pa.int32()),
    ("audio_channels", pa.int32()),
    ("rotation", pa.int16()),
]
INDEX_SCHEMA = pa.schema([*_PLACE, *_PROBE])


def read_index(stage: Stage, splits: Sequence[str] | None = None) -> pa.Table:
    """`INDEX_SCHEMA` of all clips, or of the given splits, by shard then offset.

    Raises:
        ValueError: the data set has no such split.
    """
    return read_tables(stage, INDEX_ENDING, splits, INDEX_SCHEMA)


def read_tables(
    stage: Stage, ending: str, splits: Sequence[str] | None, schema: pa.Schema
) -> pa.Table:
    """One kind of table of all shards, or of those of the given splits, end to end.

    Args:
        stage: a finished `prepare` stage.
        ending: of the tables' file names, `{split}-{number:05d}{ending}`.
        splits: or None for all.
        schema: of the tables.

    Raises:
        ValueError: the data set has no such split.
    """
    names = sorted(
        name
        for name in stage.files
        if name.endswith(ending) and (splits is None or name.split("-")[0] in splits)
    )
    if splits is not None:
        absent = sorted(set(splits) - {name.split("-")[0] for name in names})
        if absent:
            raise ValueError(
                f"{stage.path} has no split {', '.join(absent)}: prepare a size with it"
            )
    tables = [pq.read_table(stage.path / name, schema=schema) for name in names]
    return pa.concat_tables(tables) if tables else schema.empty_table()
