from __future__ import annotations

import numpy as np

from lsb.acquisition.confident_errors import confident_errors, errors, hard

#                          sure+   sure-   unsure  right   no label  edge
PROBABILITY = np.asarray([0.95, 0.04, 0.55, 0.97, 0.99, 0.50])
LABEL = np.asarray([0, 1, 0, 1, -1, 1], dtype=np.int8)


def test_confident_errors_go_both_ways() -> None:
    assert confident_errors(PROBABILITY, LABEL, 0.5, 0.9).tolist() == [True, True] + [False] * 4
    assert confident_errors(PROBABILITY, LABEL, 0.5, 0.96).tolist() == [False, True] + [False] * 4
    assert confident_errors(PROBABILITY, LABEL, 0.5, 0.5).tolist() == [True] * 3 + [False] * 3


def test_confidence_is_that_of_the_predicted_class_at_the_operating_threshold() -> None:
    # At 0.3, 0.4 is a positive prediction with confidence 0.4, not 0.6.
    probability, label = np.asarray([0.4, 0.29]), np.asarray([0, 1], dtype=np.int8)
    assert errors(probability, label, 0.3).tolist() == [True, True]
    assert confident_errors(probability, label, 0.3, 0.5).tolist() == [False, True]


def test_hard_is_wrong_or_unsure() -> None:
    assert hard(PROBABILITY, LABEL, 0.5, 0.05).tolist() == [True, True, True, False, False, True]
    assert hard(PROBABILITY, LABEL, 0.5, 0.0).tolist() == [True, True, True, False, False, True]
    assert hard(PROBABILITY, LABEL, 0.6, 0.0).tolist() == [True, True, False, False, False, True]
