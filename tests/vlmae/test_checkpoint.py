"""Checkpoints: what is in them, what is not, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lsb.artifact import Stage, canonical
from vlmae import towers as shared
from vlmae.backbones.base import tensor_sha256
from vlmae.checkpoint import (
    BINARY,
    CHECKPOINT,
    build_model,
    frozen_names,
    load_checkpoint,
    save_checkpoint,
)
from vlmae.data.decode import Clip
from vlmae.model import VlmaeModel
from vlmae.tokens import Tokens, pad
from vlmae.towers import build_towers
from vlmae.tuning import tuned_node, tuning_config

ClipMaker = Callable[..., Clip]
Nodes = dict[str, dict[str, Any]]
FROZEN = {"vl": {"mode": "frozen"}, "audio": {"mode": "frozen"}}
LORA = {
    "vl": {"mode": "lora", "blocks": {"text": 1}, "rank": 2},
    "audio": {"mode": "lora", "blocks": 1, "rank": 2, "targets": ["q_proj"]},
}
ADAPTERS = {"vl": {"mode": "adapters", "blocks": {"text": 1}}, "audio": {"mode": "frozen"}}
LAST = {"vl": {"mode": "last", "blocks": {"text": 1}}, "audio": {"mode": "frozen"}}


def tuned_nodes(nodes: Nodes, tuning: dict[str, Any]) -> Nodes:
    parts = tuning_config(tuning)
    return {tower: tuned_node(node, parts[tower]) for tower, node in nodes.items()}


def model_of(nodes: Nodes, tuning: dict[str, Any], config: dict[str, Any]) -> VlmaeModel:
    torch.manual_seed(5)
    model = build_model({**config, "tuning": tuning}, nodes)
    for name, buffer in model.named_buffers():
        if name.endswith((".map", ".mean")):
            buffer.copy_(torch.randn_like(buffer))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def save(path: Path, model: VlmaeModel, nodes: Nodes, config: dict[str, Any], **more: Any) -> Path:
    towers = build_towers(nodes["vl"], nodes["audio"])
    save_checkpoint(
        path,
        model,
        model_config=config,
        towers=nodes,
        frozen=towers.identities(),
        training_set="abc",
        thresholds={"relevance": 0.25, "unsafe": 0.5},
        **more,
    )
    return path


def streams_of(nodes: Nodes, make_clip: ClipMaker) -> dict[str, Tokens]:
    towers = build_towers(nodes["vl"], nodes["audio"])
    tokens = towers.prefix([make_clip(seed) for seed in range(3)])
    widths = {n: w for tower in towers.prefix_streams.values() for n, w in tower.items()}
    return {name: pad(tokens[name], width) for name, width in widths.items()}


@pytest.mark.parametrize(
    "tuning", [FROZEN, LORA, ADAPTERS, LAST], ids=["frozen", "lora", "adapters", "last"]
)
def test_frozen_weights_inside_the_suffix_come_from_the_towers(
    tmp_path: Path,
    nodes: Nodes,
    model_config: dict[str, Any],
    make_clip: ClipMaker,
    tuning: dict[str, Any],
) -> None:
    config = {**model_config, "tuning": tuning}
    if tuning is ADAPTERS:
        config["fusion"] = {
            "_target_": "vlmae.fusion.DeepFusion",
            "width": 16,
            "heads": 2,
            "dropout": 0.0,
        }
    nodes = tuned_nodes(nodes, tuning)
    model = model_of(nodes, tuning, config)
    path = save(tmp_path / CHECKPOINT, model, nodes, config)
    saved = load_file(path)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    buffers = {name for name, _ in model.named_buffers()} & model.state_dict().keys()
    assert saved.keys() == trained | buffers
    behind = {name for name in saved if name.startswith("suffix.")}
    assert bool(behind) == (tuning is LORA or tuning is LAST)
    if tuning is LORA:
        assert all("lora_" in name for name in behind)
        assert len(frozen_names(model)) > 20
    if tuning in (FROZEN, LAST):
        assert not frozen_names(model)
    loaded = load_checkpoint(path)
    streams = streams_of(nodes, make_clip)
    with torch.inference_mode():
        ours, other = model.eval()(streams), loaded.model(streams)
    assert torch.equal(ours.logits, other.logits)
    assert torch.equal(ours.embedding, other.embedding)
    assert ours.logits.abs().max() > 0


def test_objective_and_temperatures_are_kept_and_have_defaults(
    tmp_path: Path, nodes: Nodes, model_config: dict[str, Any]
) -> None:
    model = model_of(nodes, FROZEN, model_config)
    plain = load_checkpoint(save(tmp_path / "a", model, nodes, model_config))
    assert plain.objective == BINARY
    assert plain.temperatures == {"relevance": 1.0, "unsafe": 1.0}
    assert plain.thresholds == {"relevance": 0.25, "unsafe": 0.5}
    assert plain.towers == nodes
    objective = {"_target_": "vlmae.objectives.MultiTaskBinary", "weights": {"unsafe": 2.0}}
    path = save(
        tmp_path / "b",
        model,
        nodes,
        model_config,
        objective=objective,
        temperatures={"unsafe": 1.5},
    )
    given = load_checkpoint(path, build_towers(**nodes).identities())
    assert given.objective == objective
    assert given.temperatures == {"relevance": 1.0, "unsafe": 1.5}
    assert given.training_set == "abc"


def rewritten(
    path: Path,
    change: Callable[[dict[str, Tensor], dict[str, Any]], None],
) -> Path:
    with safe_open(path, framework="pt") as stream:
        metadata = json.loads(stream.metadata()["vlmae"])
    tensors = load_file(path)
    change(tensors, metadata)
    other = path.with_name("other.safetensors")
    save_file(tensors, other, metadata={"vlmae": canonical(metadata)})
    return other


def drop(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    del tensors["project.audio.linear.weight"]


def add(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors["suffix.audio.layers.3.fc1.weight"] = torch.zeros(2)


def halve(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors["project.audio.linear.bias"] = tensors["project.audio.linear.bias"].half()


def reshape(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors["project.audio.linear.bias"] = tensors["project.audio.linear.bias"][:4].clone()


def age(_: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    metadata["version"] = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"lacks tensors, 1 in all: project\.audio\.linear\.weight: .*restore it, or train"),
        (add, r"has unknown tensors, 1 in all: suffix\.audio\.layers\.3\.fc1\.weight"),
        (halve, r"has other tensors.*linear\.bias torch\.float16 \(16,\) for torch\.float32"),
        (reshape, r"has other tensors.*linear\.bias torch\.float32 \(4,\) for torch\.float32 \(16"),
        (age, r"version 2, this release reads .* version 3: train again with this release"),
    ],
)
def test_damaged_and_older_checkpoints_are_refused(
    trained: Stage, tmp_path: Path, change: Any, message: str
) -> None:
    path = tmp_path / CHECKPOINT
    path.write_bytes((trained.path / CHECKPOINT).read_bytes())
    with pytest.raises(ValueError, match=message):
        load_checkpoint(rewritten(path, change))


def test_truncated_absent_and_foreign_files_are_refused(trained: Stage, tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    with pytest.raises(ValueError, match=r"there is no checkpoint .*vlmae\.train"):
        load_checkpoint(path)
    whole = (trained.path / CHECKPOINT).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_checkpoint(path)
    save_file({"a": torch.zeros(1)}, path, metadata={"vlmae": "{half"})
    with pytest.raises(ValueError, match="has damaged metadata"):
        load_checkpoint(path)


def test_missing_adapter_is_no_frozen_weight(
    tmp_path: Path, nodes: Nodes, model_config: dict[str, Any]
) -> None:
    nodes = tuned_nodes(nodes, LORA)
    config = {**model_config, "tuning": LORA}
    path = save(tmp_path / CHECKPOINT, model_of(nodes, LORA, config), nodes, config)

    def without_an_adapter(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
        del tensors[next(name for name in sorted(tensors) if "lora_B" in name)]

    with pytest.raises(ValueError, match=r"lacks tensors, 1 in all: suffix\..*lora_B"):
        load_checkpoint(rewritten(path, without_an_adapter))


@pytest.fixture
def fresh_towers() -> Iterator[None]:
    """Towers are loaded once a process; these tests change their files."""
    shared._build.cache_clear()
    yield
    shared._build.cache_clear()


def test_weights_altered_on_disk_are_refused_by_name(
    tmp_path: Path,
    nodes: Nodes,
    model_config: dict[str, Any],
    fresh_towers: None,
) -> None:
    folder = tiny_models.clip(tmp_path / "tiny-clip")
    mine = {
        "vl": {"_target_": "vlmae.backbones.dual.DualEncoder", "model": str(folder)},
        "audio": nodes["audio"],
    }
    path = save(tmp_path / CHECKPOINT, model_of(mine, FROZEN, model_config), mine, model_config)
    before = build_towers(**mine)
    old_identities, old_hashes = before.identities(), tensor_sha256(before.vl)
    load_checkpoint(path)

    file = folder / "model.safetensors"
    weights = load_file(file)
    altered = next(name for name in weights if name.endswith("layers.0.mlp.fc1.bias"))
    weights[altered][0] += 1e-3
    save_file(weights, file, metadata={"format": "pt"})
    shared._build.cache_clear()
    after = build_towers(**mine)
    changed = {n for n, h in tensor_sha256(after.vl).items() if old_hashes[n] != h}
    assert len(changed) == 1
    message = rf"another vl tower: 1 of {len(old_hashes)} frozen tensors of 'tiny-clip' .*"
    message += rf"{next(iter(changed))}; restore its weights"
    for frozen in (None, after.identities()):
        with pytest.raises(ValueError, match=message.replace(".layers", r"\.layers")):
            load_checkpoint(path, frozen)
    # Tokens of a cache are those of the weights as they were: fully frozen, nothing else is read.
    load_checkpoint(path, old_identities)


@pytest.mark.parametrize("blocks", [0, 1], ids=["frozen", "lora"])
def test_equal_weights_under_another_name_or_revision_are_the_same_tower(
    tmp_path: Path, nodes: Nodes, model_config: dict[str, Any], fresh_towers: None, blocks: int
) -> None:
    lora = {"vl": {"mode": "lora", "blocks": 1, "rank": 2}, "audio": {"mode": "frozen"}}
    tuning = lora if blocks else FROZEN
    folder = tiny_models.clip(tmp_path / "tiny-clip")
    dual = {"_target_": "vlmae.backbones.dual.DualEncoder", "model": str(folder)}
    mine = tuned_nodes({"vl": dual, "audio": nodes["audio"]}, tuning)
    config = {**model_config, "tuning": tuning}
    path = save(tmp_path / CHECKPOINT, model_of(mine, tuning, config), mine, config)
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    loaded = load_checkpoint(path, towers={"vl": {"model": str(moved)}})
    assert loaded.frozen["vl"]["name"] == "tiny-clip"
    assert loaded.towers["vl"]["model"] == str(moved)
    identities = build_towers(**loaded.towers).identities()
    assert identities["vl"]["name"] == "elsewhere"
    load_checkpoint(path, identities)
    load_checkpoint(path, {**identities, "vl": {**identities["vl"], "revision": "0123abc"}})

    vl, message = identities["vl"], "was trained on another vl tower"
    for other in (
        None,
        {**vl, "sha256": "0" * 64},
        {**vl, "options": {**vl["options"], "dtype": "bfloat16"}},
        {**vl, "more": 1},
    ):
        with pytest.raises(ValueError, match=message):
            load_checkpoint(path, {**identities, "vl": other})
    file = moved / "model.safetensors"
    weights = load_file(file)
    # The last by name is behind the cut where there is one: only suffix_sha256 tells of it.
    name = next(n for n in sorted(weights, reverse=True) if n.endswith("fc1.weight"))
    weights[name][0, 0] += 1e-3
    save_file(weights, file, metadata={"format": "pt"})
    shared._build.cache_clear()
    altered = build_towers(**loaded.towers).identities()["vl"]
    assert (altered["sha256"] == vl["sha256"]) == bool(blocks)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path, towers={"vl": {"model": str(moved)}})


def test_altered_weights_behind_the_cut_are_refused_with_a_cache_too(
    tmp_path: Path, nodes: Nodes, model_config: dict[str, Any], fresh_towers: None
) -> None:
    folder = tiny_models.clip(tmp_path / "tiny-clip")
    tuning = {"vl": {"mode": "lora", "blocks": 1, "rank": 2}, "audio": {"mode": "frozen"}}
    mine = tuned_nodes(
        {
            "vl": {"_target_": "vlmae.backbones.dual.DualEncoder", "model": str(folder)},
            "audio": nodes["audio"],
        },
        tuning,
    )
    config = {**model_config, "tuning": tuning}
    path = save(tmp_path / CHECKPOINT, model_of(mine, tuning, config), mine, config)
    identities = build_towers(**mine).identities()
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = next(n for n in sorted(weights, reverse=True) if n.endswith("fc1.weight"))
    weights[name][0, 0] += 1e-3
    save_file(weights, file, metadata={"format": "pt"})
    shared._build.cache_clear()
    with pytest.raises(ValueError, match=r"1 of \d+ frozen tensors.*tail\..*fc1\.weight"):
        load_checkpoint(path, identities)


def test_tensor_hashes_tell_type_shape_and_bits_apart() -> None:
    module = torch.nn.Linear(2, 3)
    first = tensor_sha256(module)
    assert sorted(first) == ["bias", "weight"]
    assert all(len(digest) == 16 for digest in first.values())
    with torch.no_grad():
        module.weight[0, 0] = torch.nextafter(module.weight[0, 0], torch.tensor(9.0))
    second = tensor_sha256(module)
    assert second["bias"] == first["bias"]
    assert second["weight"] != first["weight"]
    assert tensor_sha256(module.double())["bias"] != first["bias"]
