"""The stage `prepare`: webdataset shards of composed or of existing clips.

<root>/sources-3f2a.../    the bank of recordings, made once for all sizes and seeds
<root>/prepare-9c41.../    {split}-{index}.tar, .index.parquet, .truth.parquet
                           README.md, LICENCES.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from lsb.artifact import Counts, Part, Stage, run_stage
from vlmae.config import build
from vlmae.data.index import PREPARE_REVISION, read_tables
from vlmae.data.prepare import licences
from vlmae.data.prepare.avt_compose import AvtComposeSources
from vlmae.data.prepare.bank import KINDS, Sources, open_bank
from vlmae.data.prepare.config import SPLITS, PrepareConfig
from vlmae.data.prepare.generated import GeneratedSources
from vlmae.data.prepare.ingest import IngestConfig, ingest
from vlmae.data.prepare.shards import TRUTH_SCHEMA, shard_parts
from vlmae.data.redaction import guarded, redacted


@dataclass(frozen=True)
class NoticesMaker:
    """Writes README.md and LICENCES.md beside the shards."""

    bank: Path
    name: str
    synthetic: bool

    def __call__(self, folder: Path) -> Counts:
        """Write both files into `folder`."""
        text = licences.collect(self.bank, self.name, self.synthetic, KINDS)
        (folder / "LICENCES.md").write_text(text, encoding="utf-8")
        readme = licences.readme(self.name, self.synthetic)
        (folder / "README.md").write_text(readme, encoding="utf-8")
        return {}


def find_sources(config: PrepareConfig) -> Sources:
    """The recordings that a data set is composed from.

    Raises:
        ValueError: they are absent; names the path looked at and the remedy.
    """
    if config.bank == "generated":
        return GeneratedSources(config.pictures_per_digit)
    return AvtComposeSources.find(config.sources, config.cache, config.pictures_per_digit)


def data_config(values: Mapping[str, Any]) -> PrepareConfig | IngestConfig:
    """Settings of a data set from the composed config group `data`.

    Groups with a key `source` are of media that exist already. The config group `size` puts the
    sizes of splits among the values; an ingested set has the size of its source.

    Raises:
        ValueError: names the key, what is wrong with it and the value.
    """
    if "source" not in values:
        return build("data", PrepareConfig, values)
    return build("data", IngestConfig, {k: v for k, v in values.items() if k not in SPLITS})


def prepare(root: Path, config: PrepareConfig | IngestConfig) -> Stage:
    """Make, finish or reuse one data set.

    Args:
        root: folder of all stages.
        config: the data set; equal ones of equal sources give equal bytes, wherever those lie.

    Raises:
        ValueError: sources are absent or incomplete, a value is out of range, or see
            `ingest.ingest`.
        StageError: see `lsb.artifact.run_stage`.
    """
    if isinstance(config, IngestConfig):
        return ingest(root, config)
    sources = find_sources(config)
    bank = run_stage(
        root,
        "sources",
        config=sources.identity(),
        inputs={},
        parts=sources.parts(),
        processes=config.processes,
    )
    held_out = (config.unseen_speakers, config.seen_in_test)
    open_bank(bank.path, *held_out).require_complete(config)
    notices = NoticesMaker(bank.path, config.name, config.synthetic)
    data = run_stage(
        root,
        "prepare",
        config=config.hashed(),
        inputs={"sources": bank.content},
        parts=[
            *guarded(root, shard_parts(config, bank.path)),
            Part("notices", ("LICENCES.md", "README.md"), notices),
        ],
        processes=config.processes,
        revision=PREPARE_REVISION,
    )
    return redacted(root, data)


def read_truth(stage: Stage, splits: Sequence[str] | None = None) -> pa.Table:
    """Labels and recordings of all clips, or of the given splits, in the order of `read_index`.

    For oracles and reports only: what trains must get labels from a ledger.
    """
    return read_tables(stage, ".truth.parquet", splits, TRUTH_SCHEMA)
