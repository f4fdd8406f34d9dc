"""Folders and files that a config names, and that jobs need on every node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launch.doctor.question import Place
from vlmae.config import checked

IN_WHEELS = ("efficientnet_lite0", "minilm")
"""Weights that come as packages: their versions are compared."""
MODELS = ("model", "image", "text")
DOWNLOAD = "download"


def places_of(values: Mapping[str, Any]) -> list[Place]:
    """What a config names: folders that are written to, weights, data and labels.

    Args:
        values: of `conf/doctor.yaml`, as plain containers.

    Raises:
        ValueError: a key holds no text.
    """
    return [*_written(values), *_weights(values), *_data(values)]


def _written(values: Mapping[str, Any]) -> Iterator[Place]:
    yield Place("runs", _absolute(checked("runs", str, values["runs"])), writes=True)
    data = values.get("data", {})
    if data.get("sources") == DOWNLOAD:
        cache = checked("data.cache", str, data.get("cache"))
        yield Place("data.cache", _absolute(cache), writes=True)


def _weights(values: Mapping[str, Any]) -> Iterator[Place]:
    for tower in ("vl", "audio"):
        node = values.get(tower) or {}
        for name in MODELS:
            model = node.get(name)
            if not isinstance(model, str) or model in IN_WHEELS:
                continue
            key = f"{tower}.{name}"
            if Path(model).expanduser().exists() or model.startswith((".", "/", "~")):
                yield Place(key, _absolute(model))
            else:
                revision = node.get("revision" if name == "model" else f"{name}_revision")
                yield Place(key, model, revision=revision, hub=True)


def _data(values: Mapping[str, Any]) -> Iterator[Place]:
    data = values.get("data", {})
    wanted = {
        "data.sources": data.get("sources"),
        "data.path": data.get("path"),
        "data.root": data.get("root"),
        "labels": values.get("labels"),
        "validation": values.get("validation"),
    }
    for key, path in wanted.items():
        # Globs and URLs of shards are read by their own file systems.
        if isinstance(path, str) and path != DOWNLOAD and not set("{*:") & set(path):
            yield Place(key, _absolute(path))


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
