"""Whitened tokens, kept: the frontier of what is frozen moved behind the whitening.

Where no block of a tower trains, the whitening is the last thing in front of the first weight that
does, and every training, every epoch and every scoring of a pool works it out anew from tokens of a
thousand columns. Kept, a model reads its `components` columns instead. A stage beside the cache:

    pool-00003.image.npy       (sum of lengths, components) float32, at the places of the cache
    pool-00003.rows.parquet    as in the cache

Values are those that the model would work out, up to the rounding of a matrix product of another
number of rows; what is made from them is therefore named by this stage as well.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from lsb.arrays import map_array
from lsb.artifact import Counts, Part, Stage, fingerprint, run_stage
from vlmae.data.prefix_cache import PrefixCache, array_file, rows_file
from vlmae.data.token_source import CachedTokens, TokenSource
from vlmae.data.token_table import Rows, TokenCodec
from vlmae.data.whitening import read_whitening
from vlmae.tokens import Tokens
from vlmae.towers import build_towers

STAGE = "whitened"
DTYPE = "float32"
TOKENS_AT_A_TIME = 4096


class WhitenedCache(PrefixCache):
    """The clips of a cache with their whitened tokens: a `TokenTable`.

    Args:
        cache: of the tokens, whose rows are shared.
        whitened: what `keep_whitened` has made of it.
    """

    def __init__(self, cache: PrefixCache, whitened: Stage) -> None:
        vars(self).update(vars(cache))  # of millions of clips, rows are not read and kept twice
        self._maps = {}
        self.codec = TokenCodec(DTYPE)
        self._folder = whitened.path
        self._widths = dict.fromkeys(self._widths, whitened.manifest["config"]["components"])

    def batch(self, rows: Rows, stream: str) -> Tokens:
        """(B, T, components) whitened tokens of one stream, float32, padded."""
        tokens = super().batch(rows, stream)
        return Tokens(tokens.values, tokens.mask, whitened=True)


class WhitenedTokens(CachedTokens):
    """Whitened tokens as a `TokenSource`, for models that were made with this whitening.

    Its `streams` are those of the towers: what a model is built for.

    Args:
        cache: of the tokens.
        whitened: what `keep_whitened` has made of it.
    """

    def __init__(self, cache: PrefixCache, whitened: Stage) -> None:
        super().__init__(WhitenedCache(cache, whitened))
        self.whitened = whitened
        self.inputs = {**self.inputs, STAGE: whitened.content}

    def shard_key(self, shard: str) -> str:
        """See `TokenSource`."""
        return fingerprint([super().shard_key(shard), self.whitened.content])


def keep_whitened(
    root: Path, source: TokenSource, whitening: Stage, *, processes: int = 1
) -> Stage:
    """Whiten all tokens of a cache, or reuse what is there.

    Args:
        root: folder of all stages.
        source: a finished cache.
        whitening: a finished `whiten` stage of it.
        processes: worker processes, one shard each at a time.

    Returns:
        What `WhitenedTokens` reads.

    Raises:
        ValueError: see `require_keepable`.
    """
    cache, maps = require_keepable(source).cache, read_whitening(whitening)
    components = next(iter(maps.values()))[1].shape[1]
    return run_stage(
        root,
        STAGE,
        config={"components": components},
        inputs={**source.inputs, "whitening": whitening.content},
        parts=[
            Part(
                shard,
                (*(array_file(shard, stream, "tokens") for stream in maps), rows_file(shard)),
                partial(_whiten_shard, cache.stage.path, cache.codec, maps, shard),
            )
            for shard in cache.stage.manifest["parts"]
        ],
        processes=processes,
    )


def require_keepable(source: TokenSource) -> CachedTokens:
    """Refuse a source whose whitened tokens cannot be kept.

    Raises:
        ValueError: it is no cache, or blocks behind it train, so that tokens change.
    """
    if not isinstance(source, CachedTokens):
        raise ValueError(
            "whitening.keep_tokens=true keeps what is made of a cache, and there is none: run "
            "python -m vlmae.cache first, or set whitening.keep_tokens=false"
        )
    if len(build_towers(source.towers["vl"], source.towers["audio"]).suffix_modules()):
        raise ValueError(
            "whitening.keep_tokens=true, but blocks of a tower lie behind the cache, which train "
            "or are hooked into: set whitening.keep_tokens=false"
        )
    return source


def _whiten_shard(
    cache: Path, codec: TokenCodec, maps: dict[str, tuple[Tensor, Tensor]], shard: str, output: Path
) -> Counts:
    torch.set_num_threads(1)
    for stream, (mean, mapping) in maps.items():
        kept = {name: map_array(cache / array_file(shard, stream, name)) for name in codec.files}
        whitened = np.empty((len(kept["tokens"]), mapping.shape[1]), np.float32)
        for start in range(0, len(whitened), TOKENS_AT_A_TIME):
            some = slice(start, start + TOKENS_AT_A_TIME)
            tokens = codec.decode({name: np.array(array[some]) for name, array in kept.items()})
            whitened[some] = (tokens.float() - mean) @ mapping
        np.save(output / array_file(shard, stream, "tokens"), whitened)
    shutil.copyfile(cache / rows_file(shard), output / rows_file(shard))
    return {"clips": pq.read_metadata(output / rows_file(shard)).num_rows}
