"""How large a model is, counted on the model itself, without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from hydra.utils import instantiate
from torch import nn

from vlmae.checkpoint import assemble
from vlmae.data.decode import Clip
from vlmae.model import VlmaeModel
from vlmae.towers import Towers, empty_towers, tuned_suffix
from vlmae.tuning import tuning_config

WORDS = 256
"""Of a planned title: more than any tower reads."""


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters and bytes.

    Attributes:
        trained: elements of each parameter of the model that trains.
        frozen: the same of those that do not: blocks behind the cut beside LoRA.
        buffers: bytes.
        prefix: bytes of the frozen towers in front of the cuts.
        loaded: bytes of the towers' own copy of what lies behind the cuts.
    """

    trained: tuple[int, ...]
    frozen: tuple[int, ...]
    buffers: int
    prefix: int
    loaded: int

    @property
    def parameters(self) -> int:
        """Of the model, trained and frozen; those in front of the cuts are no part of it."""
        return sum(self.trained) + sum(self.frozen)


def weightless_model(
    vl: Mapping[str, Any], audio: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[VlmaeModel, Towers, ModelSize]:
    """The model of a config, its towers, and its size.

    Args:
        vl: Hydra node of the vision-language tower.
        audio: Hydra node of the audio tower.
        config: see `vlmae.checkpoint.build_model`.

    Raises:
        ValueError: a tower's configuration or processor is not there, or a value does not fit it.
    """
    towers = empty_towers(vl, audio)
    everything, loaded = _bytes(towers), _bytes(towers.suffix_modules())
    fusion = instantiate(config["fusion"])
    suffix = tuned_suffix(towers, towers.suffix_modules(), tuning_config(config.get("tuning")))
    model = assemble(config, towers.streams, fusion, suffix)
    return model, towers, size_of(model, prefix=everything - loaded, loaded=loaded)


def size_of(model: VlmaeModel, *, prefix: int, loaded: int) -> ModelSize:
    """The size of a model that is not sharded; for the arguments see `ModelSize`."""
    parameters = list(model.parameters())
    return ModelSize(
        trained=tuple(p.numel() for p in parameters if p.requires_grad),
        frozen=tuple(p.numel() for p in parameters if not p.requires_grad),
        buffers=sum(buffer.numel() * buffer.element_size() for buffer in model.buffers()),
        prefix=prefix,
        loaded=loaded,
    )


def token_shapes(towers: Towers, frames: int, seconds: float) -> dict[str, tuple[int, int]]:
    """Stream -> (tokens, width) at the cut of a clip with all modalities and a long title.

    Args:
        towers: with or without weights.
        frames: that are read of a clip.
        seconds: of sound.
    """
    clip = Clip(
        key="planned",
        title="word " * WORDS,
        frames=np.zeros((frames, 360, 640, 3), np.uint8),
        audio=np.zeros(round(seconds * towers.sample_rate), np.float32),
        audio_missing=None,
    )
    lengths = {**towers.vl.lengths(clip), **towers.audio.lengths(clip)}
    widths = {**towers.prefix_streams["vl"], **towers.prefix_streams["audio"]}
    return {name: (lengths[name], width) for name, width in widths.items()}


def _bytes(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
