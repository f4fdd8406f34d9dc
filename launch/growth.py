"""One arm from first labels to last: train, evaluate, embed, expand, label, and again.

Every step is a stage (`lsb.artifact`) named by the hash of its inputs, so arms share what is equal
(the data, the tokens, the first model), and a killed run goes on where it stopped. Labels go into
the arm's ledger, one transaction a round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from launch.run_folder import RunFolder
from launch.settings import Settings
from lsb import ids as sample_ids
from lsb.annotate import annotation_table
from lsb.annotate.oracle import Oracle
from lsb.artifact import Counts, Part, Stage, fingerprint, read_json, run_stage, write_json
from lsb.expand import expand
from lsb.ids import IdArray
from lsb.labelled import LABEL, PROBABILITY, Labelled
from lsb.ledger import Ledger, Round
from lsb.selection import CHOSEN
from lsb.store import Store
from vlmae.checkpoint import load_checkpoint
from vlmae.data.prefix_cache import PrefixCache, cache_prefix
from vlmae.data.prepare import prepare, read_truth
from vlmae.data.whitening import whiten
from vlmae.embedding import embed
from vlmae.evaluation import evaluate, read_metrics
from vlmae.training import CHECKPOINT, cached, train

Say = Callable[[str], None]
FIRST_ROUND = 0
LABELLING = "oracle"
# Clips whose frozen tokens the whitening may read: it needs no label, and no test clip may help.
UNLABELLED_SPLITS = ("first", "pool")


@dataclass(frozen=True)
class Shared:
    """What all arms read.

    Attributes:
        data: the prepared data set.
        cache: frozen tokens of all its clips.
        whitened: whitening of the tokens, fitted on unlabelled clips.
        truth: id, key, split and `label_<task>` of every clip that can be decoded.
        seconds: what these stages cost.
    """

    data: Stage
    cache: PrefixCache
    whitened: Stage
    truth: pa.Table
    seconds: dict[str, float]


@dataclass(frozen=True)
class GrowthRound:
    """One round of one arm, after its training.

    Attributes:
        round: 0 for the first labels.
        labels: labelled clips trained on.
        positives: task -> positive labels among them.
        metrics: task -> see `vlmae.evaluation.read_metrics`.
        counts: of the expansion that brought this round's labels; empty for round 0.
        threshold: LT of that expansion, or None.
        seconds: stage -> seconds it cost when it was made.
        reused: stages that were there already.
    """

    round: int
    labels: int
    positives: dict[str, int]
    metrics: dict[str, dict[str, Any]]
    counts: dict[str, int]
    threshold: dict[str, Any] | None
    seconds: dict[str, float]
    reused: list[str]


def prepare_shared(settings: Settings, folder: RunFolder, say: Say) -> Shared:
    """Prepare the data and compute the frozen tokens, or reuse both."""
    say("prepare")
    data = folder.use(prepare(settings.stages, settings.prepare))
    say("cache")
    tokens = folder.use(
        cache_prefix(
            settings.stages, data, vl=settings.vl, audio=settings.audio, config=settings.prefix
        )
    )
    cache = PrefixCache(tokens)
    components = int(settings.model["components"])
    whitened = folder.use(
        whiten(settings.stages, cache, components=components, splits=UNLABELLED_SPLITS)
    )
    truth = read_truth(data)
    labels = {task: truth[task] for task in settings.tasks}
    truth = truth.select(["id", "key", "split"])
    for task, column in labels.items():
        truth = truth.append_column(LABEL + task, column)
    truth, _ = cached(truth, cache)  # nobody can label what cannot be decoded
    seconds = {"prepare": data.seconds, "cache": tokens.seconds, "whiten": whitened.seconds}
    return Shared(data, cache, whitened, truth, seconds)


def grow(settings: Settings, shared: Shared, folder: RunFolder, say: Say) -> list[GrowthRound]:
    """Run or resume all rounds of `settings.arm`.

    Args:
        settings: of this arm.
        shared: data and tokens.
        folder: of the run.
        say: called with what begins.
    """
    path = folder.path / settings.arm / "ledger.sqlite"
    rounds: list[GrowthRound] = []
    with Ledger.open(path) as ledger:
        _record_first_labels(settings, shared, ledger)
        gold = _gold(ledger)
        brought: _Brought | None = None
        for number in range(settings.rounds + 1):
            clock = _Clock(folder, say, f"{settings.arm}, round {number}")
            if brought is not None:
                _annotate(settings, shared, ledger, brought, number, clock)
            labelled = ledger.training_set(number, [LABELLING])
            trained = clock.run("train", partial(train_stage, settings, shared, labelled, gold))
            measured = clock.run("evaluate", partial(evaluate_stage, settings, shared, trained))
            rounds.append(
                GrowthRound(
                    number,
                    labelled.num_rows,
                    _positives(labelled, settings.tasks),
                    read_metrics(measured),
                    brought.counts if brought else {},
                    brought.threshold if brought else None,
                    clock.seconds,
                    clock.reused,
                )
            )
            if number < settings.rounds:
                brought = _expand(settings, shared, ledger, trained, number + 1, clock)
    return rounds


def train_stage(settings: Settings, shared: Shared, labelled: pa.Table, gold: pa.Table) -> Stage:
    """Train on labels; gold labels choose the operating thresholds only."""
    return train(
        settings.stages,
        shared.cache,
        shared.whitened,
        labelled=labelled,
        validation=gold,
        model=settings.model,
        task_weights=settings.task_weights,
        optimizer=settings.optimizer,
        config=settings.train,
    )


def evaluate_stage(settings: Settings, shared: Shared, trained: Stage) -> Stage:
    """Measure a checkpoint on the test split."""
    return evaluate(
        settings.stages,
        shared.cache,
        trained,
        test=of_split(shared.truth, "test"),
        config=settings.evaluate,
    )


def final_labels(settings: Settings, folder: RunFolder) -> tuple[pa.Table, pa.Table]:
    """The training set of the last round and the gold labels, from the arm's ledger."""
    with Ledger.open(folder.path / settings.arm / "ledger.sqlite", create=False) as ledger:
        return ledger.training_set(settings.rounds, [LABELLING]), _gold(ledger)


