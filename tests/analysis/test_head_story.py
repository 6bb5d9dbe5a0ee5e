"""Where a head stands among all heads of its model, on tables small enough to rank by hand."""

import pandas as pd
import pytest

from analysis.head_story import alike, standing_out, standings
from probes.errors import HeadscopeError
from probes.heads import Head

HEADS = 40


def table(layers: int = 5, **metrics: list[float]) -> pd.DataFrame:
    """Heads of 8 a layer in order, a value each; low, high and n are of no matter here."""
    rows = [
        (at // 8, at % 8, metric, value, value - 0.1, value + 0.1, 3)
        for metric, values in metrics.items()
        for at, value in enumerate(values)
    ]
    assert all(len(values) == 8 * layers for values in metrics.values())
    return pd.DataFrame(rows, columns=["layer", "head", "metric", "value", "low", "high", "n"])


RISING = [float(at) for at in range(HEADS)]
MOSTLY_ZERO = [0.0] * 36 + [1.0, 1.0, 2.0, 3.0]


def test_a_place_counts_from_the_largest_and_says_how_many_heads_share_it() -> None:
    found = standings({"a": table(rising=RISING, rare=MOSTLY_ZERO)}, Head(4, 5))
    assert found[["metric", "place", "level", "of"]].values.tolist() == [["rising", 3, 1, 40], ["rare", 3, 2, 40]]
    assert found["beyond"].tolist() == pytest.approx([37 / 39, 36 / 39])


def test_a_value_that_is_missing_and_a_head_that_was_not_measured_get_no_place() -> None:
    gap = table(rising=[*RISING[:-1], float("nan")])
    assert standings({"a": gap}, Head(4, 7)).empty
    assert standings({"a": gap}, Head(0, 0))["of"].tolist() == [39]


def test_few_heads_at_either_end_stand_out_and_a_value_shared_by_many_does_not() -> None:
    both = {"a": table(rising=RISING, rare=MOSTLY_ZERO)}
    first = standing_out(standings(both, Head(4, 7)))
    assert first[["metric", "end", "from_end"]].values.tolist() == [["rising", "highest", 1], ["rare", "highest", 1]]
    second_lowest = standing_out(standings(both, Head(0, 1)))
    assert second_lowest[["metric", "end", "from_end"]].values.tolist() == [["rising", "lowest", 2]]
    assert standing_out(standings(both, Head(4, 5))).empty  # two heads are above it, and one beside it in the other


def test_a_metric_of_two_runs_stands_out_once_as_the_first_has_it() -> None:
    runs = {"a": table(rising=RISING), "b": table(rising=RISING[::-1])}
    found = standing_out(standings(runs, Head(4, 7)))
    assert found[["run", "end"]].values.tolist() == [["a", "highest"]]


def test_neighbours_are_found_over_all_runs_and_share_the_ends_where_both_stand() -> None:
    far_off = [39.0 - at for at in range(HEADS)]
    runs = {"a": table(rising=RISING), "b": table(rare=MOSTLY_ZERO), "c": table(falling=far_off)}
    near = alike(runs, Head(4, 7))
    assert near["name"].tolist()[:2] == ["L4H6", "L4H5"]
    assert near["both_highest"][0] == ("rare", "rising")
    assert near["both_lowest"][0] == ("falling",)
    assert set(near["metrics"]) == {3}
    assert alike(runs, Head(2, 0))["both_highest"][0] == ()


def test_a_metric_that_a_later_run_has_of_every_head_is_taken_from_there_and_one_of_few_heads_is_left_out() -> None:
    few = table(layers=1, rising=RISING[:8][::-1], own=RISING[:8])
    near = alike({"few": few, "all": table(rising=RISING)}, Head(0, 0))
    assert set(near["metrics"]) == {1}
    assert near["name"].tolist()[0] == "L0H1"


def test_without_a_metric_that_tells_heads_apart_there_is_a_sentence() -> None:
    with pytest.raises(HeadscopeError, match="tells its heads apart"):
        alike({"a": table(same=[1.0] * HEADS)}, Head(0, 0))
