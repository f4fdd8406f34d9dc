"""For every cut of every stream: prefix, padding and suffix give the tokens of the whole tower."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vlmae.backbones import Backbone
from vlmae.backbones.audio import WhisperEncoder
from vlmae.backbones.base import weights_sha256
from vlmae.backbones.stream import Tuned
from vlmae.backbones.vision_language import ImageTextEncoder
from vlmae.data.decode import Clip
from vlmae.tokens import Tokens, pad
from vlmae.towers import Towers

ClipMaker = Callable[..., Clip]
FLOAT32, FLOAT16 = 1e-5, 2e-3
# The channels at the cut before each of the last 1 .. 16 blocks (EfficientNet-Lite0's table).
CHANNELS = (192, 192, 192, 192, 112, 112, 112, 80, 80, 80, 40, 40, 24, 24, 16, 3)


@pytest.fixture(scope="module")
def clips(make_clip: ClipMaker) -> list[Clip]:
    """Noise, a photograph and smooth pictures; speech-like, loud, faint and no sound."""
    photo = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    row, column = np.mgrid[:128, :128]
    smooth = np.stack([2 * row, 2 * column, row + column], axis=-1).astype(np.uint8)
    time = np.arange(32_000) / 16_000
    chirp = (0.4 * np.sin(2 * np.pi * (200 + 300 * time) * time)).astype(np.float32)
    silence = np.zeros(16_000, np.float32)
    pictures = np.array(photo.convert("RGB"))[None]
    none = np.zeros((0, 0, 0, 3), np.uint8)
    return [
        make_clip(0, title="A man plays a guitar", frames=3, seconds=4.0),
        Clip("photo", "", pictures, chirp, None),
        Clip("smooth", "word " * 40, np.stack([smooth, 255 - smooth]), silence, None),
        Clip("heard", "no picture", none, chirp[:4_800] * np.float32(1e-3), None),
        make_clip(1, title="Zwölf Boxkämpfer", frames=1, size=(161, 90), seconds=0.0),
    ]


def image_text(image: int = 0, text: Tuned = 0, *, grid: int = 2, pool: bool = True) -> Backbone:
    return ImageTextEncoder(128, grid, 32, pool, {"image": image, "text": text})


@pytest.fixture(scope="module")
def whole(clips: list[Clip]) -> dict[str, list[torch.Tensor]]:
    """The tokens of fully frozen towers."""
    return {**image_text().prefix(clips), **WhisperEncoder(10).prefix(clips)}


def padded(tower: Backbone, clips: Sequence[Clip], *, half: bool = False) -> dict[str, Tokens]:
    """What the model would read from a cache in float32 or float16."""
    tokens = tower.prefix(clips)
    if half:
        tokens = {n: [value.half().float() for value in v] for n, v in tokens.items()}
    return {name: pad(tokens[name], width) for name, width in tower.prefix_streams.items()}


def largest_error(tokens: Tokens, expected: Sequence[torch.Tensor]) -> float:
    """Norm of a clip's error over the norm of its tokens."""
    errors = [0.0]
    for values, mask, reference in zip(tokens.values, tokens.mask, expected, strict=True):
        assert values[mask].shape == reference.shape
        if len(reference):
            errors.append(float((values[mask] - reference).norm() / reference.norm()))
    return max(errors)


def check_cut(
    tower: Backbone, clips: Sequence[Clip], whole: Mapping[str, Sequence[torch.Tensor]]
) -> None:
    widths = tower.prefix_streams
    for name, values in tower.prefix(clips).items():
        assert {value.shape[1] for value in values} == {widths[name]}
        assert {value.dtype for value in values} == {torch.float32}
    for half, limit in ((False, FLOAT32), (True, FLOAT16)):
        if half and widths.get("text") == 1:
            continue  # token ids: nothing is cached in front of an embedding that trains
        with torch.no_grad():
            result = tower.suffix(padded(tower, clips, half=half))
        assert result.keys() == tower.streams.keys()
        for name, tokens in result.items():
            assert tokens.values.shape[-1] == tower.streams[name]
            assert largest_error(tokens, whole[name]) < limit, (name, half)


