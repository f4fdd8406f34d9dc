"""The loader against webdataset with PyTorch's DataLoader: clips, bytes, and cached tokens."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from torch.utils.data import DataLoader

from benchmarks.data.bench import Bench, finished
from benchmarks.data.noise import AUDIO_NODE, VL_NODE
from benchmarks.measure import Done, Row, Table, Work, rates
from benchmarks.report import number, package_version
from lsb import ids as sample_ids
from vlmae.data.batches import CachedClips, LiveClips
from vlmae.data.decode import Clip, DecodePolicy, decode_sample
from vlmae.data.loader import BatchSource, ClipLoader
from vlmae.data.order import BatchOrder, Indices, OrderConfig
from vlmae.data.prefix_cache import PrefixCache, cache_prefix
from vlmae.data.ranges import RangeReader, tar_members
from vlmae.data.token_table import TokenCodec, widths
from vlmae.tokens import Tokens, pad

NAME = "loader"
TOKENS = "tokens"
BATCH = 25  # divides the clips of the data set, so that no path has a batch that is not full
WANTED = 5_000
PEER = "webdataset + DataLoader"
Sample = dict[str, Any]


def run(bench: Bench) -> list[Table]:
    torch.set_num_threads(1)
    workers = (0, 1) if bench.quick else (0, 1, 2)
    return [_media(bench, workers), _tokens(bench, workers)]


def live(bench: Bench, policy: DecodePolicy, shards: Sequence[str] = ()) -> LiveClips:
    """The pool's clips, or those of some shards, as a training without a cache reads them."""
    table = bench.labelled(("pool",))
    if shards:
        tars = {f"{name}.tar" for name in shards}
        held = [name in tars for name in sample_ids.texts(table["shard"])]
        table = table.take(np.flatnonzero(held))
    rate = bench.towers.sample_rate
    labels = bench.labels(table)
    return LiveClips(bench.data.path, table, labels, policy=policy, sample_rate=rate)


def passes(
    source: BatchSource[Any], clips: int, workers: int, epochs: int = 1, run_clips: int = 1
) -> Work:
    """Some epochs by our loader, the workers' start included."""

    def work() -> Done:
        config = OrderConfig(min(BATCH, clips), run_clips=run_clips, remainder="drop")
        order = BatchOrder(clips, world=1, config=config)
        loader = ClipLoader(source, order, workers=workers)
        done = sum(config.batch_size for _ in range(epochs) for _ in loader)
        return Done(done, loader.close)

    return work


def _media(bench: Bench, workers: Sequence[int]) -> Table:
    policy = bench.settings.decode.resolved()
    source = live(bench, policy)
    clips = len(source) - len(source) % BATCH if len(source) > BATCH else len(source)
    raw = _RawClips(source)
    decode = partial(_decoded, policy, source.sample_rate)
    rows: list[Row] = []
    for count in workers:
        case = f"decoded, {count} workers"
        peer = PEER
        paths = {
            peer: _webdataset(bench, decode, count, clips),
            "ours": passes(source, len(source), count),
        }
        rows += rates(NAME, case, bench.time(paths, 3), peer, "clips/s")
        case = f"bytes, {count} workers"
        peer = PEER
        epochs = 1 if bench.quick else 5
        paths = {
            peer: _webdataset(bench, _bytes, count, clips, epochs),
            "ours, shuffled": passes(raw, len(source), count, epochs),
            "ours, runs of 16": passes(raw, len(source), count, epochs, 16),
        }
        rows += rates(NAME, case, bench.time(paths, 3), peer, "clips/s")
    return Table(
        NAME,
        f"clips a second in batches of {BATCH}, start of the workers included",
        f"{bench.described}; {len(source)} clips, {policy.frames} frames and all sound, "
        f"{policy.backend}, in the page cache",
        f"webdataset {package_version('webdataset')}, shards shuffled, shuffle buffer 256, "
        f"torch {torch.__version__} DataLoader, the same decode_sample",
        "speed relative to the peer of the same work: above 1 is faster",
        rows,
        [
            "Ours reads every clip by byte range in an order that is shuffled over all shards; "
            "webdataset reads shards from end to end and shuffles in a buffer.",
            "bytes: the members of each clip, not decoded. runs of 16: neighbours stay together. "
            "Our workers go on into the next epoch, which CPU s includes and wall s does not.",
        ],
    )


def _tokens(bench: Bench, workers: Sequence[int]) -> Table:
    dtypes = TokenCodec.DTYPES[:1] if bench.quick else TokenCodec.DTYPES
    caches = {dtype: _noise_cache(bench, dtype) for dtype in dtypes}
    half = caches["float16"]
    clips = len(half.ids)
    folder = bench.scratch / "npy"
    urls = _as_shards(half, folder)
    rows: list[Row] = []
    for count in workers:
        # Without workers a pass takes milliseconds; with them the transfer takes most of it.
        epochs = 1 if bench.quick else 4 if count else 20
        paths = {PEER: _npy_webdataset(urls, half, count, epochs)}
        for dtype, cache in caches.items():
            source = CachedClips(cache, np.arange(clips), np.full((clips, 1), -1, np.int8))
            paths[f"ours, {dtype}, sequential"] = passes(source, clips, count, epochs, clips)
            paths[f"ours, {dtype}, shuffled"] = passes(source, clips, count, epochs)
        turns = bench.time(paths, 3)
        rows += rates(TOKENS, f"{count} workers", turns, PEER, "samples/s")
    ours = [row for row in rows if row.what.startswith("ours")]
    shuffled = [row for row in ours if row.what == "ours, float16, shuffled"]
    best = max(shuffled, key=lambda row: row.value)
    slowest = min(ours, key=lambda row: row.value)
    verdict = "yes" if best.value > WANTED else "NO"
    sizes = ", ".join(f"{d} {cache.bytes_per_clip / 1e3:.1f} kB" for d, cache in caches.items())
    return Table(
        TOKENS,
        f"cached tokens, samples a second in batches of {BATCH}, start of the workers included",
        f"noise, {clips} samples of 8 x 1280, 1 x 384 and 40 to 60 x 384: {sizes}; page cache",
        f"webdataset {package_version('webdataset')}, a .npy a stream and sample, shuffle buffer "
        f"256, torch {torch.__version__} DataLoader, the same padding",
        "speed relative to the peer: above 1 is faster",
        rows,
        [
            f"Over {WANTED:,} samples/s on {bench.cores} cores, float16 shuffled: {verdict} "
            f"({number(best.value)} with {best.case}). Slowest of all: "
            f"{slowest.what}, {slowest.case}, {number(slowest.value)}.",
            "int8 is decoded to float16 in the batch. sequential: one run from a random start.",
        ],
    )


