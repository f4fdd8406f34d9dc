"""Int8 codes beside a store's vectors: written while embedding, searched, cut by takedowns."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lsb.ids import sample_ids, to_bytes
from lsb.redaction import redact_stage
from lsb.search.codes import PartCodes
from lsb.search.exact import SearchConfig, search
from lsb.store import Store
from vlmae.data.redaction import part_edit
from vlmae.data.token_source import CachedTokens
from vlmae.embedding import EmbedConfig, embed_pooled

NONE = sample_ids([])


def test_a_store_with_codes_gives_the_hits_of_one_without(
    tmp_path: Path, source: CachedTokens
) -> None:
    tables = []
    for codes in (False, True):
        stage = embed_pooled(tmp_path, source, EmbedConfig("pool", "float16", codes=codes))
        assert stage is not None
        store = Store.open(stage.path, verify=True)
        assert all((part.codes_path is not None) == codes for part in store.parts)
        ids = store.ids[:20]
        hits = search(
            ids,
            store.vectors(ids),
            store,
            SearchConfig(backend="int_mm" if not codes else "auto"),
            lookalike_threshold=0.4,
            exclude=NONE,
        )
        tables.append(hits.table)
    assert tables[0].num_rows > 20
    assert tables[0].equals(tables[1])


def test_a_clip_that_is_taken_down_leaves_the_codes_too(
    tmp_path: Path, source: CachedTokens
) -> None:
    stage = embed_pooled(tmp_path, source, EmbedConfig("pool", codes=True))
    assert stage is not None
    store = Store.open(stage.path)
    part = next(part for part in store.parts if part.rows > 1)
    gone = part.ids()[:1]
    assert part.codes_path is not None
    before = PartCodes.open(part.codes_path).read("codes", 0, part.rows)
    redacted = redact_stage(stage.path, {part.name: part_edit("embed", part.name, to_bytes(gone))})
    left = Store.open(redacted.path, verify=True)
    shorter = next(other for other in left.parts if other.name == part.name)
    assert shorter.rows == part.rows - 1
    assert shorter.codes_path is not None
    codes = PartCodes.open(shorter.codes_path, shorter.vectors_path)
    assert np.array_equal(codes.read("codes", 0, codes.rows), before[1:])
