"""The two towers of a model, built from config: their frozen prefix and the suffix that trains."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, Self

from hydra.utils import instantiate
from torch import Tensor, nn

from lsb.artifact import canonical
from vlmae.backbones import Backbone, Suffix
from vlmae.data.decode import Clip
from vlmae.tokens import Tokens


class Towers(nn.Module):
    """A vision-language and an audio backbone as they were loaded.

    Nothing in it ever trains, so that it can be shared: what trains is a copy (`build_suffix`).

    Attributes:
        streams: tower -> stream name -> width behind the suffix, as `VlmaeModel` wants it.
        prefix_streams: tower -> stream name -> width of what `prefix` returns and a cache stores.
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
        self.prefix_streams = {"vl": vl.prefix_streams, "audio": audio.prefix_streams}
        self.sample_rate: int = audio.sample_rate
        self.eval()
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, also as a part of a module that trains."""
        return super().train(False)

    def prefix(self, clips: Sequence[Clip]) -> dict[str, list[Tensor]]:
        """Frozen tokens of every stream of both towers: stream -> one (T_i, width) tensor a clip.

        Widths are those of `prefix_streams`; tensors are float32 on the CPU.
        """
        return {**self.vl.prefix(clips), **self.audio.prefix(clips)}

    def suffix(self, tokens: Mapping[str, Tokens]) -> dict[str, Tokens]:
        """Padded tokens of the prefix to those the model reads, with the weights as loaded."""
        result: dict[str, Tokens] = self.suffix_modules()(tokens)
        return result

    def suffix_modules(self) -> Suffix:
        """The modules behind the cuts of both towers, by stream; empty if both are fully frozen."""
        return Suffix({**self.vl.suffix_modules(), **self.audio.suffix_modules()})

    def identities(self) -> dict[str, dict[str, Any]]:
        """Frozen identity of each tower, for manifests and checkpoints.

        Computed once: it hashes all weights, and nothing in here ever trains.
        """
        return copy.deepcopy(self._identities)

    @cached_property
    def _identities(self) -> dict[str, dict[str, Any]]:
        return {"vl": self.vl.identity().as_dict(), "audio": self.audio.identity().as_dict()}


def build_towers(vl: Mapping[str, Any], audio: Mapping[str, Any]) -> Towers:
    """Towers of two Hydra nodes with `_target_`, loaded once a process."""
    return _build(canonical(dict(vl)), canonical(dict(audio)))


def build_suffix(vl: Mapping[str, Any], audio: Mapping[str, Any]) -> Suffix | None:
    """A new, trainable copy of what lies behind the cuts of both towers.

    Args:
        vl: Hydra node of the vision-language backbone.
        audio: Hydra node of the audio backbone.

    Returns:
        Modules by stream with the weights as loaded, in training mode as new modules are; None if
        both towers are fully frozen.
    """
    suffix = copy.deepcopy(build_towers(vl, audio).suffix_modules())
    return suffix.requires_grad_(True).train() if len(suffix) else None


@lru_cache(maxsize=2)
def _build(vl: str, audio: str) -> Towers:
    return Towers(instantiate(json.loads(vl)), instantiate(json.loads(audio)))
