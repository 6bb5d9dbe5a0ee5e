"""A comparison is paired, says what it can't tell, and blames no intervention for what random heads do too."""

import json
import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest

from analysis.comparison import Change, Comparison, compare, holm, minimum_detectable
from probes.errors import HeadscopeError

Numbers = NDArray[np.float64]


def answers(right: int, wrong: int) -> Numbers:
    return np.repeat([1.0, 0.0], [right, wrong])


def shares(baseline: Any, treated: Any, controls: Any = None, **options: Any) -> Comparison:
    return compare(baseline, treated, controls, **{"bounded": True, "better": "higher", "seed": 0, **options})


def losses(baseline: Any, treated: Any, controls: Any = None, **options: Any) -> Comparison:
    return compare(baseline, treated, controls, **{"bounded": False, "better": "lower", "seed": 0, **options})


def part(change: Change | None) -> Change:
    assert change is not None
    return change


def warned(found: Comparison, words: str) -> bool:
    return any(words in sentence for sentence in found.warnings)


# Tests


def test_mcnemar_is_the_sign_test_of_the_examples_that_changed() -> None:
    # 8 answers lost, 1 won, 31 alike: p = 2 (C(9,0) + C(9,1)) / 2^9 = 20 / 512.
    baseline = answers(38, 2)
    treated = baseline.copy()
    treated[:8], treated[38] = 0, 1
    found = shares(baseline, treated).treated_to_baseline
    assert found.test == "McNemar exact"
    assert found.p == pytest.approx(20 / 512)
    assert (found.improved, found.worsened, found.unchanged) == (1, 8, 31)
    assert found.difference.value == pytest.approx(-7 / 40)
    assert found.effect == pytest.approx(1 / 9 - 1 / 2)


def test_a_sign_flip_test_counts_the_flips_whose_mean_is_as_far_from_nought() -> None:
    gap = np.array([3.0, 1.0, 2.0, -1.0, 0.5, 2.0])
    found = losses(np.zeros(6), gap).treated_to_baseline
    flipped = [abs(np.dot(signs, gap)) for signs in product((-1, 1), repeat=6)]
    assert found.test == "sign-flip permutation"
    assert found.p == pytest.approx(np.mean(np.array(flipped) >= gap.sum() - 1e-9))
    assert found.effect == pytest.approx(gap.mean() / gap.std(ddof=1))


def test_pairing_finds_a_small_change_that_the_spread_of_the_examples_would_hide() -> None:
    generator = np.random.default_rng(0)
    baseline = generator.normal(0, 10, 40)
    found = losses(baseline, baseline + 0.1 + generator.normal(0, 0.05, 40))
    low, high = found.treated_to_baseline.difference.low, found.treated_to_baseline.difference.high
    assert low is not None
    assert high is not None
    assert 0 < low < high < 0.2
    assert found.treated_to_baseline.p < 0.001
    assert found.baseline.high is not None
    assert found.baseline.low is not None
    assert found.baseline.high - found.baseline.low > 1


def test_a_better_answer_is_a_higher_share_but_a_lower_loss() -> None:
    old, new = np.array([0.2, 0.2, 0.5]), np.array([0.4, 0.3, 0.1])
    higher = shares(old, new).treated_to_baseline
    lower = shares(old, new, better="lower").treated_to_baseline
    assert (higher.improved, higher.worsened) == (2, 1)
    assert (lower.improved, lower.worsened) == (1, 2)
    assert higher.difference == lower.difference


def test_half_marks_are_not_given_to_mcnemar() -> None:
    assert shares([1, 0, 0.5], [0, 0, 1]).treated_to_baseline.test == "sign-flip permutation"


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=4, max_size=4), min_size=2, max_size=12),
    bounded=st.booleans(),
)
def test_every_result_is_json_without_nan_and_every_estimate_lies_in_its_interval(
    rows: list[list[float]], bounded: bool
) -> None:
    baseline, treated, *controls = np.array(rows).T
    found = compare(baseline, treated, np.array(controls), bounded=bounded, better="higher", seed=0)
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    changes = [plain[name] for name in ("treated_to_baseline", "control_to_baseline", "treated_to_control")]
    for one in [plain["baseline"], plain["treated"], plain["control"], *(change["difference"] for change in changes)]:
        if one["low"] is not None:
            assert one["low"] - 1e-9 <= one["value"] <= one["high"] + 1e-9
    for change in changes:
        assert 0 < change["p"] <= 1
        assert change["improved"] + change["worsened"] + change["unchanged"] == len(rows)


