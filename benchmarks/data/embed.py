"""Embedding a pool: stages over shards against a loop over clips."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import webdataset

from benchmarks.data.bench import Bench, finished
from benchmarks.data.loader import Sample, members_of
from benchmarks.measure import Row, Table, rates
from benchmarks.report import number, package_version
from lsb import ids as sample_ids
from lsb.artifact import Stage
from lsb.store import Store
from vlmae.checkpoint import CHECKPOINT, load_checkpoint
from vlmae.data.decode import Clip, decode_sample
from vlmae.data.token_source import LiveTokens, TokenSource
from vlmae.embedding import EmbedConfig, embed_fused, embed_pooled
from vlmae.model import Output
from vlmae.tokens import Tokens, pad

NAME = "embed"
PEER = "naive loop"
Found = dict[str, npt.NDArray[np.float32]]


def run(bench: Bench) -> list[Table]:
    cached, live = bench.cached, LiveTokens(bench.prefix)
    trained = bench.trained
    fresh = itertools.count()
    processes = 1 if bench.quick else 2
    rows: list[Row] = []
    notes: list[str] = []
    for kind in ("pooled", "fused"):
        stages: dict[str, Stage] = {}
        found: Found = {}
        ours = partial(_ours, bench, kind, trained, fresh, stages)
        paths = {PEER: partial(_naive, bench, kind, trained, found)}
        if kind == "pooled":
            paths["from media, 1 process"] = partial(ours, "media", live, 1)
        if processes > 1:
            paths[f"from media, {processes} processes"] = partial(ours, "media", live, processes)
        elif kind == "fused":
            paths["from media, 1 process"] = partial(ours, "media", live, 1)
        paths["from the cache, 1 process"] = partial(ours, "cache", cached, 1)
        turns = bench.time(paths, 2, warm=False)
        rows += rates(NAME, kind, turns, PEER, "clips/s")
        for name, stage in stages.items():
            notes.append(f"{kind} from {name}: {_distance(stage, found)}.")
    return [
        Table(
            NAME,
            "clips a second into a store, start of processes and writing included",
            f"{bench.described}; the pool, {bench.clips().num_rows} clips, "
            f"{bench.settings.decode.frames} frames, {bench.settings.decode.resolved().backend}",
            f"naive loop: webdataset {package_version('webdataset')}, decode_sample, "
            "towers.prefix([clip]) and the model, a clip at a time, torch "
            f"{torch.__version__} with {bench.cores} threads",
            "speed relative to the naive loop",
            rows,
            [
                "Ours has one torch thread a process. Largest difference of an entry of a vector "
                "to the loop's:",
                *notes,
            ],
        )
    ]


def _ours(
    bench: Bench,
    kind: str,
    trained: Stage,
    fresh: itertools.count[int],
    stages: dict[str, Stage],
    name: str,
    source: TokenSource,
    processes: int,
) -> int:
    root = bench.scratch / f"embed-{next(fresh)}"
    config = EmbedConfig("pool", threads=1, processes=processes)
    if kind == "pooled":
        made = finished(embed_pooled(root, source, config))
    else:
        made = finished(embed_fused(root, source, trained, config))
    stages[name] = made
    return made.counts["rows"]


def _naive(bench: Bench, kind: str, trained: Stage, found: Found) -> int:
    """What one would write first; `found` gets the vectors."""
    torch.set_num_threads(bench.cores)
    towers = bench.towers
    checkpoint = None
    if kind == "fused":
        checkpoint = load_checkpoint(trained.path / CHECKPOINT, towers.identities())
    found.clear()
    with torch.inference_mode():
        for clip in _clips(bench):
            tokens = {name: values[0] for name, values in towers.prefix([clip]).items()}
            if checkpoint is None:
                pieces = [_unit(tokens[name].mean(dim=0)) for name in sorted(tokens)]
                vector = torch.cat(pieces)
            else:
                streams: dict[str, Tokens] = {
                    name: pad([values], values.shape[1]) for name, values in tokens.items()
                }
                output: Output = checkpoint.model(streams)
                vector = output.embedding[0]
            found[clip.key] = _unit(vector).numpy()
    np.save(bench.scratch / "naive.npy", np.stack(list(found.values())))
    torch.set_num_threads(1)
    return len(found)


def _clips(bench: Bench) -> Iterator[Clip]:
    policy, rate = bench.settings.decode.resolved(), bench.towers.sample_rate
    sample: Sample
    for sample in webdataset.WebDataset(bench.urls(), shardshuffle=False):
        key = sample["__key__"]
        yield decode_sample(members_of(sample), key=key, policy=policy, sample_rate=rate)


def _unit(vector: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vector, dim=0)


def _distance(stage: Stage, found: Found) -> str:
    """Largest difference of an entry between a store and the vectors of the loop."""
    store = Store.open(stage.path)
    ids = sample_ids.sample_ids(list(found))
    apart = np.abs(store.vectors(ids) - np.stack(list(found.values())))
    return number(float(apart.max()))