def of_split(truth: pa.Table, split: str) -> pa.Table:
    """Rows of one split, with the source under which their labels are known."""
    kept = [index for index, name in enumerate(truth["split"].to_pylist()) if name == split]
    rows = truth.take(kept)
    source = pa.array(["gold"] * rows.num_rows, pa.string())
    return rows.drop_columns(["split"]).append_column("source", source)


@dataclass(frozen=True)
class _Brought:
    """What an expansion brought to the round after it."""

    stage: Stage
    checkpoint: str
    store: str
    threshold: dict[str, Any] | None
    counts: dict[str, int]


class _Clock:
    """Runs stages of one round, keeps their seconds and says what begins."""

    def __init__(self, folder: RunFolder, say: Say, title: str) -> None:
        self.folder, self.say, self.title = folder, say, title
        self.seconds: dict[str, float] = {}
        self.reused: list[str] = []

    def run(self, name: str, make: Callable[[], Stage]) -> Stage:
        self.say(f"{self.title}: {name}")
        stage = self.folder.use(make())
        self.seconds[name] = self.seconds.get(name, 0.0) + stage.seconds
        if stage.reused:
            self.reused.append(name)
        return stage


def _record_first_labels(settings: Settings, shared: Shared, ledger: Ledger) -> None:
    """Round 0: the first labels by the annotator, and gold labels that no training sees."""
    first, gold = of_split(shared.truth, "first"), of_split(shared.truth, "gold")
    answered = _oracle(settings, shared).annotate(
        sample_ids.from_arrow(first["id"]), sample_ids.texts(first["key"]), settings.tasks
    )
    keys = gold["key"].to_pylist()
    known = [
        (clip, key, task, label)
        for task in sorted(settings.tasks)
        for clip, key, label in zip(
            gold["id"].to_pylist(), keys, gold[LABEL + task].to_pylist(), strict=True
        )
    ]
    columns = [list(column) for column in zip(*known, strict=True)]
    trusted = annotation_table(
        columns[0], columns[1], columns[2], columns[3], source="gold", labeller="gold"
    )
    ledger.record_round(
        Round(FIRST_ROUND, "first", checkpoint_hash="", store_hash=""),
        CHOSEN.empty_table(),
        pa.concat_tables([answered, trusted]),
    )


def _oracle(settings: Settings, shared: Shared) -> Oracle:
    return Oracle(shared.truth, **settings.oracle)


def _gold(ledger: Ledger) -> pa.Table:
    return ledger.training_set(FIRST_ROUND, ["gold"])


