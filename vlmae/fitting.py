"""Running a training to its end: going on from a save, saving, stopping when told to.

A save belongs to a training, whatever the number of ranks. With as many ranks as made it, a
training goes on by itself and ends with the bytes of an undisturbed one. With others it cannot, for
sums are taken in another order: `trainer.resume_from` says that this is wanted, and the result is a
stage of its own. A ZeRO save is then converted once, beside itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import distributed

from lsb.progress import progressed, steps_told
from vlmae.callbacks import AnotherWorld, BetweenEpochs, SaveForResume
from vlmae.data.loader import ClipLoader
from vlmae.module import VlmaeModule
from vlmae.preemption import Preempted, StopAtBoundary, StopFlag
from vlmae.saves import Moment, Save, Saves, find_save, saves_below
from vlmae.strategy import verify_pretrained
from vlmae.towers import Towers
from vlmae.universal import to_universal
from vlmae.validation import ValidationClips

MakeTrainer = Callable[[Sequence[Callback]], Trainer]


def fit(
    module: VlmaeModule,
    loader: ClipLoader,
    make_trainer: MakeTrainer,
    *,
    validation: ValidationClips | None = None,
    saves: Saves,
    flag: StopFlag,
    now: Moment,
    save_every: int,
    resume_from: str | None = None,
    towers: Towers | None = None,
    save_also: Callable[[], bool] | None = None,
) -> None:
    """Train from the start or from the latest save to the end. Collective: all ranks call it.

    Args:
        module: what trains.
        loader: of this rank.
        validation: batches of validation clips, of this rank; None never validates.
        make_trainer: called with the callbacks that this function adds, which have to come after
            those whose state they save.
        saves: where to save.
        flag: that listens for signals.
        now: this training, with any step.
        save_every: steps between two saves; 0 only saves when told to stop.
        resume_from: folder of a save to go on from where `saves` has none yet.
        towers: what the model's tuned blocks are copies of, to be compared with; None for no check.
        save_also: see `SaveForResume`.

    Raises:
        ValueError: the save is of another training, or cannot be loaded.
        Preempted: a signal came, and all ranks have saved.
    """
    saver = SaveForResume(saves, now, save_every, save_also)
    callbacks: list[Callback] = [saver, StopAtBoundary(flag, saver), _Progress()]
    if towers is not None:
        callbacks.append(_Pretrained(towers))
    start = _on_first(lambda: _start(saves, now, resume_from))
    path = None
    if start is not None:
        path, moment = start
        callbacks += [AnotherWorld(moment, now), BetweenEpochs(loader)]
    try:
        trainer = make_trainer(callbacks)
        trainer.fit(module, loader, validation, ckpt_path=path, weights_only=True)
    except Preempted as stop:
        if _first():
            print(f"error: {stop.message}", file=sys.stderr)
        raise


def resumed_moment(resume_from: str | None, training: str) -> Moment | None:
    """What `trainer.resume_from` stands for, for the name of the stage.

    Raises:
        ValueError: there is no save, or it is of another training.
    """
    if resume_from is None:
        return None
    return find_save(Path(resume_from), training).moment


def hint_at_others(stages: Path, saves: Saves, now: Moment) -> None:
    """Say, once, where this training was saved on another number of ranks."""
    others = [save for save in saves_below(stages) if save.moment.training == now.training]
    if saves.finished() or not others or not _first():
        return
    save = max(others, key=lambda one: one.moment.step)
    print(
        f"note: {save.path} is of this training at step {save.moment.step} on "
        f"{save.moment.ranks} ranks; trainer.resume_from={save.path} goes on from it",
        file=sys.stderr,
    )


def _start(saves: Saves, now: Moment, resume_from: str | None) -> tuple[str, Moment] | None:
    """What to load, and of when it is."""
    save = saves.latest()
    if save is None and resume_from is not None:
        save = find_save(Path(resume_from), now.training)
    if save is None:
        return None
    _require_same(save, now.training)
    held = save.moment
    if held.ranks == now.ranks or held.strategy == "ddp":
        path = save.state
    else:
        path = to_universal(save.state)
    told = step_changed(held, now)
    if told is not None:
        print(f"note: {told}", file=sys.stderr)
    return str(path), held


def step_changed(held: Moment, now: Moment) -> str | None:
    """What is to be known where a step has another number of batches than it had; None for equal.

    Args:
        held: of the save.
        now: of the training that goes on from it.
    """
    before, after = held.ranks * held.accumulate, now.ranks * now.accumulate
    if before == after:
        return None
    accumulate, rest = divmod(before, now.ranks)
    if rest:
        remedy = (
            f"no trainer.accumulate makes {before} of them on {now.ranks} ranks: take a number of "
            f"ranks that divides {before}, or start anew with an optimizer.learning_rate for these"
        )
    else:
        remedy = f"trainer.accumulate={accumulate} keeps them as they were"
    return (
        f"a step has {after} batches over all ranks now and had {before}: the learning rate and "
        f"its schedule count steps; {remedy}"
    )


def _require_same(save: Save, training: str) -> None:
    if save.moment.training != training:
        raise ValueError(
            f"{save.path} is of a training with other labels or settings: resume with the same "
            "ones (only the number of ranks and trainer.accumulate may differ), or start anew "
            "without trainer.resume_from"
        )


class _Progress(Callback):
    """Tells whoever started this rank that it trains and measures (`lsb.progress`).

    The pace is that of the steps this process has made: where it goes on from a save, those of
    before took their time elsewhere. What lies between steps, validation for instance, counts.
    """

    def __init__(self) -> None:
        self._begun = (0.0, 0)  # seconds, step
        self._told = "step 0"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the clock."""
        self._begun = (time.monotonic(), trainer.global_step)
        self._told = f"step {trainer.global_step}"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After every batch."""
        step, (since, first) = trainer.global_step, self._begun
        pace = (time.monotonic() - since) / (step - first) if step > first else None
        self._told = steps_told(step, step + _steps_left(trainer, batch_idx), pace)
        progressed(self._told)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """After every batch of the validation clips."""
        progressed(f"{self._told}, validation batch {batch_idx}")


def _steps_left(trainer: Trainer, batch_idx: int) -> int:
    """Steps of the optimiser behind a batch, if epochs stay as long as they are now.

    Counted from here, and not in whole: epochs of a training that grows differ, and the steps done
    may be those of other ranks.
    """
    assert trainer.max_epochs is not None, "trainings are counted in epochs"
    batches = int(trainer.num_training_batches)
    left: int = (trainer.max_epochs - trainer.current_epoch) * batches - (batch_idx + 1)
    return -(-left // int(trainer.accumulate_grad_batches))


class _Pretrained(Callback):
    """Compares tuned blocks with the towers before the first step."""

    def __init__(self, towers: Towers) -> None:
        self.towers = towers

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collective; raises ValueError on all ranks."""
        assert isinstance(pl_module, VlmaeModule)
        verify_pretrained(pl_module, self.towers, frozen_only=trainer.global_step > 0)


def _first() -> bool:
    return not distributed.is_initialized() or distributed.get_rank() == 0


def _on_first(work: Callable[[], Any]) -> Any:
    """What the first rank's `work` returns, on all ranks; its ValueError as well. Collective.

    Only one looks at the folder: on a network's file system the others may see it later.
    """
    box: list[Any] = [None]
    if _first():
        try:
            box = [work()]
        except ValueError as error:
            box = [error]
    if distributed.is_initialized():
        distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    if isinstance(box[0], ValueError):
        raise box[0]
    return box[0]
