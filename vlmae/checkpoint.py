"""Checkpoints: trainable tensors and the identity of the frozen ones (design, contract 7).

One safetensors file. Frozen weights are never saved, nor are those that adapters sit on inside the
tuned blocks; their sha256 is, and loading beside other weights is refused, the tensors that differ
are named. All metadata is one JSON string under one key, because safetensors writes several keys in
no fixed order and equal trainings must give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lsb.artifact import canonical, file_sha256
from vlmae.fusion import Fusion
from vlmae.model import VlmaeModel
from vlmae.towers import Towers, build_suffix, build_towers
from vlmae.tuning import tuning_config

CHECKPOINT = "checkpoint.safetensors"
"""Name of the file in a train stage."""
FORMAT = "vlmae-checkpoint"
VERSION = 3
BINARY: dict[str, Any] = {"_target_": "vlmae.objectives.MultiTaskBinary", "weights": {}}
"""Hydra node of the objective of a checkpoint that names none."""
# Parts of an identity that hash weights: all else of it is what the user chose.
WEIGHTS = ("sha256", "suffix_sha256")
# Parts of an identity that say where weights were found, not which they are.
ORIGIN = ("name", "revision")
NAMED = 5


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
        objective: Hydra node of what turns logits into probabilities.
        temperatures: task -> what its logits are divided by before that; chosen on validation.
        towers: tower -> Hydra node of its backbone.
    """

    model: VlmaeModel
    model_config: dict[str, Any]
    frozen: dict[str, Any]
    training_set: str
    thresholds: dict[str, float]
    sha256: str
    objective: dict[str, Any] = field(default_factory=lambda: dict(BINARY))
    temperatures: dict[str, float] = field(default_factory=dict)
    towers: dict[str, dict[str, Any]] = field(default_factory=dict)


def build_model(config: Mapping[str, Any], towers: Mapping[str, Mapping[str, Any]]) -> VlmaeModel:
    """A fresh model; tuned blocks of the towers start from the weights as loaded.

    Args:
        config: "fusion" (a Hydra node with `_target_`), "tasks", "dropout" and "components";
            optionally "tuning" and "modality_dropout".
        towers: tower -> Hydra node of its backbone.
    """
    fusion = instantiate(config["fusion"])
    suffix = build_suffix(towers["vl"], towers["audio"], tuning_config(config.get("tuning")))
    return assemble(config, build_towers(towers["vl"], towers["audio"]).streams, fusion, suffix)


def assemble(
    config: Mapping[str, Any],
    streams: Mapping[str, Mapping[str, int]],
    fusion: Fusion,
    suffix: nn.Module | None,
) -> VlmaeModel:
    """A model of parts that exist.

    Args:
        config: see `build_model`.
        streams: of the towers.
        fusion: a new one.
        suffix: of the towers, see `vlmae.towers.build_suffix`.
    """
    return VlmaeModel(
        streams,
        int(config["components"]),
        fusion,
        list(config["tasks"]),
        float(config["dropout"]),
        suffix,
        modality_dropout=config.get("modality_dropout"),
    )


def frozen_names(model: VlmaeModel) -> set[str]:
    """Names in the model's state of the tensors that a checkpoint leaves out.

    They are the parameters behind the cuts that do not train. Buffers, such as statistics of batch
    norm, are a few numbers that training may change: they are saved.
    """
    return {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name.startswith("suffix.") and not parameter.requires_grad
    }


def save_checkpoint(
    path: Path,
    model: VlmaeModel,
    *,
    model_config: Mapping[str, Any],
    towers: Mapping[str, Mapping[str, Any]],
    frozen: Mapping[str, Any],
    training_set: str,
    thresholds: Mapping[str, float],
    objective: Mapping[str, Any] | None = None,
    temperatures: Mapping[str, float] | None = None,
) -> None:
    """Write the trainable tensors and the metadata.

    Args:
        path: of the safetensors file.
        model: trained; on any device.
        model_config: what `build_model` made it from.
        towers: tower -> Hydra node of its backbone.
        frozen: identity of each tower.
        training_set: fingerprint of the labels.
        thresholds: task -> operating threshold.
        objective: Hydra node; binary if None.
        temperatures: task -> temperature; 1 for those not named.

    Raises:
        ValueError: the towers that the nodes give are not those of `frozen`.
    """
    built = build_towers(towers["vl"], towers["audio"])
    _require_same_towers(path, frozen, built.identities(), None, built)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "model": dict(model_config),
        "towers": {name: dict(node) for name, node in towers.items()},
        "frozen": dict(frozen),
        "tensors": built.tensor_hashes(),
        "training_set": training_set,
        "thresholds": dict(thresholds),
        "objective": dict(objective or BINARY),
        "temperatures": dict.fromkeys(model.tasks, 1.0) | dict(temperatures or {}),
    }
    left_out = frozen_names(model)
    tensors = {
        name: tensor.contiguous().cpu()
        for name, tensor in model.state_dict().items()
        if name not in left_out
    }
    save_file(tensors, path, metadata={"vlmae": canonical(metadata)})


