"""Intervals are those of the textbooks, never a point, and hold what they promise."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, binomtest

from analysis.uncertainty import CONFIDENCE, bca_mean, bootstrap_means, paired_difference, wilson

Numbers = NDArray[np.float64]


def numbers(*values: float) -> Numbers:
    return np.array(values, dtype=float)


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (0, 24), (24, 24), (1, 2), (7, 24), (599, 600)])
def test_wilsons_interval_is_scipys(correct: int, n: int) -> None:
    expected = binomtest(correct, n).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    assert wilson(correct / n, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("n", [1, 10, 600])
def test_none_and_all_answered_are_still_uncertain(n: int) -> None:
    low, high = wilson(0.0, n)
    assert low == pytest.approx(0)
    assert high > 0.5 / n
    assert wilson(1.0, n) == pytest.approx((1 - high, 1))


def test_no_case_says_nothing() -> None:
    assert wilson(0.0, 0) == (0.0, 1.0)


@given(n=st.integers(1, 2000), share=st.floats(0, 1))
def test_wilsons_interval_holds_the_share(n: int, share: float) -> None:
    low, high = wilson(share, n)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1


def test_a_bootstrap_is_its_seeds() -> None:
    values = np.random.default_rng(0).random((30, 2))
    first, again, other = (np.stack(bootstrap_means(values, seed=seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_bootstrap_keeps_the_shape_and_holds_every_mean() -> None:
    values = np.random.default_rng(0).random((30, 2, 3))
    low, high = bootstrap_means(values, seed=0)
    assert low.shape == high.shape == (2, 3)
    assert (low < values.mean(0)).all()
    assert (values.mean(0) < high).all()


def test_a_columns_interval_does_not_depend_on_its_neighbours() -> None:
    values = np.random.default_rng(0).random((30, 4))
    low, high = bootstrap_means(values, seed=0)
    alone = bootstrap_means(values[:, 2:3], seed=0)
    assert np.allclose((low[2], high[2]), np.ravel(alone))


def test_sixteen_times_the_cases_make_the_interval_a_quarter_as_wide() -> None:
    values = np.random.default_rng(0).random((20, 1))
    few, many = (np.ptp(bootstrap_means(sample, seed=0)) for sample in (values, np.tile(values, (16, 1))))
    assert many == pytest.approx(few / 4, rel=0.15)


def test_a_bootstrapped_share_has_the_quantiles_of_its_binomial() -> None:
    low, high = bootstrap_means(np.repeat([0.0, 1.0], [36, 4])[:, None], seed=0)
    assert (low.item(), high.item()) == pytest.approx((binom.ppf(0.025, 40, 0.1) / 40, binom.ppf(0.975, 40, 0.1) / 40))


def test_pairing_makes_the_interval_narrower() -> None:
    second = np.tile([0.0, 1.0], 20)
    first = second.copy()
    first[[0, 8, 16, 24]] = 1
    value, low, high = paired_difference(first, second, seed=0)
    # The same answers, but each beside another case's.
    unpaired = paired_difference(first, np.roll(second, 1), seed=0)
    assert value == unpaired[0] == pytest.approx(0.1)
    assert high - low < 0.5 * (unpaired[2] - unpaired[1])
    assert low > 0 > unpaired[1]


def test_the_paired_interval_is_its_seeds() -> None:
    first, second = np.random.default_rng(0).random((2, 30))
    assert paired_difference(first, second, seed=3) == paired_difference(first, second, seed=3)
    assert paired_difference(first, second, seed=3) != paired_difference(first, second, seed=4)


def test_turning_the_difference_round_turns_its_interval_round() -> None:
    first, second = numbers(1, 1, 1, 0, 0), numbers(0, 0, 1, 0, 1)
    value, low, high = paired_difference(first, second, seed=0)
    assert paired_difference(second, first, seed=0) == pytest.approx((-value, -high, -low))


@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.75, 0.25)])
@pytest.mark.parametrize("n", [1, 10])
def test_cases_that_all_differ_alike_give_no_point(a: float, b: float, n: int) -> None:
    value, low, high = paired_difference(np.full(n, a), np.full(n, b), seed=0)
    assert value == a - b
    assert low <= value <= high
    assert high - low > 1 / n - 1 / n**2


def test_ten_of_ten_against_none_of_ten_has_newcombes_interval() -> None:
    # Wilson: (0.7225, 1) and (0, 0.2775); 1 - sqrt(0.2775^2 + 0.2775^2) = 0.6075.
    assert paired_difference(np.ones(10), np.zeros(10), seed=0) == pytest.approx((1, 0.6075, 1), abs=1e-4)


def test_differences_that_are_alike_but_for_rounding_give_no_point() -> None:
    first, second = numbers(0.3, 0.4, 0.9), numbers(0.2, 0.3, 0.8)
    assert 0 < np.ptp(first - second) < 1e-15
    _, low, high = paired_difference(first, second, seed=0)
    assert high - low > 0.1


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40), seed=st.integers(0, 9))
def test_a_difference_lies_in_its_interval_and_the_interval_in_minus_1_to_1(
    pairs: list[tuple[int, int]], seed: int
) -> None:
    first, second = np.array(pairs, dtype=float).T
    value, low, high = paired_difference(first, second, seed=seed)
    assert value == pytest.approx(first.mean() - second.mean())
    assert -1 - 1e-12 <= low <= value <= high <= 1 + 1e-12
    assert high > low


def share_covered(draw: Callable[[np.random.Generator], tuple[Numbers, Numbers]], truth: float) -> tuple[float, float]:
    """How often the interval holds the truth, and how often one half as wide would."""
    generator = np.random.default_rng(0)
    whole = half = 0
    for i in range(250):
        value, low, high = paired_difference(*draw(generator), seed=i)
        whole += low <= truth <= high
        half += (low + value) / 2 <= truth <= (value + high) / 2
    return whole / 250, half / 250


def test_nine_intervals_in_ten_or_more_hold_the_truth_and_half_as_wide_they_would_not() -> None:
    def draw(generator: np.random.Generator) -> tuple[Numbers, Numbers]:
        able, helped, hurt = generator.random((3, 60))
        first = (able < 0.4) | (helped < 0.25)
        second = (able < 0.4) & (hurt > 0.2)
        return first.astype(float), second.astype(float)

    whole, half = share_covered(draw, truth=0.4 + 0.6 * 0.25 - 0.4 * 0.8)
    expected = math.sqrt(0.05 * 0.95 / 250)
    assert whole >= 0.95 - 3 * expected
    assert half < 0.8


def test_an_accelerated_interval_reaches_further_to_the_long_side_than_a_percentile_one() -> None:
    skewed = np.random.default_rng(0).lognormal(size=40)
    accelerated = bca_mean(skewed, seed=0)
    low, high = (float(end[0]) for end in bootstrap_means(skewed[:, None], seed=0))
    assert accelerated is not None
    assert low < accelerated[0] < skewed.mean()
    assert high < accelerated[1]


def test_an_accelerated_interval_is_its_seeds_and_moves_with_its_numbers() -> None:
    values = np.random.default_rng(0).normal(size=30)
    found = bca_mean(values, seed=0)
    assert found is not None
    assert found == bca_mean(values, seed=0)
    assert found != bca_mean(values, seed=1)
    assert bca_mean(3 * values - 100, seed=0) == pytest.approx((3 * found[0] - 100, 3 * found[1] - 100))


def test_numbers_that_are_alike_but_for_rounding_have_no_accelerated_interval() -> None:
    assert bca_mean(numbers(0.1 + 0.2, 0.3, 0.3), seed=0) is None
    assert bca_mean(numbers(0.1, 0.3, 0.3), seed=0) is not None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=2, max_size=15))
def test_an_accelerated_interval_is_finite_and_within_the_numbers(values: list[float]) -> None:
    found = bca_mean(np.array(values), seed=0)
    if found is not None:
        assert min(values) - 1e-9 <= found[0] <= found[1] <= max(values) + 1e-9
