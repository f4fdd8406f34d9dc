"""Seeded chance that depends on a clip's id alone, never on the order of rows."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from lsb.ids import IdArray, to_bytes
from lsb.order import descending


def uniform(ids: IdArray, *salt: str | int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each id, uniform over ids, the same for the same id and salt.

    Args:
        ids: (N,) S16.
        salt: what else the number depends on, e.g. (seed, round).
    """
    prefix = hashlib.blake2b(repr(salt).encode(), digest_size=16).digest()
    digests = b"".join(
        hashlib.blake2b(prefix + value, digest_size=8).digest() for value in to_bytes(ids)
    )
    return (np.frombuffer(digests, dtype="<u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53


def random_key(ids: IdArray, seed: int, round: int) -> npt.NDArray[np.float64]:
    """What `random_order` sorts by, largest first: (N,) uniform in [0, 1)."""
    return uniform(ids, "order", seed, round)


def random_order(ids: IdArray, seed: int, round: int) -> IdArray:
    """`ids` in a uniformly random order that depends on (seed, round) and the ids alone."""
    return ids[descending(random_key(ids, seed, round), ids)]
