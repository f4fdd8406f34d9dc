"""Forward passes that all ranks make together, however unevenly the clips are spread.

Where weights are sharded (ZeRO-3) a forward pass gathers them from all ranks: a rank that has no
clips left must still take part (contract 8). So ranks go by turns: in each, a rank scores the clips
of one of its parts, or of none; all learn how many passes the busiest has, and the others pass a
silent clip through the model as often. Parts are read before a turn begins, so nobody waits inside
a pass for somebody's decoder; a rank waits at the beginning of a turn, in a process group that is
patient for days (`vlmae.ranks.PATIENCE`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lsb.files import fingerprint
from vlmae.callbacks import gather
from vlmae.data.token_table import Rows, TokenTable, widths
from vlmae.module import VlmaeModule
from vlmae.prediction import Predictions, forward_passes, predict
from vlmae.tokens import Tokens


class Lockstep:
    """Scores clips with the weights as they are, on all ranks.

    Args:
        module: that trains.
        streams: tower -> stream name -> width of its tokens at the cut.
        check: called by all ranks before every turn; collective. What it raises ends the work.
        options: of `vlmae.prediction.predict`: inputs, seed, dropout_samples, calibration.
    """

    def __init__(
        self,
        module: VlmaeModule,
        streams: Mapping[str, Mapping[str, int]],
        check: Callable[[], None],
        **options: Any,
    ) -> None:
        self.module, self.check, self.options = module, check, options
        self._widths = widths(streams)
        self._samples = int(options.get("dropout_samples", 0))
        self.silent_passes = 0

    def predict(self, table: TokenTable, rows: Rows) -> Predictions:
        """Predictions of the clips of one part: one turn. Collective with `finish` of others."""
        passes = forward_passes(len(rows), self._samples)
        _, most = self._turn(busy=True, passes=passes)
        predictions = predict(
            self.module.model, table, rows, forward=self.module.__call__, **self.options
        )
        self._keep_step(most - passes)
        return predictions

    def finish(self) -> None:
        """Take part in the turns of the others until all are done. Collective."""
        while True:
            busy, most = self._turn(busy=False, passes=0)
            if not busy:
                return
            self.module.model.eval()
            self._keep_step(most)

    def _turn(self, *, busy: bool, passes: int) -> tuple[bool, int]:
        """Whether any rank has a part, and the passes of the busiest. Collective."""
        self.check()
        told = torch.tensor([int(busy), passes])
        if distributed.is_initialized():
            distributed.all_reduce(told, op=distributed.ReduceOp.MAX)
        return bool(told[0]), int(told[1])

    def _keep_step(self, passes: int) -> None:
        """Silent passes, where a pass is collective."""
        if not is_sharded(self.module.model):
            return
        device = next(self.module.parameters()).device
        silence = {
            name: Tokens(torch.zeros(1, 1, width), torch.zeros(1, 1, dtype=torch.bool)).to(device)
            for name, width in self._widths.items()
        }
        with torch.no_grad():
            for _ in range(passes):
                self.module(silence)
                self.silent_passes += 1


def is_sharded(model: nn.Module) -> bool:
    """Whether a forward pass needs the other ranks."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def weights_fingerprint(model: nn.Module) -> str:
    """Hash of the weights that train, whoever holds them. Collective.

    It depends on how they are sharded; equal weights on equal ranks have equal hashes.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            held: Tensor = getattr(parameter, "ds_tensor", parameter)
            digest.update(name.encode())
            digest.update(held.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return fingerprint(gather(digest.hexdigest()))


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Every part is in training or evaluation mode afterwards as it was before.

    One by one: some parts are in evaluation mode on purpose.
    """
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
