"""Optuna is an extra: where it is absent, the message says what to install."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launch.sweeping.config import SweepConfig
from launch.sweeping.optuna import Trials
from launch.sweeping.space import Space, Swept


def test_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    space = Space((None,), (Swept("fusion", ("late", "film")),))
    with pytest.raises(ValueError, match=r"pip install 'vlmae\[sweep\]'.*sampler=grid"):
        Trials(tmp_path, space, SweepConfig(sampler="optuna"))
