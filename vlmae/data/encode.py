"""From one shard to frozen tokens: byte ranges, decode, encode, in the order of the shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from lsb import ids as sample_ids
from lsb.artifact import Counts
from lsb.ids import IdArray
from lsb.order import member
from lsb.progress import progressed
from vlmae.data.decode import BadClipError, Clip, DecodePolicy, decode_sample
from vlmae.data.index import INDEX_ENDING
from vlmae.data.ranges import RangeReader, tar_members
from vlmae.data.token_table import Rows, Streams, widths
from vlmae.tokens import Tokens, pad
from vlmae.towers import Towers

CLIPS_AT_A_TIME = 16
# Clips are fetched so many at a time: one request of some MB, whatever the shard's size.
CLIPS_PER_READ = 64
INDEX_COLUMNS = ("id", "key", "split", "shard", "offset", "size", "duration_s")
_QUARANTINE_FIELDS: list[tuple[str, pa.DataType]] = [
    ("id", sample_ids.ID_TYPE),
    ("key", pa.string()),
    ("reason", pa.string()),
    ("detail", pa.string()),
]
QUARANTINE_SCHEMA = pa.schema(_QUARANTINE_FIELDS)


@dataclass(frozen=True)
class EncodedShard:
    """Tokens of one shard in memory, a `TokenTable`.

    Attributes:
        streams: tower -> stream name -> width.
        identities: tower -> identity of its frozen weights.
        rows: one row a clip that could be decoded, see `TokenTable`.
        tokens: stream -> of each row (T_i, width) float32.
        quarantine: id, key, reason, detail of the clips that could not be decoded.
        counts: clips, skipped, and both by reason.
    """

    streams: Streams
    identities: Mapping[str, Any]
    rows: pa.Table
    tokens: Mapping[str, Sequence[Tensor]]
    quarantine: pa.Table
    counts: Counts

    def batch(self, rows: Rows, stream: str) -> Tokens:
        """(B, T, width) float32 tokens of one stream, padded."""
        return pad([self.tokens[stream][row] for row in rows], widths(self.streams)[stream])


def encode_shard(
    folder: Path,
    shard: str,
    towers: Towers,
    policy: DecodePolicy,
    storage_options: Mapping[str, Any] | None = None,
    only: IdArray | None = None,
) -> EncodedShard:
    """Decode and encode one shard, or some of its clips.

    Groups of clips are formed by their order in the shard alone, so that equal shards give equal
    bits.

    Args:
        folder: of a prepared data set.
        shard: name of its tar and index, without ending.
        towers: the frozen backbones.
        policy: which frames are read.
        storage_options: of fsspec, for shards that lie elsewhere.
        only: ids of the clips wanted, ascending; None takes all.

    Raises:
        ValueError: the shard is absent or shorter than its index says.
    """
    index = read_shard_index(folder, shard)
    if only is not None:
        index = index.take(np.flatnonzero(member(sample_ids.from_arrow(index["id"]), only)))
    streams = towers.prefix_streams
    tokens: dict[str, list[Tensor]] = {name: [] for name in widths(streams)}
    clips: list[Clip] = []
    group: list[Clip] = []
    bad: list[BadClipError] = []

    def encode() -> None:
        if group:
            for stream, values in towers.prefix(group).items():
                tokens[stream].extend(values)
            clips.extend(
                replace(clip, frames=clip.frames[:0], audio=clip.audio[:0]) for clip in group
            )
            group.clear()

    for key, record in _records(folder, index, storage_options):
        try:
            members = tar_members(record, key)
            group.append(
                decode_sample(members, key=key, policy=policy, sample_rate=towers.sample_rate)
            )
        except BadClipError as error:
            bad.append(error)
        progressed(f"{shard}: clip {key} read")
        if len(group) == CLIPS_AT_A_TIME:
            encode()
    encode()
    rows = _rows(index, clips)
    quarantine = quarantine_table(bad)
    reasons = Counter(
        f"masked: {reason}"
        for clip in clips
        for reason in (clip.audio_missing, clip.video_missing)
        if reason
    )
    reasons += Counter(f"skipped: {error.reason}" for error in bad)
    counts = {"clips": len(clips), "skipped": len(bad), **reasons}
    return EncodedShard(streams, towers.identities(), rows, tokens, quarantine, counts)


def read_shard_index(folder: Path, shard: str) -> pa.Table:
    """The columns `INDEX_COLUMNS` of one shard of a prepared data set."""
    return pq.read_table(folder / f"{shard}{INDEX_ENDING}", columns=list(INDEX_COLUMNS))


def quarantine_table(bad: Sequence[BadClipError]) -> pa.Table:
    """id, key, reason and detail of clips that cannot be used."""
    keys = [error.key for error in bad]
    return pa.table(
        {
            "id": sample_ids.to_arrow(sample_ids.sample_ids(keys)),
            "key": pa.array(keys, pa.string()),
            "reason": pa.array([error.reason for error in bad], pa.string()),
            "detail": pa.array([error.detail for error in bad], pa.string()),
        },
        schema=QUARANTINE_SCHEMA,
    )


def _records(
    folder: Path, index: pa.Table, storage_options: Mapping[str, Any] | None
) -> Iterator[tuple[str, bytes]]:
    """Key and bytes of every clip, a few MB at a time."""
    reader = RangeReader(folder, storage_options=storage_options)
    for start in range(0, index.num_rows, CLIPS_PER_READ):
        piece = index.slice(start, CLIPS_PER_READ)
        records = reader.read(
            sample_ids.texts(piece["shard"]),
            piece["offset"].to_numpy().tolist(),
            piece["size"].to_numpy().tolist(),
        )
        yield from zip(sample_ids.texts(piece["key"]), records, strict=True)


def _rows(index: pa.Table, clips: Sequence[Clip]) -> pa.Table:
    position = {key: row for row, key in enumerate(sample_ids.texts(index["key"]))}
    taken: npt.NDArray[np.int64] = np.array([position[clip.key] for clip in clips], np.int64)
    rows = index.take(taken)
    for column in ("audio_missing", "video_missing"):
        missing = [getattr(clip, column) for clip in clips]
        rows = rows.append_column(column, pa.array(missing, pa.string()))
    return rows
