"""The data set of a round: composed, whose truth a program knows, or media with a table of labels.

Media that exist already (`data=manifest`, `shards`, `folder`, `prepared`) bring the splits of their
clips with them; what is known of those of first, gold and test, and of the pool where annotators
are simulated, stands in the table `clips.labels`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lsb import ids as sample_ids
from lsb.artifact import Stage, file_sha256
from lsb.labelled import LABEL
from vlmae.config import checked
from vlmae.data.index import read_index
from vlmae.data.labels import label_matrix, read_labels
from vlmae.data.prepare import TASKS, PrepareConfig, data_config, read_truth
from vlmae.settings import PREPARED, prepared_data

SYNTHETIC = "SYNTHETIC media made by a program"
COMPOSED = "real media with composed labels"
OWN = "media and labels that were given"
LABELS = "clips.labels"
POOL = "pool"
USES = {"first": "to start from", "gold": "to judge by", "test": "to measure"}
"""Splits whose labels have to be known."""


@dataclass(frozen=True)
class DataSet:
    """What a round runs on.

    Attributes:
        node: the config group `data`.
        composed: its settings, where it is composed; None for media that exist already.
        labels: path of the table of what is known of such media.
    """

    node: Mapping[str, Any]
    composed: PrepareConfig | None
    labels: str | None

    @classmethod
    def from_values(
        cls, node: Mapping[str, Any], labels: str | None, tasks: Sequence[str]
    ) -> DataSet:
        """Check and keep.

        Args:
            node: the config group `data`.
            labels: of `clips.labels`.
            tasks: of the model.

        Raises:
            ValueError: a value is wrong; composed clips have no such task, or need no table; media
                that exist already have none.
        """
        config = None if node.get("source") == PREPARED else data_config(node)
        composed = config if isinstance(config, PrepareConfig) else None
        if composed is None:
            if labels is None:
                raise ValueError(
                    f"{LABELS} is not set, and media that exist already have no truth of their "
                    "own: give a table with the labels of their splits first, gold and test "
                    "(docs/own_media.md), or run on data=generated or data=avt_compose"
                )
            return cls(node, None, labels)
        unknown = sorted(set(tasks) - set(TASKS))
        if unknown:
            raise ValueError(f"task.names has {unknown}, the data have {list(TASKS)}")
        if labels is not None:
            raise ValueError(
                f"{LABELS} is {labels}, but data={composed.name} knows the labels of all its "
                "clips: set it to null"
            )
        return cls(node, composed, None)

    @property
    def name(self) -> str:
        """Of the data set."""
        return str(self.node.get("name", PREPARED))

    @property
    def media(self) -> str:
        """What it is made of, in words."""
        if self.composed is None:
            return OWN
        return SYNTHETIC if self.composed.synthetic else COMPOSED

    @property
    def unseen_speakers(self) -> tuple[str, ...]:
        """Speakers that no training hears."""
        return () if self.composed is None else tuple(self.composed.unseen_speakers)

    @property
    def storage_options(self) -> dict[str, Any]:
        """Of the file system that shards which were indexed in place lie on."""
        options = self.node.get("storage_options") or {}
        return dict(checked("data.storage_options", dict[str, Any], options))

    def prepared(self, root: Path) -> Stage:
        """Its `prepare` stage, made or reused; see `vlmae.settings.prepared_data`."""
        return prepared_data({"data": self.node}, root)

    def labels_hash(self) -> str:
        """SHA-256 of the table of labels; empty where there is none."""
        return file_sha256(Path(self.labels)) if self.labels is not None else ""

    def truth(self, data: Stage, tasks: Sequence[str], *, measured: str = "test") -> pa.Table:
        """What is known of clips: id, key, split and `label_<task>`, null where it is not.

        Args:
            data: the finished `prepare` stage.
            tasks: of the model.
            measured: see `given_labels`.

        Raises:
            ValueError: see `given_labels`.
        """
        if self.composed is None:
            assert self.labels is not None, "media that exist already have a table"
            return given_labels(self.labels, read_index(data), tasks, measured=measured)
        truth = read_truth(data)
        columns = {name: truth[name] for name in ("id", "key", "split")}
        return pa.table(columns | {LABEL + task: truth[task] for task in tasks})


def given_labels(
    path: str, index: pa.Table, tasks: Sequence[str], *, measured: str = "test"
) -> pa.Table:
    """The clips of a data set that a table has labels of.

    Clips of the table that are not in the data set are left out: they may have been taken down, or
    could not be read.

    Args:
        path: of the table: `key`, and `label_<task>` (1, 0 or empty) for each task.
        index: id, key and split of all clips.
        tasks: of the model.
        measured: of `clips.measured`: where it is not "test", no test clip is needed.

    Returns:
        id, key, split, `label_<task>`, of clips with at least one label.

    Raises:
        ValueError: the table is absent or wrong, none of its clips is in the data set, or a split
            that a round cannot do without has none; names the remedy.
    """
    labels = read_labels(path, LABELS, list(tasks))
    known = labels.take(np.flatnonzero((label_matrix(labels, tasks) >= 0).any(axis=1)))
    ids = sample_ids.from_arrow(index["id"])
    held = known.take(np.flatnonzero(np.isin(sample_ids.from_arrow(known["id"]), ids)))
    if not held.num_rows:
        keys = sample_ids.texts(index["key"].slice(0, 1))
        raise ValueError(
            f"{LABELS} {path} has {known.num_rows} labelled clips, none of which is in the data "
            f"set, whose keys are like {keys[0] if keys else 'none'!r}: give keys as in the index"
        )
    order = np.argsort(ids, kind="stable")
    at = np.searchsorted(ids[order], sample_ids.from_arrow(held["id"]))
    rows = index.take(order[at])
    columns = {name: rows[name] for name in ("id", "key", "split")}
    truth = pa.table(columns | {LABEL + task: held[LABEL + task] for task in tasks})
    uses = {name: use for name, use in USES.items() if name != "test" or measured == name}
    _require_splits(path, truth, uses, set(sample_ids.texts(index["split"])))
    return truth


def _require_splits(path: str, truth: pa.Table, uses: Mapping[str, str], splits: set[str]) -> None:
    labelled = set(sample_ids.texts(truth["split"]))
    for split, use in uses.items():
        if split not in labelled:
            there = "no clip has a label" if split in splits else "there is no clip"
            raise ValueError(
                f"{there} in split {split!r}, which a round needs {use}: the data set has splits "
                f"{sorted(splits)}, and {LABELS} {path} labels clips of {sorted(labelled)}; give "
                "splits in the column `split` of a manifest, and labels in the table"
            )
    if POOL not in splits:
        raise ValueError(
            f"no clip is in split {POOL!r}, from which a round asks: the data set has splits "
            f"{sorted(splits)}"
        )


def require_labelled_pool(data: DataSet, truth: pa.Table, index: pa.Table) -> None:
    """Refuse simulated annotators who would be asked about clips that nobody has labelled.

    Args:
        data: the data set, of media that exist already.
        truth: of `DataSet.truth`.
        index: id, key and split of all clips.

    Raises:
        ValueError: the table leaves clips of the pool out.
    """
    known = sample_ids.from_arrow(truth["id"])
    pool = index.filter(pa.array([name == POOL for name in sample_ids.texts(index["split"])]))
    unknown = int((~np.isin(sample_ids.from_arrow(pool["id"]), known)).sum())
    if unknown:
        raise ValueError(
            f"{LABELS} {data.labels} has no label of {unknown} of {pool.num_rows} pool "
            "clips, which simulated annotators would be asked about: have people answer "
            "(oracle=label_studio or oracle=files), or label all of them in the table"
        )
