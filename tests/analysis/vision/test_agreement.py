"""Rankings of heads against each other and against luck."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from xarray import DataArray

from analysis.vision.agreement import agreement_of_halves, agreement_of_models, overlap, rank_correlation
from probes.errors import HeadscopeError

DIMS = ("case", "layer", "head")


def heads(*values: float) -> DataArray:
    return DataArray(np.array(values).reshape(2, -1), dims=("layer", "head"))


def cases(noise: float, seed: int, n: int = 40) -> DataArray:
    """Thirty heads of which each has a score of its own in every case, and noise."""
    generator = np.random.default_rng(seed)
    own = np.arange(30).reshape(1, 5, 6) / 30
    return DataArray(own + noise * generator.normal(size=(n, 5, 6)), dims=DIMS)


def test_the_correlation_is_of_ranks_with_ties_averaged() -> None:
    a, b = heads(1, 2, 2, 4), heads(10, 1000, 20, 5)
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a.values.ravel(), b.values.ravel()).statistic)
    assert rank_correlation(a, a**3) == pytest.approx(1)


def test_scores_that_tell_no_heads_apart_correlate_with_nothing() -> None:
    assert rank_correlation(heads(1, 1, 1, 1), heads(1, 2, 3, 4)) == 0


def test_the_overlap_stands_beside_what_luck_would_share() -> None:
    found = overlap(heads(4, 3, 2, 1), heads(4, 1, 3, 2), top=2)
    assert found["value"] == 0.5
    assert found["chance"] == 0.5
    # Of the 6 pairs, 5 share at least one head with the pair given.
    assert found["p"] == pytest.approx(5 / 6)
    assert (found["chance_low"], found["chance_high"]) == (0, 1)


def test_halves_of_clean_data_agree() -> None:
    clean = agreement_of_halves(cases(0.01, 0), seed=0, top=5, splits=100)
    assert clean["correlation"]["value"] > 0.99
    assert clean["overlap"]["value"] == pytest.approx(1, abs=0.05)


def test_halves_of_noise_agree_as_luck_has_it() -> None:
    generator = np.random.default_rng(0)
    found = [
        agreement_of_halves(DataArray(generator.normal(size=(40, 5, 6)), dims=DIMS), seed=0, top=5, splits=50)
        for _ in range(40)
    ]
    assert np.mean([each["correlation"]["value"] for each in found]) == pytest.approx(0, abs=0.08)
    assert np.mean([each["overlap"]["value"] for each in found]) == pytest.approx(
        found[0]["overlap"]["chance"], abs=0.06
    )


def test_no_case_is_in_both_halves() -> None:
    # One case of four ranks the heads backwards and by far outweighs the rest: it can only be in one half.
    scores = np.tile(np.arange(30.0).reshape(1, 5, 6), (4, 1, 1))
    scores[0] = -1000 * scores[0]
    found = agreement_of_halves(DataArray(scores, dims=DIMS), seed=0, splits=50)
    assert found["correlation"]["value"] == pytest.approx(-1)


def test_models_that_share_their_heads_agree_within_an_interval() -> None:
    found = agreement_of_models(cases(0.2, 1), cases(0.2, 2), seed=0, top=5)
    for part in found.values():
        assert part["low"] <= part["value"] <= part["high"]
    assert found["correlation"]["value"] > 0.9
    assert "p" not in found["overlap"]


def test_paired_cases_are_resampled_together() -> None:
    scores = DataArray(np.random.default_rng(3).normal(size=(40, 5, 6)), dims=DIMS)
    assert agreement_of_models(scores, scores, seed=0)["correlation"]["low"] == pytest.approx(1)
    assert agreement_of_models(scores, scores, seed=0, paired=False)["correlation"]["low"] < 0.9


def test_what_can_not_be_compared_is_refused_in_a_sentence() -> None:
    with pytest.raises(HeadscopeError, match="head by head"):
        rank_correlation(heads(1, 2, 3, 4), heads(1, 2))
    with pytest.raises(HeadscopeError, match="choose 1 to 4"):
        overlap(heads(1, 2, 3, 4), heads(1, 2, 3, 4), top=5)
    with pytest.raises(HeadscopeError, match="at least 4"):
        agreement_of_halves(cases(1, 0, n=3), seed=0)
    with pytest.raises(HeadscopeError, match="paired=False"):
        agreement_of_models(cases(1, 0, n=4), cases(1, 0, n=5), seed=0)
