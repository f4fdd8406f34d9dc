"""Pseudo-labels in a round: made by the model that chose its clips, recorded, and trained on.

The model of round r - 1 labels clips of the pool that nobody has labelled through round r
(`lsb.pseudo`); they train the model of round r beside people's labels, and only that one: the next
round has new ones, by its own model, and the ledger withdraws the old. `pseudo=none` does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from launch.stages.settings import Settings
from launch.stages.shared import Say, Shared
from lsb import ids as sample_ids
from lsb.annotate import PSEUDO, annotation_table
from lsb.artifact import Counts, Part, Stage, fingerprint, read_json, run_stage, write_json
from lsb.ids import IdArray
from lsb.labelled import Labelled, label_array, with_probabilities
from lsb.ledger import Ledger
from lsb.pseudo import LabelledClips, PseudoConfig, pseudo_label
from lsb.store import Store
from vlmae.checkpoint import CHECKPOINT, load_checkpoint
from vlmae.data.labels import WEIGHT, labels_fingerprint
from vlmae.data.tombstones import without_tombstones
from vlmae.embedding import EmbedConfig, Scoring, embed_fused

LABELS_FILE = "pseudo_labels.parquet"
RULES_FILE = "rules.json"
CURVES_FILE = "calibration.parquet"
RunStage = Callable[[str, Callable[[], Stage]], Stage]


@dataclass(frozen=True)
class PseudoModel:
    """The model that labels in a round, and what it has scored.

    Attributes:
        trained: its `train` stage.
        checkpoint: its hash, which names the labeller.
        pool: its store of the pool.
        gold: its store of the gold clips.
        threshold: LT of the round, None for none.
    """

    trained: Stage
    checkpoint: str
    pool: Stage
    gold: Stage
    threshold: float | None


class PseudoLabelling:
    """Pseudo-labels of one arm, round after round.

    Args:
        settings: of the arm.
        shared: data and tokens.
        ledger: of the arm.
    """

    def __init__(self, settings: Settings, shared: Shared, ledger: Ledger) -> None:
        self._settings, self._shared, self._ledger = settings, shared, ledger
        self._earlier: Stage | None = None

    def label(
        self,
        number: int,
        labelled: pa.Table,
        gold: pa.Table,
        model: PseudoModel | None,
        run: RunStage,
        say: Say,
    ) -> dict[str, Any] | None:
        """Label for one round and record it; in the order of rounds.

        Args:
            number: of the round.
            labelled: what people labelled through it, see `Ledger.training_set`.
            gold: gold labels.
            model: that chose the round's clips; None for none, where it scored nothing, or where
                the round is history.
            run: makes a stage and keeps its seconds.
            say: called with one line for every label that is switched off.

        Returns:
            "clips", "labels" (`<task>=<label>` -> clips), "rules" with their evidence, and "off",
            one line each; None where nothing is to be labelled.
        """
        if self._settings.pseudo.mode == "none":
            return None
        if model is None:
            self._earlier = None
            if number:
                say(f"pseudo-labels of round {number}: none, no model scored the pool for it")
            return None
        stores = self._labelled_stores(labelled, model, run)
        stage = run("pseudo", partial(self._stage, number, labelled, gold, model, stores))
        self._earlier = stage
        table = without_tombstones(self._settings.stages, pq.read_table(stage.path / LABELS_FILE))
        columns: dict[str, list[Any]] = table.to_pydict()
        annotations = annotation_table(
            columns["id"],
            columns["key"],
            columns["task"],
            columns["label"],
            source=PSEUDO,
            labeller=f"{PSEUDO}:{model.checkpoint[:16]}",
        )
        self._ledger.import_annotations(number, annotations)
        told = read_json(stage.path / RULES_FILE)
        for line in told["off"]:
            say(f"pseudo-labels of round {number}, {line}")
        suffix = " labelled"
        counts = {k.removesuffix(suffix): v for k, v in stage.counts.items() if k.endswith(suffix)}
        return {"clips": len(set(columns["id"])), "labels": counts, **told}

    def _stage(
        self,
        number: int,
        labelled: pa.Table,
        gold: pa.Table,
        model: PseudoModel,
        stores: list[Stage],
    ) -> Stage:
        settings, ledger = self._settings, self._ledger
        known = sample_ids.from_hex(sorted({clip for clip, _ in ledger.measured()}))
        exclude = np.unique(np.concatenate([ledger.labelled_ids(number), known]))
        checkpoint = load_checkpoint(
            model.trained.path / CHECKPOINT, self._shared.source.identities
        )
        earlier = self._earlier
        work = partial(
            _write,
            model,
            [store.path for store in stores],
            labelled,
            gold,
            checkpoint.thresholds,
            settings.pseudo,
            exclude,
            {} if earlier is None else read_cuts(earlier),
        )
        return run_stage(
            settings.stages,
            "pseudo",
            config={
                "pseudo": {k: v for k, v in asdict(settings.pseudo).items() if k != "weight"},
                "thresholds": checkpoint.thresholds,
                "lookalike_threshold": model.threshold,
            },
            inputs={
                "pool": model.pool.content,
                "gold": model.gold.content,
                **{f"labelled {n}": store.content for n, store in enumerate(stores)},
                "labels": labels_fingerprint(labelled, settings.tasks),
                "gold labels": labels_fingerprint(gold, settings.tasks),
                "excluded": fingerprint(sample_ids.to_hex(exclude)),
                "earlier": "" if earlier is None else earlier.content,
            },
            parts=[Part("labels", (LABELS_FILE, RULES_FILE, CURVES_FILE), work)],
        )

    def _labelled_stores(
        self, labelled: pa.Table, model: PseudoModel, run: RunStage
    ) -> list[Stage]:
        """Vectors of the training set by the model, a store a split: of those clips alone."""
        settings, index = self._settings, self._shared.source.index
        ids = sample_ids.from_arrow(labelled["id"])
        held = sample_ids.from_arrow(index["id"])
        split = np.asarray(sample_ids.texts(index["split"]), dtype=object)
        stores = []
        for name in sorted(set(split[np.isin(held, ids)].tolist())):
            only = np.sort(held[(split == name) & np.isin(held, ids)])
            make = partial(_embed, settings, self._shared, model.trained, name, only)
            stores.append(run("embed labelled", make))
        return stores


def with_pseudo_labels(
    settings: Settings, ledger: Ledger, labelled: pa.Table, number: int
) -> pa.Table:
    """The training set of a round: what people labelled, and the pseudo-labels of that round.

    Args:
        settings: of the arm.
        ledger: of the arm.
        labelled: what people labelled through the round, see `Ledger.training_set`.
        number: of the round.

    Returns:
        `labelled` itself where there are no pseudo-labels. Else also their clips, in id order, with
        source "pseudo", no `round` (nobody was asked) and the `weight` of the config; no clip that
        anybody has labelled, in whatever task.
    """
    if settings.pseudo.mode == "none":
        return labelled
    pseudo = without_tombstones(settings.stages, ledger.training_set(number, [PSEUDO]))
    ids = sample_ids.from_arrow(labelled["id"])
    free = ~np.isin(sample_ids.from_arrow(pseudo["id"]), ids)
    pseudo = pseudo.take(np.flatnonzero(free))
    if not pseudo.num_rows:
        return labelled
    columns = {}
    for field in labelled.schema:
        given = field.name in pseudo.column_names and field.name != "round"
        nothing = pa.nulls(pseudo.num_rows, field.type)
        columns[field.name] = pseudo[field.name].cast(field.type) if given else nothing
    weights = [1.0] * labelled.num_rows + [settings.pseudo.weight] * pseudo.num_rows
    joined = pa.concat_tables([labelled, pa.table(columns, schema=labelled.schema)])
    joined = joined.append_column(WEIGHT, pa.array(weights, pa.float64()))
    order = np.argsort(sample_ids.from_arrow(joined["id"]), kind="stable")
    return joined.take(order)


def read_cuts(stage: Stage) -> dict[tuple[str, int], float | None]:
    """(task, label) -> cut of the rules of a `pseudo` stage, whether they were used or not."""
    rules = read_json(stage.path / RULES_FILE)["rules"]
    return {(rule["task"], rule["label"]): rule["cut"] for rule in rules}


def _embed(settings: Settings, shared: Shared, trained: Stage, split: str, only: IdArray) -> Stage:
    stage = embed_fused(
        settings.stages,
        shared.tokens,
        trained,
        EmbedConfig(split, threads=settings.train.threads),
        Scoring(inputs=settings.train.inputs, seed=settings.train.seed, only=only),
    )
    assert stage is not None, "one share of one is the whole store"
    return stage


def _write(
    model: PseudoModel,
    labelled_stores: list[Path],
    labelled: pa.Table,
    gold: pa.Table,
    thresholds: Mapping[str, float],
    config: PseudoConfig,
    exclude: IdArray,
    earlier: Mapping[tuple[str, int], float | None],
    output: Path,
) -> Counts:
    """Label the pool and write labels, rules and what they rest on."""
    found = pseudo_label(
        Store.open(model.pool.path, verify=True),
        _gold_clips(Store.open(model.gold.path, verify=True), gold, thresholds),
        _labelled_clips([Store.open(path) for path in labelled_stores], labelled, thresholds),
        config,
        lookalike_threshold=model.threshold,
        exclude=exclude,
        earlier=earlier,
    )
    pq.write_table(found.table, output / LABELS_FILE)
    rules = [rule.evidence() for rule in found.rules]
    write_json(output / RULES_FILE, {"rules": rules, "off": found.lines})
    curves = []
    for rule in found.rules:
        count = rule.curve.num_rows
        names = ["probability", "gold", "seeds", "right", "precision", "bound"]
        curve = rule.curve.rename_columns(names).drop_columns(["seeds"])
        curve = curve.add_column(0, "label", pa.array([rule.label] * count, pa.int8()))
        curves.append(curve.add_column(0, "task", pa.array([rule.task] * count, pa.string())))
    pq.write_table(pa.concat_tables(curves), output / CURVES_FILE)
    return found.counts


def _gold_clips(store: Store, gold: pa.Table, thresholds: Mapping[str, float]) -> Labelled:
    """Gold clips that the model could score, with its predictions."""
    gold = gold.take(np.flatnonzero(np.isin(sample_ids.from_arrow(gold["id"]), store.ids)))
    ids = sample_ids.from_arrow(gold["id"])
    gold = with_probabilities(gold, store, thresholds)
    return Labelled.from_table(gold, store.vectors(ids), thresholds)


def _labelled_clips(
    stores: list[Store], labelled: pa.Table, tasks: Mapping[str, float]
) -> LabelledClips:
    """The training set in the model's latent space, by id."""
    ids = sample_ids.from_arrow(labelled["id"])
    labels = {task: label_array(labelled, task) for task in tasks}
    vectors, rows = [], []
    for store in stores:
        at = np.flatnonzero(np.isin(ids, store.ids))
        rows.append(at)
        vectors.append(store.vectors(ids[at]))
    row = np.concatenate(rows)
    return LabelledClips(
        ids[row], np.concatenate(vectors), {task: values[row] for task, values in labels.items()}
    )
