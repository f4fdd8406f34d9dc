"""Seeds that are searched for while embedding: the hits of the finished store, without a scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lsb.artifact import Stage
from lsb.ids import IdArray, to_hex
from lsb.redaction import redact_stage
from lsb.search import knn
from lsb.search.__main__ import main as search_command
from lsb.search.exact import SearchConfig, search
from lsb.search.outputs import FILES
from lsb.search.partial import lists_file, read_lists
from lsb.search.result import read_result
from lsb.store import Store
from vlmae.data.redaction import held_clips, part_edit
from vlmae.data.token_source import CachedTokens
from vlmae.embedding import EmbedConfig, embed_fused, embed_pooled
from vlmae.seed_search import SeedConfig, make_hits

DataMaker = Callable[..., Stage]
LT = 0.44
POOL = EmbedConfig("pool")

knn.faiss.omp_set_num_threads(1)  # small searches on a shared machine


@pytest.fixture(scope="module")
def gold(tmp_path_factory: pytest.TempPathFactory, source: CachedTokens) -> Store:
    stage = embed_pooled(tmp_path_factory.mktemp("gold"), source, EmbedConfig("gold"))
    assert stage is not None
    return Store.open(stage.path)


def seeds(gold: Store, **changes: object) -> SeedConfig:
    return replace(SeedConfig(str(gold.path), lt=LT, neighbours=2), **changes)  # type: ignore[arg-type]


def from_scratch(store: Store, gold: Store, exclude: IdArray | None = None) -> set[tuple[str, ...]]:
    hits = search(
        gold.ids,
        gold.vectors(gold.ids),
        store,
        SearchConfig(),
        lookalike_threshold=LT,
        exclude=gold.ids[:0] if exclude is None else exclude,
    )
    return {tuple(row.values()) for row in hits.table.select(["seed_id", "id"]).to_pylist()}


def pairs(stage: Stage) -> set[tuple[str, ...]]:
    table, _ = read_result(stage.path / "result.parquet")
    return {tuple(row.values()) for row in table.select(["seed_id", "id"]).to_pylist()}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_hits_are_those_of_the_search_command_over_the_store(
    tmp_path: Path, source: CachedTokens, gold: Store, dtype: str
) -> None:
    config = EmbedConfig("pool", dtype)
    plain = embed_pooled(tmp_path, source, config)
    wanted = seeds(gold)
    made = wanted.open(threads=1)
    assert made is not None
    stage = embed_pooled(tmp_path, source, config, search=made)
    assert stage is not None
    assert plain is not None
    assert stage.path != plain.path, "seeds are in the hash"
    store = Store.open(stage.path)
    assert store.ids.tolist() == Store.open(plain.path).ids.tolist()
    hits = make_hits(tmp_path, stage, made, wanted.keep)
    assert hits.counts["hits"] == len(from_scratch(store, gold)) > 0
    assert hits.counts["asked_again"] > 0
    assert pairs(hits) == from_scratch(store, gold)
    assert make_hits(tmp_path, stage, made, wanted.keep).reused
    output = tmp_path / "command"
    arguments = ["--store", str(store.path), "--seeds", str(gold.path), "--lt", str(LT)]
    assert search_command([*arguments, "--neighbours", "2", "--output", str(output)]) == 0
    for name in FILES:
        assert (output / name).read_bytes() == (hits.path / name).read_bytes()


def test_shares_give_the_bytes_of_one_process(
    tmp_path: Path, source: CachedTokens, gold: Store
) -> None:
    made = seeds(gold).open(threads=1)
    alone = embed_pooled(tmp_path / "alone", source, POOL, search=made)
    assert alone is not None
    stage = None
    while stage is None:
        for number in (1, 0):
            config = replace(POOL, share=(number, 2))
            stage = embed_pooled(tmp_path / "shared", source, config, search=made)
    assert stage.content == alone.content
    assert stage.path.name == alone.path.name


def test_a_fused_store_is_searched_too(
    tmp_path: Path, source: CachedTokens, trained: Stage
) -> None:
    gold_stage = embed_fused(tmp_path, source, trained, EmbedConfig("gold"))
    assert gold_stage is not None
    gold = Store.open(gold_stage.path)
    wanted = seeds(gold)
    made = wanted.open(threads=1)
    assert made is not None
    stage = embed_fused(tmp_path, source, trained, POOL, search=made)
    assert stage is not None
    hits = make_hits(tmp_path, stage, made, wanted.keep)
    assert pairs(hits) == from_scratch(Store.open(stage.path), gold)


def test_seeds_of_another_kind_are_refused(
    tmp_path: Path, source: CachedTokens, trained: Stage, gold: Store
) -> None:
    with pytest.raises(ValueError, match="embed the seeds with the same towers or checkpoint"):
        embed_fused(tmp_path, source, trained, POOL, search=seeds(gold).open(threads=1))


def test_lists_of_a_shard_that_lost_a_clip_are_void_and_hits_still_whole(
    tmp_path: Path, source: CachedTokens, gold: Store
) -> None:
    wanted = seeds(gold)
    made = wanted.open(threads=1)
    assert made is not None
    stage = embed_pooled(tmp_path, source, POOL, search=made)
    assert stage is not None
    before = make_hits(tmp_path, stage, made, wanted.keep)
    store = Store.open(stage.path)
    part = store.parts[0]
    gone = min(to_hex(part.ids()))
    files = stage.manifest["parts"][part.name]["files"]
    ids = part.ids()[np.array(to_hex(part.ids())) == gone]
    assert held_clips(stage.path, files, ids) == {bytes.fromhex(gone)}
    edit = part_edit("embed", part.name, [bytes.fromhex(gone)])
    redacted = redact_stage(stage.path, {part.name: edit})
    smaller = Store.open(redacted.path)
    assert len(smaller) == len(store) - 1
    assert read_lists(smaller.path / lists_file(part.name), made.wave, part.rows - 1) is None
    after = make_hits(tmp_path, redacted, made, wanted.keep)
    assert after.path != before.path
    assert pairs(after) == from_scratch(smaller, gold)
    assert gone not in {pair[1].hex() for pair in pairs(after)}  # type: ignore[attr-defined]


def test_settings_are_checked(tmp_path: Path, gold: Store) -> None:
    assert SeedConfig().open(threads=1) is None
    with pytest.raises(ValueError, match=r"embed.lt is not set"):
        SeedConfig("somewhere")
    with pytest.raises(ValueError, match=r"embed.lt is 3: give a cosine similarity"):
        SeedConfig("somewhere", lt=3)
    with pytest.warns(UserWarning, match=r"embed.lt has no effect: embed.seeds is not set"):
        SeedConfig(lt=0.5)
    with pytest.raises(ValueError, match=r"embed.seeds is \S*nowhere, which is no file"):
        SeedConfig(str(tmp_path / "nowhere"), lt=0.5).open(threads=1)
    keys = tmp_path / "keys.txt"
    keys.write_text("\n".join(gold.keys(gold.ids[:2])))
    with pytest.raises(ValueError, match=r"also name the store that has its clips"):
        SeedConfig(str(keys), lt=0.5).open(threads=1)
    made = SeedConfig(str(keys), str(gold.path), lt=0.5, exclude=str(keys)).open(threads=1)
    assert made is not None
    assert sorted(made.seeds.ids) == sorted(made.excluded) == sorted(gold.ids[:2])
