"""How the training of an arm grows between its own epochs, instead of between rounds of stages."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from launch.labelling.annotation import simulated
from launch.stages.settings import Settings
from launch.stages.shared import Shared
from lsb.annotate.oracle import Oracle
from lsb.artifact import Stage
from lsb.ids import from_arrow
from vlmae.data.tombstones import without_tombstones
from vlmae.growing.config import LEDGER, Growing
from vlmae.growing.labels import (
    FromAnnotator,
    FromAnnotators,
    FromLedger,
    LabelSource,
    label_columns,
)
from vlmae.growing.settings import excluded_ids


def growing_in(settings: Settings, shared: Shared, ledger: str) -> Growing | None:
    """What a training needs to grow; None where it does not.

    Args:
        settings: of the arm.
        shared: data whose truth the simulated annotator knows.
        ledger: path or URL of the arm's; rounds are recorded there unless `growing.ledger` names
            another.

    Raises:
        ValueError: the annotators are people, whom a running training cannot wait for; or they are
            weighed by answers of another ledger than the arm's; or `growing.exclude` is no table
            of keys.
    """
    config = settings.growing
    if not config.on:
        return None
    place = config.ledger or ledger
    labels: LabelSource
    if config.labels == LEDGER:
        labels = FromLedger(place, settings.merge)
    else:
        labels = _answering(settings, shared, place)
    exclude = excluded_ids(config.exclude)
    return Growing(config, settings.expand, labels, settings.arm, exclude=exclude)


def grown_labels(settings: Settings, trained: Stage) -> pa.Table:
    """What a training that grew has trained on in the end, by id.

    Its own manifest says so, and no ledger: it may have recorded its rounds elsewhere than in the
    arm's, and people may have answered more since.

    Args:
        settings: of the arm.
        trained: the `train` stage.

    Returns:
        id, key, round, `label_<task>` and source of its clips, those taken down left out.
    """
    columns = label_columns(settings.tasks).names
    table = pq.read_table(trained.path / "training_set.parquet", columns=columns)
    table = table.take(np.argsort(from_arrow(table["id"]), kind="stable"))
    return without_tombstones(settings.stages, table)


def _answering(settings: Settings, shared: Shared, place: str) -> LabelSource:
    """Annotators that answer at once, and record what they do in a ledger."""
    annotator, answers, merge = simulated(settings, shared), shared.data.content, settings.merge
    if isinstance(annotator, Oracle):
        return FromAnnotator(annotator, answers, place)
    if settings.growing.ledger and merge.policy != "majority":
        raise ValueError(
            f"ledger.policy is {merge.policy!r}, which weighs annotators by all answers that a "
            f"ledger holds, and growing.ledger is {settings.growing.ledger}, not the arm's: leave "
            "growing.ledger unset, or use ledger=majority"
        )
    return FromAnnotators(annotator, answers, place, merge)
