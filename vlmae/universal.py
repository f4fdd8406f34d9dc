"""ZeRO saves for another number of ranks, through DeepSpeed's universal checkpoints.

A ZeRO save has one shard a rank. DeepSpeed's converter joins them into one file a weight, which any
number of ranks can load. Loading one under ZeRO-3 (0.19.8) gives every parameter group the settings
of the first, and all shards one count of steps, which each of them then raises: both are mended
here. It knows AdamW's state only, and no frozen weights: those come from the towers.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

TAG = "checkpoint"
"""DeepSpeed's name for the folder inside a save."""
FOLDER = "universal"
GROUPS = "zero/optimizer_state.pt"


def is_universal(folder: Path) -> bool:
    """Whether a folder is the result of `to_universal`."""
    return folder.name == FOLDER


def to_universal(state: Path) -> Path:
    """Convert a ZeRO save, or find it converted.

    Args:
        state: folder that DeepSpeed saved into.

    Returns:
        A folder beside it, for `ZeroStrategy.load_checkpoint`.

    Raises:
        ValueError: the save cannot be converted; says why.
    """
    target = state.with_name(FOLDER)
    if target.is_dir():
        return target
    from deepspeed.checkpoint import ds_to_universal

    temporary = state.with_name(f".{FOLDER}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    arguments = Namespace(
        input_folder=str(state / TAG),
        output_folder=str(temporary / TAG),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(arguments)
    except KeyError as error:
        raise ValueError(
            f"{state} has no {error} in its optimiser's state: saves go to another number of ranks "
            "with AdamW only; resume on as many ranks as saved it"
        ) from None
    os.replace(temporary, target)
    return target


def mend_optimizer(optimizer: Optimizer, folder: Path) -> None:
    """Give every parameter group its own settings, and every shard its own count of steps.

    Args:
        optimizer: torch's, that DeepSpeed has loaded `folder` into.
        folder: what `to_universal` returned.
    """
    saved = torch.load(folder / TAG / GROUPS, map_location="cpu", weights_only=False)
    for group, values in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        group.update({name: value for name, value in values.items() if name != "params"})
    for state in optimizer.state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].clone()
