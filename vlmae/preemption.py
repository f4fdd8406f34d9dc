"""Signals that ask a training to stop: they set a flag, and all ranks save together (contract 9).

A handler that saved by itself would write in the middle of a step, on one rank alone. So it notes
the signal's name; after every step of the optimiser the ranks compare notes, and if any has one,
all of them save the same step and leave with an exit code of its own, on which a batch script puts
the job back into the queue.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch import distributed

from vlmae.callbacks import SaveForResume, validation_follows

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: not a failure, come again."""
SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class Preempted(SystemExit):
    """All ranks have saved; ends the process with `EXIT_CODE`.

    Attributes:
        signal: name of the signal.
        message: what to print, once.
    """

    def __init__(self, name: str, step: int) -> None:
        super().__init__(EXIT_CODE)
        self.signal = name
        self._of = (name, step)
        self.message = f"stopped by {name} at step {step}: run the same command to go on"

    def __reduce__(self) -> tuple[type[Preempted], tuple[str, int]]:
        return type(self), self._of


class StopFlag:
    """Which signal has come since `listen`, if any."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Note signals from here on. In the main thread."""
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number

    def ignore(self) -> None:
        """Handle signals as before `listen`; not after a stop, whose exit code stays its own."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def agreed(self) -> str:
        """Name of a signal that any rank has noted, "" for none. Collective."""
        number = self.number
        if distributed.is_available() and distributed.is_initialized():
            # On the CPU whatever the ranks train on: nothing waits for a device.
            box = torch.tensor([number], dtype=torch.int32)
            distributed.all_reduce(box, op=distributed.ReduceOp.MAX)
            number = int(box)
        return signal.Signals(number).name if number else ""


class StopAtBoundary(Callback):
    """Looks at the flag after every step of the optimiser.

    Args:
        flag: that listens.
        saver: saves; called on all ranks together.
    """

    def __init__(self, flag: StopFlag, saver: SaveForResume) -> None:
        self.flag, self.saver = flag, saver
        self._seen, self._asked = 0, ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Steps are counted from where a resumed training goes on."""
        self._seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop, if a rank was told to. Collective.

        Raises:
            Preempted: on all ranks, after they have saved.
        """
        if trainer.global_step == self._seen:  # between two micro-batches of a step
            return
        self._seen = trainer.global_step
        self._asked = self.flag.agreed()
        if self._asked and not validation_follows(trainer):
            self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop, if a rank was told to before the validation. Collective; see the other hook."""
        if self._asked:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        self.saver.save(trainer)
        raise Preempted(self._asked, trainer.global_step)


class NoSignals(_SignalConnector):
    """Lightning would broadcast inside a handler, and end a run without saving."""

    def register_signal_handlers(self) -> None:
        """Leave all handlers as they are."""
