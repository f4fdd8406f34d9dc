"""What kept whitened tokens save: `python -m benchmarks.whitened_tokens`.

The data, tokens and first labels are those of an experiment (avt_policy unless another is named;
its overrides follow). A training and the scoring of the pool by what it made, from the tokens of
the cache and from whitened ones that are kept, in turns on one thread. Prints the CPU seconds of
each, the ratio, and whether both ended with the same weights and vectors.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Timing, interleave
from launch.stages.clips import first_clips, gold_clips
from launch.stages.run_folder import RunFolder
from launch.stages.settings import Settings
from launch.stages.shared import Shared, prepare_shared, train_stage
from launch.stages.shortlist import embed_scored
from lsb.artifact import Stage
from lsb.store import Store
from vlmae.checkpoint import CHECKPOINT
from vlmae.config import compose_config
from vlmae.data.token_table import widths

WIDE, KEPT = "tokens of the cache", "whitened, kept"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m benchmarks.whitened_tokens"
    )
    parser.add_argument("--experiment", default="avt_policy")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="of the experiment")
    options = parser.parse_args()
    torch.set_num_threads(1)
    overrides = [f"experiment={options.experiment}", "name=whitened_tokens", *options.overrides]
    settings = {
        name: Settings.from_config(compose_config("round", [*overrides, keep]))
        for name, keep in (
            (WIDE, "whitening.keep_tokens=false"),
            (KEPT, "whitening.keep_tokens=true"),
        )
    }
    shared = {
        name: prepare_shared(one, RunFolder(one.folder / str(number), {}), _tell)
        for number, (name, one) in enumerate(settings.items())
    }
    with ExitStack() as folders:
        paths = {
            name: _Path(
                one,
                shared[name],
                Path(folders.enter_context(tempfile.TemporaryDirectory(dir=one.runs))),
            )
            for name, one in settings.items()
        }
        trained = interleave({name: path.train for name, path in paths.items()}, options.turns)
        scored = interleave({name: path.score for name, path in paths.items()}, options.turns)
        equal = paths[WIDE].made() == paths[KEPT].made()
    table = Table(title=f"CPU seconds, median of {options.turns} turns, one thread")
    labels = trained[WIDE][0].items
    for column in ("from", f"training, {labels} labels", "scoring the pool"):
        table.add_column(column, justify="left" if column == "from" else "right")
    for name in settings:
        table.add_row(name, *(f"{_median(turns[name]):.2f}" for turns in (trained, scored)))
    table.add_row("ratio", *(_ratio(turns) for turns in (trained, scored)))
    console = Console()
    console.print(table)
    columns = widths(shared[WIDE].source.streams)
    console.print(f"columns: {columns} in the cache, {settings[WIDE].model['components']} kept")
    console.print(f"the same weights and vectors, bit for bit: {'yes' if equal else 'no'}")


class _Path:
    """Trainings of one seed after the other, and the stores that their models make of the pool."""

    def __init__(self, settings: Settings, shared: Shared, runs: Path) -> None:
        self.settings, self.shared = replace(settings, runs=runs), shared
        self.labelled = first_clips(settings, shared.truth)
        self.gold = gold_clips(settings, shared.truth)
        self.models: list[Stage] = []
        self.stores: list[Stage] = []

    def train(self) -> int:
        """One training; returns its labels."""
        config = replace(self.settings.train, seed=len(self.models))
        own = replace(self.settings, train=config)
        self.models.append(train_stage(own, self.shared, self.labelled, self.gold))
        return self.labelled.num_rows

    def score(self) -> int:
        """One scoring; returns its clips."""
        model = self.models[len(self.stores)]
        self.stores.append(embed_scored(self.settings, self.shared, model, "pool", None))
        return self.stores[-1].counts["rows"]

    def made(self) -> list[tuple[bytes, bytes]]:
        """Of each turn: the weights, and ids and vectors."""
        stores = [Store.open(stage.path, verify=False) for stage in self.stores]
        return [
            (
                (model.path / CHECKPOINT).read_bytes(),
                store.ids.tobytes() + b"".join(part.vectors().tobytes() for part in store.parts),
            )
            for model, store in zip(self.models, stores, strict=True)
        ]


def _median(turns: list[Timing]) -> float:
    return statistics.median(turn.cpu for turn in turns)


def _ratio(turns: dict[str, list[Timing]]) -> str:
    """Median over turns of the ratio within a turn, with the smallest and the largest."""
    ratios = [one.cpu / two.cpu for one, two in zip(turns[WIDE], turns[KEPT], strict=True)]
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
