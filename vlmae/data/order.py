"""Which clips make up which batch: a pure function of seed, epoch and number of ranks.

An epoch is one sequence of micro-batches (what one rank trains on in one step), the same for every
number of ranks and of workers; rank r of W takes number `step * W + r`. A cursor is how many
micro-batches of the epoch all ranks together have consumed, so that a run resumes

* with any number of workers, because no worker has a state of its own;
* with another number of ranks, because the micro-batches left are dealt anew: none is lost, none
  comes twice, apart from those that fill up the last step (contract of this module, tested).

Clips with a weight come floor(weight) or ceil(weight) times an epoch, by systematic sampling of
what is behind the point: the number of draws is the same in every epoch.

Source: repeat factors as in Gupta et al. 2019 (LVIS, arXiv 1908.03195); systematic sampling is
textbook.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
REMAINDERS = ("repeat", "drop")


@dataclass(frozen=True)
class OrderConfig:
    """How clips are put into batches.

    Attributes:
        batch_size: clips in a micro-batch.
        seed: of the order.
        run_clips: so many clips that lie side by side in storage stay together in a batch, which
            joins their reads into one request; 1 shuffles every clip by itself.
        bucket_batches: within so many micro-batches clips are sorted by length, so that those of a
            batch are similar and little is padded; 1 does not sort.
        remainder: "repeat" fills the last batch and the last step with clips from the start of the
            epoch, "drop" leaves out what does not fill them.
        accumulate: micro-batches of one rank in a step of the optimiser; epochs are whole steps.
    """

    batch_size: int
    seed: int = 0
    run_clips: int = 1
    bucket_batches: int = 1
    remainder: str = "repeat"
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "run_clips", "bucket_batches", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"loader.{name} is {getattr(self, name)}: give at least 1")
        if self.remainder not in REMAINDERS:
            raise ValueError(
                f"loader.remainder is {self.remainder!r}: use one of {', '.join(REMAINDERS)}"
            )


class BatchOrder:
    """The micro-batches of every epoch.

    Args:
        clips: N, how many there are; batches hold numbers from 0 to N - 1.
        world: ranks.
        config: see there.
        weights: (N,) expected draws of each clip in an epoch, or None for 1 each; 0 leaves it out.
        lengths: (N,) any measure of length, for `bucket_batches`.
        places: (N,) position in storage, for `run_clips`; numbers that follow each other are
            neighbours. None: the order given.

    Raises:
        ValueError: the clips cannot fill one step, or a weight is negative or not finite.
    """

    def __init__(
        self,
        clips: int,
        *,
        world: int,
        config: OrderConfig,
        weights: npt.NDArray[np.floating] | None = None,
        lengths: npt.NDArray[np.floating] | None = None,
        places: Indices | None = None,
    ) -> None:
        self.clips, self.world, self.config = clips, world, config
        if weights is not None and (not np.isfinite(weights).all() or (weights < 0).any()):
            row = int(np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))[0])
            raise ValueError(
                f"clip {row} has weight {weights[row]}: weights are finite and not negative"
            )
        self._weights = None if weights is None else np.asarray(weights, np.float64)
        self._lengths = lengths
        self._places = np.arange(clips, dtype=np.int64) if places is None else places
        total = clips if self._weights is None else _draws(self._weights)
        # What all ranks consume between two steps of the optimiser.
        self.per_step = world * config.accumulate
        if total < config.batch_size * self.per_step:
            batches = f" times {config.accumulate} batches" if config.accumulate > 1 else ""
            raise ValueError(
                f"{total} draws of {clips} clips cannot fill one step of {world} ranks with "
                f"{config.batch_size} clips{batches} each: use a batch_size of at most "
                f"{max(1, total // self.per_step)}, at most {max(1, total)} ranks, or label more "
                "clips"
            )
        self.draws = total
        whole = total // config.batch_size
        self.micro_batches = whole if config.remainder == "drop" else -(-total // config.batch_size)
        self._cached: tuple[int, npt.NDArray[np.int64]] | None = None

    def steps(self, consumed: int = 0) -> int:
        """Micro-batches of a rank left in an epoch of which all ranks have consumed `consumed`.

        A multiple of `accumulate`. More than there are may be consumed: those that filled up the
        last step of other ranks.
        """
        left = max(0, self.micro_batches - consumed)
        drop = self.config.remainder == "drop"
        steps = left // self.per_step if drop else -(-left // self.per_step)
        return steps * self.config.accumulate

    def batch(self, epoch: int, number: int) -> Indices:
        """(batch_size,) clips of micro-batch `number` of an epoch.

        Numbers past the last one fill up the last step: they start over.
        """
        if self._cached is None or self._cached[0] != epoch:
            self._cached = (epoch, self._epoch(epoch))
        rows: Indices = self._cached[1][number % self.micro_batches]
        return rows

    def _epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        """(micro-batches, batch_size) clips."""
        rng = np.random.default_rng((self.config.seed, epoch))
        drawn = self._runs(self._draw(rng), rng)
        size = self.config.batch_size
        wanted = self.micro_batches * size
        drawn = np.concatenate([drawn, drawn[: max(0, wanted - len(drawn))]])[:wanted]
        return self._bucketed(drawn, rng).reshape(-1, size)

    def _draw(self, rng: np.random.Generator) -> Indices:
        """Clips of an epoch, each as often as its weight says."""
        order = rng.permutation(self.clips)
        if self._weights is None:
            return order
        whole = np.floor(self._weights[order]).astype(np.int64)
        drawn: Indices = np.repeat(order, whole)
        more, start = self.draws - len(drawn), rng.random()
        if more:
            # A comb over the fractions laid end to end, in random order and with a random start.
            # Its teeth are at least 1 apart, so that no clip is hit twice.
            fractions = self._weights[order] - whole
            order, ends = order[fractions > 0], np.cumsum(fractions[fractions > 0])
            teeth = (np.arange(more) + start) * (ends[-1] / more)
            hit = np.minimum(np.searchsorted(ends, teeth, side="right"), len(ends) - 1)
            drawn = np.concatenate([drawn, order[hit]])
        return rng.permutation(drawn)

    def _runs(self, drawn: Indices, rng: np.random.Generator) -> Indices:
        """Shuffled, but neighbours in storage stay together in runs."""
        length = self.config.run_clips
        if length == 1:
            return drawn
        stored = drawn[np.argsort(self._places[drawn], kind="stable")]
        # Runs begin at another place every epoch, or the same clips would always meet.
        starts = np.arange(int(rng.integers(length)), len(stored), length)
        runs = [run for run in np.split(stored, starts) if len(run)]
        return np.concatenate([runs[number] for number in rng.permutation(len(runs))])

    def _bucketed(self, drawn: Indices, rng: np.random.Generator) -> Indices:
        """Sorted by length within windows, the batches of a window shuffled."""
        window = self.config.bucket_batches * self.config.batch_size
        if self.config.bucket_batches == 1 or self._lengths is None:
            return drawn
        pieces = []
        for start in range(0, len(drawn), window):
            piece = drawn[start : start + window]
            piece = piece[np.argsort(self._lengths[piece], kind="stable")]
            batches = piece.reshape(-1, self.config.batch_size)
            pieces.append(batches[rng.permutation(len(batches))].reshape(-1))
        return np.concatenate(pieces)


def _draws(weights: npt.NDArray[np.float64]) -> int:
    """Draws in every epoch: the sum of the weights without its fraction."""
    whole = np.floor(weights)
    # Ten times 0.1 is 1 - 1e-16.
    return int(whole.sum()) + int((weights - whole).sum() + 1e-6)
