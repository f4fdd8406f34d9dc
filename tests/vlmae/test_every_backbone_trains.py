"""Every backbone and every fusion of conf/ takes optimizer steps and lowers the loss.

The files are composed as a command does, with tiny models in place of the published ones, and what
is stepped is the module that Lightning steps: real clips, real prefix, real objective.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_backbone_confs import names, tiny_overrides
from torch import Tensor

from lsb.artifact import canonical
from lsb.ids import sample_ids
from vlmae.backbones.base import weights_sha256
from vlmae.checkpoint import build_model
from vlmae.config import as_dict, build, compose_config
from vlmae.data.batches import Batch
from vlmae.data.decode import Clip
from vlmae.data.token_table import widths
from vlmae.data.whitening import principal_map
from vlmae.module import VlmaeModule
from vlmae.objectives import build_objective
from vlmae.optimizers import OptimizerConfig
from vlmae.settings import model_config, tower_nodes
from vlmae.tokens import pad
from vlmae.towers import Towers, build_towers
from vlmae.tuning import tuning_config

ClipMaker = Callable[..., Clip]
STEPS, COMPONENTS = 12, 4
STEADY = (
    *(f"model.components={COMPONENTS}", "model.dropout=0.0"),
    *("optimizer.learning_rate=3e-3", "optimizer.weight_decay=0.0", "optimizer.warmup=0.0"),
)
ONE_BLOCK = ("tuning.vl.blocks=1", "tuning.audio.blocks=1")
TITLES = ("the cat", "a guitar", "one word", "", "you will not believe it", "rain", "two", "word")
LABELS = torch.tensor(
    [[1, 0, 0], [0, 1, 0], [1, 1, -1], [0, 0, 1], [1, 0, 0], [0, 1, -1], [-1, -1, 1], [0, 1, 1]]
)
# The bias of a key shifts all scores of a query alike: softmax does not see it.
WITHOUT_EFFECT = ("k_proj.bias", "key.bias")
STEP = 1e-3
"""Of the loss, where a gradient is compared with what a step along it gains."""
pytestmark = pytest.mark.filterwarnings("ignore:You are trying to .self.log")


@dataclass(frozen=True)
class Trained:
    """What a few steps did.

    Attributes:
        module: after them, in evaluation mode.
        batch: the one it was trained on.
        before, after: losses of the whole batch without dropout.
        started: parameters before the first step, by name.
        gradients: largest gradient of each parameter over all steps.
        slopes: stream -> see `slope`, before the first step; empty if not asked for.
    """

    module: VlmaeModule
    batch: Batch
    before: float
    after: float
    started: dict[str, Tensor]
    gradients: dict[str, float]
    slopes: dict[str, float]

    @property
    def moved(self) -> set[str]:
        """Names of the parameters that are not what they were."""
        now = dict(self.module.model.named_parameters())
        return {name for name, tensor in self.started.items() if not torch.equal(tensor, now[name])}


Train = Callable[..., Trained]
Whitening = dict[str, tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def clips(make_clip: ClipMaker) -> list[Clip]:
    """Eight that differ in colour, pitch and title; one lacks sound, one frames, one a title."""
    made = []
    for seed, title in enumerate(TITLES):
        seconds = 0.0 if seed == 1 else 0.5 + 0.1 * (seed % 3)
        frames = 0 if seed == 2 else 1 + seed % 2
        clip = make_clip(seed, title=title, frames=frames, size=(40, 48), seconds=seconds)
        colour = np.array([40 * (seed % 4), 30 * seed, 200 - 25 * seed])
        pictures = (0.2 * clip.frames + 0.8 * colour).astype(np.uint8)
        turns = 150 * 1.5**seed * np.arange(len(clip.audio)) / 16_000
        sound = 0.1 * clip.audio + 0.1 * (1 + seed % 3) * np.sin(2 * np.pi * turns)
        made.append(replace(clip, frames=pictures, audio=sound.astype(np.float32)))
    return made


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny models, each saved when it is first asked for."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def train(clips: list[Clip], models: Path) -> Train:
    """A function from files of conf/ and overrides to a model after a few steps on the clips."""

    known: dict[str, tuple[Batch, Whitening]] = {}

    def run(
        vl: str, audio: str, fusion: str, tuning: str, *more: str, slopes: bool = False
    ) -> Trained:
        chosen = [f"vl={vl}", f"audio={audio}", f"fusion={fusion}", f"tuning={tuning}"]
        tiny = [*tiny_overrides("vl", vl, models), *tiny_overrides("audio", audio, models)]
        values: Any = as_dict(compose_config("train", [*chosen, *tiny, *STEADY, *more]))
        nodes = tower_nodes(values)
        towers = build_towers(*nodes)
        module = fresh(values)
        identities, ends = towers.identities(), weights_sha256(towers.suffix_modules())
        if canonical(nodes) not in known:
            batch = batch_of(towers, clips)
            known[canonical(nodes)] = batch, whitening_of(towers, batch)
        batch, whitening = known[canonical(nodes)]
        module.model.set_whitening(whitening)
        trained = steps(module, batch, slopes)
        # Not the ones that are kept: the weights are hashed anew.
        assert Towers(towers.vl, towers.audio).identities() == identities
        assert weights_sha256(towers.suffix_modules()) == ends
        return trained

    return run


def fresh(values: Any) -> VlmaeModule:
    """The module of a config, without whitening."""
    tasks = values["task"]["names"]
    vl, audio = tower_nodes(values)
    torch.manual_seed(0)
    return VlmaeModule(
        build_model(model_config(values, tasks), {"vl": vl, "audio": audio}),
        build_objective(values["objective"], tasks),
        build("optimizer", OptimizerConfig, values["optimizer"]),
        10 * STEPS,  # the rate hardly falls
        tuning=tuning_config(values["tuning"]),
    )


@torch.inference_mode()
def whitening_of(towers: Towers, batch: Batch) -> Whitening:
    """As `vlmae.data.whitening` fits it: on mean tokens behind the weights as loaded."""
    maps = {}
    for name, tokens in towers.suffix(batch.streams).items():
        means = tokens.mean()[tokens.present].double().numpy()
        mean = means.mean(axis=0)
        # In the space that a few clips span: of 1280 dimensions it would take seconds.
        basis = np.linalg.qr((means - mean).T)[0]
        _, small = principal_map((means - mean) @ basis, COMPONENTS)
        mapping = torch.from_numpy(basis.astype(np.float32)) @ small
        maps[name] = torch.from_numpy(mean.astype(np.float32)), mapping
    return maps


def batch_of(towers: Towers, clips: list[Clip]) -> Batch:
    """What a cache in float32 would give."""
    tokens = towers.prefix(clips)
    streams = {n: pad(tokens[n], width) for n, width in widths(towers.prefix_streams).items()}
    return Batch(streams, LABELS, sample_ids(clip.key for clip in clips))


def loss_of(module: VlmaeModule, batch: Batch) -> Tensor:
    """As Lightning gets it."""
    loss: Tensor = module.training_step(batch, 0)["loss"]
    return loss


@torch.no_grad()
def without_dropout(module: VlmaeModule, batch: Batch) -> float:
    module.model.eval()
    return float(loss_of(module, batch))


def steps(module: VlmaeModule, batch: Batch, slopes: bool) -> Trained:
    """As Lightning takes them."""
    before = without_dropout(module, batch)
    streams = sorted({*batch.streams}) if slopes else []
    found = {stream: slope(module, batch, stream) for stream in streams}
    parameters = dict(module.model.named_parameters())
    started = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    gradients = dict.fromkeys((n for n, p in parameters.items() if p.requires_grad), 0.0)
    optimizer = module.configure_optimizers()["optimizer"]
    module.model.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_of(module, batch).backward()
        for name in gradients:
            gradient = parameters[name].grad
            if gradient is not None:
                assert torch.isfinite(gradient).all(), f"{name} has a gradient that is no number"
                gradients[name] = max(gradients[name], float(gradient.abs().max()))
        optimizer.step()
    return Trained(module, batch, before, without_dropout(module, batch), started, gradients, found)


def check_learned(trained: Trained) -> None:
    """A good part of the loss is gone, and no number was lost on the way."""
    assert 1.5 < trained.before < 3, "three heads of fresh logits: about 3 ln 2"
    assert trained.after < 0.5 * trained.before
    assert all(bool(torch.isfinite(t).all()) for t in trained.module.state_dict().values())


def check_ends_of_towers(trained: Trained, expected: set[str]) -> None:
    """What is behind the cuts of these streams has learned, all of it, and rightly."""
    suffix = trained.module.model.suffix
    assert suffix is not None
    assert {name for name, _ in suffix.named_children()} == expected
    own = {name: size for name, size in trained.gradients.items() if name.startswith("suffix.")}
    assert own.keys() == {f"suffix.{name}" for name, _ in suffix.named_parameters()}
    idle = {name for name, size in own.items() if not size > 1e-8}
    assert {name for name in idle if not name.endswith(WITHOUT_EFFECT)} == set()
    assert own.keys() - idle <= trained.moved
    assert trained.slopes == pytest.approx(dict.fromkeys(trained.slopes, 1.0), rel=0.03)


def slope(module: VlmaeModule, batch: Batch, stream: str) -> float:
    """What a small step along the gradient of one stream's end changes, over what it should: 1.

    A gradient that is cut off or wrong on its way through a tower shows here: the heads alone would
    lower the loss of a few clips all the same.
    """

    def fused() -> Tensor:
        # Without the unimodal heads, whose inputs are detached: their loss has another slope.
        loss: Tensor = module.objective(module(batch.streams).logits, batch.labels)
        return loss

    ends = [
        parameter
        for name, parameter in module.model.named_parameters()
        if name.startswith(f"suffix.{stream}.") and parameter.requires_grad
    ]
    gradients = torch.autograd.grad(fused(), ends)
    square = sum(float(gradient.square().sum()) for gradient in gradients)
    kept, losses = [parameter.detach().clone() for parameter in ends], []
    with torch.no_grad():
        for side in (1, -1):
            for parameter, value, gradient in zip(ends, kept, gradients, strict=True):
                parameter.copy_(value + side * STEP / square * gradient)
            losses.append(float(fused()))
        for parameter, value in zip(ends, kept, strict=True):
            parameter.copy_(value)
    return (losses[0] - losses[1]) / (2 * STEP)


@pytest.mark.parametrize("vl", names("vl"))
def test_every_vl_backbone_trains_with_cross_attention(vl: str, train: Train) -> None:
    trained = train(vl, "hubert", "cross_attention", "last_2", *ONE_BLOCK, slopes=True)
    check_learned(trained)
    streams = {"vl"} if "vl" in trained.batch.streams else {"image", "text"}
    check_ends_of_towers(trained, {*streams, "audio"})
    assert trained.slopes.keys() == {*streams, "audio"}


@pytest.mark.parametrize("audio", names("audio"))
def test_every_audio_backbone_trains_with_cross_attention(audio: str, train: Train) -> None:
    trained = train("clip", audio, "cross_attention", "last_2", *ONE_BLOCK, slopes=True)
    check_learned(trained)
    check_ends_of_towers(trained, {"image", "text", "audio"})
    assert trained.slopes.keys() == {"image", "text", "audio"}


@pytest.mark.parametrize("fusion", [name for name in names("fusion") if name != "deep"])
@pytest.mark.parametrize("vl", ["clip", "image_text"])
def test_every_fusion_trains_with_two_backbones(vl: str, fusion: str, train: Train) -> None:
    trained = train(vl, "wavlm", fusion, "last_2", *ONE_BLOCK)
    check_learned(trained)
    check_ends_of_towers(trained, {"image", "text", "audio"})


@pytest.mark.parametrize(("vl", "streams"), [("clip", {"image", "text"}), ("image_text", {"text"})])
def test_deep_fusion_trains_between_blocks_that_stay_as_loaded(
    vl: str, streams: set[str], train: Train
) -> None:
    trained = train(vl, "wavlm", "deep", "deep")
    check_learned(trained)
    adapters = {name for name in trained.gradients if name.startswith("fusion.adapters.")}
    assert {name.split(".")[2] for name in adapters} == streams
    assert {name.split(".")[3] for name in adapters} <= {"1", "2", "4", "5"}, "the last two blocks"
    assert {name for name in adapters if not trained.gradients[name] > 0} == set()
    assert adapters <= trained.moved
    behind = {name for name in trained.started if name.startswith("suffix.")}
    assert behind
    assert not behind & trained.moved
    assert not behind & trained.gradients.keys()


@pytest.mark.parametrize(
    ("vl", "tuning"),
    [
        ("clip", ("frozen",)),
        ("image_text", ("deep", "tuning.vl.blocks={image: 2}")),
    ],
)
def test_deep_fusion_refuses_towers_without_blocks_to_act_in(
    vl: str, tuning: tuple[str, ...], train: Train
) -> None:
    with pytest.raises(ValueError, match="fusion deep needs a transformer VL backbone with blocks"):
        train(vl, "wavlm", "deep", *tuning)


@pytest.mark.parametrize(
    ("vl", "audio"), [("clip", "whisper"), ("qwen2_5_vl", "clap"), ("dinov2_text", "wavlm")]
)
def test_lora_lowers_the_loss_and_the_weights_below_it_stay(
    vl: str, audio: str, train: Train
) -> None:
    trained = train(vl, audio, "cross_attention", "lora", *ONE_BLOCK)
    check_learned(trained)
    behind = {name for name in trained.started if name.startswith("suffix.")}
    lora = {name for name in behind if ".lora_" in name}
    assert {name.split(".")[1] for name in lora} == {
        stream for streams in trained.module.model.streams.values() for stream in streams
    }
    assert behind & trained.moved == lora, "nothing but LoRA, and all of it"
    assert behind & trained.gradients.keys() == lora
    others = trained.started.keys() - behind
    assert {name.split(".")[0] for name in others} == {
        *("project", "fusion", "heads", "vl_head", "audio_head")
    }
    still = others - trained.moved
    assert {name for name in still if not name.endswith(WITHOUT_EFFECT)} == set()
