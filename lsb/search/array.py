"""Array search: independent processes search the parts of a store, whoever comes last merges.

Every wave of `lsb.search.ask.ask` is a stage (`lsb.artifact`) with one part for each part of the
store. Nobody waits for anybody, a killed process is started again, and only what is unfinished is
done. The files of a wave do not depend on who made them or when; parts of a pool that grew are
linked from the wave of the smaller one.

    <root>/neighbours-3f2a.../part-00000.neighbours.parquet ...
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lsb.artifact import Counts, Part, Stage, fingerprint, work_on_stage
from lsb.ids import IdArray
from lsb.search.ask import Hits, ask, seeds_of
from lsb.search.backends import open_scan
from lsb.search.config import SearchConfig
from lsb.search.exact import part_blocks, require_dimension
from lsb.search.lists import FloatArray, NeighbourLists
from lsb.search.partial import Wave, lists_file, merge_part, read_lists, write_lists
from lsb.search.scan import Seeds
from lsb.store import Store, StorePart, part_files

STAGE = "neighbours"
REVISION = 1
POLL_SECONDS = 0.5


class _UnfinishedError(Exception):
    """Parts of other shares are missing."""


def search_array(
    root: Path,
    seed_ids: IdArray,
    seeds_QD: FloatArray,
    store: Store,
    config: SearchConfig,
    *,
    lookalike_threshold: float | None,
    exclude: IdArray,
    share: tuple[int, int] = (0, 1),
    patience: float = 0.0,
) -> Hits | None:
    """As `lsb.search.exact.search`, by any number of processes that share the parts.

    Args:
        root: folder of the waves, on a file system that all processes see.
        seed_ids: (Q,) S16, unique.
        seeds_QD: (Q, D) float32 of norm 1.
        store: what to search.
        config: widths and backend.
        lookalike_threshold: smallest similarity of a hit; None takes the nearest `max_neighbours`.
        exclude: ids that must not be found.
        share: (number, of): this process searches the parts of share `number`, counted from 0.
        patience: seconds to wait for the other shares of each wave.

    Returns:
        The hits, byte for byte those of `lsb.search.exact.search`; None while parts of other shares
        are missing: start those (again), then this one.

    Raises:
        ValueError: see `lsb.search.exact.search`.
        StageError: see `lsb.artifact.work_on_stage`.
    """
    require_dimension(seeds_QD, store)
    excluded = np.unique(exclude)
    contents = part_contents(store)

    def gather(seeds: Seeds, limit: int, floor: float) -> NeighbourLists:
        wave = Wave(seeds, limit, floor, excluded)
        deadline = time.monotonic() + patience
        while (stage := search_wave(root, wave, store, contents, config, share)) is None:
            if time.monotonic() >= deadline:
                raise _UnfinishedError
            time.sleep(POLL_SECONDS)
        return merge_wave(stage.path, wave, store)

    try:
        return ask(
            seeds_of(seed_ids, seeds_QD),
            gather,
            neighbours=config.neighbours,
            max_neighbours=config.max_neighbours,
            lookalike_threshold=lookalike_threshold,
        )
    except _UnfinishedError:
        return None


def search_by_waves(root: Path, *arguments: Any, **options: Any) -> Hits:
    """As `lsb.search.exact.search`, each wave a stage in `root` that others may make.

    Whose parts are made elsewhere is decided by `lsb.delegation`.
    """
    found = search_array(root, *arguments, **options)
    assert found is not None, "one share of one is all parts"
    return found


def part_contents(store: Store) -> dict[str, str]:
    """Part name -> hash of its vectors and rows, as the store's manifest tells them."""
    told = store.manifest["parts"]
    return {
        part.name: fingerprint(
            [told[part.name]["files"][file]["sha256"] for file in part_files(part.name)]
        )
        for part in store.parts
    }


def search_wave(
    root: Path,
    wave: Wave,
    store: Store,
    contents: dict[str, str],
    config: SearchConfig,
    share: tuple[int, int] = (0, 1),
) -> Stage | None:
    """One wave's share; the finished stage, or None while parts of other shares are missing.

    Args:
        root: folder of the waves.
        wave: what is asked.
        store: what to search.
        contents: `part_contents` of the store.
        config: backend; in no hash, since it changes no list.
        share: see `search_array`.
    """
    return work_on_stage(
        root,
        STAGE,
        # A store keeps its hash when clips are taken down; its parts do not keep theirs.
        config={**wave.key, "parts": [contents[part.name] for part in store.parts]},
        inputs={"store": store.hash},
        parts=[
            Part(
                part.name,
                (lists_file(part.name),),
                partial(_search_part, part, wave, config),
                key=fingerprint([REVISION, wave.key, contents[part.name]]),
            )
            for part in store.parts
        ],
        share=share,
        revision=REVISION,
    )


def _search_part(part: StorePart, wave: Wave, config: SearchConfig, output: Path) -> Counts:
    lists = scan_part(part, wave, config)
    write_lists(output / lists_file(part.name), wave, lists)
    return {"neighbours": len(lists.query)}


def scan_part(part: StorePart, wave: Wave, config: SearchConfig) -> NeighbourLists:
    """Neighbours of a wave's seeds in one part, with rows counted in it."""
    scan = open_scan(wave.seeds, wave.limit, wave.floor, config, rows=part.rows)
    for block in part_blocks(part, 0, config.rows_per_block, wave.excluded):
        scan.add(block)
    return scan.lists()


def merge_wave(
    folder: Path, wave: Wave, store: Store, config: SearchConfig | None = None
) -> NeighbourLists:
    """The lists of a store from those of its parts.

    Args:
        folder: with one file of lists for every part of the store.
        wave: that they answer.
        store: the lists are of.
        config: to search a part whose lists are void; None refuses it.

    Raises:
        StageError: the lists of a part are missing, damaged, or of another wave.
    """
    merged = NeighbourLists(len(wave.seeds), wave.limit)
    first_row = 0
    for part in store.parts:
        lists = read_lists(folder / lists_file(part.name), wave, part.rows)
        if lists is None:
            assert config is not None, "only lists in a store are ever void"
            lists = scan_part(part, wave, config)
        merge_part(merged, lists, first_row)
        first_row += part.rows
    return merged