@pytest.mark.parametrize("image", range(1, 17))
def test_every_cut_of_the_image_network(
    image: int, clips: list[Clip], whole: dict[str, list[torch.Tensor]]
) -> None:
    tower = image_text(image)
    assert tower.tuned_blocks == {"image": image}
    assert tower.prefix_streams == {"image": CHANNELS[image - 1], "text": 384}
    check_cut(tower, clips, whole)


@pytest.mark.parametrize("text", [*range(1, 7), "all"])
@pytest.mark.parametrize("pool", [True, False])
def test_every_cut_of_the_text_encoder(
    text: Tuned, pool: bool, clips: list[Clip], whole: dict[str, list[torch.Tensor]]
) -> None:
    tower = image_text(0, text, pool=pool)
    assert tower.tuned_blocks == {"text": 6 if text == "all" else text}
    expected = whole if pool else image_text(pool=False).prefix(clips)
    check_cut(tower, clips, expected)


@pytest.mark.parametrize("audio", range(1, 5))
def test_every_cut_of_the_audio_encoder(
    audio: int, clips: list[Clip], whole: dict[str, list[torch.Tensor]]
) -> None:
    tower = WhisperEncoder(10, audio)
    assert tower.tuned_blocks == {"audio": audio}
    assert len(tower.prefix(clips)["audio"][0]) == 200, "50 positions a second"
    check_cut(tower, clips, whole)


def test_fully_frozen_towers_have_no_suffix(clips: list[Clip]) -> None:
    for tower in (image_text(), WhisperEncoder(10)):
        assert len(tower.suffix_modules()) == 0
        assert tower.prefix_streams == dict(tower.streams)
        assert not any(p.requires_grad for p in tower.parameters())
        tokens = padded(tower, clips[:1])
        assert all(tower.suffix(tokens)[name] is tokens[name] for name in tokens)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WhisperEncoder(10, 5), "tuned_blocks must be from 0 to 4, or 'all', got 5"),
        (lambda: image_text(17), "tuned_blocks must be from 0 to 16, or 'all', got 17"),
        (lambda: image_text(-1), "tuned_blocks must be from 0 to 16, or 'all', got -1"),
        (lambda: image_text(0, 7), "tuned_blocks must be from 0 to 6, or 'all', got 7"),
    ],
)
def test_more_blocks_than_there_are_is_refused(build: Callable[[], Backbone], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


TUNED = [
    pytest.param(lambda: image_text(3, 2), id="image and text"),
    pytest.param(lambda: image_text(16, 6), id="image and text, all blocks"),
    pytest.param(lambda: image_text(0, "all"), id="text from its token ids"),
    pytest.param(lambda: WhisperEncoder(10, 2), id="audio"),
]


@pytest.mark.parametrize("build", TUNED)
def test_a_step_moves_the_suffix_and_nothing_else(
    build: Callable[[], Backbone], clips: list[Clip]
) -> None:
    tower = build().train()
    tail = tower.suffix_modules()
    modules = set(tail.modules())
    assert not any(m.training for m in tower.modules() if m not in modules)
    assert all(m.training for m in tail.modules() if not isinstance(m, nn.BatchNorm2d))
    own = {id(p) for p in tail.parameters()}
    frozen = {n: p.clone() for n, p in tower.named_parameters() if id(p) not in own}
    statistics = {n: b.clone() for n, b in tower.named_buffers()}
    identity = tower.identity()
    result = tower.suffix(padded(tower, clips))
    loss = sum(tokens.mean().pow(3).sum() for n, tokens in result.items() if n in tail)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    moved = {id(p) for p in tower.parameters() if p.grad is not None and (p.grad != 0).any()}
    # A key's bias shifts all scores of a query alike: softmax does not see it.
    blind = {id(p) for n, p in tail.named_parameters() if n.endswith("attention.self.key.bias")}
    assert moved | blind == own
    before = weights_sha256(tail)
    torch.optim.AdamW((p for p in tower.parameters() if p.requires_grad), lr=1e-3).step()
    assert weights_sha256(tail) != before
    for name, parameter in tower.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name])
    for name, buffer in tower.named_buffers():
        assert torch.equal(buffer, statistics[name]), "batch statistics are frozen, too"
    assert tower.identity() == identity
    assert tower.prefix(clips[:1]).keys() == tower.streams.keys()


