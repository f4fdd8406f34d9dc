"""The processors of the towers as files, for those who serve the backbones with other software.

    processor/vl/image/preprocessor_config.json     what save_pretrained writes, by tower and stream
    processor/vl/text/tokenizer.json
    processor/vl/preprocessing.json                 the tower's class and settings: what it does by
                                                    itself (crops, mel bands, lengths) is in them

`vlmae.load` does not read them: it takes the processors that lie beside the backbone's weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from types import MethodType
from typing import Any

from torch import nn
from transformers.utils import PushToHubMixin

from lsb.artifact import write_json
from vlmae.backbones import Backbone
from vlmae.model import TOWERS
from vlmae.towers import Towers

PROCESSOR = "processor"
DEPTH = 6


def save_processors(
    towers: Towers, nodes: Mapping[str, Mapping[str, Any]], folder: Path
) -> list[str]:
    """Write the processors of both towers; returns the folders written, relative to `folder`.

    Args:
        towers: as they were loaded.
        nodes: tower -> Hydra node of its backbone.
        folder: of the export.
    """
    written = []
    for name in TOWERS:
        tower: Backbone = getattr(towers, name)
        home = folder / PROCESSOR / name
        home.mkdir(parents=True)
        for stream, processor in processors_of(tower).items():
            _as_loaded(processor).save_pretrained(home / stream)
            written.append(f"{PROCESSOR}/{name}/{stream}")
        described = {
            "backbone": nodes[name]["_target_"],
            "streams": dict(tower.streams),
            "sample_rate": tower.sample_rate or None,
            "options": tower.identity().options,
        }
        write_json(home / "preprocessing.json", described)
    return written


def processors_of(tower: Backbone) -> dict[str, Any]:
    """Stream or attribute -> tokenizer, image processor or feature extractor of a tower.

    They are found among the attributes of the tower and of its streams' readers, wherever a
    backbone keeps them; a new backbone need not declare them.
    """
    found: dict[int, tuple[str, Any]] = {}
    _collect(tower, "", DEPTH, found, set())
    named: dict[str, Any] = {}
    for name, processor in found.values():
        unique = name if name not in named else f"{name}_{len(named)}"
        named[unique] = processor
    return named


def _as_loaded(processor: Any) -> Any:
    """A copy without what calls leave behind.

    A fast tokenizer keeps the truncation of its last call and saves it, so that the file would
    depend on what was read before. The length that the tower cuts to is in preprocessing.json.
    """
    fresh = copy.deepcopy(processor)
    backend = getattr(getattr(fresh, "tokenizer", fresh), "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    return fresh


def _collect(
    value: Any, name: str, depth: int, found: dict[int, tuple[str, Any]], seen: set[int]
) -> None:
    """Walk the attributes of objects of this package; the first name on the way is kept."""
    if depth == 0 or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, PushToHubMixin) and not isinstance(value, nn.Module):
        found[id(value)] = (name, value)
    elif isinstance(value, MethodType):
        _collect(value.__self__, name, depth - 1, found, seen)
    elif isinstance(value, Mapping):
        for key, member in value.items():
            _collect(member, name or str(key), depth - 1, found, seen)
    elif type(value).__module__.startswith("vlmae."):
        for key, member in getattr(value, "__dict__", {}).items():
            inner = name if name or key.startswith("_") else key
            _collect(member, inner, depth - 1, found, seen)
