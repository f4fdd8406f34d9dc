"""The stage `media`: a hash of every clip's media, by which re-uploads of one file are known.

A platform gets the same file again under other keys and titles. The index of a data set has no hash
of the bytes, and to add one would remake every data set there is; so hashes are a stage of their
own, made by reading each shard once. What is hashed are the files that decoding would read, as
they lie in the shard (after re-encoding where ingest re-encodes, which gives equal bytes for equal
input): no title, no label, no thumbnail beside a video.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lsb.artifact import Counts, Part, Stage, fingerprint, run_stage
from lsb.media_hashes import MEDIA_HASHES
from vlmae.data.decode.clip import BadClipError
from vlmae.data.decode.members import Media, find_media
from vlmae.data.index import INDEX_ENDING
from vlmae.data.ranges import RangeReader
from vlmae.data.records import tar_members

HASH_BYTES = 16
ENDING = ".media.parquet"
REVISION = 1
CLIPS_AT_A_TIME = 64


def hash_media(
    root: Path,
    data: Stage,
    *,
    processes: int = 1,
    storage_options: Mapping[str, Any] | None = None,
) -> Stage:
    """Hash the media of all clips of a data set, or reuse the hashes.

    Args:
        root: folder of all stages.
        data: a finished `prepare` stage.
        processes: shards at a time.
        storage_options: of fsspec, for shards that lie elsewhere.

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
        revision=REVISION,
        parts=[
            Part(
                shard,
                (f"{shard}{ENDING}",),
                partial(_hash_shard, data.path, storage_options, shard),
                key=_key(data, shard),
            )
            for shard in sorted(shards)
        ],
        processes=processes,
    )


def read_media_hashes(stage: Path) -> pa.Table:
    """Schema `lsb.media_hashes.MEDIA_HASHES` of all clips, by part."""
    files = sorted(stage.glob(f"*{ENDING}"))
    tables = [pq.read_table(file, schema=MEDIA_HASHES) for file in files]
    return pa.concat_tables([MEDIA_HASHES.empty_table(), *tables])


def media_hash(media: Media) -> bytes:
    """Hash of what a clip shows and plays: its video or images, and its sound file."""
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    for kind, files in (
        ("video", (media.video,)),
        ("image", media.images),
        ("sound", (media.sound,)),
    ):
        for data in files:
            if data is not None:
                digest.update(f"{kind} {len(data)}\0".encode())
                digest.update(data)
    return digest.digest()


def _key(data: Stage, shard: str) -> str:
    """By which an appended data set finds the hashes of shards that it shares with an older one."""
    files = data.manifest["parts"][shard]["files"]
    return fingerprint([REVISION, HASH_BYTES, {name: files[name]["sha256"] for name in files}])


def _hash_shard(
    folder: Path, storage_options: Mapping[str, Any] | None, shard: str, output: Path
) -> Counts:
    columns = ["id", "key", "shard", "offset", "size"]
    index = pq.read_table(folder / f"{shard}{INDEX_ENDING}", columns=columns)
    hashes: list[bytes | None] = []
    counts: Counter[str] = Counter()
    with RangeReader(folder, storage_options=storage_options) as reader:
        for start in range(0, index.num_rows, CLIPS_AT_A_TIME):
            rows = index.slice(start, CLIPS_AT_A_TIME).to_pydict()
            records = reader.read(rows["shard"], rows["offset"], rows["size"])
            for key, record in zip(rows["key"], records, strict=True):
                try:
                    found = media_hash(find_media(tar_members(record, key), key))
                except BadClipError as error:
                    counts[f"skipped: {error.reason}"] += 1
                    found = None
                hashes.append(found)
    table = pa.table([index["id"], pa.array(hashes, pa.binary())], schema=MEDIA_HASHES)
    pq.write_table(table, output / f"{shard}{ENDING}")
    return {"clips": index.num_rows, "hashed": len(hashes) - hashes.count(None), **counts}
