"""Modality dropout: who loses what, how often, and what the heads see of it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from fusion_models import STREAMS, TASKS, VARIANTS, Streams, batch, build, gradients
from torch import Tensor

from vlmae.fusion import LateFusion
from vlmae.model import VlmaeModel
from vlmae.tokens import Fused, Tokens

RATES = {"vl": 0.2, "audio": 0.3}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class Watched(LateFusion):
    """Keeps what it was given."""

    def forward(self, vl: Tokens, audio: Tokens) -> Fused:
        self.seen, self.heard = vl.present, audio.present
        return super().forward(vl, audio)


def watched(rates: Mapping[str, float]) -> VlmaeModel:
    return VlmaeModel(STREAMS, 6, Watched(16), TASKS, 0.0, modality_dropout=rates)


def lost(model: VlmaeModel, streams: Streams) -> tuple[Tensor, Tensor]:
    """(B,) bool: whom the fusion did not get VL of, and audio of."""
    model(streams)
    assert isinstance(model.fusion, Watched)
    return ~model.fusion.seen, ~model.fusion.heard


def test_each_modality_is_lost_at_its_rate_and_never_both() -> None:
    torch.manual_seed(0)
    no_vl, no_audio = lost(watched(RATES).train(), batch(size=20_000))
    # 4 standard deviations of a mean of 20,000 draws.
    assert abs(no_vl.float().mean() - 0.2) < 0.012
    assert abs(no_audio.float().mean() - 0.3) < 0.013
    assert not (no_vl & no_audio).any()


def test_the_only_modality_is_never_lost() -> None:
    torch.manual_seed(0)
    size = 6000
    some, others = tuple(range(0, size, 3)), tuple(range(1, size, 3))
    streams = batch(size=size, without_audio=some, without_vl=others)
    no_vl, no_audio = lost(watched({"vl": 0.5, "audio": 0.4}).train(), streams)
    assert not no_vl[list(some)].any()
    assert no_audio[list(some)].all(), "it has none"
    assert not no_audio[list(others)].any()
    both = list(range(2, size, 3))
    assert abs(no_vl[both].float().mean() - 0.5) < 0.05
    assert abs(no_audio[both].float().mean() - 0.4) < 0.05


def test_nothing_is_lost_and_nothing_drawn_in_evaluation_or_without_rates() -> None:
    streams = batch(size=500)
    for model in (watched(RATES).eval(), watched({}).train(), watched({"vl": 0.0}).train()):
        state = torch.get_rng_state()
        no_vl, no_audio = lost(model, streams)
        assert not no_vl.any()
        assert not no_audio.any()
        assert torch.equal(torch.get_rng_state(), state), "losses of a run without it stay equal"


def test_draws_come_from_the_global_generator() -> None:
    model, streams = watched(RATES).train(), batch(size=200)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(torch.stack(lost(model, streams)))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def keeping(streams: Streams, rows: Tensor, tower: str) -> Streams:
    return {n: t.keep(rows) if n in STREAMS[tower] else t for n, t in streams.items()}


@pytest.mark.parametrize("tower", ["vl", "audio"])
def test_a_lost_modality_is_as_one_that_is_missing(variant: str, tower: str) -> None:
    model, streams = build(variant, modality_dropout={tower: 0.5}), batch()
    torch.manual_seed(2)
    dropped = model.train()(streams)
    torch.manual_seed(2)
    draw = torch.rand(6)
    rows = draw >= 0.5 if tower == "vl" else draw < 0.5
    assert 0 < rows.sum() < 6
    missing = model.eval()(keeping(streams, rows, tower))
    torch.testing.assert_close(dropped.logits, missing.logits)
    torch.testing.assert_close(dropped.embedding, missing.embedding)
    whole = model(streams)
    assert not torch.isclose(dropped.logits[~rows], whole.logits[~rows], atol=1e-4).all()


def test_unimodal_heads_see_all_tokens(variant: str) -> None:
    model, streams = build(variant, modality_dropout={"vl": 0.4, "audio": 0.5}), batch()
    whole = model(streams)
    torch.manual_seed(0)
    dropped = model.train()(streams)
    assert not torch.equal(dropped.logits, whole.logits)
    assert torch.equal(dropped.vl_logits, whole.vl_logits)
    assert torch.equal(dropped.audio_logits, whole.audio_logits)


def test_late_fusion_averages_the_heads_of_what_was_kept() -> None:
    model, streams = build("late", modality_dropout={"audio": 0.5}).train(), batch()
    torch.manual_seed(2)
    output = model(streams)
    torch.manual_seed(2)
    heard = torch.rand(6) < 0.5
    mean = (output.vl_logits + output.audio_logits) / 2
    torch.testing.assert_close(output.logits[heard], mean[heard])
    torch.testing.assert_close(output.logits[~heard], output.vl_logits[~heard])


def test_every_parameter_still_learns(variant: str) -> None:
    model, streams = build(variant, opened=True, modality_dropout=RATES).train(), batch()
    torch.manual_seed(0)
    found = gradients(model, streams)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert [name for name, gradient in found.items() if not gradient.any()] == []


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"text": 0.1}, r"names \['text'\], the towers are \('vl', 'audio'\)"),
        ({"vl": -0.1}, "give shares"),
        ({"audio": 1.0}, "give shares"),
        ({"vl": 0.5, "audio": 0.5}, r"\{'vl': 0\.5, 'audio': 0\.5\}.*add up to less than 1"),
    ],
)
def test_rates_that_cannot_be_are_refused(rates: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        watched(rates)
