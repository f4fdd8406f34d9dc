"""One expansion inside a training: the stages between two rounds, on its ranks, by its weights.

    checkpoint   the weights as they are, with temperatures and operating thresholds from the gold
                 clips, as at the end of a training
    embed        gold clips and the pool, the parts dealt to the ranks
    expand       acquisition, seeds, LT, selection on every rank; the search over all of them
    label        the first rank asks, the others wait

All of it is one stage (`lsb.artifact`) in a folder of the training: whole or absent, recognised by
the weights and the training set it began with, and taken up at the part where it was killed. Before
each phase and each part the ranks look at the flag of signals together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, distributed

from lsb import ids as sample_ids
from lsb.artifact import (
    Counts,
    Part,
    Stage,
    fingerprint,
    open_stage,
    run_stage,
    scratch,
    write_json,
)
from lsb.expand import Expansion
from lsb.expansion_files import expand_stores, expansion_files, write_expansion
from lsb.ids import IdArray
from lsb.ledger import Round
from lsb.search.collective import deal, search_collective
from lsb.search.exact import search
from lsb.store import Store
from vlmae.calibration import Calibration
from vlmae.callbacks import gather
from vlmae.checkpoint import CHECKPOINT, load_checkpoint
from vlmae.data.labels import labels_fingerprint
from vlmae.data.token_source import in_source
from vlmae.embedding import EmbedConfig, Scoring, embed_predicted
from vlmae.growing.config import Growing
from vlmae.growing.lockstep import Lockstep, modes_kept, weights_fingerprint
from vlmae.module import VlmaeModule
from vlmae.strategy import whole_state

if TYPE_CHECKING:
    from vlmae.training import Training

STAGE = "grow"
EVIDENCE = "expansion.json"
LABELS = "labels.parquet"
WriteCheckpoint = Callable[[Mapping[str, Tensor], pa.Table, Path], None]
"""Called on the first rank with the whole model's state, the training set and a folder; writes
`FIRST_FILES`."""
FIRST_FILES = (CHECKPOINT, "validation.parquet")


@dataclass(frozen=True)
class Begun:
    """What an expansion begins with, beside the weights.

    Attributes:
        identity: fingerprint of the training.
        epoch: that follows.
        step: of the optimiser.
        round: number of the labels that it brings.
        labelled: the training set, see `vlmae.data.labels`.
        asked: ids of earlier candidates.
    """

    identity: str
    epoch: int
    step: int
    round: int
    labelled: pa.Table
    asked: IdArray

    @property
    def pending(self) -> IdArray:
        """Ids of earlier candidates without a label, ascending."""
        return np.setdiff1d(self.asked, sample_ids.from_arrow(self.labelled["id"]))

    @property
    def held(self) -> pa.Table:
        """Rows of the training set of earlier candidates."""
        ids = sample_ids.from_arrow(self.labelled["id"])
        return self.labelled.filter(pa.array(np.isin(ids, self.asked)))


def stage_files(growing: Growing) -> tuple[str, ...]:
    """Names of the files of an expansion."""
    return (*FIRST_FILES, *expansion_files(growing.expand), LABELS, EVIDENCE)


def expand_between_epochs(
    folder: Path,
    training: Training,
    module: VlmaeModule,
    begun: Begun,
    write_checkpoint: WriteCheckpoint,
    check: Callable[[], None],
) -> Stage:
    """Choose clips and have them labelled, or find that done. Collective: all ranks call it.

    The module is left as it was: weights, modes of all its parts.

    Args:
        folder: of this expansion alone.
        training: that grows.
        module: with the weights that choose.
        begun: training set and moment.
        write_checkpoint: see there.
        check: called by all ranks between phases and parts; collective. Ends the work by raising.

    Returns:
        A stage with the files of `stage_files`.

    Raises:
        ValueError: `folder` holds an expansion that began with other weights or labels.
    """
    growing = training.growing
    assert growing is not None, "called by a training that grows"
    weights = weights_fingerprint(module.model)
    work = partial(_expand, training, growing, module, begun, weights, write_checkpoint, check)
    key: dict[str, Any] = {
        "config": {"epoch": begun.epoch, "step": begun.step, "round": begun.round},
        "inputs": {
            "training": begun.identity,
            "weights": weights,
            "labels": labels_fingerprint(begun.labelled, training.tasks),
            "pending": fingerprint(sample_ids.to_hex(begun.pending)),
        },
    }

    def make(collective: Callable[[Path], Counts]) -> Stage:
        parts = [Part("expansion", stage_files(growing), collective)]
        _require_own(folder, key)
        return run_stage(folder, STAGE, **key, parts=parts)

    with modes_kept(module):
        return training.ranks.all(make, work)


def _require_own(folder: Path, key: Mapping[str, Any]) -> None:
    """Refuse a folder with a finished expansion of something else."""
    for found in sorted(folder.glob(f"{STAGE}-*/manifest.json")):
        manifest = open_stage(found.parent, verify=False).manifest
        for name, held in manifest["inputs"].items():
            if held != key["inputs"][name]:
                raise ValueError(
                    f"{found.parent} is an expansion that began with other {name}: this machine or "
                    "its libraries compute otherwise than those that made it; go on where it was "
                    f"made, or delete {folder} and the saves of later steps to choose anew"
                )


def _expand(
    training: Training,
    growing: Growing,
    module: VlmaeModule,
    begun: Begun,
    weights: str,
    write_checkpoint: WriteCheckpoint,
    check: Callable[[], None],
    output: Path,
) -> Counts:
    """All phases, on all ranks; the first fills `output`."""
    first = training.ranks.first
    check()
    state = whole_state(module)
    if first:
        write_checkpoint(state, begun.labelled, output)
    del state
    model = _told(first, lambda: _evidence(output / CHECKPOINT, training))
    gold = in_source(training.validation, training.source)
    gold_ids = sample_ids.from_arrow(gold["id"])
    embed = partial(_embed, scratch(output), training, growing, module, model, weights, check)
    gold_store = embed(_shards_of(training, gold), only=gold_ids)
    pool_store = embed(training.source.shards_of(growing.config.split), only=None)
    # Of clips that are decoded as they are needed some may have been found bad just now.
    usable = np.isin(gold_ids, Store.open(gold_store.path).ids)
    check()
    labelled_ids = sample_ids.from_arrow(begun.labelled["id"])
    expansion = expand_stores(
        pool_store.path,
        gold_store.path,
        labels=gold.filter(pa.array(usable)),
        thresholds=model["thresholds"],
        config=growing.expand,
        round=begun.round,
        exclude=np.concatenate([labelled_ids, begun.pending, growing.exclude]),
        find=search_collective if distributed.is_initialized() else search,
        verify=False,
    )
    _require_equal(expansion)
    check()
    if first:
        _ask(training, growing, begun, model, pool_store, expansion, output)
        write_json(
            output / EVIDENCE,
            {
                "round": begun.round,
                "epoch": begun.epoch,
                "step": begun.step,
                "weights": weights,
                "checkpoint": model["sha256"],
                "pool": pool_store.content,
                "gold": gold_store.content,
                "counts": expansion.counts,
            },
        )
    return expansion.counts


def _evidence(path: Path, training: Training) -> dict[str, Any]:
    """What of the checkpoint all ranks need."""
    checkpoint = load_checkpoint(path, training.source.identities)
    return {
        "thresholds": checkpoint.thresholds,
        "temperatures": checkpoint.temperatures,
        "sha256": checkpoint.sha256,
    }


def _shards_of(training: Training, clips: pa.Table) -> list[str]:
    """Shards that hold some clips, by split and in the order of the data set."""
    source, ids = training.source, sample_ids.from_arrow(clips["id"])
    splits = sorted(set(sample_ids.texts(source.index["split"])))
    shards = dict.fromkeys(name for split in splits for name in source.shards_of(split))
    return [name for name in shards if np.isin(source.ids_of(name), ids).any()]


def _embed(
    folder: Path,
    training: Training,
    growing: Growing,
    module: VlmaeModule,
    model: Mapping[str, Any],
    weights: str,
    check: Callable[[], None],
    shards: list[str],
    *,
    only: IdArray | None,
) -> Stage:
    """A store of some shards, by the weights as they are. Collective."""
    config, source, ranks = training.config, training.source, training.ranks
    passes = growing.expand.acquisition.dropout_samples if only is None else 0
    scoring = Scoring(config.inputs, config.seed, passes, only)
    lockstep = Lockstep(
        module,
        source.streams,
        check,
        inputs=scoring.inputs,
        seed=scoring.seed,
        dropout_samples=passes,
        calibration=Calibration(
            tuple(training.tasks), training.objective, dict(model["temperatures"])
        ),
    )
    store = embed_predicted(
        folder,
        source,
        EmbedConfig(
            growing.config.split,
            threads=config.threads,
            share=(ranks.rank, ranks.size),
            skip_limit=training.skip_limit,
            accelerator=config.accelerator,
        ),
        scoring,
        lockstep.predict,
        training.tasks,
        {"weights": weights},
        shards=shards,
        dealt=_dealt(training, shards),
    )
    lockstep.finish()
    found = [path for path in gather(None if store is None else str(store.path)) if path]
    return open_stage(Path(found[0]), verify=False)


def _dealt(training: Training, shards: list[str]) -> dict[str, int]:
    """Shard -> rank, by the clips that they hold, as the search deals the store's parts."""
    rows = [len(training.source.ids_of(name)) for name in shards]
    return dict(zip(shards, deal(rows, training.ranks.size), strict=True))


