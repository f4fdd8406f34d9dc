"""Both towers together: shared, never trained, and the copy of their suffix that trains."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from vlmae.backbones.base import weights_sha256
from vlmae.data.decode import Clip
from vlmae.tokens import pad
from vlmae.towers import Towers, build_suffix, build_towers

ClipMaker = Callable[..., Clip]
Nodes = dict[str, dict[str, Any]]
# Of the release before cuts existed: caches are found by them.
VL_SHA256 = "0a95c4ef30825cccdd3f36528397282970d9865536633e25676dbe9389725f87"
AUDIO_SHA256 = "58287a680a5a929545bffc5e362b90c0a19bdd5910ea9e2a0ece6091e63f6229"


@pytest.fixture
def tuned(nodes: Nodes) -> Nodes:
    """Nodes with a cut in the image and the audio stream."""
    return {
        "vl": {**nodes["vl"], "tuned_blocks": {"image": 1}},
        "audio": {**nodes["audio"], "tuned_blocks": 1},
    }


def test_fully_frozen_identity_has_the_keys_it_always_had(towers: Towers) -> None:
    identities = towers.identities()
    assert identities["audio"].keys() == {"name", "revision", "sha256", "options"}
    assert identities["audio"]["options"] == {"pool": 10}
    assert identities["audio"]["sha256"] == AUDIO_SHA256
    assert identities["vl"]["options"].keys() == {"image_size", "grid", "text_length", "pool_text"}
    assert identities["vl"]["sha256"] == VL_SHA256


def test_settings_of_zero_are_no_cut(towers: Towers, nodes: Nodes) -> None:
    vl = {**nodes["vl"], "tuned_blocks": {"image": 0, "text": 0}}
    zero = build_towers(vl, {**nodes["audio"], "tuned_blocks": 0})
    assert zero.identities() == towers.identities()
    assert zero.prefix_streams == zero.streams == towers.streams
    assert build_suffix(nodes["vl"], nodes["audio"]) is None


def test_widths_before_and_behind_the_cut(tuned: Nodes) -> None:
    towers = build_towers(**tuned)
    assert towers.prefix_streams == {"vl": {"image": 192, "text": 384}, "audio": {"audio": 384}}
    assert towers.streams == {"vl": {"image": 1280, "text": 384}, "audio": {"audio": 384}}
    assert list(towers.suffix_modules()) == ["image", "audio"]


def test_training_the_copy_leaves_the_shared_towers_alone(
    tuned: Nodes, make_clip: ClipMaker
) -> None:
    towers = build_towers(**tuned)
    before, identities = weights_sha256(towers), towers.identities()
    first, second = build_suffix(**tuned), build_suffix(**tuned)
    assert first is not None
    assert second is not None
    assert weights_sha256(first) == weights_sha256(second)
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    clips = [make_clip(0), make_clip(1, seconds=0.5, frames=1)]
    widths = {n: w for tower in towers.prefix_streams.values() for n, w in tower.items()}
    tokens = {n: pad(values, widths[n]) for n, values in towers.prefix(clips).items()}
    as_loaded = towers.suffix(tokens)
    assert all(m.training for m in first.modules() if not isinstance(m, torch.nn.BatchNorm2d))
    result = first(tokens)
    for name, stream in as_loaded.items():
        torch.testing.assert_close(result[name].values, stream.values)
        assert torch.equal(result[name].mask, stream.mask)
        assert not stream.values.requires_grad, "nothing in shared towers trains"
    sum(stream.mean().square().sum() for stream in result.values()).backward()
    torch.optim.SGD(first.parameters(), lr=0.1).step()
    assert weights_sha256(first) != weights_sha256(second)
    assert weights_sha256(towers) == before
    assert towers.identities() == identities
    assert weights_sha256(build_suffix(**tuned) or first) == weights_sha256(second)


def test_state_of_the_suffix_holds_its_weights_only(tuned: Nodes) -> None:
    suffix, other = build_suffix(**tuned), build_suffix(**tuned)
    assert suffix is not None
    assert other is not None
    state = suffix.state_dict()
    assert {name.split(".")[0] for name in state} == {"image", "audio"}
    assert not any("conv_stem" in name or "embed_positions" in name for name in state)
    with torch.no_grad():
        for parameter in suffix.parameters():
            parameter.add_(1.0)
    assert weights_sha256(suffix) != weights_sha256(other)
    other.load_state_dict(suffix.state_dict())
    assert weights_sha256(suffix) == weights_sha256(other)


def test_towers_stay_in_evaluation_mode_inside_a_module_that_trains(tuned: Nodes) -> None:
    towers = build_towers(**tuned)
    torch.nn.ModuleList([towers]).train()
    assert not any(module.training for module in (towers.vl, towers.audio))
    assert not any(m.training for m in towers.modules())
    assert not any(p.requires_grad for p in towers.parameters())


def test_moved_towers_compute_where_they_are(
    tuned: Nodes, nodes: Nodes, make_clip: ClipMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The meta device has no values, but refuses to compute with tensors of the CPU, as a GPU does.
    def fetch(tensor: torch.Tensor) -> torch.Tensor:
        return torch.ones(tensor.shape, dtype=tensor.dtype)

    clips = [make_clip(0), make_clip(1, seconds=0.5, frames=0)]
    for chosen in (nodes, tuned):
        loaded = build_towers(**chosen)
        expected = loaded.prefix(clips)
        moved = copy.deepcopy(loaded).to("meta")
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "cpu", fetch)
            tokens = moved.prefix(clips)
        for name, values in tokens.items():
            assert [v.shape for v in values] == [v.shape for v in expected[name]]
            assert {v.device.type for v in values} == {"cpu"}
            assert all((value == 1).all() for value in values), "computed there, fetched at the end"
        widths = {n: w for tower in moved.prefix_streams.values() for n, w in tower.items()}
        meta = torch.device("meta")
        padded = {n: pad(values, widths[n]).to(meta) for n, values in tokens.items()}
        result = moved.suffix(padded)
        assert {stream.values.device.type for stream in result.values()} == {"meta"}
