"""What happens beside the steps of a training: history, quarantine, trace, saving for a resume.

Each keeps one state a rank in the checkpoint, so that a training that was killed in the middle of
an epoch ends with the files of an undisturbed one. Saving is collective, and so are the states.
"""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, distributed

from lsb import ids as sample_ids
from vlmae.data.batches import Batch, ClipBatch
from vlmae.data.decode import BadClipError
from vlmae.data.encode import quarantine_table
from vlmae.data.loader import ClipLoader
from vlmae.saves import Moment, Saves


def gather(value: Any) -> list[Any]:
    """A picklable value of every rank, by rank. Collective."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


class PerRank(Callback, ABC):
    """A callback whose state differs from rank to rank."""

    @abstractmethod
    def own_state(self) -> list[Any]:
        """What this rank has to remember; JSON-like."""

    @abstractmethod
    def set_own_state(self, state: list[Any]) -> None:
        """What it remembered; of several ranks, one list behind the other."""

    def state_dict(self) -> dict[str, Any]:
        """States of all ranks. Collective."""
        return {"ranks": gather(self.own_state())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """This rank's; where there are fewer than before, each takes over those of several."""
        initialized = distributed.is_available() and distributed.is_initialized()
        rank, size = (
            (distributed.get_rank(), distributed.get_world_size()) if initialized else (0, 1)
        )
        states = state_dict["ranks"][rank::size]
        if states:
            self.set_own_state([entry for state in states for entry in state])


class History(PerRank):
    """Mean training loss of every epoch, over all steps of all ranks."""

    def __init__(self) -> None:
        # Epoch -> sum and number of losses. Lightning skips the hook at the end of an epoch that a
        # resumed training had just finished, so nothing here waits for it.
        self._sums: dict[int, tuple[float | Tensor, int]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add one step."""
        total, steps = self._sums.get(trainer.current_epoch, (0.0, 0))
        # A tensor, which is read when it is asked for: reading waits for a GPU.
        self._sums[trainer.current_epoch] = (total + outputs["fused"].double(), steps + 1)

    def losses(self) -> list[float]:
        """Mean loss of each epoch. Collective."""
        ranks = gather({epoch: (total, steps) for epoch, total, steps in self.own_state()})
        epochs = sorted({epoch for sums in ranks for epoch in sums})
        means = []
        for epoch in epochs:
            entries = [sums[epoch] for sums in ranks if epoch in sums]
            means.append(sum(total for total, _ in entries) / sum(steps for _, steps in entries))
        return means

    def own_state(self) -> list[Any]:
        """See `PerRank`."""
        return [[epoch, float(total), steps] for epoch, (total, steps) in self._sums.items()]

    def set_own_state(self, state: list[Any]) -> None:
        """See `PerRank`."""
        self._sums = {}
        for epoch, total, steps in state:
            held, count = self._sums.get(int(epoch), (0.0, 0))
            self._sums[int(epoch)] = (held + total, count + steps)


def write_history(path: Path, losses: Sequence[float]) -> None:
    """Losses of epochs as csv: epoch, loss."""
    with open(path, "w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["epoch", "loss"])
        rows.writerows(enumerate(losses))


class Quarantine(PerRank):
    """Clips that could not be decoded in training, each once, and a limit to their number.

    Args:
        clips: in the training set.
        limit: largest share of them that may be bad.
    """

    def __init__(self, clips: int, limit: float) -> None:
        self.clips, self.limit = clips, limit
        self.bad: dict[str, BadClipError] = {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch | ClipBatch, batch_idx: int
    ) -> None:
        """Add the bad clips of one batch.

        Raises:
            ValueError: there are more than the limit allows; names the counts by reason.
        """
        if not isinstance(batch, ClipBatch) or not batch.bad:
            return
        self.bad |= {error.key: error for error in batch.bad}
        self._require_few(list(self.bad.values()))

    def own_state(self) -> list[Any]:
        """See `PerRank`."""
        return [[error.key, error.reason, error.detail] for error in self.bad.values()]

    def set_own_state(self, state: list[Any]) -> None:
        """See `PerRank`."""
        self.bad = {key: BadClipError(key, reason, detail) for key, reason, detail in state}

    def table(self) -> pa.Table:
        """id, key, reason and detail of the bad clips of all ranks, by key. Collective.

        Raises:
            ValueError: together they are more than the limit allows.
        """
        entries = {entry[0]: entry for state in gather(self.own_state()) for entry in state}
        bad = [BadClipError(*entries[key]) for key in sorted(entries)]
        self._require_few(bad)
        return quarantine_table(bad)

    def _require_few(self, bad: list[BadClipError]) -> None:
        if len(bad) > self.limit * self.clips:
            reasons = dict(Counter(error.reason for error in bad).most_common())
            raise ValueError(
                f"{len(bad)} of {self.clips} clips cannot be decoded ({reasons}; {bad[0]}), more "
                f"than prefix.skip_limit={self.limit}: mend the data or raise the limit"
            )


class Trace(Callback):
    """Writes which clips every step of every rank trained on, for people who doubt the order.

    One line a step: epoch, step, then the ids. A resumed training adds to the file, so steps after
    the last save are there twice.

    Args:
        folder: gets rank-0.csv, rank-1.csv and so on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch | ClipBatch, batch_idx: int
    ) -> None:
        """Write one line."""
        self.folder.mkdir(parents=True, exist_ok=True)
        line = [str(trainer.current_epoch), str(batch_idx), *sample_ids.to_hex(batch.ids)]
        with open(self.folder / f"rank-{trainer.global_rank}.csv", "a", encoding="utf-8") as stream:
            stream.write(",".join(line) + "\n")