def load_checkpoint(
    path: Path,
    frozen: Mapping[str, Any] | None = None,
    *,
    towers: Mapping[str, Mapping[str, Any]] | None = None,
) -> Checkpoint:
    """Read a checkpoint for use with given frozen towers.

    Args:
        path: of the safetensors file.
        frozen: identity of each tower that will feed it, from `Towers.identities`; None for the
            towers that the checkpoint itself names, loaded here.
        towers: tower -> settings to change in the recorded node of its backbone, for weights that
            lie elsewhere than when it was trained, under whatever name or revision. They must be
            the same weights.

    Raises:
        ValueError: not a checkpoint of this version, damaged, or trained on other frozen weights or
            options; names the tensors that were altered.
    """
    metadata, tensors = _read(path)
    nodes = {
        name: {**node, **(towers or {}).get(name, {})} for name, node in metadata["towers"].items()
    }
    if unknown := sorted(set(towers or {}) - set(nodes)):
        raise ValueError(f"there is no tower {unknown[0]!r}, only {', '.join(sorted(nodes))}")
    recorded = metadata["frozen"]
    if frozen is not None:
        _require_same_towers(path, recorded, frozen, metadata["tensors"], nodes)
    model = build_model(metadata["model"], nodes)
    if frozen is None or model.suffix is not None:
        # What a cache was made with says nothing of the blocks that are loaded here.
        built = build_towers(nodes["vl"], nodes["audio"])
        _require_same_towers(path, recorded, built.identities(), metadata["tensors"], built)
    _load_tensors(path, model, tensors)
    return Checkpoint(
        model.eval(),
        metadata["model"],
        recorded,
        metadata["training_set"],
        metadata["thresholds"],
        file_sha256(path),
        metadata["objective"],
        metadata["temperatures"],
        nodes,
    )


def read_thresholds(path: Path) -> dict[str, float]:
    """Task -> operating threshold of a checkpoint, without its model.

    Raises:
        ValueError: not a checkpoint of this version, or damaged.
    """
    return dict(_read(path)[0]["thresholds"])


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}: give one that vlmae.train made")
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = json.loads((stream.metadata() or {}).get("vlmae", "{}"))
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}): train again") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has damaged metadata ({error}): train again") from None
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        raise ValueError(
            f"{path} has format {metadata.get('format')!r} version {metadata.get('version')!r}, "
            f"this release reads {FORMAT!r} version {VERSION}: train again with this release"
        )
    return metadata, tensors


def _load_tensors(path: Path, model: VlmaeModel, tensors: Mapping[str, Tensor]) -> None:
    """Put the saved tensors into a fresh model.

    Raises:
        ValueError: other names than the trainable ones, or another shape or dtype.
    """
    state = model.state_dict()
    absent = sorted(state.keys() - tensors.keys() - frozen_names(model))
    unknown = sorted(tensors.keys() - (state.keys() - frozen_names(model)))
    other = sorted(
        f"{name} {tensor.dtype} {tuple(tensor.shape)} for {state[name].dtype} "
        f"{tuple(state[name].shape)}"
        for name, tensor in tensors.items()
        if name in state
        and (tensor.dtype != state[name].dtype or tensor.shape != state[name].shape)
    )
    for what, names in (("lacks", absent), ("has unknown", unknown), ("has other", other)):
        if names:
            raise ValueError(
                f"{path} {what} tensors, {len(names)} in all: {_some(names)}: it is damaged or was "
                "altered; restore it, or train again"
            )
    model.load_state_dict(tensors, strict=False)


def _require_same_towers(
    path: Path,
    recorded: Mapping[str, Any],
    given: Mapping[str, Any],
    hashes: Mapping[str, Mapping[str, str]] | None,
    towers: Towers | Mapping[str, Mapping[str, Any]],
) -> None:
    """Refuse towers of other weights or options than a checkpoint was trained on.

    The same weights under another name or revision are accepted.

    Args:
        path: of the checkpoint, for the message.
        recorded: identity of each tower.
        given: identity of each tower that is to feed it.
        hashes: tower -> tensor -> hash as recorded; None where nothing was recorded yet.
        towers: of `given`, or their nodes, to find the altered tensors with.
    """
    for tower, identity in recorded.items():
        other = given.get(tower)
        if other is not None and _without_name(other) == _without_name(identity):
            continue
        message = f"{path} was trained on another {tower} tower: "
        if (
            hashes is not None
            and other is not None
            and _without_hashes(other) == _without_hashes(identity)
        ):
            if not isinstance(towers, Towers):
                towers = build_towers(towers["vl"], towers["audio"])
            altered = _altered(hashes[tower], towers.tensor_hashes()[tower])
            if altered:
                raise ValueError(
                    f"{message}{len(altered)} of {len(hashes[tower])} frozen tensors of "
                    f"{identity['name']!r} are not as they were: {_some(altered)}; restore its "
                    "weights, or train again"
                )
        raise ValueError(
            f"{message}{identity} there, {other} here; use the backbone and options it was trained "
            "with, or train again"
        )


def _without_name(identity: Mapping[str, Any]) -> str:
    """What tokens rest on: equal weights have other names in a folder or at a later revision."""
    return canonical({k: v for k, v in identity.items() if k not in ORIGIN})


def _without_hashes(identity: Mapping[str, Any]) -> str:
    options = {k: v for k, v in identity["options"].items() if k not in WEIGHTS}
    return canonical({**identity, "sha256": None, "options": options})


def _altered(recorded: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    names = recorded.keys() | found.keys()
    return sorted(name for name in names if recorded.get(name) != found.get(name))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
