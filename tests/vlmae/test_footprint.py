"""Sizes, tokens and activations without weights are those of the same model with them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from plain_suffix import TransformerSuffix
from tiny_backbone_confs import TINY, tiny_overrides
from torch import Tensor, nn

from vlmae.backbones.suffix import Suffix
from vlmae.checkpoint import build_model
from vlmae.config import as_dict, compose_config
from vlmae.data.decode import Clip
from vlmae.data.token_table import widths
from vlmae.footprint.activations import Activations, measure
from vlmae.footprint.arithmetic import COPY, START, Placement, gpu_lines, host_lines, peak
from vlmae.footprint.size import WORDS, ModelSize, token_shapes, weightless_model
from vlmae.fusion import CrossAttentionFusion
from vlmae.model import VlmaeModel
from vlmae.module import VlmaeModule
from vlmae.objectives import MultiTaskBinary
from vlmae.optimizers import OptimizerConfig
from vlmae.settings import model_config, tower_nodes
from vlmae.strategy import StrategyConfig
from vlmae.tokens import Tokens
from vlmae.towers import Towers, build_towers

STREAMS = {"vl": {"image": 16, "text": 16}, "audio": {"audio": 24}}
SHAPES = {"image": (6, 16), "text": (1, 16), "audio": (40, 24)}
BATCH = 3
ADAM = OptimizerConfig(1e-3, 0.1, 0.1, 1.0)


class Block(nn.Module):
    """A transformer block, called as encoders' blocks are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        hidden = hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0]
        return hidden + self.mlp(hidden) + 0 * mask[:, 0, 0, :, None]


def tuned() -> VlmaeModel:
    """Three blocks behind the cut of the audio stream."""
    layers = nn.ModuleDict({str(number): Block(24) for number in range(3)})
    suffix = Suffix({"audio": TransformerSuffix(layers, nn.LayerNorm(24), 4, 24)})
    fusion = CrossAttentionFusion(width=16, heads=2, layers=1, dropout=0.1)
    return VlmaeModel(STREAMS, 6, fusion, ["a", "b"], 0.1, suffix)


def saved_by(model: VlmaeModel, *, bf16: bool) -> int:
    """Bytes that autograd keeps of a real forward pass, each storage once, weights not."""
    batch = {
        name: Tokens(torch.randn(BATCH, length, width), torch.ones(BATCH, length).bool())
        for name, (length, width) in SHAPES.items()
    }
    held = [*model.parameters(), *model.buffers(), *(tokens.values for tokens in batch.values())]
    ignored = {tensor.untyped_storage().data_ptr() for tensor in held}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in ignored:
            kept[address] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        output = model.train()(batch)
    assert output.logits.shape == (BATCH, 2)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("bf16", [False, True])
def test_as_much_is_counted_as_a_real_pass_keeps(bf16: bool) -> None:
    model = tuned()
    counted = measure(model, SHAPES, BATCH, bf16=bf16, recompute=False)
    real = saved_by(model, bf16=bf16)
    # Casts of autocast are a few numbers off.
    assert counted.saved == real if not bf16 else abs(counted.saved - real) < 0.005 * real
    assert counted.total > counted.saved > BATCH * 40 * 24 * 4 * 3


def test_recomputed_blocks_keep_their_inputs_and_one_block() -> None:
    model = tuned()
    plain = measure(model, SHAPES, BATCH, bf16=False, recompute=False)
    less = measure(model, SHAPES, BATCH, bf16=False, recompute=True)
    assert not model.suffix["audio"].checkpointing  # type: ignore[index,union-attr]
    model.suffix["audio"].checkpointing = True  # type: ignore[index,union-attr]
    assert less.saved == saved_by(model, bf16=False)
    # What three equal blocks keep is saved, less their inputs; one of them is made again.
    assert less.recomputed < plain.saved / 3
    assert less.saved + 3 * less.recomputed > plain.saved
    assert less.total < plain.total


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group, towers in TINY.items() for name in towers]
)
def test_a_tower_without_weights_is_as_large(tmp_path: Path, group: str, name: str) -> None:
    overrides = [f"{group}={name}", "tuning=lora", *tiny_overrides(group, name, tmp_path)]
    values: Any = as_dict(compose_config("train", overrides))
    vl, audio = tower_nodes(values)
    config = model_config(values, ["a", "b"])
    loaded, model = build_towers(vl, audio), build_model(config, {"vl": vl, "audio": audio})
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    empty, towers, size = weightless_model(vl, audio, config)
    shapes = {n: (p.shape, p.requires_grad, p.dtype) for n, p in model.named_parameters()}
    assert {n: (p.shape, p.requires_grad, p.dtype) for n, p in empty.named_parameters()} == shapes
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert sum(size.trained) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    frames, sound = np.zeros((2, 360, 640, 3), np.uint8), np.zeros(3 * loaded.sample_rate)
    clip = Clip("planned", "word " * WORDS, frames, sound.astype(np.float32), None)
    seen = loaded.prefix([clip])
    assert token_shapes(towers, 2, 3.0) == {n: tuple(seen[n][0].shape) for n in seen}
    tokens = token_shapes(towers, 2, 3.0)
    assert measure(empty, tokens, 2, bf16=True, recompute=True).saved > 0