def test_about_95_in_100_intervals_hold_the_difference_and_about_5_in_100_tests_cry_wolf() -> None:
    generator = np.random.default_rng(0)
    repeats, covered, wolf = 120, 0, 0
    for seed in range(repeats):
        baseline = generator.normal(size=60)
        noise = generator.normal(size=60)
        found = losses(baseline, baseline + noise, seed=seed).treated_to_baseline
        low, high = found.difference.low, found.difference.high
        assert low is not None
        assert high is not None
        covered += low <= 0 <= high
        wolf += found.p < 0.05
    chance = math.sqrt(0.05 * 0.95 / repeats)
    assert 0.95 - 3 * chance <= covered / repeats < 1
    assert 0 < wolf / repeats <= 0.05 + 3 * chance


# Controls


def test_the_control_is_the_mean_over_its_sets_example_by_example() -> None:
    baseline, treated = answers(9, 1), answers(2, 8)
    controls = np.stack([answers(9, 1), answers(8, 2), answers(7, 3)])
    found = shares(baseline, treated, controls)
    assert found.control is not None
    assert found.control.value == pytest.approx(0.8)
    assert part(found.control_to_baseline).difference.value == pytest.approx(-0.1)
    assert part(found.treated_to_control).difference.value == pytest.approx(-0.6)
    assert part(found.control_to_baseline).worsened == 2  # one by a third, one by two thirds
    assert found.spread is not None
    assert (found.spread.lowest, found.spread.highest) == pytest.approx((0.7, 0.9))


def test_the_treated_heads_rank_among_the_random_sets_by_how_far_they_move_the_mean() -> None:
    baseline = answers(10, 10)
    down, up, little = answers(4, 16), answers(17, 3), answers(9, 11)
    first = shares(baseline, down, np.stack([little] * 4)).spread
    assert first is not None
    assert (first.rank, first.p, first.p_floor) == (1, 0.2, 0.2)
    # A set that moves it further, though the other way, and one that moves it as far.
    third = shares(baseline, down, np.stack([little, up, down])).spread
    assert third is not None
    assert (third.rank, third.p, third.p_floor) == (3, 0.75, 0.25)


def test_the_order_of_the_sets_changes_nothing() -> None:
    generator = np.random.default_rng(0)
    baseline, treated = generator.random((2, 20))
    controls = generator.random((5, 20))
    one, other = shares(baseline, treated, controls), shares(baseline, treated, controls[[3, 1, 4, 0, 2]])
    assert one.spread == other.spread
    assert part(one.treated_to_control).difference.value == pytest.approx(
        part(other.treated_to_control).difference.value
    )
    assert part(one.treated_to_control).p == pytest.approx(part(other.treated_to_control).p, abs=0.002)


def test_a_random_set_in_the_place_of_the_treated_ranks_evenly() -> None:
    generator = np.random.default_rng(0)
    ranks = []
    for _ in range(40):
        means = generator.random(4)
        values = (generator.random((4, 12)) + means[:, None]) / 2
        spread = shares(np.full(12, 0.5), values[0], values[1:]).spread
        assert spread is not None
        ranks.append(spread.rank)
    assert min(np.bincount(ranks, minlength=5)[1:]) >= 4  # 10 expected of each


def test_without_controls_nothing_is_said_of_them() -> None:
    found = shares([1, 1, 0], [0, 1, 0])
    assert (found.control, found.control_to_baseline, found.treated_to_control, found.spread) == (None,) * 4


# Warnings


def test_a_clear_result_on_many_examples_is_not_warned_of() -> None:
    baseline, treated = answers(80, 20), answers(30, 70)
    assert shares(baseline, treated, np.stack([baseline, answers(79, 21)])).warnings == []


def test_few_examples_without_a_difference_are_told_what_they_could_find() -> None:
    found = shares(answers(8, 2), answers(7, 3))
    least = minimum_detectable(10, 0.8)
    assert least is not None
    assert warned(found, f"10 examples are too few to exclude one: only one of {least:.2f}")
    assert not warned(shares(answers(800, 200), answers(799, 201)), "too few")
    assert not warned(shares(answers(9, 1), answers(1, 9)), "too few")


def test_three_examples_are_told_that_they_find_nothing() -> None:
    assert warned(shares([1, 1, 0], [0, 1, 0]), "not even the largest")


def test_few_losses_are_told_the_smallest_difference_in_their_own_unit() -> None:
    gap = np.tile([-1.0, 1.0], 8)
    # (1.960 + 0.842) sd / sqrt(16), sd = sqrt(16 / 15).
    assert warned(losses(np.zeros(16), gap), "only one of 0.723")
    assert not warned(losses(np.zeros(64), np.tile(gap, 4)), "too few")


