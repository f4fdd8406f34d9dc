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
from vlmae.backbones.base import tensor_sha256
from vlmae.backbones.weightless import without_weights
from vlmae.data.decode import Clip
from vlmae.tokens import Tokens
from vlmae.tuning import TowerTuning, tune


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

    def augment(self, on: bool) -> None:
        """Let both towers alter their inputs at random, as they are set up to, or not (default)."""
        self.vl.augment = self.audio.augment = on

    def suffix(self, tokens: Mapping[str, Tokens]) -> dict[str, Tokens]:
        """Padded tokens of the prefix to those the model reads, with the weights as loaded."""
        result: dict[str, Tokens] = self.suffix_modules()(tokens)
        return result

    def suffix_modules(self) -> Suffix:
        """The modules behind the cuts of both towers, by stream; empty if both are fully frozen."""
        return Suffix({**self.vl.suffix_modules(), **self.audio.suffix_modules()})

    @property
    def uncacheable(self) -> str:
        """Why the tokens of the prefix cannot be cached, with the remedy; "" if they can."""
        for tower, backbone in (("vl", self.vl), ("audio", self.audio)):
            if backbone.random:
                return (
                    f"the prefix of the {tower} tower is random ({backbone.random}): train live, "
                    "with prefix.use=auto or off, or turn that off"
                )
            for stream, module in backbone.suffix_modules().items():
                # Of a StreamEncoder; pixels in front of convolutions are exact in a cache.
                if getattr(module, "embedding", None) is not None:
                    return (
                        f"tuning.{tower} cuts stream {stream!r} at its inputs (mode full trains "
                        "the embeddings, blocks=all is every block): there is no frozen prefix to "
                        "cache; train live, with prefix.use=auto or off, or give a number of blocks"
                    )
        return ""

    @property
    def needs_float_cache(self) -> bool:
        """Whether tokens at a cut cannot be kept in int8."""
        return self.vl.needs_float_cache or self.audio.needs_float_cache

    def identities(self) -> dict[str, dict[str, Any]]:
        """Frozen identity of each tower, for manifests and checkpoints.

        Computed once: it hashes all weights, and nothing in here ever trains.
        """
        return copy.deepcopy(self._identities)

    def tensor_hashes(self) -> dict[str, dict[str, str]]:
        """Tower -> name -> hash of every tensor as it was loaded; computed once, too."""
        return copy.deepcopy(self._tensor_hashes)

    @cached_property
    def _tensor_hashes(self) -> dict[str, dict[str, str]]:
        return {"vl": tensor_sha256(self.vl), "audio": tensor_sha256(self.audio)}

    @cached_property
    def _identities(self) -> dict[str, dict[str, Any]]:
        return {"vl": self.vl.identity().as_dict(), "audio": self.audio.identity().as_dict()}


def build_towers(vl: Mapping[str, Any], audio: Mapping[str, Any]) -> Towers:
    """Towers of two Hydra nodes with `_target_`, loaded once a process."""
    return _build(canonical(dict(vl)), canonical(dict(audio)))


def empty_towers(vl: Mapping[str, Any], audio: Mapping[str, Any]) -> Towers:
    """Towers of two Hydra nodes that have shapes and no weights (`vlmae.backbones.weightless`)."""
    with without_weights():
        return Towers(instantiate(dict(vl)), instantiate(dict(audio)))


class TunedSuffix(Suffix):
    """A copy of what lies behind the cuts, part of which trains.

    Streams without anything to train stay in evaluation mode, whatever they are a part of: dropout
    acts only where something trains. Frozen weights beside trained ones (LoRA) do see the dropout
    of their block, as usual with LoRA; batch norms keep their statistics by themselves.
    """

    def train(self, mode: bool = True) -> Self:
        """Training mode for the streams that train."""
        super().train(mode)
        for stream in self.values():
            if not any(parameter.requires_grad for parameter in stream.parameters()):
                stream.eval()
        return self


def build_suffix(
    vl: Mapping[str, Any],
    audio: Mapping[str, Any],
    tuning: Mapping[str, TowerTuning] | None = None,
) -> TunedSuffix | None:
    """A new copy of what lies behind the cuts of both towers, with the weights as loaded.

    Args:
        vl: Hydra node of the vision-language backbone.
        audio: Hydra node of the audio backbone.
        tuning: tower -> what of it trains (`vlmae.tuning.tuning_config`); all of it for a tower
            that is not named. LoRA draws its start from torch's global generator.

    Returns:
        Modules by stream, in training mode as new modules are; None if both towers are fully
        frozen.

    Raises:
        ValueError: LoRA finds no layer to change.
    """
    towers = build_towers(vl, audio)
    # On the CPU, wherever the towers have been put meanwhile: who uses the copy moves it.
    return tuned_suffix(towers, copy.deepcopy(towers.suffix_modules()).cpu(), tuning)


def tuned_suffix(
    towers: Towers, modules: Suffix, tuning: Mapping[str, TowerTuning] | None = None
) -> TunedSuffix | None:
    """See `build_suffix`.

    Args:
        towers: that `modules` belong to.
        modules: what lies behind the cuts, changed in place.
        tuning: see `build_suffix`.
    """
    suffix = TunedSuffix(dict(modules.items()))
    for tower, streams in towers.streams.items():
        for stream in streams:
            if stream in suffix:
                tune(suffix[stream], (tuning or {}).get(tower), stream)
    return suffix.train() if len(suffix) else None


@lru_cache(maxsize=2)
def _build(vl: str, audio: str) -> Towers:
    return Towers(instantiate(json.loads(vl)), instantiate(json.loads(audio)))
