"""Intervals of ratios are the bootstrap's over cases, and never claim what one case can't show."""

import numpy as np
import pytest

from analysis.uncertainty import bootstrap_means, wilson
from analysis.vision.ratios import Interval, Ratio, differences, intervals, relative_change
from probes.errors import HeadscopeError


def ratio(part: list[float], whole: list[float], kind: str = "share") -> Ratio:
    return Ratio(np.array(part, dtype=float), np.array(whole, dtype=float), kind)  # type: ignore[arg-type]


def test_a_ratio_to_the_number_of_cases_has_the_interval_of_a_mean() -> None:
    values = np.random.default_rng(0).random(40)
    found = intervals({"mean": Ratio(values, np.ones(40), "mean")}, seed=3)["mean"]
    low, high = bootstrap_means(values[:, None], seed=3)
    assert found == pytest.approx((values.mean(), low[0], high[0]))


def test_cases_weigh_by_their_whole() -> None:
    found = intervals({"share": ratio([0, 9], [1, 9])}, seed=0)["share"]
    assert found == pytest.approx((0.9, 0, 1))


def test_where_resamples_agree_a_share_is_still_uncertain() -> None:
    found = intervals({"share": ratio([0, 0], [4, 6]), "mean": ratio([7, 7], [1, 1], "mean")}, seed=0)
    assert found["share"] == pytest.approx((0, *wilson(0, 10)))
    assert found["mean"] == (7, 7, 7)


def test_f1_takes_wilsons_interval_over_its_own_hits_and_errors() -> None:
    low, high = wilson(0.5, 4)  # 2 hits, 2 errors: F1 = 4 / 6
    assert ratio([4], [6], "f1").wilson() == pytest.approx((2 / 3, 2 * low / (1 + low), 2 * high / (1 + high)))


def test_a_ratio_of_nothing_is_zero_and_says_nothing() -> None:
    assert ratio([0], [0]).wilson() == (0, 0, 1)
    assert ratio([0], [0], "f1").wilson() == (0, 0, 1)


def test_the_same_cases_differ_by_nothing_however_much_they_vary() -> None:
    one = ratio([0, 3, 1, 5], [4, 5, 2, 5])
    found = differences({"share": one}, {"share": one}, seed=0)["share"]
    assert found.value == 0
    assert found.low < 0 < found.high


def test_a_paired_difference_is_narrower_than_its_two_intervals() -> None:
    base = np.random.default_rng(1).integers(0, 9, 60).astype(float)
    before, after = Ratio(base, np.full(60, 10.0)), Ratio(base + (np.arange(60) % 2), np.full(60, 10.0))
    found = differences({"share": after}, {"share": before}, seed=0)["share"]
    apart = intervals({"share": before}, seed=0)["share"]
    assert found.value == pytest.approx(0.05)
    assert 0 < found.low < 0.05 < found.high
    assert found.high - found.low < (apart.high - apart.low) / 2


def test_one_case_proves_no_difference() -> None:
    found = differences({"share": ratio([1], [1])}, {"share": ratio([0], [1])}, seed=0)["share"]
    assert found.value == 1
    assert found.low < 0.5


def test_a_relative_change_is_of_the_means_not_a_mean_of_changes() -> None:
    found = relative_change(ratio([30, 10], [1, 1], "mean"), ratio([10, 10], [1, 1], "mean"), seed=0)
    assert found == pytest.approx((1, 0, 2))
    assert relative_change(ratio([3], [1]), ratio([0], [1]), seed=0) == Interval(0, 0, 0)


def test_no_case_and_other_cases_are_refused() -> None:
    with pytest.raises(HeadscopeError, match="at least one"):
        intervals({"share": ratio([], [])}, seed=0)
    with pytest.raises(HeadscopeError, match="2 treated cases and 1 untreated"):
        differences({"share": ratio([1, 1], [1, 1])}, {"share": ratio([1], [1])}, seed=0)
