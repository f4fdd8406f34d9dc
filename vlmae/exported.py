"""The folder of an exported model: its format, how it is written, how its settings are read.

    <folder>/config.json            format, version, tasks, thresholds, backbones, decode policy
             model.safetensors      the checkpoint as vlmae.train wrote it: trainable tensors only
             fusion_and_heads.pt2   `torch.export` program; absent where config.json says why
             processor/<tower>/     tokenizers, image processors, feature extractors, settings
             README.md              model card
             DATA_LICENCES.md       sources and licences of the training data, where recorded

Frozen weights are not in it (design, contract 7): `vlmae.load` fetches and verifies them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lsb.artifact import Stage, fingerprint, read_json, write_bytes, write_json
from vlmae.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint
from vlmae.config import build
from vlmae.data.decode import DecodePolicy
from vlmae.data.decode.policy import REVISION as DECODE_REVISION
from vlmae.data.prefix_cache import Prefix, PrefixConfig
from vlmae.evaluation import read_metrics
from vlmae.model_card import Facts, model_card, weights_licences
from vlmae.parameter_counts import trainable_count
from vlmae.processors import save_processors
from vlmae.program import OUTPUTS, PROGRAM, export_program, program_inputs, why_no_program
from vlmae.towers import Towers, build_towers

FORMAT = "vlmae-export"
VERSION = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
DATA_LICENCES = "DATA_LICENCES.md"
# More threads than anybody records tokens with.
MOST_THREADS = 1024
Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What config.json says that the checkpoint beside it does not.

    Attributes:
        policy: how clips are decoded.
        thresholds: task -> threshold; whoever serves the model may set others.
        inputs: what the model was trained on, see `TrainConfig.inputs`.
        sample_rate: of the sound, in Hz.
        sha256: of model.safetensors.
    """

    policy: DecodePolicy
    thresholds: dict[str, float]
    inputs: str
    sample_rate: int
    sha256: str


def read_settings(folder: Path) -> Settings:
    """Settings of an exported model.

    Raises:
        ValueError: not a folder that `vlmae.export` of this release wrote.
    """
    config = _read_config(folder)
    if config is None or config.get("version") != VERSION:
        found = "no config.json of this format" if config is None else config.get("version")
        raise ValueError(
            f"{folder} is no exported model of version {VERSION} (found {found}): make it with "
            "python -m vlmae.export of this release"
        )
    return Settings(
        build("decode", DecodePolicy, config["decode"]),
        {task: float(config["thresholds"][task]) for task in config["tasks"]},
        config["inputs"],
        int(config["sample_rate"]),
        config["weights"]["sha256"],
    )


def export(
    trained: Stage,
    output: Path,
    *,
    evaluated: Stage | None = None,
    policy: DecodePolicy | None = None,
    licence: str = "other",
    say: Say = print,
) -> Path:
    """Write the folder of a trained model.

    Args:
        trained: a finished `train` stage; stages it was made from are looked up beside it.
        output: made under a temporary name and renamed; an older export there is replaced.
        evaluated: a finished `evaluate` stage of it, for the model card.
        policy: decode policy, needed where no cache beside `trained` has recorded it.
        licence: of the exported weights, as the Hugging Face hub names licences.
        say: called with what the user should know.

    Raises:
        ValueError: `trained` or `evaluated` is another stage, or of another model; the decode
            policy is not that of the training, or unknown; `output` is not an export; or see
            `load_checkpoint`.
    """
    _require_free(output)
    if trained.manifest["stage"] != "train":
        raise ValueError(
            f"{trained.path} is a {trained.manifest['stage']!r} stage: give that of a training"
        )
    if _train_settings(trained).get("inputs") == "shuffled_audio":
        raise ValueError(
            f"{trained.path} was trained on the sound of other clips, as a control: export a model "
            "that was trained with trainer.inputs both, vl or audio"
        )
    if evaluated is not None:
        _require_of(evaluated, trained)
    checkpoint = load_checkpoint(trained.path / CHECKPOINT)
    towers = build_towers(checkpoint.towers["vl"], checkpoint.towers["audio"])
    policy = _decode_policy(trained, checkpoint, policy, say)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    why = why_no_program(checkpoint.model)
    if why:
        say(f"no {PROGRAM}: {why}")
    else:
        write_bytes(partial / PROGRAM, export_program(checkpoint.model))
    shutil.copyfile(trained.path / CHECKPOINT, partial / WEIGHTS)
    save_processors(towers, checkpoint.towers, partial)
    config = _config(trained, checkpoint, towers, policy, why)
    write_json(partial / CONFIG, config)
    card = model_card(_facts(trained, checkpoint, evaluated, config, licence, partial))
    write_bytes(partial / "README.md", card.encode())
    _replace(partial, output)
    return output


def _config(
    trained: Stage, checkpoint: Checkpoint, towers: Towers, policy: DecodePolicy, why: str
) -> dict[str, Any]:
    model = checkpoint.model
    program: dict[str, Any] = {"file": None, "why": why}
    if not why:
        program = {"file": PROGRAM, "inputs": program_inputs(model), "outputs": list(OUTPUTS)}
    return {
        "format": FORMAT,
        "version": VERSION,
        "release": version("vlmae"),
        "tasks": model.tasks,
        "thresholds": checkpoint.thresholds,
        "temperatures": checkpoint.temperatures,
        "objective": checkpoint.objective,
        "inputs": _train_settings(trained).get("inputs", "both"),
        "decode": asdict(policy),
        "sample_rate": towers.sample_rate,
        "towers": checkpoint.towers,
        "frozen": checkpoint.frozen,
        "model": checkpoint.model_config,
        "streams": model.streams,
        "embedding_width": model.fusion.embedding_width,
        "weights": {"file": WEIGHTS, "sha256": checkpoint.sha256},
        "program": program,
        "training": {"fingerprint": checkpoint.training_set, "stage": trained.path.name},
    }