class _RawClips:
    """Members of clips by byte range, not decoded."""

    def __init__(self, clips: LiveClips) -> None:
        self.reader = RangeReader(clips.reader.base)
        self.keys, self.shards = clips.keys, clips.shards
        self.offsets, self.sizes = clips.offsets, clips.sizes

    def batch(self, rows: Indices, seed: int) -> list[dict[str, bytes]]:
        """Nothing depends on the seed."""
        records = self.reader.read(
            [self.shards[row] for row in rows],
            self.offsets[rows].tolist(),
            self.sizes[rows].tolist(),
        )
        return [
            tar_members(record, self.keys[row]) for row, record in zip(rows, records, strict=True)
        ]


def members_of(sample: Sample) -> dict[str, bytes]:
    """What `decode_sample` wants, of a sample as webdataset gives it."""
    return {name: data for name, data in sample.items() if not name.startswith("__")}


def _decoded(policy: DecodePolicy, sample_rate: int, sample: Sample) -> Clip:
    return decode_sample(
        members_of(sample), key=sample["__key__"], policy=policy, sample_rate=sample_rate
    )


def _bytes(sample: Sample) -> dict[str, bytes]:
    return members_of(sample)


def _webdataset(
    bench: Bench, make: Callable[[Sample], Any], workers: int, clips: int, epochs: int = 1
) -> Work:
    urls = bench.urls()
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
        .shuffle(256)
        .map(make)
        .batched(BATCH, collation_fn=list)
    )
    return _epochs(dataset, workers, epochs, clips)


def _epochs(dataset: Any, workers: int, epochs: int, clips: int) -> Work:
    """Each worker has a last batch that is not full, so clips are counted and the rest left out."""

    def work() -> Done:
        loader: Any = DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            persistent_workers=workers > 0,
        )
        held = [loader]
        done = 0
        for _ in range(epochs):
            left = clips
            for batch in held[0]:
                left -= min(left, _size(batch))
            done += clips - left
        del loader
        return Done(done, held.clear)

    return work


def _size(batch: Any) -> int:
    if isinstance(batch, dict):
        tokens: Tokens = next(iter(batch.values()))
        return len(tokens.values)
    return len(batch)


def _noise_cache(bench: Bench, dtype: str) -> PrefixCache:
    prefix = replace(
        bench.few("pool", 2) if bench.quick else bench.prefix,
        vl=VL_NODE,
        audio=AUDIO_NODE,
        config=replace(bench.prefix.config, dtype=dtype, processes=1),
    )
    return PrefixCache(finished(cache_prefix(bench.scratch / "noise", prefix)))


def _as_shards(cache: PrefixCache, folder: Path) -> list[str]:
    """The same samples as tars of .npy members, as many as the cache has parts."""
    folder.mkdir()
    keys = sample_ids.texts(cache.rows["key"])
    urls: list[str] = []
    for shard in sorted(set(sample_ids.texts(cache.rows["shard"]))):
        urls.append(str(folder / shard))
        with tarfile.open(urls[-1], "w", format=tarfile.USTAR_FORMAT) as archive:
            for row in cache.rows_of_shard(shard.removesuffix(".tar")):
                for stream in widths(cache.streams):
                    buffer = io.BytesIO()
                    np.save(buffer, cache.batch(np.array([row]), stream).values[0].numpy())
                    member = tarfile.TarInfo(f"{keys[row]}.{stream}.npy")
                    member.size = buffer.tell()
                    buffer.seek(0)
                    archive.addfile(member, buffer)
    return urls


def _npy_webdataset(urls: list[str], cache: PrefixCache, workers: int, epochs: int) -> Work:
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
        .shuffle(256)
        .map(partial(_arrays, tuple(widths(cache.streams))))
        .batched(BATCH, collation_fn=partial(_padded, widths(cache.streams)))
    )
    clips = len(cache.ids) - len(cache.ids) % BATCH if len(cache.ids) > BATCH else len(cache.ids)
    return _epochs(dataset, workers, epochs, clips)


def _arrays(streams: Sequence[str], sample: Sample) -> dict[str, torch.Tensor]:
    return {
        stream: torch.from_numpy(np.load(io.BytesIO(sample[f"{stream}.npy"]))) for stream in streams
    }


def _padded(
    sizes: Mapping[str, int], samples: Sequence[dict[str, torch.Tensor]]
) -> dict[str, Tokens]:
    return {
        stream: pad([sample[stream] for sample in samples], width)
        for stream, width in sizes.items()
    }
