"""The model under every fusion variant: masks, missing modalities, gradients, the start."""

from __future__ import annotations

import pytest
import torch
from fusion_models import (
    STREAMS,
    TASKS,
    VARIANTS,
    WIDTHS,
    assert_equal,
    batch,
    build,
    fusion_of,
    gradients,
    loss_of,
    with_garbage,
)
from torch import nn
from torch.nn import functional

from vlmae.fusion import CrossAttentionFusion, LateFusion
from vlmae.model import VlmaeModel, drawing_modules
from vlmae.tokens import Tokens


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.parametrize("garbage", [7.0, -1e6, 1e12])
def test_what_stands_under_a_mask_has_no_influence(variant: str, garbage: float) -> None:
    model, streams = build(variant), batch(without_audio=(1, 4))
    assert_equal(model(streams), model(with_garbage(streams, garbage)))
    clean, dirty = gradients(model, streams), gradients(model, with_garbage(streams, garbage))
    for name, gradient in clean.items():
        torch.testing.assert_close(gradient, dirty[name], rtol=1e-4, atol=1e-6, msg=name)


def test_nan_under_a_mask_has_no_influence(variant: str) -> None:
    model, streams = build(variant), batch(without_audio=(1, 4))
    assert_equal(model(streams), model(with_garbage(streams, float("nan"))))
    dirty = gradients(model, with_garbage(streams, float("nan")))
    assert all(gradient.isfinite().all() for gradient in dirty.values())


def test_missing_audio_equals_any_masked_audio_and_not_the_real_one(variant: str) -> None:
    model, streams = build(variant), batch()
    audio = streams["audio"]
    nobody = audio.keep(torch.zeros(6, dtype=torch.bool))
    missing = model({**streams, "audio": nobody})
    dummy = Tokens(torch.zeros(6, 1, 10), torch.zeros(6, 1, dtype=torch.bool))
    assert_equal(missing, model({**streams, "audio": dummy}))
    assert not torch.allclose(missing.logits, model(streams).logits, atol=1e-3)


def test_a_clip_without_audio_does_not_change_its_neighbours(variant: str) -> None:
    model, streams = build(variant), batch()
    some = torch.tensor([True, False, True, True, False, True])
    mixed = model({**streams, "audio": streams["audio"].keep(some)})
    whole = model(streams)
    torch.testing.assert_close(mixed.logits[some], whole.logits[some])
    assert not torch.isclose(mixed.logits[~some], whole.logits[~some], atol=1e-4).any()


def test_every_modality_and_every_token_counts(variant: str) -> None:
    model, streams = build(variant), batch()
    whole = model(streams).logits
    for name, tokens in streams.items():
        values = tokens.values.clone()
        # Not the same for every feature: layer norms take that away.
        values[:, 0] += torch.linspace(0, 2, values.shape[-1])
        changed = model({**streams, name: Tokens(values, tokens.mask)}).logits
        assert (changed - whole).abs().amin() > 1e-6, name


def test_permuting_audio_over_the_batch_changes_the_loss(variant: str) -> None:
    model, streams = build(variant), batch()
    audio, order = streams["audio"], torch.tensor([1, 2, 3, 4, 5, 0])
    permuted = Tokens(audio.values[order], audio.mask[order])
    before, after = loss_of(model, streams), loss_of(model, {**streams, "audio": permuted})
    assert (before - after).abs() > 1e-4
    every = {n: Tokens(t.values[order], t.mask[order]) for n, t in streams.items()}
    torch.testing.assert_close(model(every).logits, model(streams).logits[order])


def test_order_of_tokens_in_a_stream_has_no_influence(variant: str) -> None:
    model, streams = build(variant), batch()
    turned = {n: Tokens(t.values.flip(1), t.mask.flip(1)) for n, t in streams.items()}
    torch.testing.assert_close(model(turned).logits, model(streams).logits, rtol=1e-4, atol=1e-5)