@pytest.mark.parametrize("build", TUNED)
def test_no_weight_is_kept_twice(build: Callable[[], Backbone]) -> None:
    tower = build()
    uncut = WhisperEncoder(10) if isinstance(tower, WhisperEncoder) else image_text()
    count = [sum(p.numel() for p in t.parameters()) for t in (tower, uncut)]
    assert count[0] == count[1]


def test_identity_tells_cuts_and_initial_weights_apart() -> None:
    towers = [image_text(), image_text(1), image_text(2), image_text(2, 1), image_text(0, 1)]
    identities = [tower.identity() for tower in towers]
    assert len({identity.sha256 for identity in identities}) == 5
    assert identities[3].options["tuned_blocks"] == {"image": 2, "text": 1}
    assert "tuned_blocks" not in identities[0].options
    assert identities[3] == image_text(2, 1).identity()
    whisper = [WhisperEncoder(10, n).identity() for n in range(5)]
    assert len({identity.sha256 for identity in whisper}) == 5
    assert [i.options.get("tuned_blocks") for i in whisper[:2]] == [None, {"audio": 1}]
    tower = WhisperEncoder(10, 1)
    initial = weights_sha256(tower.suffix_modules())
    assert tower.identity().options["suffix_sha256"] == initial
    changed = copy.deepcopy(tower)
    with torch.no_grad():
        changed.suffix_modules()["audio"].norm.bias[0] += 1e-3
    changed.freeze()  # as a constructor does after it loaded other weights
    assert changed.identity().sha256 == tower.identity().sha256
    assert changed.identity().options["suffix_sha256"] != initial


def test_names_mean_the_same_at_every_cut() -> None:
    few, more = (set(image_text(n, m).suffix_modules().state_dict()) for n, m in ((2, 1), (16, 6)))
    assert few < more
    assert "image.network._blocks.15._project_conv.weight" in few
    assert "text.layers.5.attention.self.query.weight" in few
    few, more = (set(WhisperEncoder(10, n).suffix_modules().state_dict()) for n in (1, 4))
    assert few < more
    assert {"audio.layers.3.self_attn.q_proj.weight", "audio.norm.weight"} <= few


def test_clips_without_pictures_have_no_image_tokens(make_clip: ClipMaker) -> None:
    heard = [make_clip(1, frames=0), make_clip(2, frames=0, size=(0, 0))]
    for tower in (image_text(), image_text(4), image_text(16)):
        width = tower.prefix_streams["image"]
        assert [value.shape for value in tower.prefix(heard)["image"]] == [(0, width)] * 2
        mixed = [heard[0], make_clip(3), heard[1]]
        tokens = tower.prefix(mixed)
        assert [len(value) > 0 for value in tokens["image"]] == [False, True, False]
        assert all(len(value) for value in tokens["text"])
        torch.testing.assert_close(tokens["image"][1], tower.prefix(mixed[1:2])["image"][0])
        result = tower.suffix(padded(tower, mixed))["image"]
        assert result.present.tolist() == [False, True, False]
        assert result.mask.sum(dim=1).tolist() == [0, 2 * 4, 0]


def test_gradients_reach_the_suffix_from_a_live_prefix(clips: list[Clip]) -> None:
    # prefix() runs in inference mode, whose tensors autograd refuses to save: padding copies them.
    towers = Towers(image_text(1), WhisperEncoder(10, 1))
    tail = copy.deepcopy(towers.suffix_modules()).requires_grad_(True)
    widths = {n: w for tower in towers.prefix_streams.values() for n, w in tower.items()}
    tokens = {n: pad(values, widths[n]) for n, values in towers.prefix(clips).items()}
    result = tail(tokens)
    (result["image"].mean().sum() + result["audio"].mean().pow(2).sum()).backward()
    assert all(p.grad is not None for p in tail.parameters())
