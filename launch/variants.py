"""Fusion variants compared fairly: `python -m launch.variants experiment=fusion_avt_small`.

Every variant is tuned over the same grid by mean average precision on development clips, then
trained with several seeds and measured on test clips that chose nothing. Late fusion is tuned like
the others ("Fusion or Confusion?", arXiv 2512.22991); a model without audio and models that hear
another clip's audio stand beside them. Every training is a stage: started again, only what is
missing is done. Writes runs/<name>/variants.json.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import pyarrow as pa
from omegaconf import DictConfig
from rich.console import Console

from launch.comparing.step_time import step_times
from launch.comparing.variant_table import print_variants, summarise_variants
from launch.stages.clips import by_id, of_split
from launch.stages.run_folder import RunFolder
from launch.stages.settings import Settings
from launch.stages.shared import Shared, prepare_shared, train_stage
from lsb.artifact import Stage, write_json
from lsb.workers import worker_pool
from vlmae.config import as_dict, build, command, compose_config, task_overrides
from vlmae.evaluation import EvaluateConfig, evaluate, read_metrics

WITHOUT_AUDIO = "without audio"


@dataclass(frozen=True)
class VariantsConfig:
    """What is compared, and how it is tuned.

    Attributes:
        fusions: names of `conf/fusion`.
        grid: config key -> values; every variant is tuned over their product.
        without_audio: variant that is also tuned and trained on picture and title alone, or None.
        labels: clips trained on.
        development: clips that choose the grid point.
        seeds: trainings of the chosen point.
        processes: trainings at a time.
    """

    fusions: list[str]
    grid: dict[str, list[Any]]
    without_audio: str | None
    labels: int
    development: int
    seeds: int
    processes: int

    def __post_init__(self) -> None:
        if not self.fusions or any(not values for values in self.grid.values()):
            raise ValueError("variants needs a fusion and a value for every key of its grid")
        if min(self.labels, self.development, self.seeds, self.processes) < 1:
            raise ValueError(
                f"variants has labels {self.labels}, development {self.development}, seeds "
                f"{self.seeds}, processes {self.processes}: give at least 1 each"
            )

    @property
    def points(self) -> list[dict[str, Any]]:
        """The grid, one mapping a point."""
        return [
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]


@dataclass(frozen=True)
class Clips:
    """Who is trained on, who chooses, and who is measured."""

    training: pa.Table
    gold: pa.Table
    development: pa.Table
    test: pa.Table


@dataclass(frozen=True)
class Job:
    """One training and its measurements.

    Attributes:
        variant: its row in the table.
        settings: composed for it.
        point: of the grid.
        measure: what to measure: "development", or "test" and "shuffled".
    """

    variant: str
    settings: Settings
    point: int
    measure: tuple[str, ...]


def split_clips(shared: Shared, config: VariantsConfig) -> Clips:
    """Training and development clips that share none, both taken by id, which is a hash.

    Raises:
        ValueError: there are too few clips.
    """
    first, pool = (by_id(of_split(shared.truth, split)) for split in ("first", "pool"))
    more = max(0, config.labels - first.num_rows)
    if pool.num_rows < more + config.development:
        raise ValueError(
            f"variants.labels {config.labels} and variants.development {config.development} need "
            f"{more + config.development} pool clips, there are {pool.num_rows}: lower one of them"
        )
    return Clips(
        pa.concat_tables([first.slice(0, config.labels), pool.slice(0, more)]),
        of_split(shared.truth, "gold"),
        pool.slice(more, config.development),
        of_split(shared.truth, "test"),
    )


def run_job(shared: Shared, clips: Clips, job: Job) -> tuple[Stage, dict[str, Stage]]:
    """Train and measure, or reuse both; "shuffled" hears other clips' audio in the test."""
    settings = job.settings
    trained = train_stage(settings, shared, clips.training, clips.gold)
    measured = {}
    for name in job.measure:
        table = clips.development if name == "development" else clips.test
        inputs = "shuffled_audio" if name == "shuffled" else settings.train.inputs
        chosen: EvaluateConfig = replace(settings.evaluate, inputs=inputs)
        measured[name] = evaluate(
            settings.stages, shared.tokens, trained, test=table, config=chosen
        )
    return trained, measured


