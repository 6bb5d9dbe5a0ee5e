"""Peaks on series small enough to see, against a rule in plain loops, and how many there are in noise."""

from collections.abc import Sequence

import numpy as np
import pytest
from jaxtyping import Float
from scipy.signal import lfilter

from analysis.rhythm.peaks import PeakRule, can_peak, parse_rule, peaks
from probes.errors import HeadscopeError

ALL = PeakRule(prominence=0)
NONE = float("nan")


def found(values: Sequence[float], rule: PeakRule = ALL) -> list[int]:
    return peaks(np.array(values, dtype=float), rule).tolist()


def by_hand(values: Float[np.ndarray, "token"], rule: PeakRule) -> list[int]:
    """The rule in loops: walk from each token to either side until the ground is higher, or ends."""
    spread = np.nanstd(values)
    candidates = []
    for at, height in enumerate(values):
        right = at
        while right + 1 < len(values) and values[right + 1] == height:
            right += 1
        if not (at > 0 and right + 1 < len(values) and values[at - 1] < height and values[right + 1] < height):
            continue
        valleys = []
        for step in (-1, 1):
            lowest, place = height, at
            while 0 <= place < len(values) and values[place] <= height:  # False for NaN
                lowest, place = min(lowest, values[place]), place + step
            valleys.append(lowest)
        if height - max(valleys) >= rule.prominence * spread:
            candidates.append(at)
    kept: list[int] = []
    for at in sorted(candidates, key=lambda at: (-values[at], at)):
        if all(abs(at - other) >= rule.distance for other in kept):
            kept.append(at)
    return sorted(kept)


def test_a_peak_is_above_both_neighbours_and_the_ends_have_only_one() -> None:
    assert found([3, 1, 2, 1, 5, 4, 4.5, 0]) == [2, 4, 6]
    assert found([1, 2, 3]) == found([3, 2, 1]) == found([1, 1, 1]) == found([5]) == found([]) == []


def test_a_plateau_is_one_peak_at_its_first_token_and_a_step_is_none() -> None:
    assert found([0, 2, 2, 2, 0]) == [1]
    assert found([0, 2, 2, 3, 0]) == [3]
    assert found([0, 2, 2]) == []


def test_what_is_missing_is_no_peak_and_parts_the_series() -> None:
    assert found([0, 1, 0, NONE, 5, 0, 2, 0, NONE]) == [1, 6]
    assert found([NONE, NONE]) == []
    assert found([0, 1, float("inf"), 1, 0]) == []
    # The valley on the left of 3 ends at the gap, though the ground beyond is lower.
    values = [0, NONE, 2, 3, 0]
    spread = float(np.nanstd(values))
    assert found(values, PeakRule(prominence=0.99 / spread)) == [3]
    assert found(values, PeakRule(prominence=1.01 / spread)) == []


def test_prominence_is_counted_in_standard_deviations_so_that_the_scale_says_nothing() -> None:
    values = np.array([0, 1, 0.9, 4, 0, 2, 1.0, 3, 0])
    rule = PeakRule(prominence=0.5)
    assert peaks(values, rule).tolist() == [3, 5, 7]  # 1 rises by 0.1 only
    assert peaks(1e-6 * values + 7, rule).tolist() == [3, 5, 7]
    assert peaks(values, ALL).tolist() == [1, 3, 5, 7]


def test_of_peaks_nearer_than_the_distance_the_higher_stays_and_the_earlier_of_equals() -> None:
    values = [0, 1, 0, 3, 0, 2, 0, 0, 2, 0]
    assert found(values, PeakRule(0, distance=2)) == [1, 3, 5, 8]
    assert found(values, PeakRule(0, distance=3)) == [3, 8]
    assert found([0, 2, 0, 2, 0], PeakRule(0, distance=3)) == [1]


def test_a_top_share_keeps_only_tokens_among_the_highest() -> None:
    values = [0, 1, 0, 3, 0, 2, 0, 0, 9, 0]
    assert found(values, PeakRule(0, top_share=0.2)) == [3, 8]
    assert found(values, PeakRule(0, top_share=1)) == [1, 3, 5, 8]


@pytest.mark.parametrize("rule", [ALL, PeakRule(), PeakRule(0.5), PeakRule(0.1, distance=4), PeakRule(1, distance=2)])
def test_the_fast_peaks_are_those_of_the_rule_in_plain_loops(rule: PeakRule) -> None:
    generator = np.random.default_rng(0)
    for trial in range(30):
        values = generator.standard_normal(60).round(trial % 3)  # rounding makes plateaus and equals
        values[generator.random(60) < 0.05] = NONE
        assert peaks(values, rule).tolist() == by_hand(values, rule)
        assert can_peak(values)[peaks(values, rule)].all()


def test_a_token_beside_the_end_or_a_gap_cannot_peak() -> None:
    assert can_peak(np.array([1, 2, 3, 4, NONE, 1, 2, 3])).tolist() == [
        False, True, True, False, False, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(("memory", "all_maxima", "default"), [(0, 0.334, 0.312), (0.8, 0.267, 0.211)])
def test_about_a_fifth_of_a_correlated_series_and_a_third_of_white_noise_are_peaks(
    memory: float, all_maxima: float, default: float
) -> None:
    noise = np.random.default_rng(0).standard_normal(200_000)
    values = lfilter([1], [1, -memory], noise)
    assert len(peaks(values, ALL)) / len(values) == pytest.approx(all_maxima, abs=0.003)
    assert len(peaks(values)) / len(values) == pytest.approx(default, abs=0.003)


def test_a_rule_is_read_from_text_and_says_itself_as_such_a_text() -> None:
    assert parse_rule("prominence=0.3, distance=2") == PeakRule(0.3, 2)
    assert parse_rule("top_share=0.4") == PeakRule(top_share=0.4)
    assert parse_rule("") == PeakRule()
    assert str(PeakRule()) == "prominence=0.2,distance=1"
    for rule in (PeakRule(), PeakRule(1e-7, 3, 0.25)):
        assert parse_rule(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("height=3", "'height=3' is no part of a rule: write for example prominence="),
        ("0.3", "'0.3' is no part of a rule"),
        ("prominence=much", "prominence is 'much', and must be a number"),
        ("prominence=-1", "prominence is -1.0, and must be a number from 0"),
        ("prominence=nan", "prominence is nan"),
        ("distance=1.5", "distance is '1.5', and must be a whole number"),
        ("distance=0", "distance is 0, and must be a whole number from 1"),
        ("top_share=40", "top_share is 40.0, and must be above 0 and at most 1"),
        ("distance=2,distance=3", "distance is given twice"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_with_what_would_be_right(text: str, sentence: str) -> None:
    with pytest.raises(HeadscopeError, match=sentence):
        parse_rule(text)
