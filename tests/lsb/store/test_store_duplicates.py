from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsb.ids import from_bytes, sample_ids
from lsb.store import duplicates
from lsb.store.duplicates import Duplicates


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 12), max_size=8), max_size=4), st.sampled_from([1, 8, 512]))
def test_groups_are_all_rows_of_an_id(blocks: list[list[int]], buckets: int) -> None:
    rows: dict[int, list[int]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "ROWS_PER_BUCKET", 1)
        patch.setattr(duplicates, "MOST_BUCKETS", buckets)
        with Duplicates(1000) as found:
            start = 0
            for block in blocks:
                found.add(sample_ids([str(number) for number in block]), start)
                for number in block:
                    rows.setdefault(number, []).append(start)
                    start += 1
            groups = [group.tolist() for group in found.groups()]
    assert sorted(groups) == sorted(group for group in rows.values() if len(group) > 1)


def test_ids_that_differ_in_trailing_nuls_are_different() -> None:
    ids = from_bytes([b"a".ljust(16, b"\0"), b"a".ljust(15, b"\0") + b"\1", b"\0" * 16, b"\0" * 16])
    with Duplicates(4) as found:
        found.add(ids, 10)
        assert [group.tolist() for group in found.groups()] == [[12, 13]]
        folder = found._file(0).parent
        assert folder.is_dir()
    assert not folder.exists()
