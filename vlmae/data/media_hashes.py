"""The stage `media`: a hash of every clip's media, by which re-uploads of one file are known.

A platform gets the same file again under other keys and titles. The index of a data set has no hash
of the bytes, and to add one would remake every data set there is; so hashes are a stage of their
own, made by reading each shard once. What is hashed is the clip's media as they lie in its shard
(after re-encoding where ingest re-encodes, which gives equal bytes for equal input); the `json`
member, with title and labels, is not.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lsb.artifact import Counts, Part, Stage, run_stage
from lsb.media_hashes import MEDIA_HASHES
from vlmae.data.decode.clip import BadClipError
from vlmae.data.index import INDEX_ENDING
from vlmae.data.ranges import RangeReader
from vlmae.data.records import tar_members

HASH_BYTES = 16
ENDING = ".media.parquet"
CLIPS_AT_A_TIME = 64
TOLD = ("json",)
"""Endings of members that say something of a clip and are no media."""


def hash_media(root: Path, data: Stage, *, processes: int = 1) -> Stage:
    """Hash the media of all clips of a data set, or reuse the hashes.

    Args:
        root: folder of all stages.
        data: a finished `prepare` stage.
        processes: shards at a time.

    Returns:
        A stage that `read_media_hashes` reads. A clip whose record is damaged or holds no media has
        a null hash, and is counted.

    Raises:
        ValueError: a shard is absent or cut.
    """
    shards = [name.removesuffix(INDEX_ENDING) for name in data.files if name.endswith(INDEX_ENDING)]
    return run_stage(
        root,
        "media",
        config={"hash": f"blake2b-{8 * HASH_BYTES}"},
        inputs={"data": data.content},
        parts=[
            Part(shard, (f"{shard}{ENDING}",), partial(_hash_shard, data.path, shard))
            for shard in sorted(shards)
        ],
        processes=processes,
    )


def read_media_hashes(stage: Path) -> pa.Table:
    """Schema `lsb.media_hashes.MEDIA_HASHES` of all clips, by part."""
    files = sorted(stage.glob(f"*{ENDING}"))
    tables = [pq.read_table(file, schema=MEDIA_HASHES) for file in files]
    return pa.concat_tables([MEDIA_HASHES.empty_table(), *tables])


def media_hash(members: Mapping[str, bytes]) -> bytes | None:
    """Hash of a clip's media: endings and bytes, by ending; None for a clip without any.

    Args:
        members: ending -> bytes, see `vlmae.data.records.tar_members`.
    """
    media = {ending: data for ending, data in members.items() if ending not in TOLD}
    if not media:
        return None
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    for ending in sorted(media):
        digest.update(f"{ending}\0{len(media[ending])}\0".encode())
        digest.update(media[ending])
    return digest.digest()


def _hash_shard(folder: Path, shard: str, output: Path) -> Counts:
    columns = ["id", "key", "shard", "offset", "size"]
    index = pq.read_table(folder / f"{shard}{INDEX_ENDING}", columns=columns)
    hashes: list[bytes | None] = []
    counts: Counter[str] = Counter()
    with RangeReader(folder) as reader:
        for start in range(0, index.num_rows, CLIPS_AT_A_TIME):
            rows = index.slice(start, CLIPS_AT_A_TIME).to_pydict()
            records = reader.read(rows["shard"], rows["offset"], rows["size"])
            for key, record in zip(rows["key"], records, strict=True):
                try:
                    found = media_hash(tar_members(record, key))
                except BadClipError as error:
                    counts[f"skipped: {error.reason}"] += 1
                    found = None
                hashes.append(found)
    table = pa.table([index["id"], pa.array(hashes, pa.binary())], schema=MEDIA_HASHES)
    pq.write_table(table, output / f"{shard}{ENDING}")
    return {"clips": index.num_rows, "hashed": len(hashes) - hashes.count(None), **counts}