def test_longer_padding_has_no_influence(variant: str) -> None:
    model, streams = build(variant), batch(without_audio=(2,))
    padded = {
        name: Tokens(
            functional.pad(tokens.values, (0, 0, 0, 2), value=3.0),
            functional.pad(tokens.mask, (0, 2), value=False),
        )
        for name, tokens in streams.items()
    }
    assert_equal(model(streams), model(padded))


def test_every_parameter_learns(variant: str) -> None:
    # Two steps first: behind cross-attention's gates gradients are zero at the start, by design.
    model, streams = build(variant, opened=False).train(), batch(without_audio=(3,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        gradients(model, streams)
        optimizer.step()
    found = gradients(model, streams)
    still = [
        name for name, _ in model.named_parameters() if not found.get(name, torch.zeros(1)).any()
    ]
    assert not still


def test_gates_are_the_first_to_move() -> None:
    model, streams = build("cross_attention", opened=False), batch()
    found = gradients(model, streams)
    for name, gradient in found.items():
        if name.endswith("_gate"):
            assert gradient.any(), name
        elif "_blocks." in name:
            assert not gradient.any(), name


def test_mixed_batch_has_finite_loss_and_gradients(variant: str) -> None:
    model, streams = build(variant), batch(without_audio=(0, 1, 5))
    assert loss_of(model, streams).isfinite()
    assert all(g.isfinite().all() for g in gradients(model, streams).values())


def test_batch_without_any_audio_still_runs_every_branch(variant: str) -> None:
    # Contract 8: a masked dummy, never a skipped module, or ZeRO-3 hangs.
    model = build(variant)
    found = gradients(model, batch(without_audio=tuple(range(6))))
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_cross_attention_starts_as_the_product_of_means() -> None:
    fusion = fusion_of("cross_attention", layers=2)
    vl, audio = (Tokens(torch.randn(5, n, 16), torch.rand(5, n) < 0.7) for n in (4, 6))
    v, a = (functional.layer_norm(tokens.mean(), (16,)) for tokens in (vl, audio))
    expected = torch.cat([v, a, v * a], dim=-1)
    torch.testing.assert_close(fusion(vl, audio).embedding, expected)
    assert fusion.embedding_width == 48


def test_cross_attention_reads_the_other_tower() -> None:
    # Behind open gates the VL half of the embedding depends on audio, and the other way round.
    model, streams = build("cross_attention"), batch()
    width = model.fusion.width
    audio = streams["audio"]
    changed = {**streams, "audio": Tokens(audio.values + 1.0, audio.mask)}
    before, after = model(streams).embedding, model(changed).embedding
    assert (before[:, :width] - after[:, :width]).abs().amax() > 1e-4
    image = streams["image"]
    changed = {**streams, "image": Tokens(image.values + 1.0, image.mask)}
    after = model(changed).embedding
    assert (before[:, width : 2 * width] - after[:, width : 2 * width]).abs().amax() > 1e-4


@pytest.mark.parametrize("head", ["vl", "audio"])
def test_unimodal_heads_are_detached_except_under_late_fusion(variant: str, head: str) -> None:
    model, streams = build(variant), batch()
    getattr(model(streams), f"{head}_logits").square().sum().backward()
    moved = {
        name.split(".")[0]
        for name, p in model.named_parameters()
        if p.grad is not None and p.grad.any()
    }
    expected = {f"{head}_head"} | ({"project"} if variant == "late" else set())
    assert moved == expected
    if variant == "late":
        own = {f"project.{name}" for name in STREAMS[head]}
        touched = {
            ".".join(name.split(".")[:2])
            for name, p in model.named_parameters()
            if name.startswith("project") and p.grad is not None and p.grad.any()
        }
        assert touched == own


def test_unimodal_heads_see_one_tower_only(variant: str) -> None:
    model, streams, other = build(variant), batch(seed=1), batch(seed=2)
    whole = model(streams)
    for kept, tower in (("vl_logits", "audio"), ("audio_logits", "vl")):
        changed = model({**streams, **{name: other[name] for name in STREAMS[tower]}})
        assert torch.equal(getattr(changed, kept), getattr(whole, kept))
        assert not torch.allclose(changed.logits, whole.logits)


def test_late_fusion_is_the_mean_of_the_present_heads() -> None:
    model, streams = build("late"), batch(without_audio=(1, 2))
    nothing = torch.tensor([True, True, False, True, True, False])
    for name in STREAMS["vl"]:
        streams[name] = streams[name].keep(nothing)
    output = model(streams)
    mean = (output.vl_logits + output.audio_logits) / 2
    torch.testing.assert_close(output.logits[[0, 3, 4]], mean[[0, 3, 4]])
    torch.testing.assert_close(output.logits[1], output.vl_logits[1])
    torch.testing.assert_close(output.logits[5], output.audio_logits[5])
    assert not output.logits[2].any()
    assert not hasattr(model, "heads")


def test_projection_whitens_before_it_projects() -> None:
    model = VlmaeModel(STREAMS, 6, LateFusion(width=16), TASKS, 0.0)
    maps = {name: (torch.randn(width), torch.randn(width, 6)) for name, width in WIDTHS.items()}
    model.set_whitening(maps)
    tokens = Tokens(torch.randn(2, 3, 10), torch.ones(2, 3, dtype=torch.bool))
    mean, mapping = maps["audio"]
    linear = model.project["audio"].linear
    assert isinstance(linear, nn.Linear)
    expected = linear((tokens.values - mean) @ mapping)
    torch.testing.assert_close(model.project["audio"](tokens).values, expected)
    assert {name for name, _ in model.named_buffers()} == {
        f"project.{stream}.{part}" for stream in WIDTHS for part in ("mean", "map")
    }


def test_whitening_that_does_not_fit_is_refused(variant: str) -> None:
    model = build(variant)
    maps = {name: (torch.zeros(width), torch.zeros(width, 6)) for name, width in WIDTHS.items()}
    with pytest.raises(ValueError, match="streams"):
        model.set_whitening({name: maps[name] for name in ("image", "text")})
    with pytest.raises(ValueError, match=r"'text' maps \(8, 5\).*\(8, 6\).*model\.components"):
        model.set_whitening({**maps, "text": (torch.zeros(8), torch.zeros(8, 5))})


def test_wrong_shapes_of_a_model_are_refused() -> None:
    with pytest.raises(ValueError, match="streams must be given"):
        VlmaeModel({"vl": {"image": 3}}, 2, LateFusion(4), TASKS, 0.0)
    with pytest.raises(ValueError, match="at least one task"):
        VlmaeModel(STREAMS, 2, LateFusion(4), [], 0.0)
    with pytest.raises(ValueError, match=r"heads 3 must divide fusion\.width 16"):
        CrossAttentionFusion(16, 3, 1, 0.0)
    with pytest.raises(ValueError, match=r"fusion\.layers must be at least 1"):
        CrossAttentionFusion(16, 4, 0, 0.0)


def test_parameters_are_counted_by_part(variant: str) -> None:
    model = build(variant)
    counts = model.trainable_parameters()
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    assert counts["project"] == 3 * (6 * 16 + 16)


def test_passes_are_forward_passes_with_the_same_draws(variant: str) -> None:
    model, streams = build(variant, dropout=0.5), batch(without_audio=(1, 4))
    again = model.passes(streams)
    assert torch.equal(again().logits, model(streams).logits)
    for module in drawing_modules(model):
        module.train()
    torch.manual_seed(3)
    drawn = [again() for _ in range(3)]
    torch.manual_seed(3)
    for one in drawn:
        whole = model(streams)
        for name in ("logits", "vl_logits", "audio_logits", "embedding"):
            assert torch.equal(getattr(one, name), getattr(whole, name))
    assert not torch.equal(drawn[0].logits, drawn[1].logits)
