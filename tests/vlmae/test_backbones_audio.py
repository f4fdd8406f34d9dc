"""Audio towers of every family: cuts, names, batches, identities, and what they refuse."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_audio_models as tiny
import torch
import yaml
from audio_towers import TOWERS, Folders, audio, clip_of, clips_at, close, noise, write_folders
from hydra.utils import instantiate
from torch.nn import functional
from torchaudio.transforms import Resample
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    WhisperFeatureExtractor,
)

from vlmae.backbones import waveform
from vlmae.backbones.audio_stream import AudioTower
from vlmae.backbones.clap import Clap
from vlmae.backbones.spectrogram_transformer import SpectrogramTransformer
from vlmae.backbones.stream import StreamEncoder
from vlmae.backbones.waveform import Waveform, receptive_field
from vlmae.backbones.whisper import Whisper
from vlmae.tokens import Tokens, pad

BLOCKS = {family: 2 if family.startswith("clap") else tiny.LAYERS for family in TOWERS}
CUTS = [(family, tuned) for family in TOWERS for tuned in [*range(1, BLOCKS[family] + 1), "all"]]
# A key's bias shifts all scores of a query alike: softmax does not see it.
BLIND = ("k_proj.bias", "key.bias")
CONF = Path(__file__).parents[2] / "conf" / "audio"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return write_folders(tmp_path_factory.mktemp("audio-models"))


# Cuts.


@pytest.mark.parametrize(("family", "tuned"), CUTS)
def test_every_cut_gives_the_uncut_tokens(folders: Folders, family: str, tuned: Any) -> None:
    pool = 3 if tuned == 1 else 1
    whole = TOWERS[family](folders[family], pool=pool)
    tower = TOWERS[family](folders[family], pool=pool, tuned_blocks={"audio": tuned})
    clips = clips_at(tower.sample_rate)
    blocks = BLOCKS[family]
    assert tower.blocks == whole.blocks == {"audio": blocks}
    assert tower.tuned_blocks == {"audio": blocks if tuned == "all" else tuned}
    width = tower.prefix_streams["audio"]
    assert width == (tower.reader.width if tuned == "all" else tiny.WIDTH)
    at_cut = pad(tower.prefix(clips)["audio"], width)
    # What stands under a mask, and how far a batch is padded, has no influence.
    values = torch.where(at_cut.mask[..., None], at_cut.values, torch.nan)
    longer = torch.cat([values, torch.full((len(clips), 50, width), torch.inf)], dim=1)
    mask = torch.cat([at_cut.mask, torch.zeros(len(clips), 50, dtype=torch.bool)], dim=1)
    with torch.no_grad():
        results = [tower.suffix({"audio": t})["audio"] for t in (at_cut, Tokens(longer, mask))]
    for result in results:
        for ours, real, expected in zip(
            result.values, result.mask, whole.prefix(clips)["audio"], strict=True
        ):
            close(ours[real], expected, 1e-5)
            assert int(real.sum()) == len(expected)


@pytest.mark.parametrize(("family", "tuned"), CUTS)
def test_gradients_reach_everything_behind_the_cut(
    folders: Folders, family: str, tuned: Any
) -> None:
    tower = TOWERS[family](folders[family], tuned_blocks=tuned)
    tower.tail.train()
    stream = tower.tail["audio"]
    assert isinstance(stream, StreamEncoder)
    stream.checkpointing = tuned == 2
    clips = clips_at(tower.sample_rate)[:3]
    torch.manual_seed(0)
    tokens = pad(tower.prefix(clips)["audio"], tower.prefix_streams["audio"])
    (tower.suffix({"audio": tokens})["audio"].mean() ** 3).sum().backward()
    without = [
        name
        for name, parameter in tower.tail.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert [name for name in without if not name.endswith(BLIND)] == []
    assert all(p.grad is None or p.grad.isfinite().all() for p in tower.tail.parameters())
    behind = {id(p) for p in tower.tail.parameters()}
    others = [p for p in tower.parameters() if id(p) not in behind]
    assert all(p.grad is None and not p.requires_grad for p in others)
    if tuned == "all":
        assert not others


@pytest.mark.parametrize("family", TOWERS)
def test_a_batch_without_sound_is_finite_at_every_cut(folders: Folders, family: str) -> None:
    for tuned in (1, "all"):
        tower = TOWERS[family](folders[family], tuned_blocks=tuned)
        nothing = [clip_of(np.zeros(0, np.float32))] * 2
        tokens = pad(tower.prefix(nothing)["audio"], tower.prefix_streams["audio"])
        result = tower.suffix({"audio": tokens})["audio"]
        assert not result.mask.any()
        result.mean().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in tower.tail.parameters())


def test_names_are_those_of_the_encoder_at_every_cut(folders: Folders) -> None:
    expected = {
        "whisper": {"audio.layers.2.self_attn.q_proj.weight", "audio.norm.weight"},
        "ast": {"audio.layers.2.attention.q_proj.weight", "audio.norm.weight"},
        "hubert_large": {"audio.layers.2.attention.q_proj.weight", "audio.norm.weight"},
        "wavlm": {"audio.layers.2.attention.q_proj.weight"},
        "clap": {"audio.layers.1.attention.self.query.weight", "audio.norm.weight"},
    }
    for family, names in expected.items():
        few, most = (
            set(TOWERS[family](folders[family], tuned_blocks=n).tail.state_dict())
            for n in (1, "all")
        )
        assert names <= few < most
        assert any(name.startswith("audio.embedding.") for name in most)


def test_whispers_positions_never_train(folders: Folders) -> None:
    tail = Whisper(folders["whisper"], tuned_blocks="all").tail
    assert "audio.embedding.embed_positions.weight" in tail.state_dict()
    assert "audio.embedding.embed_positions.weight" not in dict(tail.named_parameters())


def test_wavlm_shares_its_positions_behind_a_cut_without_training_them(folders: Folders) -> None:
    tower = Waveform(folders["wavlm"], tuned_blocks=2)
    assert not [name for name in tower.tail.state_dict() if "rel_attn" in name or "posit" in name]
    sound = [clip_of(noise(1.0, 16_000))]
    before = tower.prefix(sound)["audio"][0]
    trained = copy.deepcopy(tower)
    with torch.no_grad():
        for parameter in trained.tail.parameters():
            parameter.add_(1.0)
    assert torch.equal(trained.prefix(sound)["audio"][0], before)
    # With the first block behind the cut they train with it.
    names = dict(Waveform(folders["wavlm"], tuned_blocks=3).tail.named_parameters())
    assert "audio.layers.0.attention.rel_attn_embed.weight" in names


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["wavlm", "wavlm_large"])
def test_wavlms_biases_are_of_few_clips_at_a_time(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, family: str, checkpointing: bool
) -> None:
    tower = Waveform(folders[family], tuned_blocks="all")
    stream: Any = tower.tail["audio"].train()
    stream.checkpointing = checkpointing
    for module in stream.modules():
        # Masks of dropout would differ: they are drawn in another order.
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "activation_dropout") or type(module).__name__ == "WavLMAttention":
            module.dropout = 0.0
    inputs = pad(tower.prefix(clips_at(16_000))["audio"], 1)
    original, largest = functional.scaled_dot_product_attention, []

    def attend(*parts: torch.Tensor, attn_mask: torch.Tensor, **settings: Any) -> torch.Tensor:
        largest.append(attn_mask.numel())
        return original(*parts, attn_mask=attn_mask, **settings)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attend)
    kept: list[int] = []

    def keep(values: torch.Tensor) -> torch.Tensor:
        if values.ndim == 4 and values.shape[2] == values.shape[3]:
            kept.append(len(values))
        return values

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        tower.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda values: values):
            result = stream(inputs)
        (result.values * result.mask[..., None]).mean(dim=1).pow(3).sum().backward()
        return result.values, [p.grad for p in stream.parameters() if p.grad is not None]

    whole, gradients = run()
    one = max(largest) // len(inputs.mask)
    assert max(largest) == 7 * 4 * 69 * 69
    assert bool(kept) != checkpointing
    for rows, limit in ((2, 2 * one + 1), (1, one // 2)):
        monkeypatch.setattr(waveform, "SCORES_AT_A_TIME", limit)
        largest.clear()
        kept.clear()
        ours, theirs = run()
        assert max(largest) == rows * one
        assert not kept, "the gated biases of all parts, until the backward"
        close(ours, whole, 1e-6)
        for gradient, expected in zip(theirs, gradients, strict=True):
            close(gradient, expected, 1e-6 * max(1.0, float(expected.abs().max())))


def test_wavlms_projections_run_as_modules(folders: Folders) -> None:
    # transformers reads their weights alone: LoRA on them would train nothing.
    tower = Waveform(folders["wavlm"], tuned_blocks=1)
    attention: Any = tower.tail["audio"].layers["2"].attention
    called = []
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        getattr(attention, name).register_forward_hook(
            lambda *_, name=name: called.append(name)  # type: ignore[misc]
        )
    tokens = pad(tower.prefix([clip_of(noise(0.5, 16_000))])["audio"], tiny.WIDTH)
    tower.suffix({"audio": tokens})
    assert sorted(called) == ["k_proj", "out_proj", "q_proj", "v_proj"]


@pytest.mark.parametrize("family", TOWERS)
def test_what_is_called_between_blocks_sees_every_hidden_state(
    folders: Folders, family: str
) -> None:
    tower = TOWERS[family](folders[family], tuned_blocks=2)
    clips = clips_at(tower.sample_rate)
    tokens = {"audio": pad(tower.prefix(clips)["audio"], tower.prefix_streams["audio"])}
    seen = []

    def watch(number: int, hidden: Tokens) -> Tokens:
        seen.append((number, hidden.values.shape[-1]))
        return Tokens(hidden.values * (2.0 if number == BLOCKS[family] - 1 else 1.0), hidden.mask)

    changed = tower.tail(tokens, {"audio": watch})["audio"]
    last = BLOCKS[family] - 1
    assert seen == [(last - 1, tiny.WIDTH), (last, tiny.WIDTH)]
    assert not torch.allclose(changed.values, tower.suffix(tokens)["audio"].values)


# One tower.


@pytest.mark.parametrize("family", TOWERS)
def test_tokens_do_not_depend_on_the_rest_of_the_batch(folders: Folders, family: str) -> None:
    tower = TOWERS[family](folders[family])
    clips = clips_at(tower.sample_rate)
    together = tower.prefix(clips)["audio"]
    # CLAP alone reads one sample, which it repeats.
    assert [len(t) > 0 for t in together] == [1, 1, 0, 1, 1, family.startswith("clap"), 1]
    for clip, tokens in zip(clips, together, strict=True):
        assert tokens.shape[1:] == (tower.streams["audio"],)
        assert tokens.dtype == torch.float32
        assert tokens.isfinite().all()
        close(tokens, tower.prefix([clip])["audio"][0], 1e-5)
    assert tower.train().prefix(clips[:1])["audio"][0].equal(tower.prefix(clips[:1])["audio"][0])


@pytest.mark.parametrize("family", ["ast", "hubert", "clap"])
def test_longer_clips_are_cut_at_max_seconds(folders: Folders, family: str) -> None:
    tower = TOWERS[family](folders[family], max_seconds=1.5)
    long = noise(3.0, tower.sample_rate)
    ours, expected = audio(tower, [long, long[: round(1.5 * tower.sample_rate)]])
    close(ours, expected, 1e-5)
    assert len(ours) < len(audio(TOWERS[family](folders[family]), [long])[0])
    with pytest.raises(ValueError, match="max_seconds leaves 0 samples"):
        TOWERS[family](folders[family], max_seconds=0)


@pytest.mark.parametrize("family", ["whisper", "ast", "wavlm", "clap"])
def test_other_rates_are_resampled_by_torchaudio(folders: Folders, family: str) -> None:
    own = TOWERS[family](folders[family])
    tower = TOWERS[family](folders[family], decode_rate=22_050)
    assert tower.sample_rate == 22_050
    sound = noise(1.2, 22_050)
    model_rate = own.sample_rate
    expected = Resample(22_050, model_rate)(torch.from_numpy(sound)).numpy()
    close(audio(tower, [sound])[0], audio(own, [expected])[0])
    assert tower.identity().options["decode_rate"] == 22_050
    assert "decode_rate" not in own.identity().options
    same = TOWERS[family](folders[family], decode_rate=model_rate)
    assert same.identity() == own.identity()
    long = noise(31.0, 22_050)
    assert len(audio(Whisper(folders["whisper"], decode_rate=22_050), [long])[0]) == 1500


@pytest.mark.parametrize("family", TOWERS)
def test_identity_names_no_path_and_hashes_the_weights_alone(folders: Folders, family: str) -> None:
    tower = TOWERS[family](folders[family], pool=2)
    identity = tower.identity()
    assert (identity.name, identity.revision) == (family, "local")
    assert identity.options["pool"] == 2
    assert tower.prefixes.state_dict().keys() == {
        f"audio.{name}" for name in tower.prefixes["audio"].state_dict()
    }
    assert not any("mel" in name or "reader" in name for name in tower.prefixes.state_dict())
    cuts = [TOWERS[family](folders[family], pool=2, tuned_blocks=n) for n in (1, 2, "all")]
    assert len({identity.sha256, *(cut.identity().sha256 for cut in cuts)}) == 4


@pytest.mark.parametrize(
    ("family", "setting", "value"),
    [
        ("whisper", "dither", 0.5),
        ("ast", "mean", -6.0),
        ("hubert", "do_normalize", False),
        ("wavlm", "do_normalize", True),
        ("clap", "frequency_max", 12_000),
    ],
)
def test_identity_tells_extractors_apart(
    folders: Folders, tmp_path: Path, family: str, setting: str, value: Any
) -> None:
    whole = TOWERS[family](folders[family]).identity()
    folder = shutil.copytree(folders[family], tmp_path / family)
    assert TOWERS[family](str(folder)).identity() == whole
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    assert settings[setting] != value
    path.write_text(json.dumps({**settings, setting: value}))
    other = TOWERS[family](str(folder)).identity()
    assert other.sha256 == whole.sha256
    assert {k for k in whole.options if whole.options[k] != other.options[k]} == {"extractor"}


@pytest.mark.parametrize("family", TOWERS)
def test_frozen_weights_in_bfloat16_and_a_suffix_in_float32(folders: Folders, family: str) -> None:
    whole = TOWERS[family](folders[family])
    clips = clips_at(whole.sample_rate)[:2]
    expected = whole.prefix(clips)["audio"]
    for tuned in (0, 1):
        tower = TOWERS[family](folders[family], dtype="bfloat16", tuned_blocks=tuned)
        assert {p.dtype for p in tower.prefixes.parameters()} == {torch.bfloat16}
        assert all(p.dtype == torch.float32 for p in tower.tail.parameters())
        # On AMX oneDNN is plainly wrong for grouped bfloat16 convolutions as narrow as those of the
        # tiny models, not for those of published ones (docs/log.md).
        with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
            tokens = pad(tower.prefix(clips)["audio"], tower.prefix_streams["audio"])
            result = tower.suffix({"audio": tokens})["audio"]
        for ours, real, theirs in zip(result.values, result.mask, expected, strict=True):
            assert float((ours[real] - theirs).norm() / theirs.norm()) < 0.03
        assert tower.identity().sha256 != whole.identity().sha256


@pytest.mark.parametrize("family", ["whisper", "clap", "wavlm"])
def test_a_moved_tower_reads_sound_where_it_is(
    folders: Folders, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The meta device has no values, but refuses to compute with tensors of the CPU, as a GPU does.
    clips = clips_at(22_050)
    for tuned in (0, 1):
        tower = TOWERS[family](folders[family], decode_rate=22_050, tuned_blocks=tuned)
        expected = tower.prefix(clips)["audio"]
        moved = copy.deepcopy(tower).to("meta")
        monkeypatch.setattr(
            torch.Tensor, "cpu", lambda tensor: torch.ones(tensor.shape, dtype=tensor.dtype)
        )
        assert [t.shape for t in moved.prefix(clips)["audio"]] == [t.shape for t in expected]
        monkeypatch.undo()


@pytest.mark.parametrize("family", ["whisper", "ast", "hubert", "wavlm", "clap"])
def test_its_file_in_conf_builds_it(folders: Folders, family: str) -> None:
    node = yaml.safe_load((CONF / f"{family}.yaml").read_text())
    assert "/" in node["model"], "a hub id"
    assert "tuned_blocks" not in node
    tower = instantiate({**node, "model": folders[family]})
    assert isinstance(tower, AudioTower)
    assert tower.random == ""
    assert len(tower.prefix(clips_at(tower.sample_rate)[:1])["audio"][0]) > 0


# Errors.


def test_models_of_other_families_are_refused(folders: Folders, tmp_path: Path) -> None:
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = BertModel(BertConfig(**small, vocab_size=20, intermediate_size=8))
    image = CLIPVisionModel(CLIPVisionConfig(**small, image_size=32, intermediate_size=8))
    for name, model in (("bert", text), ("clip_vision_model", image)):
        model.save_pretrained(tmp_path / name)
        for tower in (Whisper, SpectrogramTransformer, Waveform, Clap):
            with pytest.raises(ValueError, match=f"of the family '{name}' and cannot be"):
                tower(str(tmp_path / name))
    with pytest.raises(ValueError, match="'hubert' and cannot be a Whisper encoder: use one of"):
        Whisper(folders["hubert"])


@pytest.mark.parametrize("family", ["whisper", "ast", "hubert", "wavlm", "clap"])
def test_missing_files_are_named(folders: Folders, tmp_path: Path, family: str) -> None:
    folder = tmp_path / family
    folder.mkdir()
    for path in Path(folders[family]).iterdir():
        if path.name != "preprocessor_config.json":
            (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"(processor files|extractor)"):
        TOWERS[family](str(folder))
    with pytest.raises(ValueError, match=r"cannot get the configuration of 'nobody/nothing'"):
        TOWERS[family]("nobody/nothing")
    (folder / "model.safetensors").unlink()
    (folder / "preprocessor_config.json").write_bytes(
        (Path(folders[family]) / "preprocessor_config.json").read_bytes()
    )
    with pytest.raises(ValueError, match="weights"):
        TOWERS[family](str(folder))


def test_an_extractor_of_another_model_is_refused(folders: Folders, tmp_path: Path) -> None:
    folder = tiny.hubert(tmp_path / "hubert")
    WhisperFeatureExtractor().save_pretrained(folder)
    with pytest.raises(ValueError, match="WhisperFeatureExtractor for its sound, its encoder need"):
        Waveform(folder)
    other = tiny.whisper(tmp_path / "whisper", feature_size=80)
    with pytest.raises(ValueError, match=f"makes 80 mel bands, its encoder reads {tiny.BANDS}"):
        Whisper(other)
    other = tiny.spectrogram_transformer(tmp_path / "ast", frames=256)
    with pytest.raises(ValueError, match=r"windows of \(256, 40\) frames and bands"):
        SpectrogramTransformer(other)


def test_variants_that_the_towers_do_not_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="conv_pos_batch_norm, which this tower does not run"):
        Waveform(tiny.hubert(tmp_path / "hubert", conv_pos_batch_norm=True))
    mapped = tiny.clap(tmp_path / "clap", fused=True, fusion_type="channel_map")
    with pytest.raises(ValueError, match="reads 4 channels of a fused spectrogram"):
        Clap(mapped)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("clap", {"tuned_blocks": 3}, r"0 to 2, the blocks of CLAP's last stage, or 'all', got 3"),
        ("ast", {"tuned_blocks": 4}, "tuned_blocks must be from 0 to 3, or 'all', got 4"),
        ("hubert", {"tuned_blocks": "most"}, "tuned_blocks must be from 0 to 3, or 'all'"),
        ("wavlm", {"tuned_blocks": {"image": 1}}, r"tuned_blocks names \['image'\]"),
        ("whisper", {"pool": 0}, "pool must be from 1 to 1500, got 0"),
        ("hubert", {"pool": 0}, "pool must be from 1"),
        ("ast", {"pool": 13}, "pool must be from 0 to 12, got 13"),
        ("clap", {"pool": -1}, "pool must be from 0 to 32, got -1"),
        ("whisper", {"decode_rate": 0}, "decode_rate must be positive"),
    ],
)
def test_settings_out_of_range(
    folders: Folders, family: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TOWERS[family](folders[family], **settings)


def test_receptive_field_is_that_of_the_base_models() -> None:
    assert receptive_field((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)) == 400