def _facts(
    trained: Stage,
    checkpoint: Checkpoint,
    evaluated: Stage | None,
    config: Mapping[str, Any],
    licence: str,
    folder: Path,
) -> Facts:
    """What the model card says; copies the licences of the data into `folder`."""
    data = _data_stage(trained)
    licences = data.path / "LICENCES.md" if data is not None else None
    text = ""
    if licences is not None and licences.is_file():
        text = licences.read_text(encoding="utf-8")
        write_bytes(folder / DATA_LICENCES, text.encode())
    target = 0.8
    if evaluated is not None:
        target = float(evaluated.manifest["config"].get("target_precision", target))
    counts = trained.counts
    return Facts(
        licence=licence,
        config=config,
        weights=weights_licences(checkpoint.towers, checkpoint.frozen),
        labels=counts.get("labels", 0),
        epochs=_train_settings(trained).get("epochs"),
        parameters=trainable_count(counts),
        metrics=None if evaluated is None else read_metrics(evaluated),
        target_precision=target,
        data="" if data is None else str(data.manifest["config"].get("name", data.path.name)),
        data_licences=DATA_LICENCES if text else None,
        synthetic="SYNTHETIC" in text,
    )


def _train_settings(trained: Stage) -> dict[str, Any]:
    settings: dict[str, Any] = trained.manifest["config"].get("train", {})
    return settings


def _require_of(evaluated: Stage, trained: Stage) -> None:
    """Refuse a stage that did not measure this model."""
    stage, of = evaluated.manifest["stage"], evaluated.manifest["inputs"].get("train")
    if stage != "evaluate" or of != trained.content:
        what = f"a {stage!r} stage" if stage != "evaluate" else "a measurement of another model"
        raise ValueError(
            f"evaluated={evaluated.path} is {what}: give the evaluate stage of {trained.path}, or "
            "leave it out"
        )


def _sibling(trained: Stage, stage: str, content: str | None) -> Stage | None:
    """The stage with this content beside a train stage, if it was not cleaned away."""
    for file in sorted(trained.path.parent.glob(f"{stage}-*/manifest.json")):
        manifest = read_json(file)
        if manifest.get("content") == content and file.parent.suffix != ".partial":
            return Stage(file.parent, manifest, 0.0, reused=True)
    return None


def _data_stage(trained: Stage) -> Stage | None:
    inputs = trained.manifest["inputs"]
    if "cache" not in inputs:
        return _sibling(trained, "prepare", inputs.get("data"))
    cache = _sibling(trained, "cache", inputs["cache"])
    return None if cache is None else _sibling(trained, "prepare", cache.manifest["inputs"]["data"])


def _decode_policy(
    trained: Stage, checkpoint: Checkpoint, given: DecodePolicy | None, say: Say
) -> DecodePolicy:
    """The policy that the model's tokens were made with.

    Raises:
        ValueError: it is not known, or not the given one.
    """
    inputs = trained.manifest["inputs"]
    if "cache" in inputs:
        cache = _sibling(trained, "cache", inputs["cache"])
        if cache is not None:
            recorded = dict(cache.manifest["config"]["decode"])
            if recorded.pop("revision") != DECODE_REVISION:
                raise ValueError(
                    f"{cache.path} was decoded by another release: train again with this one"
                )
            return DecodePolicy(**recorded)
    if given is None:
        raise ValueError(
            f"{trained.path} does not say how its clips were decoded: give the group decode as in "
            "its training"
        )
    if "cache" in inputs:
        say(f"the cache that {trained.path.name} was trained on is gone: decode is taken as given")
    elif not _is_recorded(trained, checkpoint, given):
        raise ValueError(
            f"{given.resolved()} is not what {trained.path.name} was trained with: give the group "
            "decode as in its training"
        )
    return given.resolved()


def _is_recorded(trained: Stage, checkpoint: Checkpoint, policy: DecodePolicy) -> bool:
    """Whether a live training had this policy; the number of threads is part of its hash."""
    tokens = PrefixConfig("float16", 1, 1, 1.0)
    nodes = checkpoint.towers
    key = Prefix(trained, nodes["vl"], nodes["audio"], policy, tokens).key()
    wanted = trained.manifest["inputs"].get("prefix")
    return any(
        fingerprint({**key, "threads": threads, **device}) == wanted
        for threads in range(1, MOST_THREADS)
        for device in ({}, {"accelerator": "gpu"})
    )


def _read_config(folder: Path) -> dict[str, Any] | None:
    """config.json if it is one of ours, of whatever version."""
    file = folder / CONFIG
    config = read_json(file) if file.is_file() else None
    return config if isinstance(config, dict) and config.get("format") == FORMAT else None


def _require_free(output: Path) -> None:
    """Refuse to replace anything that is not an export."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not output.is_dir() or _read_config(output) is None:
        raise ValueError(
            f"output={output} exists and is no exported model: give another folder, or remove it"
        )


def _replace(partial: Path, output: Path) -> None:
    """Give a finished folder its name."""
    if output.exists():
        old = output.with_name(f".{output.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(output, old)
        os.replace(partial, output)
        shutil.rmtree(old)
    else:
        os.replace(partial, output)
