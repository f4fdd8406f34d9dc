"""Tuning modes: what each of them moves in a real training, and what it leaves as it was loaded."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_audio_models
import tiny_models
import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from lsb.artifact import Stage
from vlmae.backbones.base import tensor_sha256, weights_sha256
from vlmae.checkpoint import build_model
from vlmae.config import as_dict, compose_config
from vlmae.data.batches import ClipBatch
from vlmae.data.decode import Clip
from vlmae.data.prefix_cache import Prefix, cache_prefix, find_cache
from vlmae.data.token_source import LiveTokens, open_source
from vlmae.lora import loaded_name
from vlmae.model import VlmaeModel
from vlmae.module import VlmaeModule
from vlmae.objectives import MultiTaskBinary
from vlmae.optimizers import OptimizerConfig
from vlmae.parameter_counts import count_by_part, part_counts, part_table
from vlmae.settings import tower_nodes
from vlmae.tokens import Tokens, pad
from vlmae.towers import build_suffix, build_towers
from vlmae.tuning import TowerTuning, tuned_node, tuning_config

ClipMaker = Callable[..., Clip]
PrefixMaker = Callable[..., Prefix]
Nodes = dict[str, dict[str, Any]]
Groups = dict[str, dict[str, Any]]
STEPS = 4
MODES: dict[str, Groups] = {
    "frozen": {"vl": {"mode": "frozen"}, "audio": {"mode": "frozen"}},
    "last": {"vl": {"mode": "last", "blocks": {"text": 1}}, "audio": {"mode": "last", "blocks": 1}},
    "lora": {
        "vl": {"mode": "lora", "blocks": 1, "rank": 2},
        "audio": {"mode": "lora", "blocks": 1},
    },
    "lora in every block": {
        "vl": {"mode": "lora", "blocks": "all", "targets": ["q_proj"]},
        "audio": {"mode": "frozen"},
    },
    "full": {"vl": {"mode": "full"}, "audio": {"mode": "full"}},
    "adapters": {"vl": {"mode": "adapters", "blocks": 1}, "audio": {"mode": "last", "blocks": 1}},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Nodes:
    """Nodes of a tiny CLIP and a tiny Whisper."""
    folder = tmp_path_factory.mktemp("tiny")
    vl, audio = folder / "clip", folder / "whisper"
    return {
        "vl": {
            "_target_": "vlmae.backbones.dual.DualEncoder",
            "model": str(tiny_models.clip(vl)),
        },
        "audio": {
            "_target_": "vlmae.backbones.whisper.Whisper",
            "model": tiny_audio_models.whisper(audio),
            "pool": 10,
        },
    }


@pytest.fixture(scope="module")
def batch(make_clip: ClipMaker) -> ClipBatch:
    clips = [make_clip(n, title=f"title {n}", seconds=0.5 + 0.1 * (n % 2)) for n in range(4)]
    labels = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]])
    return ClipBatch(clips, labels, np.arange(4))


def tuned(nodes: Nodes, groups: Groups) -> tuple[Nodes, dict[str, TowerTuning]]:
    """Nodes cut as the groups say, and the tuning."""
    tuning = tuning_config(groups)
    return {tower: tuned_node(nodes[tower], tuning[tower]) for tower in nodes}, tuning


def model_of(nodes: Nodes, groups: Groups, fusion: str = "cross_attention") -> VlmaeModel:
    """A narrow model with whitening that lets everything through."""
    variants: dict[str, dict[str, Any]] = {
        "cross_attention": {
            "_target_": "vlmae.fusion.CrossAttentionFusion",
            **{"width": 8, "heads": 2, "layers": 1, "dropout": 0.0},
        },
        "deep": {"_target_": "vlmae.fusion.DeepFusion", "width": 8, "heads": 2, "dropout": 0.0},
    }
    torch.manual_seed(0)
    config = {
        "fusion": variants[fusion],
        "tasks": ["a", "b"],
        "components": 6,
        "dropout": 0.0,
        "tuning": groups,
    }
    model = build_model(config, nodes)
    model.set_whitening(
        {
            name: (torch.zeros(width), torch.randn(width, 6) / width**0.5)
            for streams in model.streams.values()
            for name, width in streams.items()
        }
    )
    return model


class Hashes(Callback):
    """Hash of every tensor of the model before each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, str]] = []

    def on_train_batch_start(self, trainer: Trainer, module: VlmaeModule, *_: Any) -> None:
        self.steps.append(tensor_sha256(module.model))


