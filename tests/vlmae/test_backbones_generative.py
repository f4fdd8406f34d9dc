"""Generative models: equal to transformers' own hidden states, whole and cut anywhere."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_vlms
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tiny_vlms import FAMILIES, IMAGE_SIZES, LAYERS, TOKENS_A_FRAME
from torch import Tensor
from transformers import Qwen2Config, WhisperConfig

from vlmae.backbones.generative import GenerativeEncoder
from vlmae.backbones.generative.blip2 import Blip2VisionLanguage
from vlmae.backbones.generative.decoder import MOST_POSITIONS, position_columns, positions_from
from vlmae.backbones.generative.encoder import FAMILIES as READERS
from vlmae.backbones.generative.titles import Titles
from vlmae.config import conf_dir
from vlmae.data.decode import Clip
from vlmae.data.token_table import TokenCodec
from vlmae.tokens import Tokens, pad

NEAR = 1e-5
TYPES = {"blip2": "blip-2"}
# Blocks of each tiny model that take in visual features after the first embedding.
LATE = {"qwen3_vl": 1}
AXES = {"qwen2_5_vl": 3, "qwen3_vl": 3}
Folders = dict[str, Path]
ClipMaker = Callable[..., Clip]
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
CUTS = [(f, n) for f in FAMILIES for n in range(1, LAYERS + 1 - LATE.get(f, 0))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Each family as a `from_pretrained` folder."""
    root = tmp_path_factory.mktemp("vlms")
    return {family: make(root / family) for family, make in FAMILIES.items()}


@pytest.fixture(scope="module")
def clips(make_clip: ClipMaker) -> list[Clip]:
    """Two, one and no frames; long, short, no and hostile titles; nothing at all."""
    return [
        make_clip(0, title="A man plays", frames=2, size=(40, 70)),
        make_clip(1, title="", frames=1, size=(56, 56)),
        make_clip(2, title="only a title", frames=0),
        make_clip(3, title="", frames=0),
        make_clip(4, title="Zwölf Boxkämpfer jagen", frames=2, size=(90, 31)),
    ]


@pytest.fixture(scope="module")
def whole(folders: Folders, clips: list[Clip]) -> dict[str, list[Tensor]]:
    """The tokens of frozen towers."""
    return {family: tower(folders[family]).prefix(clips)["vl"] for family in FAMILIES}


BUILT: dict[str, GenerativeEncoder] = {}


def tower(folder: Path, **changes: Any) -> GenerativeEncoder:
    """One that other tests may have used, too: loading takes most of the time here."""
    key = f"{folder} {sorted(changes.items())}"
    if key not in BUILT:
        BUILT[key] = new_tower(folder, **changes)
    return BUILT[key]


def new_tower(folder: Path, **changes: Any) -> GenerativeEncoder:
    settings: dict[str, Any] = {
        "revision": None,
        "image_size": IMAGE_SIZES[folder.name],
        "prompt": "Title: ",
        "text_length": 16,
    }
    return GenerativeEncoder(str(folder), **{**settings, **changes})


def padded(cut: GenerativeEncoder, clips: Sequence[Clip]) -> Tokens:
    return pad(cut.prefix(clips)["vl"], cut.prefix_streams["vl"])


def largest_error(tokens: Tokens, expected: Sequence[Tensor]) -> float:
    """Norm of a clip's error over the norm of its tokens."""
    errors = []
    for values, mask, reference in zip(tokens.values, tokens.mask, expected, strict=True):
        assert values[mask].shape == reference.shape
        if len(reference):
            errors.append(float((values[mask] - reference).norm() / reference.norm()))
    return max(errors)


