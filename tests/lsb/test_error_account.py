"""Confident errors of two models on the same clips: every clip counted once."""

from __future__ import annotations

import numpy as np
import pytest

from lsb.error_account import ErrorChange, ModelAnswers, error_change


def test_every_change_is_counted_once() -> None:
    #            fixed unsure kept  new   right unlabelled
    label = np.array([1, 1, 1, 0, 0, -1], dtype=np.int8)
    earlier = ModelAnswers(np.array([0.1, 0.1, 0.1, 0.6, 0.1, 0.9]), 0.5)
    later = ModelAnswers(np.array([0.9, 0.4, 0.2, 0.9, 0.2, 0.1]), 0.5)
    found = error_change(label, earlier, later, 0.7)
    assert found == ErrorChange(clips=5, before=3, fixed=1, unsure=1, kept=1, new=1)
    assert found.after == 2
    assert found.as_dict()["after"] == 2


def test_counts_add_up_whatever_the_models_say() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        label = generator.integers(-1, 2, 80).astype(np.int8)
        models = [ModelAnswers(generator.random(80), t) for t in generator.uniform(0.2, 0.8, 2)]
        found = error_change(label, *models, 0.7)
        assert found.before == found.fixed + found.unsure + found.kept
        assert found.before == models[0].surely_wrong(label, 0.7).sum()
        assert found.after == models[1].surely_wrong(label, 0.7).sum()
        again = error_change(label, models[0], models[0], 0.7)
        assert (again.fixed, again.unsure, again.new) == (0, 0, 0)


def test_each_model_is_judged_by_its_own_threshold() -> None:
    label = np.array([1], dtype=np.int8)
    same = np.array([0.25])
    found = error_change(label, ModelAnswers(same, 0.5), ModelAnswers(same, 0.2), 0.7)
    assert (found.before, found.fixed) == (1, 1)


def test_other_clips_are_refused() -> None:
    two = ModelAnswers(np.zeros(2), 0.5)
    with pytest.raises(ValueError, match="the same clips in the same order"):
        error_change(np.zeros(3, dtype=np.int8), two, two, 0.7)
