"""Where the tokens of a data set come from: a finished cache, or the media themselves.

Training, embedding and evaluation are written against `TokenSource`; `open_source` finds out which
it is, so that nobody has to say that there is a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from lsb import ids as sample_ids
from lsb.artifact import fingerprint
from lsb.ids import IdArray
from lsb.order import member
from vlmae.data.encode import read_shard_index
from vlmae.data.prefix_cache import Prefix, PrefixCache, find_cache
from vlmae.data.token_table import Rows, Streams, TokenTable
from vlmae.towers import build_towers

Say = Callable[[str], None]


class TokenSource(Protocol):
    """Frozen tokens of a data set, shard by shard. Picklable.

    Attributes:
        streams: tower -> stream name -> width of its tokens.
        identities: tower -> identity of its frozen weights.
        towers: tower -> its Hydra node.
        inputs: by which the stages that read it are named, see `lsb.artifact.run_stage`.
        index: id, key, split, shard, offset, size and duration_s of every clip. Of a cache only
            clips that can be decoded; live, that is found out when they are asked for.
    """

    @property
    def streams(self) -> Streams:
        """See the class."""

    @property
    def identities(self) -> Mapping[str, Any]:
        """See the class."""

    @property
    def towers(self) -> Mapping[str, Mapping[str, Any]]:
        """See the class."""

    @property
    def inputs(self) -> dict[str, str]:
        """See the class."""

    @property
    def index(self) -> pa.Table:
        """See the class."""

    def shards_of(self, split: str) -> list[str]:
        """Names of the shards that hold a split, in order."""

    def ids_of(self, shard: str) -> IdArray:
        """Ids of the clips of a shard, as far as `index` has them; nothing is decoded."""

    def shard_key(self, shard: str) -> str:
        """Hash of what determines the tokens of one shard."""

    def shard(self, name: str, only: IdArray | None = None) -> tuple[TokenTable, Rows, pa.Table]:
        """The clips of one shard: a table, their rows in it, and the quarantine of the others.

        Args:
            name: of the shard.
            only: ids of the clips wanted, ascending; None takes all.
        """

    def tables(self, ids: IdArray) -> Iterator[tuple[TokenTable, Rows]]:
        """Given clips: tables, and the rows in each; those that cannot be decoded are left out.

        Raises:
            ValueError: a clip is not in the data set.
        """


class CachedTokens:
    """A finished cache as a `TokenSource`."""

    def __init__(self, cache: PrefixCache) -> None:
        self.cache = cache
        self.streams: Streams = cache.streams
        self.identities: Mapping[str, Any] = cache.identities
        self.towers: Mapping[str, Mapping[str, Any]] = cache.towers
        self.inputs = {"cache": cache.stage.content}
        self.index: pa.Table = cache.rows

    def shards_of(self, split: str) -> list[str]:
        """See `TokenSource`; a shard without any usable clip has its split in its name alone."""
        held = set(self.cache.shards_of(split))
        return [
            name
            for name in self.cache.stage.manifest["parts"]
            if name in held
            or (name.rsplit("-", 1)[0] == split and not len(self.cache.rows_of_shard(name)))
        ]

    def ids_of(self, shard: str) -> IdArray:
        """See `TokenSource`."""
        ids: IdArray = self.cache.ids[self.cache.rows_of_shard(shard)]
        return ids

    def shard_key(self, shard: str) -> str:
        """See `TokenSource`."""
        return str(self.cache.stage.manifest["parts"][shard]["key"])

    def shard(self, name: str, only: IdArray | None = None) -> tuple[TokenTable, Rows, pa.Table]:
        """See `TokenSource`."""
        rows, quarantine = self.cache.rows_of_shard(name), self.cache.quarantine(name)
        if only is not None:
            rows = rows[member(self.cache.ids[rows], only)]
            kept = member(sample_ids.from_arrow(quarantine["id"]), only)
            quarantine = quarantine.take(np.flatnonzero(kept))
        return self.cache, rows, quarantine

    def tables(self, ids: IdArray) -> Iterator[tuple[TokenTable, Rows]]:
        """See `TokenSource`."""
        rows = self.cache.rows_of(ids)
        yield self.cache, rows[rows >= 0]


class LiveTokens:
    """The media as a `TokenSource`: decoded and encoded whenever they are asked for."""

    def __init__(self, prefix: Prefix) -> None:
        self.prefix = prefix
        towers = build_towers(prefix.vl, prefix.audio)
        self.streams: Streams = towers.prefix_streams
        self.identities: Mapping[str, Any] = towers.identities()
        self.towers: Mapping[str, Mapping[str, Any]] = {
            "vl": dict(prefix.vl),
            "audio": dict(prefix.audio),
        }
        self.inputs = {"data": prefix.data.content, "prefix": fingerprint(prefix.key())}

    @cached_property
    def _indexes(self) -> dict[str, pa.Table]:
        folder = self.prefix.data.path
        return {shard: read_shard_index(folder, shard) for shard in self.prefix.shards}

    @cached_property
    def index(self) -> pa.Table:
        """See `TokenSource`."""
        return pa.concat_tables(self._indexes.values())

    def shards_of(self, split: str) -> list[str]:
        """See `TokenSource`."""
        return [
            name
            for name, index in self._indexes.items()
            if split in set(index["split"].to_pylist())
        ]

    def ids_of(self, shard: str) -> IdArray:
        """See `TokenSource`."""
        return sample_ids.from_arrow(self._indexes[shard]["id"])

    def shard_key(self, shard: str) -> str:
        """See `TokenSource`."""
        return self.prefix.shard_key(shard)

    def shard(self, name: str, only: IdArray | None = None) -> tuple[TokenTable, Rows, pa.Table]:
        """See `TokenSource`."""
        encoded = self.prefix.encode(name, only)
        return encoded, np.arange(encoded.rows.num_rows), encoded.quarantine

    def tables(self, ids: IdArray) -> Iterator[tuple[TokenTable, Rows]]:
        """See `TokenSource`."""
        require_known(self.index, ids)
        ids = np.sort(ids)
        for name, index in self._indexes.items():
            if np.isin(sample_ids.from_arrow(index["id"]), ids).any():
                table, rows, _ = self.shard(name, ids)
                yield table, rows


def require_known(index: pa.Table, ids: IdArray) -> None:
    """Refuse clips that a data set does not have.

    Raises:
        ValueError: names the first and how many there are.
    """
    unknown = ids[~np.isin(ids, sample_ids.from_arrow(index["id"]))]
    if len(unknown):
        raise ValueError(
            f"{len(unknown)} of {len(ids)} clips are not in the data set, first "
            f"{sample_ids.to_hex(unknown[:1])[0]}: use labels of this data set; a clip may also "
            "have been taken down"
        )


def in_source(table: pa.Table, source: TokenSource) -> pa.Table:
    """The rows of a label table whose clips a source has, in id order.

    A cache knows which clips cannot be decoded and leaves them out; live, nobody knows yet.

    Raises:
        ValueError: a clip is not in the data set.
    """
    ids = sample_ids.from_arrow(table["id"])
    order = np.argsort(ids, kind="stable")
    if isinstance(source, CachedTokens):
        order = order[source.cache.rows_of(ids[order]) >= 0]
    else:
        require_known(source.index, ids)
    return table.take(order)


def no_cache(root: Path) -> ValueError:
    """The error of a required cache that is absent.

    Args:
        root: folder of all stages.
    """
    return ValueError(
        f"prefix.use=require, and there is no finished cache of these tokens in {root}: run "
        "python -m vlmae.cache with the same config, or set prefix.use=auto"
    )


def open_source(root: Path, prefix: Prefix, say: Say) -> TokenSource:
    """The cache of these tokens where it is finished, else the media.

    Args:
        root: folder of all stages.
        prefix: of the data set; `prefix.config.use` may require or forbid the cache.
        say: called with which of both it is.

    Raises:
        ValueError: a cache is required, and there is none, or cannot be.
    """
    use = prefix.config.use
    uncacheable = build_towers(prefix.vl, prefix.audio).uncacheable
    if uncacheable and use == "require":
        raise ValueError(f"prefix.use=require, and {uncacheable}")
    cache = find_cache(root, prefix) if use != "off" else None
    if cache is not None:
        say(f"tokens from the cache {cache.stage.path.name}")
        return CachedTokens(cache)
    if use == "require":
        raise no_cache(root)
    if uncacheable:
        say("no cache: the config trains from the inputs on or at random; clips are decoded live")
    else:
        say("no finished cache of these tokens: clips are decoded and encoded as they are needed")
    return LiveTokens(prefix)
