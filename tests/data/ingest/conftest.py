"""A folder of clips, and settings of ingest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from source_files import write_folder

from vlmae.data.prepare import IngestConfig, data_config

ConfigMaker = Callable[..., IngestConfig]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips with titles, some in a sub-folder."""
    path = tmp_path_factory.mktemp("media")
    write_folder(path, 12)
    return path


@pytest.fixture(scope="session")
def settings() -> ConfigMaker:
    """A function from fields to settings of small shards that copy what they are given."""

    def make(source: str, path: object, **changes: object) -> IngestConfig:
        values = {"name": "mine", "source": source, "path": str(path), "reencode": False}
        values |= {"shard_clips": 5, "first": 48, "pool": 96, "gold": 24, "test": 48, **changes}
        made = data_config(values)
        assert isinstance(made, IngestConfig)
        return made

    return make
