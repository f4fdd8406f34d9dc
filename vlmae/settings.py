"""The part of a composed config that the commands of this package share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lsb.artifact import OnPart, Progress, Stage, open_stage
from vlmae.config import build, checked
from vlmae.data.decode import DecodePolicy
from vlmae.data.prefix_cache import Prefix, PrefixConfig
from vlmae.data.prepare import data_config, prepare
from vlmae.tuning import tuned_node, tuning_config

PREPARED = "prepared"


def prepared_data(values: Mapping[str, Any], root: Path, *, verify: bool = True) -> Stage:
    """The data set of a config: made, finished or reused, or the finished one that it names.

    Args:
        values: the whole config as plain containers.
        root: folder of all stages.
        verify: whether every shard of a named one is read and compared with its hash.

    Raises:
        ValueError: `data=prepared` names no finished `prepare` stage; or see `prepare`.
    """
    data = values["data"]
    if data.get("source") != PREPARED:
        return prepare(root, data_config(data))
    path = checked("data.path", str | None, data.get("path"))
    if not path:
        raise ValueError(
            f"data.path is not set: give the folder of a prepared data set, {root}/prepare-..."
        )
    stage = open_stage(Path(path), verify=verify)
    if stage.manifest["stage"] != "prepare":
        raise ValueError(
            f"data.path {path} is a finished {stage.manifest['stage']!r} stage: give one that "
            "vlmae.prepare made"
        )
    return stage


def prefix_of(values: Mapping[str, Any], data: Stage) -> Prefix:
    """What determines the frozen tokens, from the groups vl, audio, decode, prefix and data."""
    options = checked(
        "data.storage_options", dict[str, Any], values["data"].get("storage_options") or {}
    )
    return Prefix(
        data,
        *tower_nodes(values),
        build("decode", DecodePolicy, values["decode"]),
        build("prefix", PrefixConfig, values["prefix"]),
        options,
    )


def tower_nodes(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Hydra nodes of the VL and the audio backbone, cut as the group `tuning` says."""
    tuning = tuning_config(values.get("tuning"))
    vl, audio = (tuned_node(values[tower], tuning.get(tower)) for tower in ("vl", "audio"))
    return vl, audio


def model_config(values: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    """What `vlmae.checkpoint.build_model` wants, from the groups fusion, tuning and model."""
    return {
        "fusion": values["fusion"],
        "tasks": list(tasks),
        "tuning": values["tuning"],
        **values["model"],
    }


def share_of(values: Mapping[str, Any]) -> tuple[int, int]:
    """Number and count of the processes that share a stage, from the key `share`.

    Raises:
        ValueError: not two numbers, or the first is not below the second.
    """
    number, of = checked("share", tuple[int, int], tuple(values["share"]))
    if not 0 <= number < of:
        raise ValueError(f"share is [{number}, {of}]: give [number, count], counted from 0")
    return number, of


def progress_line(console: Console, unit: str, count: str) -> OnPart:
    """Prints one line a shard: how far, how fast, how long to go.

    Args:
        console: to print on.
        unit: what is counted, e.g. "clips".
        count: its name among the counts of a part.
    """

    def show(progress: Progress) -> None:
        done = progress.counts.get(count, 0)
        pace = done / max(progress.seconds, 1e-9)
        minutes, seconds = divmod(round(progress.remaining), 60)
        console.log(
            f"shard {progress.parts} of {progress.of}: {done} {unit}, {pace:.1f} a second, "
            f"{minutes} min {seconds} s to go"
        )

    return show