def validation_follows(trainer: Trainer) -> bool:
    """Whether the validation clips are measured right after this training batch.

    Lightning goes on behind the validation of an epoch whose last batch a save has seen, as if it
    had been done: such a save has to wait for it.
    """
    loop = trainer.fit_loop
    follows: bool = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
    return follows


class SaveForResume(Callback):
    """Saves the whole state of a training every so many steps of the optimiser.

    Between two micro-batches of a step nothing is saved: accumulated gradients are in no save.

    Args:
        saves: where to.
        moment: of this training, at any step.
        steps: between two saves; 0 only saves when told to.
        also: says of the step just made whether it is to be saved whatever its number; None saves
            no others.
    """

    def __init__(
        self,
        saves: Saves,
        moment: Moment,
        steps: int,
        also: Callable[[], bool] | None = None,
    ) -> None:
        self.saves, self.moment, self.steps, self.also = saves, moment, steps, also
        self._seen = self._saved = 0
        self._due = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What a resumed training goes on from is saved already."""
        self._seen = self._saved = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, if it is time. Collective."""
        if trainer.global_step != self._seen:
            self._seen = trainer.global_step
            self._due = bool(self.steps) and self._seen % self.steps == 0
            self._due = self._due or (self.also is not None and self.also())
            if self._due and not validation_follows(trainer):
                self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was due before the validation. Collective."""
        if self._due:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save this step, unless it is. Collective; at the boundary of a step."""
        step = trainer.global_step
        if step == self._saved:
            return
        if trainer.is_global_zero:
            self.saves.clear(step)
        trainer.strategy.barrier("room for a save")
        trainer.save_checkpoint(self.saves.begin(step))
        trainer.strategy.barrier("a save is written")
        if trainer.is_global_zero:
            self.saves.finish(replace(self.moment, step=step))
        # Nobody leaves, or goes on to the next save, before this one is whole.
        trainer.strategy.barrier("a save is finished")
        self._saved, self._due = step, False


class AnotherWorld(Callback):
    """Lets a training go on with another number of ranks or micro-batches a step than saved it.

    Lightning counts the micro-batches of one rank, the loader those of all: where the ranks are
    others, Lightning's counts are made to fit the loader's.

    Args:
        saved: of the save that is loaded.
        now: of this training.
    """

    def __init__(self, saved: Moment, now: Moment) -> None:
        self.saved, self.now = saved, now

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Change the counts of the loops, before they are restored."""
        if (self.saved.ranks, self.saved.accumulate) == (self.now.ranks, self.now.accumulate):
            return
        loop = checkpoint["loops"]["fit_loop"]
        progress = loop["epoch_loop.batch_progress"]
        (loader,) = loop["state_dict"]["combined_loader"]
        # Of whole steps: Lightning steps where this count is a multiple of accumulate.
        steps = loader["consumed"] // self.now.ranks
        loader["steps"] = steps - steps % self.now.accumulate
        _shift(progress["current"], loader["steps"])
        _shift(progress["total"], progress["total"]["ready"] * self.saved.ranks // self.now.ranks)


class BetweenEpochs(Callback):
    """Begins the next epoch where a save was made behind the last step of one.

    Lightning would go on in the midst of what it takes for the same epoch: without the hooks of a
    new one, with the number of batches that it finds now, and with counts of epochs that make it
    forget the loader's cursor when the training is stopped and continued once more. So its counts
    are set to what they are when an epoch is over, and the loader gets its cursor here.

    Args:
        loader: of this rank, with the training set of the save.
    """

    def __init__(self, loader: ClipLoader) -> None:
        self.loader = loader

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Change the counts of the loops, before they are restored.

        Raises:
            ValueError: the loader has another training set than the save.
        """
        loop = checkpoint["loops"]["fit_loop"]
        (cursor,) = loop["state_dict"]["combined_loader"]
        self.loader.load_state_dict(cursor)
        epoch = self.loader.next_epoch
        if epoch is None:  # Lightning does well in the midst of an epoch
            return
        for counts in loop["epoch_progress"].values():
            counts.update(dict.fromkeys(("ready", "started", "processed", "completed"), epoch))
        batches = loop["epoch_loop.batch_progress"]
        for counts in (batches["total"], batches["current"]):
            counts["completed"] = counts["processed"]
        # Counted behind the hooks that save.
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
        del loop["state_dict"]["combined_loader"]


def _shift(counts: dict[str, int], ready: int) -> None:
    """Set a count of Lightning's; those beside it keep their distance, by which it knows where."""
    behind = {name: counts["ready"] - value for name, value in counts.items()}
    counts.update({name: ready - value for name, value in behind.items()})
