"""The stage `prepare`: webdataset shards of composed clips, and reading their tables.

<root>/sources-3f2a.../    the bank of recordings, made once for all sizes and seeds
<root>/prepare-9c41.../    {split}-{index}.tar, .index.parquet, .truth.parquet
                           README.md, LICENCES.md
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lsb.artifact import Counts, Part, Stage, run_stage
from vlmae.data.prepare import licences
from vlmae.data.prepare.avt_compose import AvtComposeSources
from vlmae.data.prepare.bank import KINDS, Sources, open_bank
from vlmae.data.prepare.config import PrepareConfig
from vlmae.data.prepare.generated import GeneratedSources
from vlmae.data.prepare.shards import INDEX_SCHEMA, TRUTH_SCHEMA, shard_parts


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


def prepare(root: Path, config: PrepareConfig) -> Stage:
    """Make, finish or reuse one data set.

    Args:
        root: folder of all stages.
        config: the data set; equal ones give equal bytes, wherever the sources lie.

    Raises:
        ValueError: sources are absent or incomplete, or a value is out of range.
        StageError: see `lsb.artifact.run_stage`.
    """
    sources = find_sources(config)
    bank = run_stage(
        root,
        "sources",
        config=sources.identity(),
        inputs={},
        parts=sources.parts(),
        processes=config.processes,
    )
    open_bank(bank.path, config.unseen_speakers).require_complete(config)
    notices = NoticesMaker(bank.path, config.name, config.synthetic)
    return run_stage(
        root,
        "prepare",
        config=config.hashed(),
        inputs={"sources": bank.content},
        parts=[
            *shard_parts(config, bank.path),
            Part("notices", ("LICENCES.md", "README.md"), notices),
        ],
        processes=config.processes,
    )


def read_index(stage: Stage, splits: Sequence[str] | None = None) -> pa.Table:
    """Byte ranges and titles of all clips, or of the given splits, by shard then offset."""
    return _read_tables(stage, "index", splits, INDEX_SCHEMA)


def read_truth(stage: Stage, splits: Sequence[str] | None = None) -> pa.Table:
    """Labels and recordings of all clips, or of the given splits, in the order of `read_index`.

    For oracles and reports only: what trains must get labels from a ledger.
    """
    return _read_tables(stage, "truth", splits, TRUTH_SCHEMA)


def _read_tables(
    stage: Stage, table: str, splits: Sequence[str] | None, schema: pa.Schema
) -> pa.Table:
    ending = f".{table}.parquet"
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
