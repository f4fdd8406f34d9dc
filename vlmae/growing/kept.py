"""What a finished training keeps of its expansions: all their files, named by their number.

expansion-1.checkpoint.safetensors   the weights that chose, with temperatures and thresholds
expansion-1.candidates.parquet       what was asked, and why (`lsb.selection.CHOSEN`)
expansion-1.labels.parquet           what was answered by then
expansion-1.expansion.json           round, epoch, step, hashes, counts
...                                  see `vlmae.growing.expansion.stage_files`
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from lsb import ids as sample_ids
from lsb.artifact import Stage, read_json
from lsb.files import link
from lsb.ledger import Round
from vlmae.growing.expansion import EVIDENCE, stage_files

if TYPE_CHECKING:
    from vlmae.training import Training


def require_growable(training: Training) -> None:
    """Refuse what a training that grows cannot do.

    Raises:
        ValueError: says what instead.
    """
    growing, config = training.growing, training.config
    assert growing is not None, "asked of a training that grows"
    growing.config.epochs(config.epochs)
    if config.resume_from is not None:
        raise ValueError(
            "trainer.resume_from goes on with another number of ranks, and a training that grows "
            "counts the steps of its epochs on its own: start as many ranks as before, without "
            "trainer.resume_from, or set growing=none"
        )
    if not training.source.shards_of(growing.config.split):
        splits = sorted(set(sample_ids.texts(training.source.index["split"])))
        raise ValueError(
            f"growing.split is {growing.config.split!r}, and no clip is in it: the data set has "
            f"{splits}"
        )
    if not training.validation.num_rows:
        raise ValueError(
            "a training that grows chooses by operating thresholds and errors on gold clips: give "
            "validation labels"
        )


def expansion_names(training: Training) -> tuple[str, ...]:
    """Names of the files that a stage has of its expansions; none where it does not grow."""
    if training.growing is None:
        return ()
    count = len(training.growing.config.epochs(training.config.epochs))
    files = stage_files(training.growing)
    return tuple(_name(number, file) for number in range(1, count + 1) for file in files)


def keep_expansions(expansions: Sequence[Stage], output: Path) -> None:
    """Give their files to the stage of the training."""
    for number, expansion in enumerate(expansions, 1):
        for file in expansion.files:
            link(expansion.path / file, output / _name(number, file))


def expansion_evidence(stage: Stage) -> Iterator[tuple[int, dict[str, Any], dict[str, Any] | None]]:
    """Of each expansion that a finished training keeps: number, `EVIDENCE`, LT or None."""
    number = 1
    while (stage.path / _name(number, EVIDENCE)).is_file():
        threshold = read_json(stage.path / _name(number, "threshold.json"))["threshold"]
        yield number, read_json(stage.path / _name(number, EVIDENCE)), threshold
        number += 1


def remember_rounds(stage: Stage, training: Training) -> None:
    """Record the rounds of a finished training that its ledger does not have; first rank only.

    Nothing is changed in a ledger that has them.
    """
    if training.growing is None:
        return
    for number, evidence, threshold in expansion_evidence(stage):
        held = threshold or {}
        record = Round(
            evidence["round"],
            training.growing.arm,
            evidence["checkpoint"],
            evidence["pool"],
            held.get("value"),
            held.get("precision"),
            held.get("pairs"),
        )
        candidates = pq.read_table(stage.path / _name(number, "candidates.parquet"))
        training.growing.labels.remember(record, candidates, training.tasks)


def _name(number: int, file: str) -> str:
    return f"expansion-{number}.{file}"
