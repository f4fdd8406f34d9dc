"""The generated bank: made of nothing but installed packages, same each time, and says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset

from vlmae.data.prepare import PrepareConfig, generated, prepare, read_truth, speech
from vlmae.data.prepare.bank import BACKGROUNDS, UNSAFE
from vlmae.data.prepare.generated import GeneratedSources, draw_digit, recording_rng
from vlmae.data.prepare.headlines import CLICKBAIT, NEWS, SLOTS, write_headline
from vlmae.data.prepare.soundscape import IMITATIONS, SAMPLES, imitate


def test_speech_is_the_same_in_another_process_whatever_the_time() -> None:
    first, again = speech.speak_all(takes=1), speech.speak_all(takes=1)
    assert len(first) == 10 * len(speech.SPEAKERS)
    for one, other in zip(first, again, strict=True):
        assert (one.speaker, one.digit, one.take) == (other.speaker, other.digit, other.take)
        np.testing.assert_array_equal(one.sound, other.sound)
        assert 0.1 < len(one.sound) / 16_000 < 1.5
        assert np.abs(one.sound).max() > 2000
    assert len({one.sound.tobytes() for one in first}) == len(first)


def test_missing_espeak_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ValueError, match="pip install espeakng-loader"):
        speech._Engine()


def test_digits_are_drawn_whole_and_in_many_hands() -> None:
    drawn = [
        draw_digit(digit, recording_rng(f"{digit}-{n}")) for digit in range(10) for n in range(9)
    ]
    assert len({ink.tobytes() for ink in drawn}) == len(drawn)
    for ink in drawn:
        assert ink.shape == (64, 64)
        assert ink.max() > 150
        edge = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
        assert edge.max() < 40, "no stroke leaves the canvas"
    np.testing.assert_array_equal(
        draw_digit(3, recording_rng("x")), draw_digit(3, recording_rng("x"))
    )


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_background_is_imitated(background: str) -> None:
    one, other = (imitate(background, recording_rng(f"{background}-{n}")) for n in range(2))
    assert one.shape == (SAMPLES,)
    assert one.dtype == np.int16
    assert np.abs(one).max() == pytest.approx(0.7 * 32767, abs=2)
    assert (one != other).any()


def test_unsafe_classes_are_imitated() -> None:
    assert set(UNSAFE) < set(IMITATIONS) == set(BACKGROUNDS)


def test_headlines_of_both_classes_use_known_slots() -> None:
    for clickbait, templates in ((True, CLICKBAIT), (False, NEWS)):
        for number in range(200):
            title = write_headline(clickbait, recording_rng(f"title-{number}"))
            assert "{" not in title
        assert all(
            slot.split("}")[0] in SLOTS for text in templates for slot in text.split("{")[1:]
        )


def test_a_generated_data_set_says_it_is_synthetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated, "TITLES_PER_CLASS", 60)
    monkeypatch.setattr(generated, "SOUNDS_PER_CLASS", 5)
    config = PrepareConfig(
        name="generated_mini",
        bank="generated",
        pictures_per_digit=30,
        first=16,
        pool=0,
        gold=0,
        test=16,
        unseen_speakers=("bruno",),
    )
    stage = prepare(tmp_path, config)
    for name in ("README.md", "LICENCES.md"):
        assert "SYNTHETIC" in (stage.path / name).read_text(encoding="utf-8")
    assert set(read_truth(stage, ["test"])["speaker"].to_pylist()) == {"bruno"}
    assert set(read_truth(stage, ["first"])["speaker"].to_pylist()) <= {
        speaker.name for speaker in speech.SPEAKERS if speaker.name != "bruno"
    }
    for sample in webdataset.WebDataset(str(stage.path / "test-00000.tar"), shardshuffle=False):
        assert json.loads(sample["json"])["synthetic"] is True
        assert sample["__key__"].startswith("generated_mini-0-900")


def test_generators_are_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    before = GeneratedSources(None).identity()
    monkeypatch.setattr(generated, "VERSION", generated.VERSION + 1)
    assert GeneratedSources(None).identity() != before
