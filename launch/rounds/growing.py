"""How the training of an arm grows between its own epochs, instead of between rounds of stages."""

from __future__ import annotations

from pathlib import Path

from launch.labelling.annotation import simulated
from launch.stages.settings import Settings
from launch.stages.shared import Shared
from vlmae.growing.config import LEDGER, Growing
from vlmae.growing.labels import FromAnnotator, FromLedger, LabelSource


def growing_in(settings: Settings, shared: Shared, ledger: Path) -> Growing | None:
    """What a training needs to grow; None where it does not.

    Args:
        settings: of the arm.
        shared: data whose truth the simulated annotator knows.
        ledger: of the arm; rounds are recorded there unless `growing.ledger` names another.

    Raises:
        ValueError: the annotators are people, whom a running training cannot wait for.
    """
    config = settings.growing
    if not config.on:
        return None
    place = config.ledger or str(ledger)
    labels: LabelSource
    if config.labels == LEDGER:
        labels = FromLedger(place, settings.merge)
    else:
        labels = FromAnnotator(simulated(settings, shared), shared.data.content, place)
    return Growing(config, settings.expand, labels, settings.arm)
