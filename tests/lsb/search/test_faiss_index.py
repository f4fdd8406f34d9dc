from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pools import clustered

from lsb.artifact import Part, Stage, run_stage
from lsb.search import faiss_index as module
from lsb.search.faiss_anatomy import Anatomy, faiss
from lsb.search.faiss_config import FaissConfig
from lsb.search.faiss_index import (
    build_index,
    open_index,
    train_index,
    training_rows,
    work_on_index,
)
from lsb.store import Store, part_files, write_part

Make = Callable[..., Store]
CONFIG = FaissConfig(factory="IVF8,Flat", training_rows=500)
KEYS = [f"clip-{index}" for index in range(700)]
VECTORS = clustered(700, 16, 2, seed=1)


def built(root: Path, store: Store, config: FaissConfig = CONFIG, **options: object) -> Stage:
    return build_index(root, store, config, **options)


def test_the_training_sample_does_not_depend_on_parts(make_store: Make) -> None:
    stores = [
        make_store(VECTORS, KEYS),
        make_store(VECTORS, KEYS, parts=7, order=[3, 1, 2, 0, 6, 5, 4], shuffle=2),
    ]
    samples = [training_rows(store, 300, seed=0) for store in stores]
    assert samples[0].shape == (300, 16)
    assert samples[0].tobytes() == samples[1].tobytes()
    assert training_rows(stores[0], 300, seed=1).tobytes() != samples[0].tobytes()
    everything = training_rows(stores[1], 10_000, seed=0)
    assert np.array_equal(np.sort(everything, axis=0), np.sort(VECTORS, axis=0))


def test_the_training_sample_takes_of_each_part_in_proportion(make_store: Make) -> None:
    marked = np.repeat(np.eye(2, dtype=np.float32), [6000, 2000], axis=0)
    store = make_store(marked, [f"k{index}" for index in range(8000)], parts=4)
    share = training_rows(store, 2000, seed=3)[:, 0].mean()
    assert abs(share - 0.75) < 0.04  # four standard deviations


def test_parts_hold_their_own_rows_and_are_reused(make_store: Make, tmp_path: Path) -> None:
    store = make_store(VECTORS, KEYS, parts=3)
    stage = built(tmp_path, store)
    index = open_index(stage.path, store)
    assert stage.counts == {"rows": 700}
    for part in store.parts:
        anatomy = index.part(part)
        assert anatomy.index.ntotal == part.rows
        assert type(faiss.downcast_InvertedLists(anatomy.core.invlists)).__name__ == (
            "OnDiskInvertedLists"
        ), "lists are read, not memory-mapped"
        _, row = anatomy.index.search(np.asarray(part.vectors()[:5]), 2)
        assert all(place in found for place, found in enumerate(row.tolist()))
    assert built(tmp_path, store).reused
    assert not built(tmp_path, store, replace(CONFIG, seed=5)).reused


@pytest.mark.parametrize("factory", ["IVF8,Flat", "HNSW8"])
def test_a_killed_build_is_continued_to_the_same_bytes(
    make_store: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str
) -> None:
    store = make_store(VECTORS, KEYS, parts=4)
    config = replace(CONFIG, factory=factory)
    whole = built(tmp_path / "whole", store, config)
    add, made = module._add, []

    def killed(trained: Path, part: object, config: FaissConfig, output: Path) -> dict[str, int]:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(part)
        return add(trained, part, config, output)

    monkeypatch.setattr(module, "_add", killed)
    with pytest.raises(KeyboardInterrupt):
        built(tmp_path / "killed", store, config)
    monkeypatch.setattr(module, "_add", add)
    continued = built(tmp_path / "killed", store, config)
    assert continued.content == whole.content
    (continued.path / continued.files[1]).unlink()
    assert built(tmp_path / "killed", store, config).content == whole.content


def test_shares_build_together(make_store: Make, tmp_path: Path) -> None:
    store = make_store(VECTORS, KEYS, parts=5)
    train_index(tmp_path, store, CONFIG)
    shares = [work_on_index(tmp_path, store, CONFIG, share=(number, 3)) for number in range(3)]
    assert shares[:2] == [None, None]
    assert shares[2] is not None
    assert shares[2].content == built(tmp_path / "one", store).content


def grown(root: Path, counts: list[int], rows_of: Callable[..., object]) -> Store:
    """A store of the first parts of `VECTORS`."""
    parts, start = [], 0
    for number, count in enumerate(counts):
        name = f"part-{number:05d}"
        rows = slice(start, start + count)
        make = partial(
            write_part,
            name=name,
            vectors_ND=VECTORS[rows],
            rows=rows_of(KEYS[rows]),
            kind="pooled",
        )
        parts.append(Part(name, part_files(name), make))
        start += count
    return Store.open(run_stage(root, "embed", config={}, inputs={}, parts=parts).path)