def mean_average_precision(stage: Stage) -> float:
    """Over tasks; what a grid point is chosen by. Tasks without a positive have none."""
    values = [task["average_precision"]["value"] for task in read_metrics(stage).values()]
    return float(np.mean([value for value in values if value is not None]))


@command("variants")
def main(config: DictConfig) -> None:
    """Tune, train and measure every variant."""
    console = Console(log_path=False)
    chosen = build("variants", VariantsConfig, cast(dict[str, Any], as_dict(config))["variants"])
    base = Settings.from_config(config)
    base.launcher.require_none("launch.variants", "variants.processes")
    folder = RunFolder(base.folder, base.identity)
    shared = prepare_shared(base, folder, console.log)
    clips = split_clips(shared, chosen)
    compose = partial(_compose, task_overrides())
    rows = {name: (name, "both") for name in chosen.fusions}
    if chosen.without_audio:
        rows[WITHOUT_AUDIO] = (chosen.without_audio, "vl")

    def job(row: str, point: int, seed: int, measure: tuple[str, ...]) -> Job:
        fusion, inputs = rows[row]
        settings = compose(fusion, {**chosen.points[point], "trainer.seed": seed})
        settings = replace(settings, train=replace(settings.train, inputs=inputs))
        settings = replace(settings, evaluate=replace(settings.evaluate, inputs=inputs))
        return Job(row, settings, point, measure)

    grid = [job(r, p, 0, ("development",)) for r in rows for p in range(len(chosen.points))]
    with worker_pool(chosen.processes) as pool:
        work = partial(run_job, shared, clips)
        scores: dict[str, dict[int, float]] = {row: {} for row in rows}
        for done, (trained, measured) in _each(pool, work, grid, console, "tuning"):
            folder.use(trained)
            stage = folder.use(measured["development"])
            scores[done.variant][done.point] = mean_average_precision(stage)
        best = {row: max(found, key=lambda p: (found[p], -p)) for row, found in scores.items()}
        final = [
            job(r, best[r], seed, ("test",) if r == WITHOUT_AUDIO else ("test", "shuffled"))
            for r in rows
            for seed in range(chosen.seeds)
        ]
        results: dict[str, list[tuple[Stage, dict[str, Stage]]]] = {row: [] for row in rows}
        for done, (trained, measured) in _each(pool, work, final, console, "measuring"):
            for stage in (trained, *measured.values()):
                folder.use(stage)
            results[done.variant].append((trained, measured))
    by_row = {entry.variant: entry.settings for entry in final}
    summary = summarise_variants(
        base,
        points=chosen.points,
        scores=scores,
        chosen=best,
        results=results,
        steps=step_times(by_row, shared, clips.training, console.log),
        clips={"training": clips.training.num_rows, "development": clips.development.num_rows},
    )
    write_json(folder.path / "variants.json", summary)
    print_variants(summary, console)


def _compose(overrides: Sequence[str], fusion: str, point: Mapping[str, Any]) -> Settings:
    """Settings of a variant at a point of the grid."""
    kept = [override for override in overrides if not override.startswith("fusion=")]
    own = [f"fusion={fusion}", *(f"{key}={value}" for key, value in point.items())]
    return Settings.from_config(compose_config("variants", [*kept, *own]))


def _each(
    pool: ProcessPoolExecutor, work: Any, jobs: Sequence[Job], console: Console, title: str
) -> Iterable[tuple[Job, tuple[Stage, dict[str, Stage]]]]:
    """Jobs with their results, in the order given."""
    for number, (job, result) in enumerate(zip(jobs, pool.map(work, jobs), strict=True), 1):
        console.log(f"{title}: {number} of {len(jobs)} ({job.variant}, grid point {job.point})")
        yield job, result


if __name__ == "__main__":
    main()