def _expand(
    settings: Settings,
    shared: Shared,
    ledger: Ledger,
    trained: Stage,
    number: int,
    clock: _Clock,
) -> _Brought:
    threads = settings.train.threads
    cached_model = (settings.stages, shared.cache, trained)
    pool, gold = (
        clock.run("embed", partial(embed, *cached_model, split=split, threads=threads))
        for split in ("pool", "gold")
    )
    exclude = ledger.labelled_ids(number - 1)
    labels = _gold(ledger)
    checkpoint = load_checkpoint(trained.path / CHECKPOINT, shared.cache.identities)
    work = partial(
        _write_expansion,
        pool.path,
        gold.path,
        labels,
        checkpoint.thresholds,
        settings.expand,
        number,
        exclude,
    )
    stage = clock.run(
        "expand",
        partial(
            run_stage,
            settings.stages,
            "expand",
            config={"expand": asdict(settings.expand), "round": number},
            inputs={
                "train": trained.content,
                "pool": pool.content,
                "gold": gold.content,
                "labelled": fingerprint(sample_ids.to_hex(exclude)),
                "gold labels": fingerprint(labels.to_pylist()),
            },
            parts=[Part("candidates", EXPANSION_FILES, work)],
        ),
    )
    return _Brought(
        stage,
        checkpoint.sha256,
        pool.content,
        read_json(stage.path / "threshold.json")["threshold"],
        stage.counts,
    )


EXPANSION_FILES = (
    "candidates.parquet",
    "seeds.parquet",
    "hits.parquet",
    "dropped.parquet",
    "threshold.json",
)


def _write_expansion(
    pool: Path,
    gold: Path,
    labels: pa.Table,
    thresholds: dict[str, float],
    config: Any,
    number: int,
    exclude: IdArray,
    output: Path,
) -> Counts:
    """Expand over the pool's store and write every table of the answer."""
    gold_store = Store.open(gold)
    ids = sample_ids.from_arrow(labels["id"])
    columns = [PROBABILITY + task for task in thresholds]
    scored = gold_store.take(ids, columns)
    for name in columns:
        labels = labels.append_column(name, scored[name].cast(pa.float64()))
    labelled = Labelled.from_table(labels, gold_store.vectors(ids), thresholds)
    expansion = expand(Store.open(pool), labelled, config, round=number, exclude=exclude)
    for name in ("candidates", "seeds", "hits", "dropped"):
        pq.write_table(getattr(expansion, name), output / f"{name}.parquet")
    threshold = asdict(expansion.threshold) if expansion.threshold else None
    write_json(output / "threshold.json", {"threshold": threshold, "refusal": expansion.refusal})
    return expansion.counts


def _annotate(
    settings: Settings,
    shared: Shared,
    ledger: Ledger,
    brought: _Brought,
    number: int,
    clock: _Clock,
) -> None:
    """Have a round's candidates labelled and write the round into the ledger."""
    candidates = pq.read_table(brought.stage.path / "candidates.parquet")
    stage = clock.run(
        "label",
        partial(
            run_stage,
            settings.stages,
            "label",
            config={"oracle": settings.oracle, "tasks": list(settings.tasks)},
            inputs={"candidates": brought.stage.content, "data": shared.data.content},
            parts=[
                Part(
                    "annotations",
                    ("annotations.parquet",),
                    partial(_ask, settings, shared, candidates),
                )
            ],
        ),
    )
    threshold = brought.threshold or {}
    ledger.record_round(
        Round(
            number,
            settings.arm,
            brought.checkpoint,
            brought.store,
            threshold.get("value"),
            threshold.get("precision"),
            threshold.get("pairs"),
        ),
        candidates,
        pq.read_table(stage.path / "annotations.parquet"),
    )


def _ask(settings: Settings, shared: Shared, candidates: pa.Table, output: Path) -> Counts:
    annotations = _oracle(settings, shared).annotate(
        sample_ids.from_arrow(candidates["id"]), sample_ids.texts(candidates["key"]), settings.tasks
    )
    pq.write_table(annotations, output / "annotations.parquet")
    return {"annotations": annotations.num_rows}


def _positives(labelled: pa.Table, tasks: tuple[str, ...]) -> dict[str, int]:
    return {task: int((labelled[LABEL + task].to_numpy() == 1).sum()) for task in tasks}
