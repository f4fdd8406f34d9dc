"""What existing arms choose, clip by clip: code that changes no method changes no choice."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
from growth_world import CONFIG, WORLD, Make

from lsb.acquisition.config import AcquisitionConfig
from lsb.acquisition.seeds import BroadeningConfig
from lsb.expand import ExpandConfig, expand
from lsb.ids import sample_ids
from lsb.selection import SelectionConfig
from lsb.threshold import ThresholdConfig

NONE = BroadeningConfig(0, 0, 0)
NO_LT = ThresholdConfig(mode="none")
CONFIGS: dict[str, ExpandConfig] = {
    "lsb_lt": CONFIG,
    "near_duplicates": dataclasses.replace(
        CONFIG, selection=SelectionConfig(budget=100, per_seed_cap=30, near_duplicate=0.97)
    ),
    "fixed": dataclasses.replace(CONFIG, threshold=ThresholdConfig(mode="fixed", value=0.97)),
    "no_lt": dataclasses.replace(
        CONFIG, threshold=NO_LT, selection=SelectionConfig(budget=120, per_seed_cap=70)
    ),
    "random_seeds": dataclasses.replace(
        CONFIG, broadening=BroadeningConfig(3, 3, random=6, confidence=0.9, random_weight=0.5)
    ),
    "entropy": dataclasses.replace(CONFIG, broadening=NONE, threshold=NO_LT),
    "random": dataclasses.replace(
        CONFIG,
        acquisition=AcquisitionConfig("random", {"policy": 1.0}, seed=3),
        broadening=NONE,
        threshold=NO_LT,
    ),
}
GOLDEN = {
    "random": "e117a0640dc2dbd360c7f17ff61e458c",
    "entropy": "655c45ea68c423509fcf479282cb8b6a",
    "random_seeds": "fc8229d934d80bf10109aea22383e609",
    "no_lt": "b5adb57d5b2e9801c32d1baa1d7058bf",
    "fixed": "7b6ff5d89210c03e3b9e70b61cf9ec52",
    "near_duplicates": "392bfbc24c4328ae7bf631987a03d30e",
    "lsb_lt": "bfbb606e0425e72f70cfb7f2c6eced0a",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_arm_chooses_the_clips_that_it_chose(name: str, make_store: Make) -> None:
    store = WORLD.store(make_store, parts=3)
    found = expand(store, WORLD.labelled, CONFIGS[name], round=1, exclude=sample_ids([]))
    # Not the similarities: their last bits may be another processor's.
    lines = [
        f"{row['rank']} {row['key']} {row['seed_key']} {row['kind']} {row['reason']}"
        for row in found.candidates.to_pylist()
    ]
    lines += [f"dropped {row['id'].hex()}" for row in found.dropped.to_pylist()]
    digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()
    assert digest == GOLDEN[name], f"{name} chose {lines}"