def hidden_states(folder: Path, clip: Clip) -> list[Tensor]:
    """Transformers' own: its processor on text and pictures, its forward."""
    reader = READERS[TYPES.get(folder.name, folder.name)]
    model = reader.kind.from_pretrained(folder).eval()
    processor = reader.processor_kind.from_pretrained(folder)
    words = f"Title: {clip.title}" if clip.title else ""
    frames = [torch.from_numpy(frame).permute(2, 0, 1) for frame in clip.frames]
    side = IMAGE_SIZES[folder.name]
    if reader is Blip2VisionLanguage:
        # Its processor joins one picture to a text, so more pictures are put before it by hand.
        read = processor(text=words, images=frames[:1] or None, return_tensors="pt")
        if not frames:
            states = model.language_model(**read, output_hidden_states=True).hidden_states
            return [state[0] for state in states]
        pixels = processor(images=frames, return_tensors="pt")["pixel_values"]
        more = torch.full((1, 4 * (len(frames) - 1)), model.config.image_token_id)
        ids = torch.cat([more, read["input_ids"]], dim=1)
        output = model(pixel_values=pixels, input_ids=ids, output_hidden_states=True)
        return [state[0] for state in output.language_model_outputs.hidden_states]
    content: list[dict[str, Any]] = [{"type": "image", "image": frame} for frame in frames]
    content += [{"type": "text", "text": words}] if words else []
    settings: dict[str, Any] = {}
    if frames:
        settings["images_kwargs"] = (
            {"crop_to_patches": False}
            if folder.name == "internvl"
            else {"size": {"shortest_edge": side**2, "longest_edge": side**2}}
        )
    read = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        **({"processor_kwargs": settings} if settings else {}),
    )
    return [state[0] for state in model(**read, output_hidden_states=True).hidden_states]


@pytest.mark.parametrize("frames", [0, 1, 2])
@pytest.mark.parametrize("title", ["", "A man plays"])
@EVERY_FAMILY
def test_tokens_are_the_models_own_hidden_states(
    family: str, title: str, frames: int, folders: Folders, make_clip: ClipMaker
) -> None:
    folder, side = folders[family], IMAGE_SIZES[family]
    clip = make_clip(frames, title=title, frames=frames, size=(side, side))
    if not (title or frames):
        assert tower(folder).prefix([clip])["vl"][0].shape == (0, 32)
        return
    with torch.no_grad():
        states = hidden_states(folder, clip)
    assert len(states) == LAYERS + 1
    for layer in (-1, *range(1 + LATE.get(family, 0), LAYERS + 1)):
        result = tower(folder, layer=layer).prefix([clip])["vl"][0]
        assert result.dtype == torch.float32
        assert result.shape == states[layer].shape
        assert float((result - states[layer]).abs().max()) < NEAR, layer


@EVERY_FAMILY
def test_a_frame_is_a_fixed_number_of_tokens(
    family: str, folders: Folders, make_clip: ClipMaker
) -> None:
    frozen = tower(folders[family])
    shapes = [(40, 70), (70, 40), (300, 20), (IMAGE_SIZES[family],) * 2]
    lengths = {
        frames: {
            len(frozen.prefix([make_clip(0, title="t", frames=frames, size=size)])["vl"][0])
            for size in shapes
        }
        for frames in (1, 2, 3)
    }
    assert all(len(found) == 1 for found in lengths.values())
    one, two, three = (found.pop() for found in lengths.values())
    assert two - one == three - two
    # The words around a picture are the family's own: start and end, or a line break.
    assert 0 <= two - one - TOKENS_A_FRAME <= 3


@pytest.mark.parametrize(
    ("family", "image_size", "tokens"),
    [("qwen2_5_vl", 84, 9), ("qwen3_vl", 32, 1), ("internvl", 84, 9), ("blip2", 42, 4)],
)
def test_image_size_sets_the_number_of_tokens(
    family: str, image_size: int, tokens: int, folders: Folders, make_clip: ClipMaker
) -> None:
    clip = make_clip(0, frames=1, size=(50, 80))
    before = len(tower(folders[family]).prefix([clip])["vl"][0])
    after = len(tower(folders[family], image_size=image_size).prefix([clip])["vl"][0])
    assert after - before == tokens - TOKENS_A_FRAME


@EVERY_FAMILY
def test_results_depend_on_the_clip_alone(
    family: str, folders: Folders, clips: list[Clip], whole: dict[str, list[Tensor]]
) -> None:
    frozen = tower(folders[family])
    for clip, expected in zip(clips, whole[family], strict=True):
        alone = frozen.prefix([clip])["vl"][0]
        assert alone.shape == expected.shape
        assert torch.allclose(alone, expected, atol=NEAR)
    assert len(whole[family][3]) == 0, "neither frames nor title"


