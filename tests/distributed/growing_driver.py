"""vlmae.train that meets with an accident within an expansion; run by torchrun.

    torchrun growing_driver.py <accident> <epoch> <overrides of vlmae.train>

Accidents, in the expansion before an epoch: `embedding` kills both ranks (SIGKILL) when parts of
the pool are written and others are not; `adopting` when the expansion is whole and nothing else
knows of it; `signal` sends the last rank SIGUSR2 as it begins with the pool.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from typing import Any

import vlmae.embedding as embedding
import vlmae.growing.callback as callback

accident, epoch = sys.argv[1], int(sys.argv[2])
sys.argv = [sys.argv[0], *sys.argv[3:]]
rank = int(os.environ["RANK"])
expanding = 0
written: list[str] = []
expand, adopt = callback.expand_between_epochs, callback.GrowBetweenEpochs._adopt
write_part = embedding.write_part


def expand_noted(*arguments: Any) -> Any:
    global expanding
    expanding = next(one.epoch for one in arguments if isinstance(one, callback.Begun))
    return expand(*arguments)


def written_part(*arguments: Any, **options: Any) -> Any:
    counts = write_part(*arguments, **options)
    if expanding == epoch:
        written.append(str(arguments[1]))
        # The first part of the first rank is the one with the gold clips.
        if accident == "embedding" and len(written) == 2 - rank:
            os.kill(os.getpid(), signal.SIGKILL)
        if accident == "signal" and rank == 1 and len(written) == 1:
            os.kill(os.getpid(), signal.SIGUSR2)
    return counts


def adopted(self: Any, before: int, stage: Any) -> bool:
    if accident == "adopting" and before == epoch and expanding == epoch:
        os.kill(os.getpid(), signal.SIGKILL)
    return adopt(self, before, stage)


if __name__ == "__main__":
    callback.expand_between_epochs = expand_noted
    callback.GrowBetweenEpochs._adopt = adopted  # type: ignore[method-assign]
    embedding.write_part = written_part
    runpy.run_module("vlmae.train", run_name="__main__")