def test_a_baseline_at_its_ceiling_or_floor_is_named() -> None:
    assert warned(shares(answers(40, 0), answers(20, 20)), "ceiling (1.00): only a fall")
    assert warned(shares(answers(1, 39), answers(20, 20)), "floor (0.03): only a rise")
    middling = shares(answers(30, 10), answers(10, 30))
    assert not warned(middling, "ceiling")
    assert not warned(middling, "floor")
    assert not warned(losses(np.full(10, 0.99), np.arange(10.0)), "ceiling")


def test_random_heads_that_do_harm_are_named_and_harmless_ones_are_not() -> None:
    baseline, treated = answers(30, 10), answers(5, 35)
    assert warned(
        shares(baseline, treated, np.stack([answers(10, 30)] * 3)), "Random heads change the result too, by -0.5"
    )
    assert not warned(shares(baseline, treated, np.stack([answers(29, 11)] * 3)), "Random heads")


def test_an_intervention_that_changes_no_example_is_suspected_not_to_have_run() -> None:
    assert warned(shares(answers(5, 5), answers(5, 5)), "All 10 examples are the same")
    assert not warned(shares(answers(5, 5), answers(4, 6)), "are the same")


def test_losses_that_all_rise_alike_have_no_interval_rather_than_a_point() -> None:
    found = losses(np.zeros(6), np.full(6, 0.5)).treated_to_baseline
    assert (found.difference.value, found.difference.low, found.difference.high) == (0.5, None, None)
    assert found.effect is None


# Refusals


@pytest.mark.parametrize(
    ("baseline", "treated", "controls", "words"),
    [
        ([1, np.nan], [1, 0], None, "baseline: 1 of 2 values are NaN"),
        ([1, 0], [np.inf, 0], None, "treated: 1 of 2 values are NaN or infinite"),
        ([1, 0], [1, 0], [[1, 0], [np.nan, 0]], "controls: 1 of 2 values are NaN"),
        ([1, 0], [1, 0, 1], None, "treated: 3 examples, and the baseline has 2"),
        ([1, 0], [1, 0], [[1, 0, 1]], "controls: 3 examples"),
        ([1, 0], [1, 0], [1, 0], "controls: a comparison takes one number"),
        ([1, 0], [1, 0], [], "controls: no set of random heads"),
        ([1], [0], None, "baseline: a comparison takes one number for each of at least 2"),
        ([1, 0], [2, 0], None, "treated: bounded values lie in \\[0, 1\\], and these reach 0 to 2"),
    ],
)
def test_what_can_not_be_compared_is_refused_by_name(baseline: Any, treated: Any, controls: Any, words: str) -> None:
    with pytest.raises(HeadscopeError, match=words):
        shares(baseline, treated, controls)


# Several comparisons


def test_holms_steps_are_those_of_the_paper() -> None:
    # Sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .04, never below the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == pytest.approx([1, 1])
    assert len(holm([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferronis(p: list[float]) -> None:
    corrected = holm(p)
    assert (corrected >= np.array(p) - 1e-12).all()
    assert (corrected <= np.minimum(1, len(p) * np.array(p)) + 1e-12).all()


@pytest.mark.parametrize("p", [[0.5, 1.2], [-0.1], [math.nan]])
def test_what_is_no_p_value_is_not_corrected(p: list[float]) -> None:
    with pytest.raises(HeadscopeError, match="between 0 and 1"):
        holm(p)


# What n examples can find


@pytest.mark.parametrize(("n", "share"), [(50, 0.9), (200, 0.5), (100, 1.0)])
def test_mcnemar_finds_the_minimum_detectable_difference_four_times_in_five(n: int, share: float) -> None:
    least = minimum_detectable(n, share)
    assert least is not None
    generator = np.random.default_rng(0)
    old = generator.random((400, n)) < share
    new = generator.random((400, n)) < share - least
    lost, won = (old & ~new).sum(1), (~old & new).sum(1)
    power = np.mean([binomtest(int(a), int(a + b)).pvalue < 0.05 for a, b in zip(lost, won, strict=True)])
    assert 0.72 <= power <= 0.86


def test_more_examples_find_less_and_a_fall_from_p_is_a_rise_from_1_minus_p() -> None:
    found = [minimum_detectable(n, 0.8) for n in (10, 40, 160, 640)]
    assert all(one is not None for one in found)
    assert found == sorted(found, key=lambda one: -(one or 0))
    assert minimum_detectable(100, 0.8) == pytest.approx(minimum_detectable(100, 0.2))


def test_a_handful_of_examples_finds_no_difference_at_all() -> None:
    assert minimum_detectable(3, 1.0) is None
    assert minimum_detectable(2, 0.5) is None


@pytest.mark.parametrize(("n", "share"), [(0, 0.5), (10, 1.1), (10, math.nan)])
def test_a_share_outside_0_to_1_or_no_examples_are_refused(n: int, share: float) -> None:
    with pytest.raises(HeadscopeError, match="lies in"):
        minimum_detectable(n, share)
