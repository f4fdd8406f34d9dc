from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from scipy import stats

from lsb.acquisition.seeds import hard_seeds
from lsb.ids import sample_ids
from lsb.labelled import Labelled
from lsb.lookalike_plot import plot_precision
from lsb.search.exact import SearchConfig, nearest
from lsb.threshold import (
    CURVE,
    LookalikeThreshold,
    ThresholdConfig,
    calibrate,
    fixed,
    labelled_pairs,
    precision_bound,
    precision_curve,
)


def pairs(*groups: tuple[float, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(similarity, pairs, lookalikes) of each group."""
    similarity = np.concatenate([np.full(n, s, dtype=np.float32) for s, n, _ in groups])
    lookalike = np.concatenate([np.arange(n) < hits for _, n, hits in groups])
    order = np.random.default_rng(0).permutation(len(similarity))
    return similarity[order], lookalike[order]


def test_bound_is_clopper_pearson_for_independent_pairs() -> None:
    # All of n lookalikes: the bound is 0.05 ** (1 / n).
    assert precision_bound(np.ones(20, bool)) == pytest.approx(0.05 ** (1 / 20), rel=1e-12)
    lookalike = np.arange(50) < 41
    reference = stats.binomtest(41, 50, alternative="greater").proportion_ci(0.95, "exact").low
    assert precision_bound(lookalike) == pytest.approx(reference, rel=1e-12)
    assert precision_bound(np.zeros(9, bool)) == 0
    assert precision_bound(np.zeros(0, bool)) == 0


def test_worked_by_hand() -> None:
    # Bounds: 40/40 at >= 0.9: 0.05^(1/40) = 0.928; 78/80 at >= 0.8: 0.923; 88/120 at >= 0.7: 0.659.
    similarity, lookalike = pairs((0.9, 40, 40), (0.8, 40, 38), (0.7, 40, 10))
    found = calibrate(similarity, lookalike, 0.9)
    assert found.value == float(np.float32(0.8))
    assert (found.pairs, found.seeds, found.mode) == (80, 80, "calibrated")
    expected = stats.beta.ppf(0.05, 78, 3)
    assert found.precision == pytest.approx(expected, rel=1e-12)
    assert calibrate(similarity, lookalike, 0.925).value == float(np.float32(0.9))
    assert calibrate(similarity, lookalike, 0.6).value == float(np.float32(0.7))


def test_the_curve_holds_counts_precision_and_bound_at_each_similarity() -> None:
    similarity, lookalike = pairs((0.9, 40, 40), (0.8, 40, 38), (0.7, 40, 10), (0.95, 5, 5))
    seed = np.arange(125) // 5
    curve = precision_curve(similarity, lookalike, seed)
    assert curve.schema == CURVE
    np.testing.assert_array_equal(
        curve["similarity"], np.asarray([0.9, 0.8, 0.7], np.float32), "0.95 has too few pairs"
    )
    assert curve["pairs"].to_pylist() == [45, 85, 125]
    seeds = [len(set(seed[similarity >= s])) for s in np.asarray([0.9, 0.8, 0.7], np.float32)]
    assert curve["seeds"].to_pylist() == seeds
    assert curve["lookalikes"].to_pylist() == [45, 83, 93]
    np.testing.assert_allclose(curve["precision"], [1, 83 / 85, 93 / 125])
    chosen = calibrate(similarity, lookalike, 0.5, seed)
    assert chosen.precision == curve["bound"][2].as_py()
    assert precision_curve(similarity[:0], lookalike[:0]).num_rows == 0


@pytest.mark.parametrize("rows", [0, 3])
def test_the_picture_of_a_curve_is_written_with_and_without_pairs(
    tmp_path: Path, rows: int
) -> None:
    similarity, lookalike = pairs((0.9, 40, 40), (0.8, 40, 38), (0.7, 40, 10))
    curve = precision_curve(similarity, lookalike).slice(0, rows)
    for name in ("a.png", "b.png"):
        plot_precision(tmp_path / name, curve, target=0.9, threshold=fixed(0.8))
    first, second = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
    assert Image.open(tmp_path / "a.png").size == (770, 660)


def test_pairs_of_equal_similarity_stay_together() -> None:
    # Cut inside the tie at 0.8, 40 + 15 lookalikes would qualify; the whole group does not.
    similarity, lookalike = pairs((0.9, 40, 40), (0.8, 40, 15))
    order = np.lexsort((~lookalike, -similarity))
    found = calibrate(similarity[order], lookalike[order], 0.9)
    assert (found.value, found.pairs) == (float(np.float32(0.9)), 40)


def test_order_of_pairs_does_not_matter() -> None:
    random = np.random.default_rng(2)
    similarity = random.choice(np.linspace(0.5, 1, 30).astype(np.float32), 500)
    lookalike = random.random(500) < similarity
    seed = random.integers(40, size=500)
    found = {
        calibrate(similarity[o], lookalike[o], 0.6, seed[o])
        for o in (random.permutation(500) for _ in range(5))
    }
    assert len(found) == 1


def test_refusal_gives_the_best_bound_where_and_how_many_pairs() -> None:
    similarity, lookalike = pairs((0.9, 40, 30), (0.8, 40, 20))
    bound = stats.beta.ppf(0.05, 30, 11)
    message = rf"best lower bound is {bound:.3f} at similarity 0\.9000 \(40 of 80 pairs\)"
    with pytest.raises(ValueError, match=message):
        calibrate(similarity, lookalike, 0.95)
    with pytest.raises(ValueError, match=r"5 labelled pairs, threshold\.minimum_pairs is 30"):
        calibrate(similarity[:5], lookalike[:5], 0.5)
    with pytest.raises(ValueError, match=r"threshold\.target is 1\.2"):
        calibrate(similarity, lookalike, 1.2)


def test_minimum_pairs_keeps_lucky_few_from_deciding() -> None:
    similarity, lookalike = pairs((0.95, 10, 10), (0.6, 100, 10))
    assert calibrate(similarity, lookalike, 0.7, minimum_pairs=10).pairs == 10
    with pytest.raises(ValueError, match="no similarity"):
        calibrate(similarity, lookalike, 0.7, minimum_pairs=30)


def test_pairs_of_few_seeds_count_for_less() -> None:
    # 10 seeds of 20 pairs, each pure: 8 seeds with lookalikes only, 2 without.
    seed = np.repeat(np.arange(10), 20)
    lookalike = seed < 8
    independent = precision_bound(lookalike)
    clustered = precision_bound(lookalike, seed)
    of_seeds = precision_bound(np.arange(10) < 8)
    assert independent > 0.74
    assert clustered == pytest.approx(of_seeds, abs=0.05)
    # One pair a seed is the independent case.
    assert precision_bound(lookalike, np.arange(200)) == independent


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("precision", [0.6, 0.9])
@pytest.mark.parametrize("seeds", [15, 80])
def test_bound_covers_with_correlated_pairs(
    seeds: int, precision: float, correlation: float
) -> None:
    random = np.random.default_rng(7)
    covered = naive = 0
    repeats = 400
    for _ in range(repeats):
        sizes = np.minimum(random.geometric(1 / 8, seeds), 30)
        rate = np.full(seeds, precision)
        if correlation:
            scale = (1 - correlation) / correlation
            rate = random.beta(precision * scale, (1 - precision) * scale, seeds)
        seed = np.repeat(np.arange(seeds), sizes)
        lookalike = random.random(len(seed)) < rate[seed]
        covered += precision_bound(lookalike, seed) <= precision
        naive += precision_bound(lookalike) <= precision
    # Three standard errors of 400 repeats below the nominal 95 %.
    assert covered / repeats >= 0.917
    if correlation == 0.6:
        assert naive / repeats < 0.85, "ignoring seeds would do: the correction shows nothing"


def test_true_precision_at_the_chosen_threshold_reaches_the_target() -> None:
    random = np.random.default_rng(11)
    grid = np.linspace(0, 1, 20001)
    density = 1 - grid  # similarities below are drawn as 1 - sqrt(u)

    def rate(similarity: np.ndarray) -> np.ndarray:
        return 0.25 + 0.73 / (1 + np.exp(-20 * (similarity - 0.6)))

    above = np.cumsum((density * rate(grid))[::-1])[::-1]
    true = above / np.maximum(np.cumsum(density[::-1])[::-1], 1e-12)
    target = 0.7
    smallest = grid[np.argmax(true >= target)]
    below, found = 0, []
    for _ in range(150):
        seed = np.repeat(np.arange(60), np.minimum(random.geometric(1 / 8, 60), 30))
        similarity = (1 - np.sqrt(random.random(len(seed)))).astype(np.float32)
        shared = np.sqrt(0.3) * random.normal(size=60)[seed]
        latent = shared + np.sqrt(0.7) * random.normal(size=len(seed))
        lookalike = latent < stats.norm.ppf(rate(similarity))
        try:
            found.append(calibrate(similarity, lookalike, target, seed, minimum_pairs=20).value)
        except ValueError:
            continue
        below += found[-1] < smallest
    assert len(found) > 130
    assert below / 150 <= 0.10
    assert np.mean(found) < smallest + 0.12  # careful, not useless


def labelled() -> Labelled:
    keys = ["seed", "twin", "right", "unsure", "other", "none"]
    angle = np.asarray([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    return Labelled(
        ids=sample_ids(keys),
        keys=keys,
        vectors=np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32),
        labels={"x": np.asarray([1, 1, 1, 1, 0, -1], dtype=np.int8)},
        probabilities={"x": np.asarray([0.1, 0.2, 0.9, 0.55, 0.9, np.nan])},
        operating_thresholds={"x": 0.5},
    )


def hits_of(clips: Labelled, seeds: pa.Table) -> pa.Table:
    rows = [clips.keys.index(key) for key in seeds["key"].to_pylist()]
    return nearest(
        clips.ids[rows],
        clips.vectors[rows],
        lambda: [(clips.ids, clips.vectors)],
        SearchConfig(10, 10),
        lookalike_threshold=None,
        exclude=clips.ids[:0],
    ).table


def test_labelled_pairs_by_both_definitions() -> None:
    clips = labelled()
    seeds = hard_seeds(clips, {"x": 1}, band=0.0).filter(
        pa.array([key == "seed" for key in hard_seeds(clips, {"x": 1}, 0.0)["key"].to_pylist()])
    )
    hits = hits_of(clips, seeds)
    by_error = labelled_pairs(hits, seeds, clips, lookalike="error", band=0.1)
    # twin: wrong. right: same label but right. unsure: right, within the band. other: other label.
    assert by_error.lookalike.tolist() == [True, False, True, False]
    assert by_error.similarity == pytest.approx(np.cos([0.1, 0.2, 0.3, 0.4]), abs=1e-6)
    assert len(set(by_error.seed.tolist())) == 1
    strict = labelled_pairs(hits, seeds, clips, lookalike="error", band=0.01)
    assert strict.lookalike.tolist() == [True, False, False, False]
    by_label = labelled_pairs(hits, seeds, clips, lookalike="label")
    assert by_label.lookalike.tolist() == [True, True, True, False]


def test_a_seed_is_never_its_own_neighbour() -> None:
    clips = labelled()
    seeds = hard_seeds(clips, {"x": 1}, band=1.0)
    hits = hits_of(clips, seeds)
    assert all(row["seed_id"] != row["id"] for row in hits.to_pylist())
    found = labelled_pairs(hits, seeds, clips)
    assert len(found.seed) == 5 * 4
    assert np.bincount(found.seed).tolist() == [4] * 5


def test_labelled_pairs_refuses_what_it_cannot_judge() -> None:
    clips = labelled()
    seeds = hard_seeds(clips, {"x": 1}, band=0.0)
    hits = hits_of(clips, seeds)
    with pytest.raises(ValueError, match=r"threshold\.lookalike is 'near'"):
        labelled_pairs(hits, seeds, clips, lookalike="near")
    unlabelled = seeds.set_column(6, "label", pa.nulls(seeds.num_rows, pa.int8()))
    with pytest.raises(ValueError, match="3 seeds have no label"):
        labelled_pairs(hits, unlabelled, clips)
    stranger = hits.set_column(1, "id", pa.array([b"x" * 16] * hits.num_rows, pa.binary(16)))
    with pytest.raises(ValueError, match="is not among the labelled clips"):
        labelled_pairs(stranger, seeds, clips)
    assert len(labelled_pairs(hits.slice(0, 0), seeds, clips).seed) == 0
    assert len(labelled_pairs(hits.slice(0, 0), seeds.slice(0, 0), clips).seed) == 0


def test_fixed_and_settings() -> None:
    assert fixed(0.8) == LookalikeThreshold(0.8, None, 0, 0, "fixed")
    with pytest.raises(ValueError, match=r"lookalike threshold is 1\.5"):
        fixed(1.5)
    with pytest.raises(ValueError, match=r"threshold\.mode is 'auto'"):
        ThresholdConfig(mode="auto")