@pytest.mark.parametrize(("family", "blocks"), CUTS)
def test_every_cut_gives_the_tokens_of_the_whole(
    family: str, blocks: int, folders: Folders, clips: list[Clip], whole: dict[str, list[Tensor]]
) -> None:
    cut = tower(folders[family], tuned_blocks=blocks)
    columns = 2 * AXES.get(family, 0)
    assert cut.prefix_streams == {"vl": 32 + columns}
    assert cut.tuned_blocks == {"vl": blocks}
    assert cut.blocks == {"vl": LAYERS}
    assert cut.needs_float_cache == (columns > 0)
    module: Any = cut.suffix_modules()["vl"]
    assert module.hidden_width == 32
    assert list(module.layers) == [str(n) for n in range(LAYERS - blocks, LAYERS)]
    tokens = padded(cut, clips)
    assert not tokens.mask.all()
    result = cut.suffix({"vl": tokens})["vl"]
    assert largest_error(Tokens(result.values.detach(), result.mask), whole[family]) < NEAR
    names = dict(module.named_parameters())
    assert any(name.startswith("norm.") for name in names)
    assert all(parameter.requires_grad for parameter in names.values())
    cut.zero_grad()
    weights = torch.randn(result.values.shape, generator=torch.Generator().manual_seed(0))
    ((result.values * weights) * result.mask[..., None]).sum().backward()
    without = [n for n, p in names.items() if p.grad is None or not float(p.grad.abs().max())]
    # A key's bias adds the same to all scores of a query, which softmax takes away again.
    assert [name for name in without if not name.endswith("k_proj.bias")] == []
    assert not any(parameter.requires_grad for parameter in cut.prefixes.parameters())


@pytest.mark.parametrize("garbage", [1e3, float("nan")])
@EVERY_FAMILY
def test_what_stands_under_a_mask_has_no_influence(
    family: str, garbage: float, folders: Folders, clips: list[Clip]
) -> None:
    cut = tower(folders[family], tuned_blocks=2)
    tokens = padded(cut, clips)
    spoilt = torch.where(tokens.mask[..., None], tokens.values, garbage)
    with torch.no_grad():
        clean = cut.suffix({"vl": tokens})["vl"]
        other = cut.suffix({"vl": Tokens(spoilt, tokens.mask)})["vl"]
    assert torch.equal(clean.values[clean.mask], other.values[other.mask])
    assert torch.isfinite(other.values).all(), "also rows without any token"


@pytest.mark.parametrize("family", AXES)
def test_a_masked_token_is_as_if_it_were_not_there(
    family: str, folders: Folders, clips: list[Clip]
) -> None:
    cut = tower(folders[family], tuned_blocks=2)
    tokens = padded(cut, clips[:1])
    stays = torch.arange(tokens.mask.shape[1]) != 7
    with torch.no_grad():
        masked = cut.suffix({"vl": Tokens(tokens.values, tokens.mask & stays)})["vl"]
        absent = cut.suffix({"vl": Tokens(tokens.values[:, stays], tokens.mask[:, stays])})["vl"]
    assert torch.allclose(masked.values[:, stays], absent.values, atol=NEAR)


@EVERY_FAMILY
def test_attention_is_causal_behind_the_cut(
    family: str, folders: Folders, clips: list[Clip]
) -> None:
    cut = tower(folders[family], tuned_blocks=2)
    tokens = padded(cut, clips[:1])
    changed = tokens.values.clone()
    changed[:, 9, 0] += 1.0
    with torch.no_grad():
        before = cut.suffix({"vl": tokens})["vl"].values
        after = cut.suffix({"vl": Tokens(changed, tokens.mask)})["vl"].values
    difference = (before - after).abs().amax(dim=(0, 2))
    assert float(difference[:9].max()) == 0
    assert float(difference[9:].min()) > 0


@pytest.mark.parametrize("pool", [4, 1, 0, None])
@EVERY_FAMILY
def test_pool_averages_neighbours_behind_the_last_block(
    family: str,
    pool: int | None,
    folders: Folders,
    clips: list[Clip],
    whole: dict[str, list[Tensor]],
) -> None:
    group = pool or 1
    expected = [
        torch.stack([part.mean(dim=0) for part in tokens.split(group)]) if len(tokens) else tokens
        for tokens in whole[family]
    ]
    frozen = tower(folders[family], pool=pool)
    assert largest_error(pad(frozen.prefix(clips)["vl"], 32), expected) < NEAR
    cut = tower(folders[family], pool=pool, tuned_blocks=1)
    with torch.no_grad():
        result = cut.suffix({"vl": padded(cut, clips)})["vl"]
    assert largest_error(result, expected) < NEAR