def _require_equal(expansion: Expansion) -> None:
    """Prove that all ranks have chosen alike. Collective.

    Raises:
        ValueError: on all ranks.
    """
    threshold = None if expansion.threshold is None else asdict(expansion.threshold)
    own = fingerprint([expansion.candidates.to_pylist(), threshold, expansion.counts])
    told = gather(own)
    if len(set(told)) > 1:
        raise ValueError(
            f"the ranks have chosen other clips than the first: {told}; the folder of the training "
            "must be one file system, and the machines of one kind; nothing was recorded"
        )


def _ask(
    training: Training,
    growing: Growing,
    begun: Begun,
    model: Mapping[str, Any],
    pool: Stage,
    expansion: Expansion,
    output: Path,
) -> None:
    """Write the expansion, and its labels. First rank only."""
    write_expansion(expansion, growing.expand, output)
    threshold = expansion.threshold
    record = Round(
        begun.round,
        growing.arm,
        str(model["sha256"]),
        pool.content,
        None if threshold is None else threshold.value,
        None if threshold is None else threshold.precision,
        None if threshold is None else threshold.pairs,
    )
    labels = growing.labels.labels(
        record, expansion.candidates, begun.pending, begun.held, training.tasks
    )
    pq.write_table(labels, output / LABELS)


def _told(first: bool, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the first rank finds, on all. Collective; a first rank that fails ends the others."""
    box: list[Any] = [make() if first else None]
    if distributed.is_initialized():
        distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    told: dict[str, Any] = box[0]
    return told
