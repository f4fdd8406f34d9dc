"""Small models under every fusion variant of conf/fusion, and batches for them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from plain_suffix import TransformerSuffix
from torch import Tensor, nn

from vlmae.backbones.suffix import Suffix
from vlmae.config import as_dict, compose_config, conf_dir
from vlmae.fusion import Fusion
from vlmae.model import Output, VlmaeModel
from vlmae.objectives import MultiTaskBinary
from vlmae.tokens import Tokens

STREAMS = {"vl": {"image": 12, "text": 8}, "audio": {"audio": 10}}
LENGTHS = {"image": 3, "text": 4, "audio": 5}
WIDTHS = {"image": 12, "text": 8, "audio": 10}
TASKS = ["a", "b"]
LABELS = torch.tensor([[1, 0], [0, 1], [1, -1], [0, 0], [1, 1], [0, 1]])
VARIANTS = sorted(file.stem for file in (Path(conf_dir()) / "fusion").glob("*.yaml"))
"""A new file is tested at once."""
WIDTH = 16
# Other sizes than the published ones: small, and a number of heads that divides all widths here.
SMALL = {"width": WIDTH, "heads": 2, "hidden": 32, "dropout": 0.0}
# What starts at zero and holds other parts' gradients back until it has moved.
CLOSED = ("_gate", ".nothing", "modulation.weight")
Streams = dict[str, Tokens]


@cache
def node_of(variant: str) -> dict[str, Any]:
    """The variant as Hydra composes it for a command."""
    return as_dict(compose_config("train", [f"fusion={variant}"]).fusion)


def fusion_of(variant: str, **changes: Any) -> Fusion:
    """The variant at the size of these tests, or as changed."""
    node = dict(node_of(variant))
    target = get_class(str(node.pop("_target_")))
    small = {name: value for name, value in SMALL.items() if name in node}
    fusion: Fusion = target(**{**node, **small, **changes})
    return fusion


class Block(nn.Module):
    """A transformer block as those of transformers are called: hidden states, additive mask."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        normed = self.norm(hidden)
        scores = self.query(normed) @ self.key(normed).transpose(1, 2) + mask[:, 0]
        hidden = hidden + scores.softmax(dim=-1) @ self.value(normed)
        result: Tensor = hidden + self.feed_forward(hidden)
        return result


def text_suffix(width: int, blocks: int = 2) -> Suffix:
    """The last blocks of a text encoder of five, behind the cut."""
    layers = nn.ModuleDict({str(5 - blocks + n): Block(width) for n in range(blocks)})
    return Suffix({"text": TransformerSuffix(layers, nn.LayerNorm(width), 1, width)})


def build(
    variant: str, *, opened: bool = True, seed: int = 0, dropout: float = 0.0, **changes: Any
) -> VlmaeModel:
    """A model with random whitening; `opened` moves what starts closed off its zeros."""
    torch.manual_seed(seed)
    fusion = fusion_of(variant)
    suffix = text_suffix(WIDTHS["text"]) if fusion.acts_inside else None
    model = VlmaeModel(STREAMS, 6, fusion, TASKS, dropout, suffix, **changes)
    model.set_whitening({n: (torch.randn(w), torch.randn(w, 6)) for n, w in WIDTHS.items()})
    if opened:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(CLOSED):
                    parameter.copy_(0.5 + torch.rand_like(parameter))
    return model.eval()


def batch(
    size: int = 6,
    seed: int = 1,
    without_audio: tuple[int, ...] = (),
    without_vl: tuple[int, ...] = (),
) -> Streams:
    """Random tokens with some masked everywhere; every other clip has an image token."""
    generator = torch.Generator().manual_seed(seed)
    streams = {}
    for name, length in LENGTHS.items():
        mask = torch.rand(size, length, generator=generator) < 0.7
        mask[:, 0] = True
        mask[list(without_audio if name == "audio" else without_vl)] = False
        streams[name] = Tokens(torch.randn(size, length, WIDTHS[name], generator=generator), mask)
    return streams


def with_garbage(streams: Streams, garbage: float) -> Streams:
    """The same tokens with something else under the masks."""
    return {
        name: Tokens(torch.where(tokens.mask[..., None], tokens.values, garbage), tokens.mask)
        for name, tokens in streams.items()
    }


def reordered(streams: Streams, order: Tensor) -> Streams:
    """The clips in another order."""
    return {n: Tokens(t.values[order], t.mask[order]) for n, t in streams.items()}


def loss_of(model: VlmaeModel, streams: Streams, labels: Tensor = LABELS) -> Tensor:
    """As in training: the fused logits and both unimodal heads."""
    objective = MultiTaskBinary(TASKS, {})
    output = model(streams)
    parts = (output.logits, output.vl_logits, output.audio_logits)
    loss: Tensor = sum((objective(logits, labels) for logits in parts), torch.zeros(()))
    return loss


def gradients(model: VlmaeModel, streams: Streams) -> dict[str, Tensor]:
    """Of the loss, by parameter; those without one are absent."""
    model.zero_grad()
    loss_of(model, streams).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(ours: Output, other: Output) -> None:
    """All logits and the embedding, to rounding."""
    for name in ("logits", "vl_logits", "audio_logits", "embedding"):
        torch.testing.assert_close(getattr(ours, name), getattr(other, name), rtol=0, atol=1e-6)
