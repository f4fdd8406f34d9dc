"""Where a command computes: the CPU, or the CUDA device of this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

ACCELERATORS = ("cpu", "gpu")


def device_of(accelerator: str, setting: str) -> torch.device:
    """The device of a setting.

    Of several GPUs a process takes the one that its launcher numbers (LOCAL_RANK), else the first.

    Args:
        accelerator: "cpu" or "gpu".
        setting: its config key, for messages.

    Raises:
        ValueError: it is neither, or there is no GPU.
    """
    check_accelerator(accelerator, setting)
    if accelerator == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"{setting} is gpu, and torch sees no CUDA device here: use {setting}=cpu")
    rank = os.environ.get("LOCAL_RANK", "0")
    number = int(rank) if rank.isdecimal() else 0
    return torch.device("cuda", number % torch.cuda.device_count())


def check_accelerator(accelerator: str, setting: str) -> None:
    """Refuse what is no accelerator.

    Raises:
        ValueError: names the setting and what it may be.
    """
    if accelerator not in ACCELERATORS:
        raise ValueError(f"{setting} is {accelerator!r}: use one of {', '.join(ACCELERATORS)}")


@contextmanager
def cuda_looked_for_once() -> Iterator[None]:
    """Where there is no CUDA device, say so to torch for as long as this lasts.

    An optimiser asks before every step whether there is one, and without a driver each answer opens
    the driver's library anew, which in a small training is a twentieth of a step.
    """
    told = "CUDA_VISIBLE_DEVICES" in os.environ
    if told or torch.cuda.device_count():
        yield
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed what is drawn on the CPU and on a device, before every step of a training.

    On the CPU not by `torch.manual_seed`, which formats a stack trace a call for the day when CUDA
    is first used: in a small training that is a tenth of a step.

    Args:
        seed: of torch's own generators.
        device: where is computed.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