def fit(nodes: Nodes, groups: Groups, batch: ClipBatch, fusion: str) -> tuple[VlmaeModel, Hashes]:
    """A real training on clips, live; hashes before every step and after the last."""
    model = model_of(nodes, groups, fusion)
    module = VlmaeModule(
        model,
        MultiTaskBinary(["a", "b"], {}),
        OptimizerConfig(0.01, 0.1, 0.0, 1.0),
        STEPS,
        build_towers(**nodes),
        tuning=tuning_config(groups),
    )
    hashes = Hashes()
    Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        callbacks=[hashes],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, DataLoader([batch] * STEPS, batch_size=None))
    hashes.steps.append(tensor_sha256(model))
    return model, hashes


def moves(name: str, mode: str) -> bool:
    """Whether a training in a mode of `MODES` is to move this parameter of the model."""
    if not name.startswith("suffix."):
        return True
    stream = name.split(".")[1]
    return {
        "last": stream != "image",
        "lora": ".lora_" in name,
        "lora in every block": ".lora_" in name and ".q_proj." in name,
        "full": True,
        "adapters": stream == "audio",
    }[mode]


UNSEEN = "k_proj.bias"
"""Of a key, which shifts all scores of a query alike: softmax does not see it."""


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:Warning", "ignore:.*num_workers.*:UserWarning")
@pytest.mark.parametrize("mode", MODES)
def test_training_moves_what_a_mode_says_and_nothing_else(
    mode: str, tiny: Nodes, batch: ClipBatch
) -> None:
    nodes, _ = tuned(tiny, MODES[mode])
    towers = build_towers(**nodes)
    before = weights_sha256(towers)
    fusion = "deep" if mode == "adapters" else "cross_attention"
    model, hashes = fit(nodes, MODES[mode], batch, fusion)
    assert weights_sha256(towers) == before, "the shared towers are as they were loaded"
    assert towers.identities() == build_towers(**nodes).identities()
    first, last = hashes.steps[0], hashes.steps[-1]
    moved = {name for name in first if first[name] != last[name]}
    expected = {name for name, _ in model.named_parameters() if moves(name, mode)}
    assert moved - expected == set(), "frozen tensors stay, bit for bit"
    assert {name for name in expected - moved if not name.endswith(UNSEEN)} == set()
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trains == expected
    streams = {name.split(".")[1] for name in first if name.startswith("suffix.")}
    assert streams == {
        "frozen": set(),
        "last": {"text", "audio"},
        "lora in every block": {"image", "text"},
    }.get(mode, {"image", "text", "audio"})
    embeddings = {name for name in moved if "embed" in name and name.startswith("suffix.")}
    assert bool(embeddings) == (mode == "full"), "full trains the embeddings, live"


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:Warning", "ignore:.*num_workers.*:UserWarning")
@pytest.mark.parametrize("mode", ["last", "lora", "full"])
def test_a_tower_is_bit_equal_until_it_is_unfrozen(
    mode: str, tiny: Nodes, batch: ClipBatch
) -> None:
    late: Groups = {
        "vl": MODES[mode]["vl"],
        "audio": {**MODES[mode]["audio"], "unfreeze": 0.5},
    }
    nodes, _ = tuned(tiny, late)
    _, hashes = fit(nodes, late, batch, "cross_attention")
    parts: dict[str, list[set[str]]] = {"audio": [], "text": []}
    for earlier, later in zip(hashes.steps, hashes.steps[1:], strict=False):
        for stream, found in parts.items():
            names = [name for name in earlier if name.startswith(f"suffix.{stream}.")]
            found.append({name for name in names if earlier[name] != later[name]})
    assert [bool(names) for names in parts["audio"]] == [False, False, True, True]
    assert all(parts["text"]), "the other tower moves from the first step on"


def tokens_of(nodes: Nodes, clips: list[Clip]) -> dict[str, Tokens]:
    towers = build_towers(**nodes)
    widths = {n: w for tower in towers.prefix_streams.values() for n, w in tower.items()}
    return {n: pad(values, widths[n]) for n, values in towers.prefix(clips).items()}


