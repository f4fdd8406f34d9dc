from __future__ import annotations

import pytest

from lsb.acquisition.config import ACQUISITIONS, AcquisitionConfig


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("coin", {}, r"acquisition\.name is 'coin': use one of entropy, "),
        ("proxy", {}, r"'proxy': .*fit_proxy"),
        ("confident_errors", {}, r"set broadening\.confident_error"),
        ("bald", {}, r"dropout_samples is 0: bald .* at least 2"),
        ("dropout_variance", {"dropout_samples": 1}, "dropout_samples is 1"),
        ("entropy", {"dropout_samples": 10}, "entropy reads no passes"),
        ("badge", {"candidates": 0}, r"acquisition\.candidates is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    name: str, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AcquisitionConfig(name, **options)  # type: ignore[arg-type]


def test_identity_holds_what_the_acquisition_reads() -> None:
    common = {"name", "task_weights", "seed"}
    for name in ACQUISITIONS:
        more = {
            "bald": {"dropout_samples"},
            "dropout_variance": {"dropout_samples"},
            "core_set": {"candidates"},
            "badge": {"candidates"},
            "typiclust": {"candidates"},
        }.get(name, set())
        passes = 10 if "dropout_samples" in more else 0
        assert set(AcquisitionConfig(name, dropout_samples=passes).identity()) == common | more