@EVERY_FAMILY
def test_hooks_between_blocks_see_and_change_hidden_states(
    family: str, folders: Folders, clips: list[Clip], whole: dict[str, list[Tensor]]
) -> None:
    cut = tower(folders[family], tuned_blocks=2)
    seen: list[tuple[int, int]] = []

    def look(number: int, tokens: Tokens) -> Tokens:
        seen.append((number, tokens.values.shape[-1]))
        return tokens

    def disturb(number: int, tokens: Tokens) -> Tokens:
        return Tokens(tokens.values * 2, tokens.mask) if number == LAYERS - 1 else tokens

    suffix, tokens = cut.suffix_modules(), {"vl": padded(cut, clips)}
    with torch.no_grad():
        same = suffix(tokens, {"vl": look})["vl"]
        other = suffix(tokens, {"vl": disturb})["vl"]
    assert seen == [(LAYERS - 2, 32), (LAYERS - 1, 32)]
    assert largest_error(same, whole[family]) < NEAR
    assert largest_error(other, whole[family]) > 1e-2


@EVERY_FAMILY
def test_checkpointing_changes_no_gradient(
    family: str, folders: Folders, clips: list[Clip]
) -> None:
    cut = tower(folders[family], tuned_blocks=2)
    tokens, gradients = padded(cut, clips), []
    for checkpointing in (False, True):
        module: Any = copy.deepcopy(cut.suffix_modules()["vl"])
        for part in module.modules():
            if isinstance(part, torch.nn.Module) and isinstance(getattr(part, "dropout", 0), float):
                part.dropout = 0.0
        module.train()
        module.checkpointing = checkpointing
        module(tokens).mean().square().sum().backward()
        gradients.append({name: p.grad for name, p in module.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_position_columns_are_exact_in_half_precision(dtype: torch.dtype) -> None:
    positions = torch.stack([torch.arange(MOST_POSITIONS), torch.arange(MOST_POSITIONS).flip(0)])
    columns = position_columns(positions)
    assert columns.shape == (MOST_POSITIONS, 4)
    assert torch.equal(columns.to(dtype).long(), columns)
    assert torch.equal(positions_from(columns.to(dtype)[None])[:, 0], positions)


@pytest.mark.parametrize("family", AXES)
def test_positions_come_through_a_cache_and_matter(
    family: str, folders: Folders, clips: list[Clip], whole: dict[str, list[Tensor]]
) -> None:
    cut = tower(folders[family], tuned_blocks=2)
    tokens = padded(cut, clips)
    exact = positions_from(tokens.values[..., 32:])
    time, height, width = exact[:, 0]
    assert not torch.equal(height, width)
    assert not torch.equal(time, height)
    limits = {"float16": 5e-3, "bfloat16": 5e-2}
    for dtype, limit in limits.items():
        codec = TokenCodec(dtype)
        kept = torch.stack([codec.decode(codec.encode(row)).float() for row in tokens.values])
        assert torch.equal(positions_from(kept[..., 32:]), exact)
        with torch.no_grad():
            result = cut.suffix({"vl": Tokens(kept, tokens.mask)})["vl"]
        assert largest_error(result, whole[family]) < limit
    for axis in range(3):
        moved = tokens.values.clone()
        moved[..., 32 + 2 * axis : 34 + 2 * axis] = 0
        with torch.no_grad():
            result = cut.suffix({"vl": Tokens(moved, tokens.mask)})["vl"]
        assert largest_error(result, whole[family]) > 1e-3, axis


@EVERY_FAMILY
def test_bfloat16_is_for_frozen_weights_only(
    family: str, folders: Folders, clips: list[Clip], whole: dict[str, list[Tensor]]
) -> None:
    cut = tower(folders[family], dtype="bfloat16", tuned_blocks=1)
    assert {p.dtype for p in cut.suffix_modules().parameters()} == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in cut.prefixes.parameters()}
    tokens = padded(cut, clips)
    assert tokens.values.dtype == torch.float32
    with torch.no_grad():
        result = cut.suffix({"vl": tokens})["vl"]
    assert 0 < largest_error(result, whole[family]) < 0.05
    frozen = tower(folders[family], dtype="bfloat16").prefix(clips)["vl"]
    assert {value.dtype for value in frozen} == {torch.float32}
    assert 0 < largest_error(pad(frozen, 32), whole[family]) < 0.05


@EVERY_FAMILY
def test_the_suffix_runs_under_autocast(
    family: str, folders: Folders, clips: list[Clip], whole: dict[str, list[Tensor]]
) -> None:
    cut = tower(folders[family], tuned_blocks=2)
    tokens = padded(cut, clips)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        result = cut.suffix({"vl": tokens})["vl"]
    assert 0 < largest_error(result.float(), whole[family]) < 0.05


@EVERY_FAMILY
def test_titles_are_cleaned_and_cut(family: str, folders: Folders, make_clip: ClipMaker) -> None:
    frozen = tower(folders[family])

    def read(title: str) -> Tensor:
        return frozen.prefix([make_clip(0, title=title, frames=1)])["vl"][0]

    assert len(read("x" * 16)) == len(read("x" * 17)) == len(read("x" * 15)) + 1
    assert torch.equal(read("x" * 16), read("x" * 500))
    assert torch.equal(read(" a \n b "), read("a b"))
    reader: Titles = next(iter(frozen.prefixes.values())).processor  # type: ignore[assignment]
    for control in reader.tokenizer.get_added_vocab():
        half = len(control) // 2
        nested = control[:half] + control + control[half:]
        for title in (f"a {control} b", nested, control * 3):
            assert control not in reader.words(title)
        assert torch.equal(read(f"a {control} b"), read("a b"))
        assert torch.equal(read(control), read(""))


@EVERY_FAMILY
def test_identity_names_weights_and_settings_and_no_path(family: str, folders: Folders) -> None:
    folder = folders[family]
    plain, cut = tower(folder).identity(), tower(folder, tuned_blocks=1).identity()
    assert (plain.name, plain.revision) == (family, "local")
    assert str(folder) not in str(plain.as_dict())
    assert plain.options["layer"] == LAYERS
    assert plain == new_tower(folder).identity()
    assert cut.sha256 != plain.sha256
    assert cut.options["tuned_blocks"] == {"vl": 1}
    assert tower(folder, layer=LAYERS - 1).identity().sha256 != plain.sha256
    for change in ({"prompt": ""}, {"text_length": 8}, {"pool": 4}, {"dtype": "bfloat16"}):
        assert tower(folder, **change).identity().options != plain.options


@pytest.mark.parametrize(
    ("family", "name", "change"),
    [
        ("qwen2_5_vl", "chat_template.jinja", ("helpful", "careful")),
        ("internvl", "processor_config.json", ("0.48145466", "0.5")),
        ("blip2", "tokenizer.json", ('"!": 0', '"!": 1')),
    ],
)
def test_identity_tells_processors_apart(
    family: str, name: str, change: tuple[str, str], folders: Folders, tmp_path: Path
) -> None:
    plain = tower(folders[family]).identity()
    folder = shutil.copytree(folders[family], tmp_path / family)
    path = folder / name
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    other = new_tower(folder).identity()
    assert other.sha256 == plain.sha256
    assert {k for k in plain.options if plain.options[k] != other.options[k]} == {"processor"}


@EVERY_FAMILY
def test_configuration_makes_the_tower(family: str, folders: Folders, clips: list[Clip]) -> None:
    node = OmegaConf.load(Path(conf_dir()) / "vl" / f"{family}.yaml")
    assert "/" in node.model
    assert "tuned_blocks" not in node
    node.model = str(folders[family])
    node.image_size = IMAGE_SIZES[family]
    built = instantiate(node, tuned_blocks=1)
    assert isinstance(built, GenerativeEncoder)
    assert len(built.prefix(clips)["vl"][0])


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("blip2", {"tuned_blocks": "all"}, "vision tower and the token embeddings.*at most 3"),
        ("qwen3_vl", {"tuned_blocks": 3}, "first 1 of 3 blocks take in visual.*at most 2"),
        ("qwen3_vl", {"tuned_blocks": 4}, "from 0 to 3, or 'all', got 4"),
        ("internvl", {"tuned_blocks": -1}, "from 0 to 3, or 'all', got -1"),
        ("internvl", {"tuned_blocks": {"image": 1}}, r"names \['image'\]"),
        ("qwen3_vl", {"layer": 1}, "from 2 to 3, behind the 1 that take in visual"),
        ("internvl", {"layer": 4}, "has 3 blocks, give -1 or the number that run, from 1 to 3"),
        ("internvl", {"layer": 0}, "layer is 0"),
        ("blip2", {"layer": -4}, "layer is -4"),
        ("blip2", {"dtype": "float16"}, "dtype is 'float16': use one of float32, bfloat16"),
        ("blip2", {"pool": -1}, "pool is -1"),
        ("blip2", {"text_length": 0}, "text_length is 0"),
        ("qwen2_5_vl", {"image_size": 60}, "image_size is 60: .*multiple of 28"),
        ("qwen3_vl", {"image_size": 56}, "image_size is 56: .*multiple of 32"),
        ("internvl", {"image_size": 14}, "image_size is 14: .*multiple of 28"),
        ("blip2", {"image_size": 0}, "image_size is 0: .*multiple of 14"),
        ("qwen2_5_vl", {"prompt": "<|image_pad|>"}, "control tokens"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    family: str, changes: dict[str, Any], message: str, folders: Folders
) -> None:
    with pytest.raises(ValueError, match=message):
        new_tower(folders[family], **changes)


@pytest.mark.parametrize(
    ("config", "found"),
    [(WhisperConfig(d_model=16), "whisper"), (Qwen2Config(hidden_size=16), "qwen2")],
    ids=["sound", "text"],
)
def test_models_of_other_modalities_are_refused(config: Any, found: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"family '{found}' .*blip-2, internvl, qwen2_5_vl, qwen3"):
        GenerativeEncoder(str(tmp_path), None, 56, "", 16)


def test_models_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no-one/nothing.*hf download no-one/nothing"):
        GenerativeEncoder("no-one/nothing", None, 56, "", 16)
    with pytest.raises(ValueError, match="no folder"):
        GenerativeEncoder(str(tmp_path / "absent"), None, 56, "", 16)


@pytest.mark.parametrize("absent", ["processor_config.json", "tokenizer.json"])
@EVERY_FAMILY
def test_a_folder_without_its_processor_is_refused(
    family: str, absent: str, folders: Folders, tmp_path: Path
) -> None:
    folder = shutil.copytree(folders[family], tmp_path / family)
    (folder / absent).unlink()
    with pytest.raises(ValueError, match=f"/{family}' has no .*save"):
        new_tower(folder)


def test_a_chat_model_without_its_prompt_is_refused(folders: Folders, tmp_path: Path) -> None:
    folder = shutil.copytree(folders["internvl"], tmp_path / "internvl")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="InternVLProcessor has no chat template"):
        tower(folder)


def test_a_model_with_sliding_windows_is_refused(folders: Folders, tmp_path: Path) -> None:
    folder = shutil.copytree(folders["qwen2_5_vl"], tmp_path / "qwen2_5_vl")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("full_attention", "sliding_attention"))
    with pytest.raises(ValueError, match=r"sliding_attention.*use_sliding_window"):
        tower(folder)


def test_blip2_with_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    folder = tiny_vlms.blip2_t5(tmp_path / "blip2")
    with pytest.raises(ValueError, match=r"'t5': use one with OPT.*blip2-opt-2.7b"):
        tower(folder)


def test_a_prompt_longer_than_the_model_is_refused(folders: Folders, make_clip: ClipMaker) -> None:
    with pytest.raises(ValueError, match=r"70 frames .* tokens.* has 256 positions: read fewer"):
        tower(folders["blip2"]).prefix([make_clip(0, frames=70, size=(28, 28))])
    longest = make_clip(0, title="", frames=63, size=(28, 28))
    assert len(np.asarray(tower(folders["blip2"]).prefix([longest])["vl"][0])) == 253