def test_lora_starts_as_the_loaded_model_exactly(tiny: Nodes, batch: ClipBatch) -> None:
    groups = MODES["lora"]
    nodes, tuning = tuned(tiny, groups)
    tokens = tokens_of(nodes, list(batch.clips))
    lora, loaded = build_suffix(**nodes, tuning=tuning), build_suffix(**nodes)
    assert lora is not None
    assert loaded is not None
    for name, expected in loaded(tokens).items():
        assert torch.equal(lora(tokens)[name].values, expected.values)
    state, as_loaded = lora.state_dict(), loaded.state_dict()
    names = {loaded_name(name): name for name in state}
    assert names.keys() - {None} == as_loaded.keys(), "base weights keep their names"
    assert all(torch.equal(state[names[name]], as_loaded[name]) for name in as_loaded)
    own = {name for name in state if loaded_name(name) is None}
    assert "audio.layers.2.self_attn.q_proj.lora_A.default.weight" in own
    assert all(state[name].shape[0] == 2 for name in own if "lora_A" in name and "text" in name)
    assert not any(state[name].any() for name in own if ".lora_B." in name)
    # With B away from zero the same modules say something else.
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if ".lora_B." in name:
                parameter.fill_(0.05)
    for name, expected in loaded(tokens).items():
        assert (lora(tokens)[name].values - expected.values).abs().max() > 1e-3


def test_lora_is_drawn_from_the_seed_of_the_caller(tiny: Nodes) -> None:
    nodes, tuning = tuned(tiny, MODES["lora"])
    hashes = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        suffix = build_suffix(**nodes, tuning=tuning)
        assert suffix is not None
        hashes.append(weights_sha256(suffix))
    assert hashes[0] == hashes[1] != hashes[2]


def test_lora_changes_the_layers_it_is_told_to(nodes: Nodes, tiny: Nodes) -> None:
    groups = {"audio": {"mode": "lora", "blocks": 2, "targets": ["q_proj", "fc2"], "alpha": 6}}
    cut, tuning = tuned(tiny, groups)
    suffix = build_suffix(**cut, tuning=tuning)
    assert suffix is not None
    trains = {name for name, p in suffix.named_parameters() if p.requires_grad}
    layers = {name.split(".lora_")[0] for name in trains}
    assert layers == {
        f"audio.layers.{block}.{layer}" for block in (1, 2) for layer in ("self_attn.q_proj", "fc2")
    }
    assert suffix.get_submodule("audio.layers.2.fc2").scaling == {"default": 6 / 8}
    # A pointwise convolution is a linear layer over channels.
    cut, tuning = tuned(nodes, {"vl": {"mode": "lora", "blocks": {"image": 1}}})
    suffix = build_suffix(**cut, tuning=tuning)
    assert suffix is not None
    trains = {name for name, p in suffix.named_parameters() if p.requires_grad}
    layers = {name.split(".lora_")[0].split(".")[-1] for name in trains}
    assert layers == {"_expand_conv", "_project_conv", "_conv_head"}


def test_lora_without_a_layer_to_change_is_refused(tiny: Nodes) -> None:
    groups = {"vl": {"mode": "lora", "blocks": 1, "targets": ["query"]}}
    cut, tuning = tuned(tiny, groups)
    with pytest.raises(ValueError, match=r"no layer for targets \['query'\].*'image'.*'q_proj'"):
        build_suffix(**cut, tuning=tuning)


def test_only_streams_that_train_are_ever_in_training_mode(tiny: Nodes) -> None:
    nodes, tuning = tuned(tiny, MODES["adapters"])
    suffix = build_suffix(**nodes, tuning=tuning)
    assert suffix is not None
    holder = nn.ModuleList([suffix]).train()
    assert not any(module.training for module in suffix["image"].modules())
    assert all(module.training for module in suffix["audio"].modules())
    holder.eval()
    assert not any(module.training for module in suffix.modules())


