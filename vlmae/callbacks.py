"""What happens beside the steps of a training: history, quarantine, trace, saving for a resume.

Each keeps one state a rank in the checkpoint, so that a training that was killed in the middle of
an epoch ends with the files of an undisturbed one. Saving is collective, and so are the states.
"""

from __future__ import annotations

import csv
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import distributed

from lsb import ids as sample_ids
from vlmae.data.batches import Batch, ClipBatch
from vlmae.data.decode import BadClipError
from vlmae.data.encode import quarantine_table


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
    def own_state(self) -> Any:
        """What this rank has to remember; JSON-like."""

    @abstractmethod
    def set_own_state(self, state: Any) -> None:
        """What it remembered."""

    def state_dict(self) -> dict[str, Any]:
        """States of all ranks. Collective."""
        return {"ranks": gather(self.own_state())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """This rank's; with other ranks than before, the first rank goes on with the first's."""
        initialized = distributed.is_available() and distributed.is_initialized()
        rank = distributed.get_rank() if initialized else 0
        if rank < len(state_dict["ranks"]):
            self.set_own_state(state_dict["ranks"][rank])


class History(PerRank):
    """Mean training loss of every epoch, over all steps of all ranks."""

    def __init__(self) -> None:
        # Epoch -> sum and number of losses. Lightning skips the hook at the end of an epoch that a
        # resumed training had just finished, so nothing here waits for it.
        self._sums: dict[int, tuple[float, int]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add one step."""
        total, steps = self._sums.get(trainer.current_epoch, (0.0, 0))
        self._sums[trainer.current_epoch] = (total + float(outputs["fused"]), steps + 1)

    def losses(self) -> list[float]:
        """Mean loss of each epoch. Collective."""
        ranks = gather(self._sums)
        epochs = sorted({epoch for sums in ranks for epoch in sums})
        means = []
        for epoch in epochs:
            entries = [sums[epoch] for sums in ranks if epoch in sums]
            means.append(sum(total for total, _ in entries) / sum(steps for _, steps in entries))
        return means

    def own_state(self) -> Any:
        """See `PerRank`."""
        return [[epoch, total, steps] for epoch, (total, steps) in self._sums.items()]

    def set_own_state(self, state: Any) -> None:
        """See `PerRank`."""
        self._sums = {int(epoch): (total, steps) for epoch, total, steps in state}


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

    def own_state(self) -> Any:
        """See `PerRank`."""
        return [[error.key, error.reason, error.detail] for error in self.bad.values()]

    def set_own_state(self, state: Any) -> None:
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


class SaveForResume(Callback):
    """Saves the whole state of a training every so many steps; a reader sees a whole file or none.

    Args:
        path: of the checkpoint.
        steps: between two saves.
    """

    def __init__(self, path: Path, steps: int) -> None:
        self.path, self.steps = path, steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, if it is time. Collective."""
        if trainer.global_step % self.steps:
            return
        temporary = self.path.with_name(self.path.name + ".tmp")
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            os.replace(temporary, self.path)
