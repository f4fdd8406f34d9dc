"""Checkpoints: trainable tensors and the identity of the frozen ones (design, contract 7).

One safetensors file. Frozen weights are never saved; their sha256 is, and loading beside other
weights is refused. All metadata is one JSON string under one key, because safetensors writes
several keys in no fixed order and equal trainings must give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lsb.artifact import canonical, file_sha256
from vlmae.model import VlmaeModel
from vlmae.towers import build_suffix, build_towers

CHECKPOINT = "checkpoint.safetensors"
"""Name of the file in a train stage."""
FORMAT = "vlmae-checkpoint"
VERSION = 2


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and what it rests on.

    Attributes:
        model: the trainable part, in evaluation mode.
        model_config: what it was built from.
        frozen: identity of each tower.
        training_set: fingerprint of the labels it was trained on.
        thresholds: task -> operating threshold chosen on validation labels.
        sha256: of the file.
    """

    model: VlmaeModel
    model_config: dict[str, Any]
    frozen: dict[str, Any]
    training_set: str
    thresholds: dict[str, float]
    sha256: str


def build_model(config: Mapping[str, Any], towers: Mapping[str, Mapping[str, Any]]) -> VlmaeModel:
    """A fresh model; tuned blocks of the towers start from the weights as loaded.

    Args:
        config: "fusion" (a Hydra node with `_target_`), "tasks", "dropout" and "components".
        towers: tower -> Hydra node of its backbone.
    """
    fusion = instantiate(config["fusion"])
    return VlmaeModel(
        build_towers(towers["vl"], towers["audio"]).streams,
        int(config["components"]),
        fusion,
        list(config["tasks"]),
        float(config["dropout"]),
        build_suffix(towers["vl"], towers["audio"]),
    )


def save_checkpoint(
    path: Path,
    model: VlmaeModel,
    *,
    model_config: Mapping[str, Any],
    towers: Mapping[str, Mapping[str, Any]],
    frozen: Mapping[str, Any],
    training_set: str,
    thresholds: Mapping[str, float],
) -> None:
    """Write the trainable tensors and the metadata."""
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "model": dict(model_config),
        "towers": {name: dict(node) for name, node in towers.items()},
        "frozen": dict(frozen),
        "training_set": training_set,
        "thresholds": dict(thresholds),
    }
    tensors = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata={"vlmae": canonical(metadata)})


def load_checkpoint(path: Path, frozen: Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint for use with given frozen towers.

    Args:
        path: of the safetensors file.
        frozen: identity of each tower that will feed it, from `Towers.identities`.

    Raises:
        ValueError: not a checkpoint of this version, or trained on other frozen weights or options.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = json.loads((stream.metadata() or {}).get("vlmae", "{}"))
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}): train again") from None
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        raise ValueError(
            f"{path} has format {metadata.get('format')!r} version {metadata.get('version')!r}, "
            f"this release reads {FORMAT!r} version {VERSION}: train again with this release"
        )
    for tower, identity in metadata["frozen"].items():
        if canonical(frozen.get(tower)) != canonical(identity):
            raise ValueError(
                f"{path} was trained on another {tower} tower: {identity} there, "
                f"{frozen.get(tower)} "
                "here; use the backbone and options it was trained with, or train again"
            )
    model = build_model(metadata["model"], metadata["towers"])
    model.load_state_dict(tensors)
    return Checkpoint(
        model.eval(),
        metadata["model"],
        metadata["frozen"],
        metadata["training_set"],
        metadata["thresholds"],
        file_sha256(path),
    )
