"""Which frames a policy reads, which backend it resolves to, and what it says for cache keys."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from vlmae.data.decode import DecodePolicy, policy
from vlmae.data.decode.policy import REVISION


def choose(
    frames: int, keyframes: list[bool], sampling: str = "uniform", **seeds: Any
) -> list[int]:
    return DecodePolicy(frames, sampling, "pyav").choose(keyframes, **{"key": "k", **seeds})


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (1, [5]),
        (2, [2, 7]),
        (4, [1, 3, 6, 8]),
        (10, list(range(10))),
        (20, sorted([*range(10)] * 2)),
    ],
)
def test_uniform_is_the_midpoints_of_equal_runs(asked: int, expected: list[int]) -> None:
    assert choose(asked, [True] + [False] * 9) == expected


def test_keyframe_moves_each_frame_to_the_last_keyframe_at_or_before_it() -> None:
    every_fourth = [number % 4 == 0 for number in range(20)]
    assert choose(4, every_fourth, "keyframe") == [0, 4, 12, 16]
    assert choose(5, [True] * 5, "keyframe") == choose(5, [True] * 5)
    assert choose(3, [True] + [False] * 8, "keyframe") == [0, 0, 0]


def test_keyframe_without_an_earlier_keyframe_takes_the_first() -> None:
    trimmed = [False, False, False, True, False, False]
    assert choose(3, trimmed, "keyframe") == [3, 3, 3]
    assert choose(2, [False] * 4, "keyframe") == choose(2, [False] * 4)


def test_segment_random_takes_one_frame_in_each_run() -> None:
    seen: set[int] = set()
    for seed in range(200):
        chosen = choose(4, [True] * 18, "segment_random", seed=seed)
        assert all(run * 18 // 4 <= frame < (run + 1) * 18 // 4 for run, frame in enumerate(chosen))
        seen |= set(chosen)
    assert seen == set(range(18))


def test_segment_random_is_a_pure_function_of_seed_and_key() -> None:
    first = choose(8, [True] * 100, "segment_random", seed=3)
    assert choose(8, [True] * 100, "segment_random", seed=3) == first
    assert choose(8, [True] * 100, "segment_random", seed=4) != first
    assert choose(8, [True] * 100, "segment_random", seed=3, key="other") != first
    # Written down: training resumed on another machine must read the same frames.
    assert choose(4, [True] * 100, "segment_random", seed=0, key="clip") == [9, 25, 55, 88]


def test_segment_random_of_too_few_frames_is_uniform() -> None:
    assert choose(5, [True] * 3, "segment_random", seed=1) == choose(5, [True] * 3)


def test_only_policies_that_do_not_depend_on_the_seed_are_repeatable() -> None:
    assert DecodePolicy(2).repeatable
    assert DecodePolicy(2, "keyframe").repeatable
    assert not DecodePolicy(2, "segment_random").repeatable


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 0}, "decode.frames is 0: give at least 1"),
        ({"frames": 1, "sampling": "all"}, "decode.sampling is 'all': give one of uniform"),
        ({"frames": 1, "backend": "decord"}, "decode.backend is 'decord': give one of auto"),
        ({"frames": 1, "max_seconds": 0.0}, r"decode.max_seconds is 0.0: give seconds above 0"),
        ({"frames": 1, "max_seconds": float("nan")}, "decode.max_seconds is nan"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodePolicy(**settings)


def test_auto_is_torchcodec_where_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "why_torchcodec_fails", lambda: "")
    assert DecodePolicy(2).resolved() == DecodePolicy(2, backend="torchcodec")
    assert DecodePolicy(2).hashed() == DecodePolicy(2, backend="torchcodec").hashed()


def test_auto_is_pyav_where_torchcodec_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "why_torchcodec_fails", lambda: "no libavutil.so")
    assert DecodePolicy(2).resolved() == DecodePolicy(2, backend="pyav")
    message = r"does not load here \(no libavutil.so\): install FFmpeg.*apt-get install ffmpeg"
    with pytest.raises(ValueError, match=message):
        DecodePolicy(2, backend="torchcodec").resolved()


def test_hashed_is_everything_that_changes_the_arrays() -> None:
    assert DecodePolicy(2, "keyframe", "pyav", 30.0).hashed() == {
        "frames": 2,
        "sampling": "keyframe",
        "backend": "pyav",
        "max_seconds": 30.0,
        "revision": REVISION,
    }


def test_torchcodec_is_not_imported_before_it_is_used() -> None:
    code = (
        "import sys; from vlmae.data.decode import DecodePolicy; "
        "DecodePolicy(2, backend='pyav').resolved(); "
        "print([name for name in ('torch', 'torchcodec') if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
