"""Heads as points: filters, differences, neighbours and steps, on numbers small enough to check by hand.

pytest tests/analysis/test_head_space.py
"""

import math

import pandas as pd
import pytest

from analysis import head_space
from analysis.head_space import Limit
from probes.errors import HeadscopeError
from probes.heads import Head


def run_of(values: dict[str, list[float]], *, heads: int = 2, half: float = 0.1, n: int = 10) -> pd.DataFrame:
    """A run's table: for each metric the heads' values, layer by layer, each with an interval of +- half."""
    rows = [
        (place // heads, place % heads, metric, value, value - half, value + half, n)
        for metric, found in values.items()
        for place, value in enumerate(found)
    ]
    return pd.DataFrame(rows, columns=["layer", "head", "metric", "value", "low", "high", "n"])


NAMES = ["L0H0", "L0H1", "L1H0", "L1H1"]


def test_limits_on_several_metrics_keep_only_heads_that_meet_all_of_them():
    frame = run_of({"a": [0.1, 0.5, 0.9, 0.7], "b": [9, 9, 1, 9]})
    assert head_space.within(frame, [Limit("a", low=0.5)]) == {"L0H1", "L1H0", "L1H1"}
    assert head_space.within(frame, [Limit("a", low=0.5, high=0.7), Limit("b", low=2)]) == {"L0H1", "L1H1"}
    assert head_space.within(frame, []) == set(NAMES)


def test_a_limit_on_a_metric_that_the_run_lacks_names_those_it_has():
    with pytest.raises(HeadscopeError, match=r"'c'.*a, b"):
        head_space.within(run_of({"a": [0] * 4, "b": [1] * 4}), [Limit("c")])


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("L1H0", {"L1H0"}),
        ("l1", {"L1H0", "L1H1"}),
        ("H1", {"L0H1", "L1H1"}),
        ("L0H0, L1", {"L0H0", "L1H0", "L1H1"}),
        ("", set(NAMES)),
    ],
)
def test_a_text_names_a_head_a_layer_or_one_head_of_every_layer(text, kept):
    assert head_space.named(NAMES, text) == kept


@pytest.mark.parametrize(("text", "sentence"), [("layer 3", "names no heads"), ("L9", "L9 does not exist.*L1H1")])
def test_a_text_that_names_no_head_gets_a_sentence(text, sentence):
    with pytest.raises(HeadscopeError, match=sentence):
        head_space.named(NAMES, text)


def test_layer_1_does_not_stand_for_layer_10():
    assert head_space.named(["L1H0", "L10H0", "L10H1"], "L1") == {"L1H0"}


def test_a_difference_is_first_minus_second_with_the_two_intervals_added_in_squares():
    first, second = run_of({"a": [0.9, 0.5, 0.5, 0.5]}, half=0.03), run_of({"a": [0.5, 0.5, 0.52, 0.5]}, half=0.04)
    table = head_space.differences(first, second, "a").set_index("name")
    assert table.loc["L0H0", "value"] == pytest.approx(0.4)
    assert table.loc["L0H0", "low"] == pytest.approx(0.4 - math.hypot(0.03, 0.04))
    assert table.loc["L0H0", "high"] == pytest.approx(0.4 + math.hypot(0.03, 0.04))
    assert table.loc["L1H0", "value"] == pytest.approx(-0.02)
    assert dict(table["apart"]) == {"L0H0": True, "L0H1": False, "L1H0": False, "L1H1": False}


def test_a_difference_without_an_interval_in_one_run_has_none_and_claims_nothing():
    first, second = run_of({"a": [0.9] * 4}), run_of({"a": [0.1] * 4}).assign(low=None, high=None)
    table = head_space.differences(first, second, "a")
    assert table["low"].isna().all()
    assert not table["apart"].any()


def test_runs_of_models_of_other_sizes_are_refused_in_a_sentence():
    with pytest.raises(HeadscopeError, match="same size"):
        head_space.differences(run_of({"a": [0] * 4}), run_of({"a": [0] * 6}), "a")


def test_two_metrics_stand_side_by_side_by_head_whatever_the_order_of_rows():
    first = run_of({"a": [1, 2, 3, 4]})
    second = run_of({"b": [10, 20, 30, 40]}).sample(frac=1, random_state=0)
    table = head_space.joined(first, "a", second, "b")
    assert list(table["name"]) == NAMES
    assert list(table["x"] * 10) == list(table["y"])


def test_neighbours_are_near_by_rank_so_that_no_metrics_scale_decides():
    # By value b would decide alone (thousands); by rank L0H1 is next to L0H0 on both metrics.
    frame = run_of({"a": [0.1, 0.2, 0.3, 0.4], "b": [1000, 5000, 6000, 1001], "same": [7, 7, 7, 7]})
    table = head_space.nearest(head_space.ranks(frame), Head(0, 0))
    # ranks of a: 0, 1/3, 2/3, 1; of b: 0, 2/3, 1, 1/3
    expected = {
        "L0H1": math.sqrt((1 / 9 + 4 / 9) / 2),
        "L1H1": math.sqrt((1 + 1 / 9) / 2),
        "L1H0": math.sqrt((4 / 9 + 1) / 2),
    }
    assert list(table["name"]) == list(expected)
    assert list(table["distance"]) == pytest.approx(list(expected.values()))
    assert list(head_space.nearest(head_space.ranks(frame), Head(0, 0), count=1)["name"]) == ["L0H1"]


def test_neighbours_leave_out_a_metric_that_some_heads_lack():
    frame = run_of({"a": [0.1, 0.2, 0.3, 0.4], "part": [0, 1, 1, 0]})
    frame = frame.drop(frame.index[-1])
    alone = run_of({"a": [0.1, 0.2, 0.3, 0.4]})
    pd.testing.assert_frame_equal(
        head_space.nearest(head_space.ranks(frame), Head(0, 0)), head_space.nearest(head_space.ranks(alone), Head(0, 0))
    )


def test_neighbours_of_a_head_that_is_not_there_or_among_equal_heads_get_a_sentence():
    with pytest.raises(HeadscopeError, match="L9H0 does not exist"):
        head_space.nearest(head_space.ranks(run_of({"a": [1, 2, 3, 4]})), Head(9, 0))
    with pytest.raises(HeadscopeError, match="tells its heads apart"):
        head_space.nearest(head_space.ranks(run_of({"a": [1, 1, 1, 1]})), Head(0, 0))


def test_steps_stay_in_the_layer_sideways_and_go_to_the_next_layer_that_has_a_head_up_and_down():
    names = ["L0H0", "L0H3", "L4H1", "L4H2", "L9H9"]
    assert head_space.step(names, "L0H0", "right") == "L0H3"
    assert head_space.step(names, "L0H0", "left") is None
    assert head_space.step(names, "L0H3", "down") == "L4H2"  # the nearest head of that layer
    assert head_space.step(names, "L4H1", "up") == "L0H0"
    assert head_space.step(names, "L9H9", "down") is None
    assert head_space.step(names, "L2H1", "down") == "L4H1"  # from a head that a filter has left out
