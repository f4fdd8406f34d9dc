"""The stage as a whole: same bytes, resumed after a kill, labels that follow from their causes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lsb.artifact import Stage, read_json
from lsb.ids import sample_id
from vlmae.data.prepare import TASKS, PrepareConfig, prepare, read_index, read_truth
from vlmae.data.prepare import shards as shards_module
from vlmae.data.prepare.bank import UNSAFE, open_bank
from vlmae.data.prepare.compose import BROKEN_KINDS, broken_clips, compose, policy_pairs
from vlmae.data.prepare.encode import encode
from vlmae.data.ranges import RangeReader, tar_members

ConfigMaker = Callable[..., PrepareConfig]
REAL_SOURCES = Path(__file__).resolve().parents[4] / "shared" / "data" / "sources"
REAL_ARCHIVES = (
    "mnist-pngs.tar.xz",
    "free-spoken-digit-dataset.tar.xz",
    "ESC-10.tar",
    "clickbait.tar.xz",
)


def digests(stage: Stage) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(stage.path.iterdir())
        if path.name != "timing.json"
    }


def test_same_seed_same_bytes_in_another_root_by_more_processes(
    tmp_path: Path, mini: Stage, make_config: ConfigMaker
) -> None:
    again = prepare(tmp_path, make_config(processes=2))
    assert again.path.name == mini.path.name
    assert digests(again) == digests(mini)


def test_other_seed_other_bytes(root: Path, mini: Stage, make_config: ConfigMaker) -> None:
    other = prepare(root, make_config(seed=1, first=16, pool=0, gold=0, test=0))
    assert digests(other)["first-00000.tar"] != digests(mini)["first-00000.tar"]
    assert other.manifest["inputs"] == mini.manifest["inputs"], "recordings do not depend on seed"


def test_a_clip_is_the_same_in_every_size_and_shard_layout(
    root: Path, mini: Stage, make_config: ConfigMaker
) -> None:
    other = prepare(root, make_config(first=5, pool=20, gold=1, test=0, shard_clips=7))
    assert mp4s(other).items() <= mp4s(mini).items()
    assert len(mp4s(other)) == 26


def mp4s(stage: Stage) -> dict[str, bytes]:
    media = {}
    for row in read_index(stage).to_pylist():
        record = RangeReader(stage.path).read([row["shard"]], [row["offset"]], [row["size"]])[0]
        media[row["key"]] = tar_members(record, row["key"])["mp4"]
    return media


def test_finished_stage_is_reused(root: Path, mini: Stage, make_config: ConfigMaker) -> None:
    again = prepare(root, make_config())
    assert again.reused
    assert again.path == mini.path


def test_a_killed_run_makes_only_what_is_missing(
    root: Path,
    tmp_path: Path,
    mini: Stage,
    make_config: ConfigMaker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[object] = []
    limit = 40  # dies in the third of five shards of 16 clips

    def counted(*args: object) -> bytes:
        if len(encoded) >= limit:
            raise KeyboardInterrupt
        encoded.append(args)
        return encode(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shards_module, "encode", counted)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, make_config())
    assert [path.name for path in tmp_path.glob("prepare-*")] == [f"{mini.path.name}.partial"]
    limit = 10_000
    encoded.clear()
    resumed = prepare(tmp_path, make_config())
    assert len(encoded) == 80 - 32, "two shards were whole, three are made"
    assert digests(resumed) == digests(mini)


def test_an_absent_shard_is_remade_alone(
    tmp_path: Path, make_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(first=16, pool=16, gold=0, test=0)
    whole = prepare(tmp_path, config)
    before = digests(whole)
    (whole.path / "pool-00000.tar").unlink()
    keys: list[str] = []
    original = compose

    def recorded(config: PrepareConfig, bank: object, split: str, key: str) -> object:
        keys.append(key)
        return original(config, bank, split, key)  # type: ignore[arg-type]

    monkeypatch.setattr(shards_module, "compose", recorded)
    assert digests(prepare(tmp_path, config)) == before
    assert keys == [config.key("pool", index) for index in range(16)]


def test_location_of_sources_and_processes_are_not_hashed(make_config: ConfigMaker) -> None:
    first, other = make_config(), make_config(sources="/elsewhere", processes=7, cache="/c")
    assert first.hashed() == other.hashed()


def test_labels_follow_from_their_causes(mini: Stage, make_config: ConfigMaker) -> None:
    rows = read_truth(mini).to_pylist()
    pairs = policy_pairs(make_config())
    assert len(pairs) == 30
    assert all(shown != spoken for shown, spoken in pairs)
    for row in rows:
        match = row["shown"] == row["spoken"]
        bait = row["title_recording"].startswith("clickbait/dataset/clickbait_data")
        assert row["relevance"] == match
        assert row["title_clickbait"] == bait
        assert row["clickbait"] == (bait and not match)
        assert row["unsafe"] == (row["background"] in UNSAFE)
        assert row["policy"] == ((row["shown"], row["spoken"]) in pairs)
        assert f"/{row['shown']}/" in row["picture_recording"]
        assert f"/{row['spoken']}_{row['speaker']}_" in row["voice_recording"]
    for task in TASKS:
        assert {row[task] for row in rows} == {0, 1}, task


def test_rates_over_many_compositions(mini: Stage, root: Path, make_config: ConfigMaker) -> None:
    config = make_config(unsafe_rate=0.02, policy_pairs=6)
    bank = open_bank(next(root.glob("sources-*")), ())
    drawn = [compose(config, bank, "pool", f"key-{number}") for number in range(6000)]
    rates = {task: np.mean([getattr(clip, task) for clip in drawn]) for task in TASKS}
    # Four standard errors of 6,000 draws.
    assert rates["relevance"] == pytest.approx(0.5, abs=0.026)
    assert rates["clickbait"] == pytest.approx(0.25, abs=0.023)
    assert rates["unsafe"] == pytest.approx(0.02, abs=0.008)
    assert rates["policy"] == pytest.approx(0.5 * 6 / 90, abs=0.010)


def test_no_recording_is_in_two_source_groups(mini: Stage) -> None:
    groups: dict[str, set[str]] = {}
    for row in read_truth(mini).to_pylist():
        group = {"first": "train", "pool": "train"}.get(row["split"], row["split"])
        assert row["source_group"] == group
        for kind in ("picture", "voice", "background", "title"):
            groups.setdefault(row[f"{kind}_recording"], set()).add(group)
    assert all(len(found) == 1 for found in groups.values())
    for recording, found in groups.items():
        if recording.startswith("free-spoken"):
            index = int(recording.removesuffix(".wav").split("_")[-1])
            assert found == {"test" if index < 5 else "gold" if index < 10 else "train"}
        if recording.startswith("mnist"):
            assert (found == {"test"}) == ("/test/" in recording)


def test_unseen_speakers_are_heard_in_test_and_nowhere_else(
    root: Path, make_config: ConfigMaker
) -> None:
    stage = prepare(root, make_config(unseen_speakers=["cleo"], clip_seconds=1.0))
    heard = {
        split: set(read_truth(stage, [split])["speaker"].to_pylist())
        for split in ("first", "pool", "gold", "test")
    }
    assert heard["test"] == {"cleo"}
    assert heard["first"] | heard["pool"] | heard["gold"] == {"anna", "bert"}


def test_the_test_may_have_seen_and_unseen_speakers(root: Path, make_config: ConfigMaker) -> None:
    config = make_config(unseen_speakers=["cleo"], seen_in_test=True, clip_seconds=1.0)
    truth = read_truth(prepare(root, config))
    heard: dict[str, set[str]] = {}
    for split, speaker in zip(
        truth["split"].to_pylist(), truth["speaker"].to_pylist(), strict=True
    ):
        heard.setdefault(split, set()).add(speaker)
    assert heard["test"] == {"anna", "bert", "cleo"}
    assert heard["first"] | heard["pool"] | heard["gold"] == {"anna", "bert"}
    one_group = make_config(unseen_speakers=["cleo"], clip_seconds=1.0).hashed()
    assert "seen_in_test" not in one_group  # data sets made before keep their names


@pytest.mark.parametrize("unseen", [["nobody"], ["anna", "bert", "cleo"]])
def test_unseen_speakers_must_be_some_of_the_speakers(
    root: Path, make_config: ConfigMaker, unseen: list[str]
) -> None:
    with pytest.raises(ValueError, match="some but not all of anna, bert, cleo"):
        prepare(root, make_config(unseen_speakers=unseen))


def test_tables_are_in_the_same_order_and_ids_are_those_of_the_keys(mini: Stage) -> None:
    index, truth = read_index(mini), read_truth(mini)
    assert index["key"].to_pylist() == truth["key"].to_pylist()
    places = list(zip(index["shard"].to_pylist(), index["offset"].to_pylist(), strict=True))
    assert places == sorted(places)
    assert index["id"].to_pylist() == [sample_id(key) for key in index["key"].to_pylist()]
    assert len(set(index["key"].to_pylist())) == 80
    assert read_index(mini, ["gold"]).num_rows == 16
    with pytest.raises(ValueError, match="no split nosuch"):
        read_index(mini, ["nosuch"])


def test_counts_are_those_of_the_tables(mini: Stage) -> None:
    rows = read_truth(mini).to_pylist()
    for split in ("first", "pool", "gold", "test"):
        ours = [row for row in rows if row["split"] == split]
        assert mini.counts[f"{split}.clips"] == len(ours)
        for task in TASKS:
            assert mini.counts.get(f"{split}.{task}", 0) == sum(row[task] for row in ours)


@pytest.mark.parametrize("size", [16, 100, 1000])
def test_every_split_has_broken_clips_of_turning_kinds(make_config: ConfigMaker, size: int) -> None:
    config = make_config(first=size, pool=size, gold=size, test=size, broken=0.01)
    kinds = []
    for split in config.sizes:
        broken = broken_clips(config, split)
        assert len(broken) == -(-size // 100)
        kinds.extend(broken.values())
    assert {kinds.count(kind) for kind in BROKEN_KINDS} == {len(kinds) // 4}
    assert broken_clips(make_config(broken=0.0), "pool") == {}


def test_notices_name_sources_and_copy_their_licences(mini: Stage) -> None:
    licences = (mini.path / "LICENCES.md").read_text(encoding="utf-8")
    for text in ("CC", "rasbt/mnist-pngs", "karolpiczak/ESC-10", "Creative Commons"):
        assert text in licences
    for copied in ("pictures", "voices", "sounds", "titles"):
        assert f"licence of mini {copied}" in licences
    readme = (mini.path / "README.md").read_text(encoding="utf-8")
    assert "composed" in readme
    assert "SYNTHETIC" not in readme


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bank": "nosuch"}, "choose one of"),
        ({"name": "generated"}, "rename it"),
        ({"name": "a.b"}, "letters, digits"),
        ({"broken": 0.5}, "0 to 0.25"),
        ({"frame_size": 90}, "1.3 times"),
        ({"pool": 700_001}, "at most 700000"),
        ({"unsafe_rate": 2.0}, "from 0 to 1"),
        ({"fps": 0}, "must be positive"),
        ({"nosuch": 1}, "data has no key .nosuch."),
    ],
)
def test_config_refuses_what_cannot_be(
    make_config: ConfigMaker, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**changes)


def test_clips_shorter_than_a_spoken_digit_are_refused(
    root: Path, make_config: ConfigMaker
) -> None:
    with pytest.raises(ValueError, match="make clips longer"):
        prepare(root, make_config(clip_seconds=0.25))


@pytest.mark.slow
@pytest.mark.skipif(
    not all((REAL_SOURCES / name).is_file() for name in REAL_ARCHIVES),
    reason=f"real recordings absent: put {', '.join(REAL_ARCHIVES)} into {REAL_SOURCES}",
)
def test_the_real_archives(tmp_path: Path) -> None:
    config = PrepareConfig(
        name="avt_compose",
        bank="avt_compose",
        sources=str(REAL_SOURCES),
        pictures_per_digit=100,
        first=16,
        pool=0,
        gold=16,
        test=16,
    )
    stage = prepare(tmp_path, config)
    bank = read_json(next(tmp_path.glob("sources-*")) / "manifest.json")
    assert bank["counts"] == {
        "pictures": 1000,
        "voices": 3000,
        "backgrounds": 400,
        "titles": bank["counts"]["titles"],
    }
    assert bank["counts"]["titles"] > 31_900
    speakers = {"george", "jackson", "lucas", "nicolas", "theo", "yweweler"}
    assert set(read_truth(stage)["speaker"].to_pylist()) <= speakers
    licences = (stage.path / "LICENCES.md").read_text(encoding="utf-8")
    assert "soundscalpel.com" in licences, "the per-clip attributions of ESC-10"
    assert json.loads((stage.path / "manifest.json").read_text())["stage"] == "prepare"