def test_strategies_divide_what_they_say() -> None:
    size = ModelSize((8_000_000, 1000), (4_000_000,), buffers=64, prefix=10**9, loaded=10**7)
    activations = measure(tuned(), SHAPES, BATCH, bf16=False, recompute=False)

    def sizes(accumulate: int = 1, **settings: Any) -> dict[str, int]:
        placed = Placement(StrategyConfig(**settings), ADAM, 4, live=False, accumulate=accumulate)
        return {line.name: line.size for line in gpu_lines(size, activations, placed)}

    trained = 4 * 8_001_000
    ddp, zero1, zero2, zero3 = (sizes(name=n) for n in ("ddp", "zero1", "zero2", "zero3"))
    assert ddp["optimiser"] == 2 * trained == 4 * zero1["optimiser"]
    assert ddp["gradients"] == trained == 4 * zero1["gradients"] == 4 * zero2["gradients"]
    accumulated = sizes(accumulate=2, name="zero1")
    assert accumulated["gradients until the last micro-batch"] == trained
    assert "gradients until the last micro-batch" not in sizes(accumulate=2, name="zero2")
    assert ddp["weights"] == zero2["weights"] == 4 * 12_001_000 + 64
    # A quarter of each, and the small one whole, too.
    assert zero3["weights"] == 12_001_000 + 4000 + 64
    assert "frozen prefix" not in ddp
    assert sizes(name="zero3", hpz_ranks=2)[COPY] == 2 * 12_001_000
    assert sizes(communication_data_type="bf16")["communication buckets"] == trained * 3 // 2
    offloaded = StrategyConfig("zero3", True, True, hpz_ranks=2)
    placed = Placement(offloaded, ADAM, ranks=4, live=True)
    gpu = {line.name: line.size for line in gpu_lines(size, activations, placed)}
    assert gpu["weights"] == 4000 + 64
    assert not {"gradients", "optimiser", COPY} & set(gpu)
    host = {line.name: line.size for line in host_lines(size, placed)}
    assert host["offloaded optimiser"] == trained
    assert host["offloaded weights"] == 12_001_000
    assert host[COPY] == 2 * 12_001_000


def test_live_towers_move_as_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["vl=clip", "tuning=last_2", "tuning.vl.blocks=1", "prefix.use=off"]
    overrides += tiny_overrides("vl", "clip", tmp_path)
    values: Any = as_dict(compose_config("train", overrides))
    vl, audio = tower_nodes(values)
    _, _, size = weightless_model(vl, audio, model_config(values, ["a", "b"]))
    assert size.prefix
    assert size.loaded
    towers = Towers(instantiate(vl), instantiate(audio))
    moved = []

    def prefix(clips: Sequence[Clip]) -> dict[str, list[Tensor]]:
        held = [t for t in (*towers.parameters(), *towers.buffers()) if t.is_meta]
        moved.append(sum(t.numel() * t.element_size() for t in held))
        return {name: [] for name in widths(towers.prefix_streams)}

    monkeypatch.setattr(towers, "prefix", prefix)
    # The one device besides the CPU that is there everywhere has no autocast.
    monkeypatch.setattr("vlmae.module.torch.autocast", lambda *_, **__: nullcontext())
    module = VlmaeModule(tuned(), MultiTaskBinary(["a", "b"], {}), ADAM, 1, towers).to("meta")
    module.encode([])
    placed = Placement(StrategyConfig(), ADAM, ranks=2, live=True)
    lines = {line.name: line for line in gpu_lines(size, Activations(0, 0, 0, 0), placed)}
    own = lines["the towers' own blocks behind the cut"]
    assert moved == [lines["frozen prefix"].size + own.size]
    host = {line.name: line for line in host_lines(size, placed)}["towers as they were loaded"]
    assert (host.size, host.when) == (moved[0], START), "nothing of them stays in the host"
    cached = Placement(StrategyConfig(), ADAM, ranks=2, live=False)
    names = {line.name for line in gpu_lines(size, Activations(0, 0, 0, 0), cached)}
    assert not {"frozen prefix", own.name} & names


def test_the_peak_is_of_one_phase() -> None:
    size = ModelSize((10**9,), (), buffers=0, prefix=0, loaded=0)
    activations = measure(tuned(), SHAPES, BATCH, bf16=False, recompute=False)
    placed = Placement(StrategyConfig(), ADAM, ranks=2, live=False)
    phase, most = peak(gpu_lines(size, activations, placed))
    # Weights, gradients, two moments and buckets, and the step's workspace or a second model.
    assert most == 6 * 4 * 10**9
    assert phase in ("step", "end")
