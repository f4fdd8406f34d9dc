"""What determines an ingested data set: a frozen dataclass with the keys of conf/data as fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SOURCES = ("folder", "manifest", "shards")
# Raise it when grouping, encoding or the order of clips changes, so that old shards are not reused.
INGEST_VERSION = 1
SPLIT_NAME = re.compile(r"[A-Za-z0-9_]+")


@dataclass(frozen=True)
class IngestConfig:
    """A data set made from media that exist already.

    Attributes:
        name: of the data set, stands in every clip's json.
        source: what `path` is: "folder" of media, "manifest" (CSV or parquet) or "shards".
        path: folder, table, or tars: brace-expanded (`s3://bucket/pool-{000..199}.tar`), with `*`,
            or a folder of them. A local path or a URL that fsspec knows.
        root: folder that a manifest's paths are relative to; None for the manifest's own.
        split: of all clips that no manifest and no index says otherwise for.
        seed: of the order in which clips are dealt to shards.
        copy: for shards: False indexes them where they are and copies nothing.
        reencode: video as H.264 with a keyframe a second and AAC; pictures made smaller.
        short_side: larger pictures are made smaller to this shorter side, in pixels, even.
        shard_clips: clips in one shard, at most.
        shard_bytes: bytes of source files in one shard, at most, unless a single clip has more.
        skip_limit: largest share of unusable clips, over which the stage is refused.
        extends: folder of a finished `prepare` stage: its shards are taken over and only clips that
            are not in it are added.
        storage_options: of the fsspec file system; credentials belong in the environment.
        processes: shards made at a time.
    """

    name: str
    source: str
    path: str | None = None
    root: str | None = None
    split: str = "pool"
    seed: int = 0
    copy: bool = True
    reencode: bool = True
    short_side: int = 256
    shard_clips: int = 1000
    shard_bytes: int = 1_000_000_000
    skip_limit: float = 0.05
    extends: str | None = None
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    processes: int = 1

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"data.source is {self.source!r}: choose one of {', '.join(SOURCES)}")
        for key in ("name", "split"):
            if not SPLIT_NAME.fullmatch(getattr(self, key)):
                raise ValueError(
                    f"data.{key} is {getattr(self, key)!r}: use letters, digits and _ only"
                )
        if "generated" in self.name and self.source != "shards":
            raise ValueError(
                f"data.name is {self.name!r} but data.source is {self.source!r}: the name says "
                "'generated' exactly when the media are synthetic; rename it"
            )
        if not self.copy and (self.source != "shards" or self.reencode):
            raise ValueError(
                "data.copy is false: only shards can be indexed in place, and not encoded then; "
                "set data.reencode=false with data=shards, or data.copy=true"
            )
        if self.short_side < 16 or self.short_side % 2:
            raise ValueError(f"data.short_side is {self.short_side}: give an even number from 16")
        for key in ("shard_clips", "shard_bytes", "processes"):
            if getattr(self, key) <= 0:
                raise ValueError(f"data.{key} is {getattr(self, key)}: it must be positive")
        if not 0.0 <= self.skip_limit <= 1.0:
            raise ValueError(f"data.skip_limit is {self.skip_limit}: give a share from 0 to 1")

    @property
    def place(self) -> str:
        """`path`, which must be set by now.

        Raises:
            ValueError: it is not set.
        """
        if not self.path:
            raise ValueError(
                f"data.path is not set: give the {self.source} that the data set is made from"
            )
        return self.path

    def hashed(self) -> dict[str, Any]:
        """Every field that determines bytes besides the sources, and the version, JSON-like."""
        keys = ["name", "source", "split", "copy"]
        if self.copy:
            keys += ["seed", "reencode", "shard_clips", "shard_bytes"]
        if self.reencode:
            keys.append("short_side")
        return {"ingest": INGEST_VERSION, **{key: getattr(self, key) for key in keys}}
