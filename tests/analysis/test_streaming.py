"""The saving is what the cache no longer holds, and the operating point the largest that loses next to nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from analysis.streaming import Point, curve, kv_saved, operating_point
from probes.errors import HeadscopeError


def answers(right: int, wrong: int) -> NDArray[np.float64]:
    return np.repeat([1.0, 0.0], [right, wrong])


# What a cache saves


def test_the_saving_is_that_of_a_cache_counted_group_by_group() -> None:
    layers, kv_heads, full, tokens, sink, window = 4, 3, 5, 1000, 4, 96
    held = full * tokens + (layers * kv_heads - full) * (sink + window)
    assert kv_saved(layers, kv_heads, full, tokens, sink, window) == pytest.approx(1 - held / (12 * tokens))


def test_half_the_groups_streaming_save_nearly_half_of_a_long_prompt() -> None:
    assert kv_saved(32, 8, 128, 1_000_000, 64, 256) == pytest.approx(0.5, abs=2e-4)


@pytest.mark.parametrize("tokens", [1, 99, 100])
def test_a_prompt_within_sink_and_window_saves_nothing(tokens: int) -> None:
    assert kv_saved(4, 3, 0, tokens, 4, 96) == 0


@given(full=st.integers(0, 11), tokens=st.integers(1, 5000))
def test_fewer_whole_groups_and_longer_prompts_never_save_less(full: int, tokens: int) -> None:
    saved = kv_saved(4, 3, full, tokens, 4, 96)
    assert 0 <= saved < 1
    assert saved >= kv_saved(4, 3, full + 1, tokens, 4, 96)
    assert saved <= kv_saved(4, 3, full, tokens + 1, 4, 96)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((4, 3, 13, 100, 4, 64), "13 whole groups: this model has 12"),
        ((4, 3, -1, 100, 4, 64), "-1 whole groups"),
        ((0, 3, 0, 100, 4, 64), "at least 1"),
        ((4, 3, 0, 0, 4, 64), "at least 1"),
        ((4, 3, 0, 100, 0, 0), "at least 1"),
        ((4, 3, 0, 100, -4, 64), "at least 1"),
    ],
)
def test_counts_that_no_model_has_are_refused(arguments: tuple[int, ...], words: str) -> None:
    with pytest.raises(HeadscopeError, match=words):
        kv_saved(*arguments)


# The curve


def test_the_curve_goes_from_the_smallest_saving_and_pairs_each_point_with_the_baseline() -> None:
    baseline = answers(90, 10)
    rows = curve([Point(2, 0.8, answers(40, 60)), Point(8, 0.2, answers(88, 12))], baseline, seed=0)
    assert [row.full_groups for row in rows] == [8, 2]
    assert rows[1].accuracy == pytest.approx(0.4)
    assert rows[1].low < 0.4 < rows[1].high
    assert rows[1].difference == pytest.approx(-0.5)
    assert -0.7 < rows[1].difference_low < -0.5 < rows[1].difference_high < -0.3
    # Paired: only two cases changed, so the difference is known better than either accuracy.
    assert rows[0].difference_high - rows[0].difference_low < rows[0].high - rows[0].low


@pytest.mark.parametrize(
    ("results", "words"),
    [
        (answers(3, 1), "answered 4 cases, and the baseline 5"),
        (np.array([1, 0, 1, 0, np.nan]), "lies in"),
        (np.array([1, 0, 1, 0, 2.0]), "lies in"),
    ],
)
def test_a_point_with_other_cases_or_results_beyond_0_to_1_is_refused(results: NDArray[np.float64], words: str) -> None:
    with pytest.raises(HeadscopeError, match=words):
        curve([Point(3, 0.5, results)], answers(4, 1), seed=0)


# The operating point


def test_the_operating_point_is_the_largest_saving_within_two_points() -> None:
    baseline = answers(90, 10)
    points = [
        Point(9, 0.1, answers(90, 10)),
        Point(6, 0.4, answers(88, 12)),  # exactly two points below
        Point(4, 0.6, answers(87, 13)),
        Point(1, 0.9, answers(20, 80)),
    ]
    rows = curve(points, baseline, seed=0)
    best = operating_point(rows)
    assert best is not None
    assert best.full_groups == 6
    wider = operating_point(rows, margin=0.03)
    assert wider is not None
    assert wider.full_groups == 4
    best_of_shuffled = operating_point(rows[::-1])
    assert best_of_shuffled == best


def test_no_point_is_named_where_all_lose_more() -> None:
    assert operating_point(curve([Point(4, 0.6, answers(80, 20))], answers(90, 10), seed=0)) is None
    assert operating_point([]) is None


def test_few_cases_may_reach_the_margin_without_showing_it() -> None:
    few = curve([Point(4, 0.6, answers(9, 1))], answers(9, 1), seed=0)[0]
    assert few.within(0.02)
    assert not few.shown(0.02)
    won = curve([Point(4, 0.6, answers(700, 300))], answers(600, 400), seed=0)[0]
    assert won.within(0.02)
    assert won.shown(0.02)