def test_lora_and_last_blocks_share_a_cut(tiny: Nodes) -> None:
    blocks = [2, {"image": 2, "text": 2}, {"text": 1, "image": 0}, {"text": 1}]
    for ours in blocks:
        cuts = {
            mode: tuned_node(tiny["vl"], TowerTuning(mode, ours))
            for mode in ("last", "lora", "adapters")
        }
        assert cuts["last"] == cuts["lora"] == cuts["adapters"]
    one, other = (tuned_node(tiny["vl"], TowerTuning("last", ours)) for ours in blocks[2:])
    assert one == other == {**tiny["vl"], "tuned_blocks": {"text": 1}}
    assert tuned_node(tiny["vl"], TowerTuning("full"))["tuned_blocks"] == "all"


def test_a_frozen_tower_has_the_node_it_always_had(tiny: Nodes) -> None:
    node = tiny["vl"]
    assert tuned_node(node, TowerTuning()) == node
    assert tuned_node({**node, "tuned_blocks": 0}, TowerTuning()) == node
    assert tuned_node({**node, "tuned_blocks": {"text": 0}}, None) == node


def test_a_node_with_other_blocks_than_its_tuning_is_refused(tiny: Nodes) -> None:
    node = {**tiny["vl"], "tuned_blocks": 2}
    assert tuned_node(node, TowerTuning("last", 2)) == tuned_node(node, None) == node
    for other in (TowerTuning(), TowerTuning("last", 1), TowerTuning("full")):
        with pytest.raises(ValueError, match=r"DualEncoder has tuned_blocks 2.*leave tuned_blocks"):
            tuned_node(node, other)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "some"}, "mode 'some': use one of frozen, last, lora, full, adapters"),
        ({"mode": "last"}, "mode last with blocks None: give how many"),
        ({"mode": "lora", "blocks": 0}, "mode lora with blocks 0"),
        ({"mode": "adapters", "blocks": {"text": 0}}, "mode adapters with blocks"),
        ({"mode": "last", "blocks": "all"}, "use mode full"),
        ({"mode": "last", "blocks": -1}, "blocks -1: give how many"),
        ({"mode": "last", "blocks": {"text": -1}}, "blocks .*'text': -1"),
        ({"mode": "last", "blocks": "most"}, "blocks"),
        ({"mode": "full", "blocks": 2}, "mode full with blocks 2.*use mode last"),
        ({"mode": "last", "blocks": 1, "learning_rate": 0}, "learning_rate 0"),
        ({"mode": "last", "blocks": 1, "unfreeze": 1.0}, r"unfreeze 1\.0"),
        ({"mode": "lora", "blocks": 1, "rank": 0}, "rank 0"),
        ({"mode": "lora", "blocks": 1, "lora_dropout": 1.0}, r"lora_dropout 1\.0"),
        ({"mode": "lora", "blocks": 1, "targets": []}, r"targets \[\]"),
        ({"mode": "lora", "blocks": 1, "targets": "q_proj"}, r"tuning\.vl\.targets"),
        ({"mode": "lora", "blocks": 1, "ranks": 4}, "tuning.vl has no key 'ranks'"),
    ],
)
def test_unfit_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tuning_config({"vl": values})


def test_unknown_and_unfit_towers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tuning has no tower 'video', only vl, audio"):
        tuning_config({"video": {"mode": "frozen"}})
    with pytest.raises(ValueError, match=r"tuning\.audio\.mode is 'adapters'"):
        tuning_config({"audio": {"mode": "adapters", "blocks": 1}})
    assert tuning_config(None) == {}
    assert tuning_config({"vl": {"mode": "last", "blocks": 1}})["audio"] == TowerTuning()


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"mode": "frozen", "blocks": 2}, "blocks without effect in mode frozen"),
        ({"mode": "last", "blocks": 1, "rank": 4}, "rank without effect in mode last"),
        ({"mode": "full", "targets": ["q_proj"]}, "targets without effect"),
        ({"mode": "adapters", "blocks": 1, "unfreeze": 0.5}, "unfreeze without effect"),
    ],
)
def test_what_has_no_effect_warns(values: dict[str, Any], keys: str) -> None:
    with pytest.warns(UserWarning, match=keys):
        tuning_config({"vl": values})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("group", "vl", "audio"),
    [
        ("frozen", None, None),
        ("last_2", 2, 2),
        ("lora", 2, 2),
        ("full", "all", "all"),
        ("deep", 2, None),
    ],
)
def test_groups_cut_the_towers(group: str, vl: Any, audio: Any) -> None:
    nodes = tower_nodes(as_dict(compose_config("train", [f"tuning={group}"])))
    assert [node.get("tuned_blocks") for node in nodes] == [vl, audio]


