"""How a training grows, from a composed config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from lsb import ids as sample_ids
from lsb.acquisition.config import AcquisitionConfig
from lsb.acquisition.seeds import BroadeningConfig
from lsb.annotate.oracle import Oracle
from lsb.expand import ExpandConfig
from lsb.ids import IdArray
from lsb.ledger import MergeConfig
from lsb.search.config import SearchConfig
from lsb.search.faiss_config import FaissConfig
from lsb.selection import SelectionConfig
from lsb.shortlist.config import ShortlistConfig
from lsb.threshold import ThresholdConfig
from vlmae.config import build
from vlmae.data.labels import labels_fingerprint, read_labels
from vlmae.growing.config import LEDGER, Growing, GrowingConfig, require_whole_pool
from vlmae.growing.labels import FromAnnotator, FromLedger, LabelSource

EXPAND = {
    "acquisition": AcquisitionConfig,
    "broadening": BroadeningConfig,
    "threshold": ThresholdConfig,
    "search": SearchConfig,
    "selection": SelectionConfig,
}


def growing_of(values: Mapping[str, Any], tasks: Sequence[str]) -> Growing | None:
    """What a training needs to grow; None where it does not.

    Args:
        values: the whole config as plain containers: growing, acquisition, broadening, threshold,
            search, selection, shortlist, oracle, ledger.
        tasks: of the model.

    Raises:
        ValueError: a value is out of range or would be ignored, or a file is absent; names the key.
    """
    config = build("growing", GrowingConfig, values["growing"])
    if not config.on:
        return None
    require_whole_pool(build("shortlist", ShortlistConfig, values["shortlist"]))
    expand = expand_config(values)
    if not expand.acquisition.task_weights:  # all alike
        weighed = replace(expand.acquisition, task_weights=dict.fromkeys(tasks, 1.0))
        expand = replace(expand, acquisition=weighed)
    unknown = sorted(set(expand.acquisition.task_weights) - set(tasks))
    if unknown:
        raise ValueError(
            f"acquisition.task_weights names {unknown}, the model has the tasks {list(tasks)}"
        )
    return Growing(
        config,
        expand,
        _labels(config, values, list(tasks)),
        arm=str(values["arm_name"]),
        exclude=excluded_ids(config.exclude),
    )


def expand_config(values: Mapping[str, Any]) -> ExpandConfig:
    """Acquisition, broadening, LT, search and selection from the groups of these names."""
    kinds: dict[str, Any] = dict(EXPAND)
    if "factory" in values["search"]:  # an index is named
        kinds["search"] = FaissConfig
    names = [field.name for field in fields(ExpandConfig)]
    made = {name: build(name, kinds[name], values[name]) for name in names}
    made["acquisition"] = with_groups(made["acquisition"], values["objective"])
    return ExpandConfig(**made)


def with_groups(config: AcquisitionConfig, objective: Mapping[str, Any]) -> AcquisitionConfig:
    """An acquisition that knows which tasks exclude each other.

    Args:
        config: where it names groups itself, these stay.
        objective: its config node, which has "groups" where it is `GroupedSoftmax`.
    """
    return config if config.groups else replace(config, groups=objective.get("groups") or {})


def _labels(config: GrowingConfig, values: Mapping[str, Any], tasks: list[str]) -> LabelSource:
    if config.labels == LEDGER:
        assert config.ledger is not None, "checked with the config"
        return FromLedger(config.ledger, build("ledger", MergeConfig, values["ledger"]))
    if "kind" in values["oracle"]:
        raise ValueError(
            f"oracle.kind is {values['oracle']['kind']!r}: a training that is no part of a round "
            "asks one simulated annotator; use oracle=exact or growing.labels=ledger, or "
            "launch.round"
        )
    truth = read_labels(config.truth, "growing.truth", tasks)
    return FromAnnotator(
        Oracle(truth, **values["oracle"]), labels_fingerprint(truth, tasks), config.ledger
    )


def excluded_ids(path: str | None) -> IdArray:
    """Ids of the clips that a table names.

    Args:
        path: parquet or CSV with a column "key" of text; None for no clip.

    Raises:
        ValueError: it is no file, or has no keys.
    """
    if path is None:
        return sample_ids.sample_ids([])
    if not Path(path).is_file():
        raise ValueError(
            f"growing.exclude is {path}, which is no file: give a parquet or CSV with a column "
            "'key', or null"
        )
    as_text = pcsv.ConvertOptions(column_types={"key": pa.string()})  # 0001 is no number
    table = (
        pq.read_table(path)
        if path.endswith(".parquet")
        else pcsv.read_csv(path, convert_options=as_text)
    )
    if "key" not in table.column_names:
        raise ValueError(f"{path} has columns {table.column_names}, none is 'key'")
    return sample_ids.sample_ids(sample_ids.texts(table["key"]))
