"""The two frozen towers of a model, built from config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from hydra.utils import instantiate
from torch import Tensor, nn

from lsb.artifact import canonical
from vlmae.backbones import Backbone
from vlmae.data.decode import Clip


class Towers(nn.Module):
    """A vision-language and an audio backbone, both frozen.

    Attributes:
        streams: tower -> stream name -> width, as `VlmaeModel` wants it.
        sample_rate: of the sound the audio tower reads, in Hz.
    """

    def __init__(self, vl: Backbone, audio: Backbone) -> None:
        super().__init__()
        shared = sorted(set(vl.streams) & set(audio.streams))
        if shared:
            raise ValueError(f"both towers have a stream named {shared}: rename one")
        if not audio.sample_rate:
            raise ValueError(
                f"{type(audio).__name__} reads no sound: choose another audio backbone"
            )
        self.vl, self.audio = vl, audio
        self.streams = {"vl": dict(vl.streams), "audio": dict(audio.streams)}
        self.sample_rate: int = audio.sample_rate

    def prefix(self, clips: Sequence[Clip]) -> dict[str, list[Tensor]]:
        """Tokens of every stream of both towers: stream name -> one (T_i, width) tensor a clip."""
        return {**self.vl.prefix(clips), **self.audio.prefix(clips)}

    def identities(self) -> dict[str, dict[str, Any]]:
        """Frozen identity of each tower, for manifests and checkpoints."""
        return {"vl": self.vl.identity().as_dict(), "audio": self.audio.identity().as_dict()}


def build_towers(vl: Mapping[str, Any], audio: Mapping[str, Any]) -> Towers:
    """Towers of two Hydra nodes with `_target_`, loaded once a process."""
    return _build(canonical(dict(vl)), canonical(dict(audio)))


@lru_cache(maxsize=2)
def _build(vl: str, audio: str) -> Towers:
    return Towers(instantiate(json.loads(vl)), instantiate(json.loads(audio)))