def test_what_is_cut_at_its_inputs_is_not_cached(
    tmp_path: Path,
    tiny: Nodes,
    nodes: Nodes,
    make_data: Callable[..., Stage],
    make_media: Callable[..., bytes],
    prefix_on: PrefixMaker,
) -> None:
    towers = build_towers(**tuned(tiny, MODES["full"])[0])
    assert towers.uncacheable.startswith("tuning.vl cuts stream 'image' at its inputs (mode full")
    for mode in ("frozen", "last", "lora", "adapters"):
        assert build_towers(**tuned(tiny, MODES[mode])[0]).uncacheable == ""
    # Pixels in front of convolutions are exact in a cache.
    pixels, _ = tuned(nodes, {"vl": {"mode": "last", "blocks": {"image": "all"}}})
    assert build_towers(**pixels).uncacheable == ""
    cut, _ = tuned(tiny, MODES["full"])
    prefix = prefix_on(make_data(tmp_path, {"pool-0": [("clip", make_media())]}), **cut)
    with pytest.raises(ValueError, match=r"no frozen prefix to cache; train live"):
        cache_prefix(tmp_path, prefix)
    assert find_cache(tmp_path, prefix) is None
    said: list[str] = []
    assert isinstance(open_source(tmp_path, prefix, said.append), LiveTokens)
    assert said[0].startswith("no cache:")
    required = dataclasses.replace(prefix, config=dataclasses.replace(prefix.config, use="require"))
    with pytest.raises(ValueError, match=r"prefix\.use=require, and tuning\.vl cuts"):
        open_source(tmp_path, required, said.append)


def test_random_prefixes_and_positions_in_int8_are_not_cached(
    tmp_path: Path,
    tiny: Nodes,
    make_data: Callable[..., Stage],
    make_media: Callable[..., bytes],
    prefix_on: PrefixMaker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = make_data(tmp_path, {"pool-0": [("clip", make_media())]})
    random = {**tiny["audio"], "spec_augment": {"time": 4, "frequency": 2, "masks": 1}}
    with pytest.raises(ValueError, match=r"prefix of the audio tower is random \(spec_augment"):
        cache_prefix(tmp_path, prefix_on(data, vl=tiny["vl"], audio=random))
    monkeypatch.setattr(type(build_towers(**tiny).vl), "needs_float_cache", True)
    with pytest.raises(ValueError, match=r"prefix\.dtype=int8 .* use float16 or bfloat16"):
        cache_prefix(tmp_path, prefix_on(data, **tiny, dtype="int8"))
    assert find_cache(tmp_path, prefix_on(data, **tiny)) is None


def test_parameters_are_counted_by_part(tiny: Nodes) -> None:
    nodes, _ = tuned(tiny, MODES["adapters"])
    model = model_of(nodes, MODES["adapters"], "deep")
    counts = count_by_part(model)
    assert list(counts) == [
        *("suffix.image", "suffix.text", "suffix.audio"),
        *("fusion", "project", "vl_head", "audio_head", "heads"),
    ]
    trainable, size = counts["suffix.image"]
    assert (trainable, size) == (0, sum(p.numel() for p in model.suffix["image"].parameters()))
    assert counts["suffix.audio"][0] == counts["suffix.audio"][1] > 0
    assert sum(size for _, size in counts.values()) == sum(p.numel() for p in model.parameters())
    kept = part_counts(model)
    assert "trainable: suffix.image" not in kept
    printed = io.StringIO()
    Console(width=80, file=printed).print(part_table({"labels": 3, **kept}))
    lines = {
        line.split("│")[1].strip(): line for line in printed.getvalue().splitlines() if "│" in line
    }
    assert lines.keys() == counts.keys() | {"sum"}
    assert "100.0%" in lines["suffix.audio"]
    assert f"{sum(t for t, _ in counts.values()):,}" in lines["sum"]
