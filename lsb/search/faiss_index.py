"""FAISS indexes of a store: trained once, one for each part, memory-mapped, never merged.

Two stages (`lsb.artifact`):

    <root>/index-train-5b1c.../trained.faiss      empty, trained on a sample of the whole store
    <root>/index-8e0d.../part-00000.faiss ...     the same, with the rows of one store part

The sample that trains is the rows whose ids have the smallest seeded hash: a uniform one over all
parts, so it takes of each in proportion to its rows, and it does not depend on how the rows are cut
into parts or ordered. Parts are built by independent processes and killed ones are continued. The
bytes are promised for equal threads, libraries and instruction set.

FAISS sees row numbers of one part only (design, contract 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lsb.artifact import Counts, Part, Stage, fingerprint, open_stage, run_stage, work_on_stage
from lsb.ids import IdArray
from lsb.order import id_words
from lsb.search.faiss_anatomy import (
    Anatomy,
    faiss,
    new_index,
    read_index,
    reason,
    require_device,
    threads_of,
    to_device,
)
from lsb.search.faiss_config import FaissConfig
from lsb.search.lists import FloatArray
from lsb.store import Store, StorePart, part_files

TRAIN_STAGE = "index-train"
STAGE = "index"
FORMAT = 1
"""Version of what the two stages write; raised when files of before cannot be used any more."""
TRAINED = "trained.faiss"

HashArray = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class FaissIndex:
    """The indexes of a store's parts. Made by `open_index`.

    Attributes:
        path: stage directory.
        hash: content hash of the stage.
        factory: FAISS factory string.
        dimension: D.
        store: content hash of the store.
    """

    path: Path
    hash: str
    factory: str
    dimension: int
    store: str

    def part(self, part: StorePart, device: str = "cpu", resources: Any = None) -> Anatomy:
        """The index of one part of the store, memory-mapped, or copied to a GPU."""
        read = Anatomy(read_index(self._file(part), inverted_file=self._is_inverted_file))
        if device != "cpu":
            read.core = to_device(read.core, device, resources)
        return read

    @property
    def _is_inverted_file(self) -> bool:
        return Anatomy(new_index(self.dimension, self.factory)).parameter == "nprobe"

    def _file(self, part: StorePart) -> Path:
        return self.path / _file_name(part)


def train_index(root: Path, store: Store, config: FaissConfig) -> Stage:
    """Train an empty index on a sample of a store, or reuse an equal one.

    Args:
        root: folder of all stages.
        store: what is to be indexed.
        config: factory, training_rows, seed, threads, device.

    Raises:
        ValueError: the factory string is wrong, the sample too small for it, or FAISS has no GPU.
    """
    new_index(store.dimension, config.factory)
    require_device(config.device)
    with threads_of(config.threads) as threads:
        return run_stage(
            root,
            TRAIN_STAGE,
            config=_identity(config, store.dimension, threads)
            | {"training_rows": config.training_rows, "seed": config.seed},
            inputs={"store": store.hash},
            parts=[Part("trained", (TRAINED,), partial(_train, store.place, config))],
        )


def build_index(
    root: Path,
    store: Store,
    config: FaissConfig,
    *,
    trained: Path | None = None,
    processes: int = 1,
) -> Stage:
    """Index every part of a store, or reuse an equal index.

    Args:
        root: folder of all stages.
        store: what to index.
        config: as for `train_index`, which is called first.
        trained: a finished stage of `train_index` to use instead, of an earlier state of the store:
            parts that did not change since are linked, not built.
        processes: parts built at a time.

    Returns:
        The stage, whose path `open_index` takes.

    Raises:
        ValueError: as `train_index`; or `trained` is of another factory or dimension.
    """
    made = work_on_index(root, store, config, trained=trained, processes=processes)
    assert made is not None, "one share of one is the whole index"
    return made


def work_on_index(
    root: Path,
    store: Store,
    config: FaissConfig,
    *,
    trained: Path | None = None,
    share: tuple[int, int] = (0, 1),
    processes: int = 1,
) -> Stage | None:
    """Index one share of a store's parts; see `build_index` for the other arguments.

    Let one task call `train_index` and finish before several start here: one of them trains
    otherwise, and the others are told to come again.

    Args:
        share: (number, of), see `lsb.artifact.work_on_stage`.

    Returns:
        The finished stage; None if parts of other shares are not built yet.
    """
    new_index(store.dimension, config.factory)
    require_device(config.device)
    source = train_index(root, store, config) if trained is None else _trained(trained)
    with threads_of(config.threads) as threads:
        identity = _identity(config, store.dimension, threads)
        found = {key: source.manifest["config"].get(key) for key in ("factory", "dimension")}
        if any(found[key] != identity[key] for key in found):
            raise ValueError(
                f"{source.path} was trained for {found['factory']!r} of dimension "
                f"{found['dimension']}, wanted is {config.factory!r} of {store.dimension}: leave "
                "`trained` out to train anew"
            )
        recorded = store.manifest["parts"]
        parts = []
        for part in store.parts:
            vectors = recorded[part.name]["files"][part_files(part.name)[0]]["sha256"]
            make = partial(_add, source.path / TRAINED, part, config)
            key = fingerprint([FORMAT, source.content, identity, vectors])
            parts.append(Part(part.name, (_file_name(part),), make, key))
        return work_on_stage(
            root,
            STAGE,
            config=identity,
            inputs={"store": store.hash, "trained": source.content},
            parts=parts,
            share=share,
            processes=processes,
        )


def open_index(path: Path, store: Store, *, verify: bool = True) -> FaissIndex:
    """Open the finished index of a store.

    Args:
        path: stage directory of `build_index`.
        store: the store it was built from.
        verify: also check file hashes: one pass over the files.

    Raises:
        ValueError: it is not an index, of another format, or of another store; the message says
            what to do.
    """
    stage = open_stage(path, verify=verify)
    manifest, config = stage.manifest, stage.manifest["config"]
    if manifest["stage"] != STAGE:
        raise ValueError(
            f"{path} is a stage {manifest['stage']!r}, not {STAGE!r}: give the folder that "
            "lsb.search.faiss_index.build_index returned"
        )
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{path} has index format {config.get('format')}, this release reads {FORMAT}: delete "
            "it and build the index again"
        )
    if manifest["inputs"]["store"] != store.hash:
        raise ValueError(
            f"{path} indexes the store {manifest['inputs']['store']}, but {store.place} is "
            f"{store.hash}: build an index of this store"
        )
    return FaissIndex(path, stage.content, config["factory"], config["dimension"], store.hash)


def training_rows(store: Store, rows: int, seed: int) -> FloatArray:
    """The vectors an index is trained on: those whose ids have the smallest seeded hash.

    Args:
        store: to draw from; ids are read part by part, and the vectors of the sample.
        rows: size of the sample; all where the store has fewer.
        seed: of the hash.

    Returns:
        (n, D) float32, in an order that depends on the ids and the seed alone.
    """
    number = np.empty(0, dtype=np.int64)
    row, key = number, np.empty(0, dtype=np.uint64)
    for index, part in enumerate(store.parts):
        key = np.concatenate([key, seeded_hash(part.ids(), seed)])
        number = np.concatenate([number, np.full(part.rows, index, dtype=np.int64)])
        row = np.concatenate([row, np.arange(part.rows)])
        if len(key) > rows:
            best = np.argpartition(key, rows)[:rows]
            key, number, row = key[best], number[best], row[best]
    place = np.empty(len(key), dtype=np.intp)
    place[np.argsort(key)] = np.arange(len(key))
    sample_ND = np.empty((len(key), store.dimension), dtype=np.float32)
    for index, part in enumerate(store.parts):
        here = np.flatnonzero(number == index)
        here = here[np.argsort(row[here])]
        if here.size:
            sample_ND[place[here]] = part.vectors()[row[here]]
    return sample_ND


def seeded_hash(ids: IdArray, seed: int) -> HashArray:
    """64 bits for each id, uniform because ids are: their 128 bits through splitmix64's mixer."""
    high, low = id_words(ids)
    golden = 0x9E3779B97F4A7C15
    salt = np.uint64((seed * golden + golden) % 2**64)
    return _mixed(_mixed(high ^ salt) ^ low)


