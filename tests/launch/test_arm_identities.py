"""Expansion stages of a release are found again by the next: their names rest on these hashes."""

from __future__ import annotations

import pytest

from launch.stages.expansion import identity_of
from launch.stages.settings import Settings
from lsb.artifact import fingerprint
from vlmae.config import compose_config

IDENTITIES = {
    "badge": "19939e298aa2906d4a14a79964edd12a",
    "bald": "b6d2bb0a1a665e7ee3ff9492d59e935b",
    "core_set": "e2de703297e59418abe33a5cc21555a5",
    "disagreement": "dc458ac16107a63256d40f57a448df0c",
    "dropout_variance": "d9cd50d76a9a7e160020ec61b4af1300",
    "entropy": "be550e4a550c27efcf4d9884f518625a",
    "least_confidence": "b538e737621c592c993c1421b381fbcd",
    "lsb_lt": "e08d0b7eb3a7b201ee16345f26929570",
    "margin": "b9ea6f367a5d9a4bfdc8fa8561df7c46",
    "random": "6de4d580a1496516c89f1c194e3c6c06",
    "top_score": "b16997b3a6e55416aed99fda20adab97",
    "typiclust": "77e93d7d7c46dedf1b106fb09cda1f78",
}


@pytest.mark.parametrize("arm", IDENTITIES)
def test_an_arm_keeps_the_name_of_its_expansions(arm: str) -> None:
    config = compose_config("round", ["experiment=demo", f"arm={arm}"])
    assert fingerprint(identity_of(Settings.from_config(config).expand)) == IDENTITIES[arm]
