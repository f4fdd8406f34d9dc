"""Clips of an existing shard set: tar headers are read, by ranges, and nothing else.

<root>/scan-5b7e.../   shard-{n:05d}.parquet   key, endings, offsets, sizes: a row a sample

A stage of its own, because clips must be known before they are dealt to shards, and because a
shard's headers never change: a set that has grown borrows the tables of the shards it had.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from webdataset.shardlists import expand_urls

from lsb.artifact import Counts, Part, run_stage
from lsb.files import fingerprint
from vlmae.data.prepare.ingest.clips import SourceClip, SourceMember
from vlmae.data.prepare.ingest.config import IngestConfig
from vlmae.data.prepare.ingest.range_file import RangeFile
from vlmae.data.ranges import RangeReader
from vlmae.data.records import BLOCK, split_name
from vlmae.data.storage import FileInfo, Storage, is_remote, local_path

_FIELDS: list[tuple[str, pa.DataType]] = [
    ("key", pa.string()),
    ("offset", pa.int64()),
    ("size", pa.int64()),
    ("endings", pa.list_(pa.string())),
    ("offsets", pa.list_(pa.int64())),
    ("sizes", pa.list_(pa.int64())),
]
SCHEMA = pa.schema(_FIELDS)


@dataclass(frozen=True)
class ShardSample:
    """One sample of a shard.

    Attributes:
        clip: its members as pieces of the shard.
        offset, size: byte range of the whole sample.
    """

    clip: SourceClip
    offset: int
    size: int


@dataclass(frozen=True)
class ScanMaker:
    """Lists the samples of one shard.

    Attributes:
        shard: the tar.
        file: name of the table to write.
        options: of the fsspec file system.
    """

    shard: FileInfo
    file: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, folder: Path) -> Counts:
        """Write the table into `folder`."""
        with RangeReader("", storage_options=self.options) as reader:
            rows = list(scan(reader, self.shard))
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / self.file)
            return {
                "clips": len(rows),
                "bytes": self.shard.size,
                "bytes read": reader.traffic.read,
                "requests": reader.traffic.requests,
            }


def scan(reader: RangeReader, shard: FileInfo) -> Iterator[dict[str, Any]]:
    """Samples of one tar, as rows of `SCHEMA`.

    Raises:
        ValueError: it is no plain tar, or damaged; names the shard and the place.
    """
    row: dict[str, Any] | None = None
    remedy = "restore it, or leave it out of data.path"
    file = RangeFile(reader, shard.place, 0, shard.size)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                name = split_name(member.name) if member.isreg() else None
                if name is None:
                    continue
                if row is None or row["key"] != name[0]:
                    if row is not None:
                        yield row
                    row = {"key": name[0], "offset": member.offset}
                    row |= {"endings": [], "offsets": [], "sizes": []}
                row["endings"].append(name[1])
                row["offsets"].append(member.offset_data)
                row["sizes"].append(member.size)
                row["size"] = member.offset_data + -(-member.size // BLOCK) * BLOCK - row["offset"]
            end = archive.offset
    except tarfile.TarError as error:
        raise ValueError(
            f"{shard.place} is damaged or no plain tar ({error}): {remedy}; compressed tars must "
            "be unpacked, they have no byte ranges"
        ) from error
    file.seek(end)
    if any(file.read(BLOCK) or b""):  # tarfile takes a damaged header for the end
        raise ValueError(f"{shard.place} is damaged at byte {end}: {remedy}")
    if row is not None:
        yield row


def find_shards(config: IngestConfig) -> list[FileInfo]:
    """The tars that `data.path` stands for, in order.

    Raises:
        ValueError: there are none, or one of them is absent.
    """
    storage, path = Storage(config.storage_options), config.place
    if not is_remote(path):
        path = str(local_path(path).expanduser().absolute())
    places = []
    for place in expand_urls(path):
        if "*" in place:
            places += _matching(storage, place)
        elif not is_remote(place) and Path(place).is_dir():
            places += sorted(str(tar) for tar in Path(place).glob("*.tar"))
        else:
            places.append(place)
    if not places:
        raise ValueError(f"data.path: there are no shards in {config.place}: check the path")
    found = []
    for place in places:
        try:
            found.append(storage.describe(place))
        except OSError as error:
            raise ValueError(f"data.path: there is no shard {place} ({error})") from error
    return found


def _matching(storage: Storage, pattern: str) -> list[str]:
    if not is_remote(pattern):
        folder = Path(pattern).parent
        return sorted(str(path) for path in folder.glob(Path(pattern).name))
    protocol = pattern.split("://", 1)[0]
    names = storage.file_system(pattern).glob(pattern)
    return sorted(f"{protocol}://{str(name).split('://', 1)[-1]}" for name in names)


def shard_samples(
    root: Path, config: IngestConfig, shards: list[FileInfo]
) -> list[list[ShardSample]]:
    """All samples of the shards, read once and kept as the stage `scan`.

    Raises:
        ValueError: a shard is damaged.
    """
    parts = []
    for number, shard in enumerate(shards):
        maker = ScanMaker(shard, f"shard-{number:05d}.parquet", dict(config.storage_options))
        key = fingerprint([shard.place, shard.size, shard.version])
        parts.append(Part(f"shard-{number:05d}", (maker.file,), maker, key))
    stage = run_stage(
        root,
        "scan",
        config={"shards": [part.key for part in parts]},
        inputs={},
        parts=parts,
        processes=config.processes,
    )
    return [
        [
            _sample(row, shard, config.split)
            for row in pq.read_table(stage.path / f"shard-{number:05d}.parquet").to_pylist()
        ]
        for number, shard in enumerate(shards)
    ]


def _sample(row: Mapping[str, Any], shard: FileInfo, split: str) -> ShardSample:
    members = tuple(
        SourceMember(ending, shard.place, offset, size, shard.version)
        for ending, offset, size in zip(row["endings"], row["offsets"], row["sizes"], strict=True)
    )
    origin = f"{shard.place.rpartition('/')[2]}/{row['key']}"
    return ShardSample(
        SourceClip(row["key"], origin, split, None, members), row["offset"], row["size"]
    )
