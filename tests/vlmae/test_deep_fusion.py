"""Deep fusion: adapters between VL blocks that start as nothing and let audio in by training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fusion_models import (
    LABELS,
    STREAMS,
    TASKS,
    WIDTH,
    WIDTHS,
    Block,
    Streams,
    batch,
    build,
    fusion_of,
    gradients,
    reordered,
    text_suffix,
)
from plain_suffix import TransformerSuffix
from torch import Tensor, nn
from torch.nn import functional

from vlmae.backbones.suffix import FeatureMapSuffix, StreamSuffix, Suffix
from vlmae.checkpoint import build_model
from vlmae.model import VlmaeModel
from vlmae.tokens import Tokens


def with_suffix(suffix: nn.Module | None) -> VlmaeModel:
    return VlmaeModel(STREAMS, 6, fusion_of("deep"), TASKS, 0.0, suffix)


def vl_alone(model: VlmaeModel, streams: Streams) -> Tensor:
    """Logits of the fused heads on the pooled VL tokens of the VL model: no adapter, no audio."""
    vl, _ = model.encode(streams)
    logits: Tensor = model.heads(vl.mean())
    return logits


@pytest.mark.parametrize("without_audio", [(), (1, 4), tuple(range(6))])
def test_the_start_is_the_vl_model_exactly(without_audio: tuple[int, ...]) -> None:
    model, streams = build("deep", opened=False), batch(without_audio=without_audio)
    assert torch.equal(model(streams).logits, vl_alone(model, streams))
    assert torch.equal(model.train()(streams).logits, vl_alone(model, streams))


def test_the_start_is_the_vl_model_exactly_on_a_real_encoder(
    nodes: dict[str, dict[str, Any]], model_config: dict[str, Any]
) -> None:
    towers = {"vl": {**nodes["vl"], "tuned_blocks": {"text": 2}}, "audio": nodes["audio"]}
    deep = {"_target_": "vlmae.fusion.DeepFusion", "width": 16, "heads": 4, "dropout": 0.0}
    torch.manual_seed(0)
    model = build_model({**model_config, "fusion": deep}, towers).eval()
    assert set(model.fusion.adapters) == {"text"}, "convolutions have no place for an adapter"
    assert set(model.fusion.adapters["text"]) == {"4", "5"}, "the encoder's own numbers"
    width = {"image": 1280, "text": 384, "audio": 384}
    for name, projection in model.project.items():
        projection.map.copy_(torch.randn(width[name], 8) / width[name] ** 0.5)
    streams = {
        name: Tokens(torch.randn(3, 5, width[name]), torch.rand(3, 5) < 0.8) for name in width
    }
    with torch.no_grad():
        assert torch.equal(model(streams).logits, vl_alone(model, streams))
        for name, parameter in model.fusion.named_parameters():
            if name.endswith("_gate"):
                parameter.fill_(1.0)
        assert not torch.allclose(model(streams).logits, vl_alone(model, streams), atol=1e-3)


def test_gates_move_first_and_the_rest_follows() -> None:
    model, streams = build("deep", opened=False).train(), batch()
    found = gradients(model, streams)
    for name, gradient in found.items():
        if name.startswith("fusion."):
            assert gradient.any() == name.endswith("_gate"), name
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    found = gradients(model, streams)
    assert [name for name, gradient in found.items() if not gradient.any()] == []


def test_an_adapter_is_gated_attention_and_a_gated_feed_forward_before_its_block() -> None:
    model, streams = build("deep"), batch(without_audio=(1,))
    _, audio = model.encode(streams)
    hook = model.fusion.hooks(audio)["text"]
    hidden = Tokens(torch.randn(6, 4, WIDTHS["text"]), streams["text"].mask)
    adapter = model.fusion.adapters["text"]["3"]
    for row in (0, 1):
        heard = audio.values[row][audio.mask[row]]
        keys = torch.cat([adapter.nothing[0], adapter.context_norm(heard)])[None]
        asked = hidden.values[row][None]
        mixed, _ = adapter.attention(adapter.query_norm(asked), keys, keys)
        expected = asked + adapter.attention_gate.tanh() * mixed
        expected = expected + adapter.feed_forward_gate.tanh() * adapter.feed_forward(expected)
        torch.testing.assert_close(hook(3, hidden).values[row], expected[0])
    order = []
    for number, block in model.suffix["text"].layers.items():
        block.register_forward_hook(lambda *_, n=number: order.append(f"block {n}"))
        model.fusion.adapters["text"][number].register_forward_hook(
            lambda *_, n=number: order.append(f"adapter {n}")
        )
    model(streams)
    assert order[:4] == ["adapter 3", "block 3", "adapter 4", "block 4"]
    assert order[4:] == ["block 3", "block 4"], "once more for the VL head, without audio"


def test_vl_logits_never_hear_audio_and_leave_no_gradient_behind() -> None:
    model, streams = build("deep"), batch()
    other = {**streams, "audio": batch(seed=7)["audio"]}
    ours, theirs = model(streams), model(other)
    assert torch.equal(ours.vl_logits, theirs.vl_logits)
    assert (ours.logits - theirs.logits).abs().amin() > 1e-6
    vl, _ = model.encode(streams)
    assert torch.equal(ours.vl_logits, model.vl_head(vl.mean()))
    ours.vl_logits.sum().backward()
    moved = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert moved == {"vl_head"}


def test_audio_and_vl_encoder_train_through_the_adapters() -> None:
    model, streams = build("deep"), batch()
    model(streams).logits.square().sum().backward()
    moved = {
        ".".join(name.split(".")[:2])
        for name, p in model.named_parameters()
        if p.grad is not None and p.grad.any()
    }
    assert {"project.audio", "project.text", "project.image", "suffix.text"} <= moved
    assert "fusion.adapters" in moved


def test_adapters_are_saved_and_counted_as_fusion() -> None:
    model = build("deep")
    names = [name for name in model.state_dict() if name.startswith("fusion.adapters.text.")]
    assert {name.split(".")[3] for name in names} == {"3", "4"}
    counts = model.trainable_parameters()
    assert counts["fusion"] == sum(p.numel() for p in model.fusion.adapters.parameters()) > 0
    again = build("deep", seed=1)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(batch()).logits, model(batch()).logits)


def test_audio_that_matters_is_heard_after_a_few_steps() -> None:
    torch.manual_seed(0)
    model, streams = build("deep", opened=False).train(), batch()
    audio = streams["audio"]
    sign = LABELS[:, 0].float() * 2 - 1
    streams["audio"] = Tokens(audio.values + sign[:, None, None], audio.mask)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(
            model(streams).logits[:, 0], LABELS[:, 0].float()
        )
        loss.backward()
        optimizer.step()
    model.eval()
    permuted = reordered(streams, torch.tensor([1, 0, 3, 2, 5, 4]))
    mixed = model({**streams, "audio": permuted["audio"]}).logits[:, 0]
    assert (mixed - model(streams).logits[:, 0]).abs().amax() > 0.01


class Convolutions(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps


def only_image() -> Suffix:
    return Suffix({"image": FeatureMapSuffix(Convolutions(), 2, 1, WIDTHS["image"], 1)})


def only_audio() -> Suffix:
    width = WIDTHS["audio"]
    layers = nn.ModuleDict({"3": Block(width)})
    return Suffix({"audio": TransformerSuffix(layers, nn.Identity(), 1, width)})


@pytest.mark.parametrize("suffix", [None, Suffix(), only_image(), only_audio()])
def test_a_backbone_without_blocks_behind_the_cut_is_refused(suffix: nn.Module | None) -> None:
    with pytest.raises(ValueError, match=r"transformer VL backbone.*tuning\.vl\.blocks"):
        with_suffix(suffix)


def test_streams_without_blocks_stand_beside_one_that_has_them() -> None:
    text = text_suffix(WIDTHS["text"], blocks=1)["text"]
    assert isinstance(text, StreamSuffix)
    model = with_suffix(Suffix({**only_image(), "text": text, **only_audio()})).eval()
    assert set(model.fusion.adapters) == {"text"}
    assert set(model.fusion.adapters["text"]) == {"4"}
    assert model(batch()).embedding.shape == (6, WIDTH)


def test_heads_that_do_not_divide_the_hidden_width_are_refused() -> None:
    fusion = fusion_of("deep", heads=3)
    with pytest.raises(ValueError, match=r"heads 3 must divide the hidden width of 'text', 8"):
        VlmaeModel(STREAMS, 6, fusion, TASKS, 0.0, text_suffix(WIDTHS["text"]))
