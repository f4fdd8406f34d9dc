"""What is known of clips that exist already: a table of labels, and the splits of the data set."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from launch.stages.data_set import DataSet, given_labels, require_labelled_pool
from lsb import ids as sample_ids
from vlmae.config import as_dict, compose_config

SPLITS = ("first", "first", "pool", "pool", "gold", "test")
LABELS = "key,label_spam,label_nsfw\nclip0,1,0\nclip1,,1\nclip4,0,0\nclip5,1,\ngone,1,1\nclip2,,\n"


def index(splits: tuple[str, ...] = SPLITS) -> pa.Table:
    keys = [f"clip{number}" for number in range(len(splits))]
    ids = sample_ids.to_arrow(sample_ids.sample_ids(keys))
    return pa.table({"id": ids, "key": keys, "split": list(splits)})


def own(path: Path) -> DataSet:
    node = dict(as_dict(compose_config("round", ["data=folder"]))["data"])  # type: ignore[call-overload]
    return DataSet.from_values(node, str(path), ["spam", "nsfw"])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(LABELS)
    return path


def test_clips_of_the_data_set_with_a_label_are_known(table: Path) -> None:
    truth = given_labels(str(table), index(), ["spam", "nsfw"]).sort_by("key")
    assert truth["key"].to_pylist() == ["clip0", "clip1", "clip4", "clip5"]
    assert truth["split"].to_pylist() == ["first", "first", "gold", "test"]
    assert truth["label_spam"].to_pylist() == [1, None, 0, 1]
    assert truth["label_nsfw"].to_pylist() == [0, 1, 0, None]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (("first", "first", "pool", "pool", "pool", "test"), "there is no clip in split 'gold'"),
        (("pool",) * 6, r"no clip in split 'first', which a round needs to start from.*a manifest"),
        (("first", "first", "first", "gold", "gold", "test"), "no clip is in split 'pool', from"),
        (("pool", "pool", "first", "pool", "gold", "test"), "no clip has a label in split 'first'"),
    ],
)
def test_splits_that_a_round_needs(table: Path, splits: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        given_labels(str(table), index(splits), ["spam", "nsfw"])


def test_without_a_test_no_test_clip_is_needed(table: Path) -> None:
    splits = ("first", "first", "pool", "pool", "gold", "pool")
    with pytest.raises(ValueError, match="no clip in split 'test'"):
        given_labels(str(table), index(splits), ["spam", "nsfw"])
    truth = given_labels(str(table), index(splits), ["spam", "nsfw"], measured="development")
    assert set(truth["split"].to_pylist()) == {"first", "gold", "pool"}


def test_numbers_with_zeros_in_front_are_keys(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("key,label_spam\n0001,1\n0002,0\n0003,1\n")
    keys = ["0001", "0002", "0003", "0004"]
    ids = sample_ids.to_arrow(sample_ids.sample_ids(keys))
    splits = ["first", "gold", "test", "pool"]
    table = pa.table({"id": ids, "key": keys, "split": splits})
    assert given_labels(str(path), table, ["spam"])["key"].to_pylist() == keys[:3]


def test_keys_of_another_data_set_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("key,label_spam\na.mp4,1\n")
    with pytest.raises(ValueError, match=r"1 labelled clips, none of which.*are like 'clip0'"):
        given_labels(str(path), index(), ["spam"])


def test_simulated_annotators_need_the_whole_pool(table: Path) -> None:
    truth = given_labels(str(table), index(), ["spam", "nsfw"])
    with pytest.raises(ValueError, match=r"no label of 2 of 2 pool clips.*oracle=label_studio"):
        require_labelled_pool(own(table), truth, index())
    table.write_text(LABELS.replace("clip2,,", "clip2,0,1") + "clip3,0,0\n")
    require_labelled_pool(own(table), given_labels(str(table), index(), ["spam", "nsfw"]), index())


def test_composed_clips_take_no_table() -> None:
    node = dict(as_dict(compose_config("round", []))["data"])  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="knows the labels of all its clips"):
        DataSet.from_values(node, "labels.csv", ["unsafe"])
    with pytest.raises(ValueError, match=r"task\.names has .'spam'"):
        DataSet.from_values(node, None, ["spam"])