def _mixed(x: HashArray) -> HashArray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _identity(config: FaissConfig, dimension: int, threads: int) -> dict[str, Any]:
    """What determines an index's bytes besides the rows."""
    return {
        "format": FORMAT,
        "factory": config.factory,
        "dimension": dimension,
        "threads": threads,
        "device": config.device,
    }


def _trained(path: Path) -> Stage:
    stage = open_stage(path)
    if stage.manifest["stage"] != TRAIN_STAGE:
        raise ValueError(
            f"{path} is a stage {stage.manifest['stage']!r}, not {TRAIN_STAGE!r}: give the folder "
            "that lsb.search.faiss_index.train_index returned"
        )
    return stage


def _file_name(part: StorePart) -> str:
    return f"{part.name}.faiss"


def _train(place: str, config: FaissConfig, output: Path) -> Counts:
    store = Store.open(place)
    sample_ND = training_rows(store, config.training_rows, config.seed)
    index = new_index(store.dimension, config.factory)
    with threads_of(config.threads):
        try:
            index = _worked_on(index, config.device, lambda on_device: on_device.train(sample_ND))
        except RuntimeError as error:
            raise ValueError(
                f"FAISS cannot train {config.factory!r} on {len(sample_ND)} rows "
                f"({reason(error)}): raise search.training_rows, use fewer lists or smaller codes, "
                "or search=exact"
            ) from None
    faiss.write_index(index, str(output / TRAINED))
    return {"rows": len(sample_ND)}


def _add(trained: Path, part: StorePart, config: FaissConfig, output: Path) -> Counts:
    index = faiss.read_index(str(trained))
    vectors_ND = part.vectors()

    def add(on_device: Any) -> None:
        for start in range(0, part.rows, config.rows_per_block):
            block_ND = vectors_ND[start : start + config.rows_per_block]
            on_device.add(np.ascontiguousarray(block_ND, dtype=np.float32))

    with threads_of(1 if Anatomy(index).is_graph else config.threads):
        index = _worked_on(index, config.device, add)
    faiss.write_index(index, str(output / _file_name(part)))
    return {"rows": part.rows}


def _worked_on(index: Any, device: str, work: Any) -> Any:
    """An index on which `work` was done on a device, back on the CPU."""
    if device == "cpu":
        work(index)
        return index
    resources = faiss.StandardGpuResources()
    on_device = to_device(index, device, resources)
    work(on_device)
    return faiss.index_gpu_to_cpu(on_device)