def test_a_store_that_grew_keeps_the_parts_of_an_older_training(
    tmp_path: Path, rows_of: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = grown(tmp_path, [300, 200], rows_of)
    after = grown(tmp_path, [300, 200, 200], rows_of)
    training = train_index(tmp_path, before, CONFIG)
    built(tmp_path, before)
    add, made = module._add, []

    def counted(trained: Path, part: object, config: FaissConfig, output: Path) -> dict[str, int]:
        made.append(part)
        return add(trained, part, config, output)

    monkeypatch.setattr(module, "_add", counted)
    stage = built(tmp_path, after, trained=training.path)
    assert [part.name for part in made] == ["part-00002"]
    assert stage.counts == {"rows": 700}
    with pytest.raises(ValueError, match=r"trained for 'IVF8,Flat' of dimension 16, wanted is 'IV"):
        built(tmp_path, after, replace(CONFIG, factory="IVF4,Flat"), trained=training.path)
    with pytest.raises(ValueError, match="is a stage 'index', not 'index-train'"):
        built(tmp_path, after, trained=stage.path)


def test_another_stores_index_is_refused(
    make_store: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = make_store(VECTORS, KEYS), make_store(VECTORS, KEYS, parts=2)
    stage = built(tmp_path, store)
    with pytest.raises(ValueError, match=rf"indexes the store {store.hash}, but .* an index of th"):
        open_index(stage.path, other)
    with pytest.raises(ValueError, match="is a stage 'index-train', not 'index'"):
        open_index(train_index(tmp_path, store, CONFIG).path, store)
    with pytest.raises(ValueError, match="not a finished stage"):
        open_index(tmp_path / "absent", store)
    monkeypatch.setattr(module, "FORMAT", 2)
    with pytest.raises(ValueError, match="index format 1, this release reads 2: delete it and bui"):
        open_index(stage.path, store)


def test_a_damaged_index_is_refused(make_store: Make, tmp_path: Path) -> None:
    store = make_store(VECTORS, KEYS)
    stage = built(tmp_path, store)
    shutil.copyfile(stage.path / "manifest.json", stage.path / stage.files[0])
    with pytest.raises(ValueError, match="is damaged"):
        open_index(stage.path, store)
    index = open_index(stage.path, store, verify=False)
    with pytest.raises(ValueError, match=r"is not an index that faiss .* reads .*build it again"):
        index.part(store.parts[0])


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("IVX8,Flat", r"search.factory is 'IVX8,Flat': .*could not parse index string IVX8,Flat\)"),
        ("IVF8,PQ7", r"search.factory is 'IVF8,PQ7': FAISS makes no index of dimension 16"),
        ("IVF512,Flat", r"cannot train 'IVF512,Flat' on 500 rows .*raise search.training_rows"),
    ],
)
def test_what_faiss_refuses_is_one_line(
    make_store: Make, tmp_path: Path, factory: str, message: str
) -> None:
    store = make_store(VECTORS, KEYS)
    with pytest.raises(ValueError, match=message) as caught:
        built(tmp_path, store, replace(CONFIG, factory=factory))
    assert "\n" not in str(caught.value)
    assert "/project/" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("recall", 0.0, r"search.recall is 0.0: give a share in \(0, 1\]"),
        ("recall", 1.1, "search.recall is 1.1"),
        ("sample", 0, "search.sample is 0"),
        ("candidates", 0, "search.candidates is 0"),
        ("training_rows", 0, "search.training_rows is 0"),
        ("factory", "PQ8,RFlat", "leave the refinement out"),
        ("factory", "PQ8,Refine(SQ8)", "leave the refinement out"),
        ("factory", "IDMap,Flat", "leave IDMap out"),
        ("device", "tpu", "search.device is 'tpu'"),
        ("neighbours", 0, "search.neighbours is 0"),
    ],
)
def test_wrong_settings_name_the_key(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FaissConfig(**{field: value})


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS has GPU indexes")
def test_cuda_without_gpu_faiss_names_the_package(make_store: Make, tmp_path: Path) -> None:
    store = make_store(VECTORS, KEYS)
    with pytest.raises(ValueError, match=r"built for CPUs: run .*pip install vlmae\[gpu\]"):
        built(tmp_path, store, replace(CONFIG, device="cuda"))


def test_transforms_and_parameters_are_found_in_any_index() -> None:
    found = {
        factory: Anatomy(faiss.index_factory(16, factory, faiss.METRIC_INNER_PRODUCT)).parameter
        for factory in ("IVF8,Flat", "OPQ4,IVF8,PQ4", "PCA8,HNSW8", "HNSW8,SQ8", "OPQ4,PQ4", "Flat")
    }
    assert list(found.values()) == ["nprobe", "nprobe", "efSearch", "efSearch", "none", "none"]
    ladder = Anatomy(faiss.index_factory(16, "IVF24,Flat")).ladder(10, "cpu")
    assert ladder == [1, 2, 4, 8, 16, 24]
    assert Anatomy(faiss.index_factory(16, "HNSW8")).ladder(131, "cpu")[:2] == [256, 512]
