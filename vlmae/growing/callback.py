"""Lightning callback: the training set of a run grows between its epochs.

Before the first step of every so many epochs it chooses clips by the weights as they are, has them
labelled (`vlmae.growing.expansion`), and puts a loader with the new training set in the place of
the old one. A save names the expansions that it rests on, and their content; a training that goes
on from it takes their labels from their folders before the loader's cursor is restored, which
refuses any other training set (contract 6).

The step before an expansion is always saved, so that a training that is stopped or killed within
one takes it up again and has lost nothing else.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from lsb import ids as sample_ids
from lsb.artifact import Stage, StageError, open_stage
from lsb.ids import IdArray
from lsb.labelled import LABEL
from vlmae.callbacks import Quarantine
from vlmae.data.labels import label_matrix
from vlmae.data.loader import ClipLoader
from vlmae.growing.clock import EpochClock
from vlmae.growing.expansion import LABELS, Begun, WriteCheckpoint, expand_between_epochs
from vlmae.module import VlmaeModule
from vlmae.objectives import Objective
from vlmae.preemption import Preempted, StopFlag
from vlmae.training_data import TrainingSet, training_loader, training_set

if TYPE_CHECKING:
    from vlmae.training import Training

ROUND = "round"


class GrowBetweenEpochs(Callback):
    """Expands the training set of a run; all hooks that do something are collective.

    Args:
        folder: where the expansions of this training lie; the same on all ranks.
        training: that grows; `training.growing` says how.
        identity: its fingerprint.
        objective: whose loss terms the loader counts.
        loader: of this rank; gets the clips.
        clock: of the schedule; learns how long epochs are.
        quarantine: learns how many clips there are.
        flag: of signals.
        write_checkpoint: see `vlmae.growing.expansion.WriteCheckpoint`.
    """

    def __init__(
        self,
        folder: Path,
        training: Training,
        identity: str,
        *,
        objective: Objective,
        loader: ClipLoader,
        clock: EpochClock,
        quarantine: Quarantine,
        flag: StopFlag,
        write_checkpoint: WriteCheckpoint,
    ) -> None:
        assert training.growing is not None, "made for a training that grows"
        self.folder, self.training, self.identity = folder, training, identity
        self.objective, self.loader, self.clock = objective, loader, clock
        self.quarantine, self.flag, self.write_checkpoint = quarantine, flag, write_checkpoint
        self.labelled: pa.Table = training.labelled
        self.epochs = training.growing.config.epochs(training.config.epochs)
        self.expansions: list[Stage] = []
        self._first_round = _last_round(training.labelled)
        self._asked: IdArray = np.empty(0, "S16")
        self._from_epoch: list[tuple[int, pa.Table]] = [(0, training.labelled)]

    @property
    def training_set(self) -> TrainingSet:
        """What is trained on now."""
        return training_set(self.training, self.labelled)

    def training_set_of(self, epoch: int) -> TrainingSet:
        """What was trained on in an epoch, counted from 0, and before it."""
        labelled = [table for start, table in self._from_epoch if start <= epoch][-1]
        return training_set(self.training, labelled)

    def follows(self) -> bool:
        """Whether an expansion comes before the next step."""
        return self._due() is not None

    def _due(self) -> int | None:
        """The epoch before which the next expansion is due now."""
        left = self.epochs[len(self.expansions) :]
        return left[0] if left and self.loader.next_epoch == left[0] else None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Expand, if it is time. Collective.

        Raises:
            Preempted: a signal came; the last step is saved.
            ValueError: see `expand_between_epochs`, and whatever an expansion refuses.
        """
        epoch = self._due()
        if epoch is None:
            return
        assert isinstance(pl_module, VlmaeModule)
        begun = Begun(
            self.identity,
            epoch,
            trainer.global_step,
            self._first_round + len(self.expansions) + 1,
            self.labelled,
            self._asked,
        )

        def check() -> None:
            signal = self.flag.agreed()
            if signal:
                raise Preempted(signal, begun.step)

        # Whatever an expansion draws, the next step draws what it would have drawn.
        with isolate_rng():
            stage = expand_between_epochs(
                self._folder(epoch),
                self.training,
                pl_module,
                begun,
                self.write_checkpoint,
                check,
            )
        if self._adopt(epoch, stage):
            # Lightning asks for the number of batches when it sets a loader up.
            trainer.fit_loop._combined_loader = None
            trainer.fit_loop.setup_data()

    def state_dict(self) -> dict[str, Any]:
        """The expansions so far: before which epoch, and the content of their files."""
        made = zip(self.epochs, self.expansions, strict=False)
        return {
            "expansions": [
                {"epoch": epoch, "name": stage.path.name, "content": stage.content}
                for epoch, stage in made
            ]
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take over the labels of a save's expansions, before its loops are restored. Collective.

        Raises:
            ValueError: an expansion is gone, or is not the one that the save rests on.
        """
        for entry in checkpoint["callbacks"][self.state_key]["expansions"]:
            stage = self.training.ranks.once(partial(self._reopened, entry))
            self._adopt(int(entry["epoch"]), stage)

    def _reopened(self, entry: dict[str, Any]) -> Stage:
        path = self._folder(int(entry["epoch"])) / str(entry["name"])
        remedy = (
            f"bring it back, or delete {self.folder} and all saves behind that epoch to choose anew"
        )
        if not path.is_dir():
            raise StageError(f"the save rests on the expansion {path}, which is gone: {remedy}")
        stage = open_stage(path)
        if stage.content != entry["content"]:
            raise StageError(
                f"{path} is not the expansion that the save rests on (its content is "
                f"{stage.content}, the save's {entry['content']}): {remedy}"
            )
        return stage

    def _folder(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:04d}"

    def _adopt(self, epoch: int, stage: Stage) -> bool:
        """Train on what an expansion brought, from an epoch on; False if that is nothing."""
        self.expansions.append(stage)
        earlier = self._asked
        candidates = pq.read_table(stage.path / "candidates.parquet", columns=["id"])
        self._asked = np.union1d(earlier, sample_ids.from_arrow(candidates["id"]))
        labels = pq.read_table(stage.path / LABELS)
        if not labels.num_rows:
            return False
        self.labelled = with_rows(self.labelled, labels, earlier)
        self._from_epoch.append((epoch, self.labelled))
        grown = self.training_set
        matrix = label_matrix(grown.labelled, self.training.tasks)
        try:
            self.objective.check(torch.from_numpy(matrix))
        except ValueError as error:
            raise ValueError(
                f"{error}; the labels of this expansion are in {stage.path}: once they are "
                "corrected where they come from, delete that folder and go on"
            ) from None
        loader = training_loader(self.training, grown.manifest, self.objective)
        self.loader.grow(loader)
        self.clock.grow(epoch, loader.order.steps() // self.training.config.accumulate)
        self.quarantine.clips = grown.labelled.num_rows
        return True


def with_rows(labelled: pa.Table, rows: pa.Table, asked: IdArray) -> pa.Table:
    """A training set with the rows of `LABELS`: new clips behind it, others in their places.

    Its own rows are of round 0 where they say nothing else; what the new ones lack is null. A clip
    that is there keeps its round and all else but labels and source; without a label it goes.

    Args:
        labelled: the training set.
        rows: of an expansion.
        asked: ids of the clips whose rows may be there already.

    Raises:
        ValueError: another clip is in both.
    """
    if ROUND not in labelled.column_names:
        labelled = labelled.append_column(ROUND, pa.array([0] * labelled.num_rows, pa.int32()))
    ids = sample_ids.from_arrow(rows["id"])
    again = np.isin(ids, sample_ids.from_arrow(labelled["id"])) & np.isin(ids, asked)
    if again.any():
        labelled = _relabelled(labelled, rows.filter(pa.array(again)))
        rows = rows.filter(pa.array(~again))
    columns = [
        rows[field.name].cast(field.type).combine_chunks()
        if field.name in rows.column_names
        else pa.nulls(rows.num_rows, field.type)
        for field in labelled.schema
    ]
    joined = pa.concat_tables([labelled, pa.table(columns, names=labelled.column_names)])
    sample_ids.require_unique(sample_ids.from_arrow(joined["id"]), sample_ids.texts(joined["key"]))
    return joined


def _relabelled(labelled: pa.Table, rows: pa.Table) -> pa.Table:
    """The same clips with labels and sources of some rows; those without any label are left out."""
    place = {name: row for row, name in enumerate(labelled["id"].to_pylist())}
    places = [place[name] for name in rows["id"].to_pylist()]
    labels = [name for name in rows.column_names if name.startswith(LABEL)]
    for name in (*labels, "source"):
        values = labelled[name].to_pylist()
        for row, value in zip(places, rows[name].to_pylist(), strict=True):
            values[row] = value
        column = labelled.schema.get_field_index(name)
        field = labelled.schema.field(column)
        labelled = labelled.set_column(column, field, pa.array(values, field.type))
    kept = np.ones(labelled.num_rows, dtype=np.bool_)
    for row, told in zip(places, rows.select(labels).to_pylist(), strict=True):
        kept[row] = any(label is not None for label in told.values())
    return labelled.filter(pa.array(kept))


def _last_round(labelled: pa.Table) -> int:
    if ROUND not in labelled.column_names:
        return 0
    return max(
        (int(number) for number in labelled[ROUND].to_pylist() if number is not None), default=0
    )
