"""Stopped at the end of an epoch, and once more in a later one, a training loses nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_model import Case, Watch, make

from vlmae.fitting import fit
from vlmae.preemption import StopFlag
from vlmae.ranks import Ranks
from vlmae.saves import Moment, Saves

CASE = Case(batch_size=8, accumulate=1, adam=True, rate=0.01, dropout=0.3, epochs=4)
PER_EPOCH, STEPS = 4, 16


def go(folder: Path) -> Watch:
    """Train to the end, from the latest save in a folder; every step is saved there."""
    watch = Watch()
    make_trainer, module, loader = make(CASE, Ranks(), folder, watch)
    fit(
        module,
        loader,
        make_trainer,
        saves=Saves(folder, keep=STEPS),
        flag=StopFlag(),
        now=Moment("this", 0, 1, 1, "ddp"),
        save_every=1,
    )
    return watch


def from_save(save: Path, folder: Path) -> Watch:
    """What is left when only this save is there."""
    folder.mkdir()
    shutil.copytree(save, folder / save.name)
    return go(folder)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watch]:
    folder = tmp_path_factory.mktemp("calm")
    return folder, go(folder)


@pytest.mark.parametrize("second", [5, 7, 8, 9])
def test_stopped_at_the_end_of_an_epoch_and_again(
    tmp_path: Path, calm: tuple[Path, Watch], second: int
) -> None:
    folder, undisturbed = calm
    assert len(undisturbed.losses) == STEPS
    once = from_save(folder / f"step-{PER_EPOCH:06d}", tmp_path / "once")
    assert once.losses == undisturbed.losses[PER_EPOCH:]
    again = from_save(tmp_path / "once" / f"step-{second:06d}", tmp_path / "again")
    assert again.losses == undisturbed.losses[second:]
    assert again.ids == undisturbed.ids[second:]
    assert again.rates == undisturbed.rates[second:]
