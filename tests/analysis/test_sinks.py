"""The sink metrics on maps small enough to compute by hand."""

from typing import Any

import numpy as np
import pytest
from xarray import DataArray

from analysis import sinks

# One head over four tokens, rows are queries; the dims of a layer and a head are left out.
MAP = np.array([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.6, 0.2, 0.2, 0], [0.1, 0.0, 0.8, 0.1]])
FIRST = DataArray([True, False, False, False], dims="key")
NONE = DataArray([False] * 4, dims="key")


def per_key(values: Any) -> DataArray:
    return DataArray(np.asarray(values, dtype=float), dims="key")


TOTAL = per_key(MAP.sum(0))  # 2.2, 0.7, 1.0, 0.1


def test_the_sink_rate_counts_prompts_and_does_not_average_them_first() -> None:
    # Means of 0.9 and 0.1 on the key would be 0.5 of attention, above the threshold: one prompt of two is.
    received = DataArray([[0.9], [0.1]], dims=("prompt", "key"))
    assert float(sinks.sink_rate(received)) == 0.5
    assert float(sinks.sink_rate(received, threshold=0.95)) == 0
    with pytest.raises(ValueError, match="beyond"):
        sinks.sink_rate(received, key=1)


def test_attention_exactly_at_the_threshold_is_no_sink() -> None:
    received = DataArray([[0.25]], dims=("prompt", "key"))
    assert float(sinks.sink_rate(received, threshold=0.25)) == 0


def test_a_sink_is_a_key_on_which_enough_of_all_heads_park_whatever_its_position() -> None:
    received = DataArray(np.zeros((2, 10, 4)), dims=("layer", "head", "key"))
    received[0, 0, 1] = 0.9  # one head of twenty
    received[1, :3, 2] = 0.9
    seen = DataArray(np.full((2, 4), 50), dims=("layer", "key"))
    assert sinks.find_sinks(received, seen, heads=0.05).values.tolist() == [False, True, True, False]
    assert sinks.find_sinks(received, seen, heads=0.1).values.tolist() == [False, False, True, False]
    assert sinks.sink_heads(received, seen).values.tolist() == [0, 0.05, 0.15, 0]


def test_a_layer_in_which_few_queries_see_a_key_does_not_make_it_a_sink() -> None:
    received = DataArray(np.full((2, 1, 2), 0.9), dims=("layer", "head", "key"))
    seen = DataArray(np.array([[40, 15], [3, 15]]), dims=("layer", "key"))
    assert sinks.find_sinks(received, seen).values.tolist() == [True, False]
    assert sinks.sink_heads(received, seen).values.tolist() == [0.5, 0]


def test_shares_are_of_the_queries_so_that_what_is_not_spent_is_missing_from_them() -> None:
    assert float(sinks.first_share(TOTAL)) == pytest.approx(2.2 / 4)
    assert float(sinks.attention_on(TOTAL, DataArray([True, False, True, False], dims="key"))) == pytest.approx(3.2 / 4)
    assert float(sinks.unspent(TOTAL)) == pytest.approx(0, abs=1e-12)
    half = TOTAL / 2
    assert float(sinks.unspent(half)) == pytest.approx(0.5)
    assert float(sinks.first_share(half)) == pytest.approx(1.1 / 4)


def test_the_contribution_weighs_the_attention_with_the_length_of_the_values() -> None:
    norms = per_key([0.1, 1, 2, 3])
    whole = 2.2 * 0.1 + 0.7 * 1 + 1.0 * 2 + 0.1 * 3
    assert float(sinks.contribution(TOTAL, norms, FIRST)) == pytest.approx(0.22 / whole)
    assert float(sinks.contribution(TOTAL, per_key([0] * 4), FIRST)) == 0
    assert float(sinks.value_ratio(norms, FIRST)) == pytest.approx(0.1 / 2)
    assert float(sinks.value_ratio(per_key([0] * 4), FIRST)) == 0  # a head that was pruned away
    assert np.isnan(sinks.value_ratio(norms, NONE))


def test_delimiters_are_weighed_among_the_keys_after_the_first() -> None:
    marks = DataArray([True, False, True, False], dims="key")
    assert float(sinks.delimiter_share(TOTAL, marks)) == pytest.approx(1.0 / 1.8)


def test_local_and_previous_shares_are_means_over_queries() -> None:
    away = np.arange(4)[:, None] - np.arange(4)
    edges = [0, 1, 2, 4]
    bins = [MAP[away == 0].sum(), MAP[away == 1].sum(), MAP[(away >= 2) & (away < 4)].sum(), 0]
    for spent in (1, 0.5):  # a histogram is of what is spent, the shares are of the queries
        distances = DataArray(np.array(bins) / MAP.sum(), dims="edge")
        distances = distances.assign_coords(edge=edges)
        near = sinks.local_share(distances, spent * TOTAL, nearest=2)
        assert float(near) == pytest.approx(spent * MAP[(away >= 0) & (away < 2)].sum() / 4)
        previous = sinks.previous_share(distances, spent * TOTAL)
        assert float(previous) == pytest.approx(spent * (0.5 + 0.2 + 0.8) / 3)
    with pytest.raises(ValueError, match="nearest is 3"):
        sinks.local_share(distances, TOTAL, nearest=3)


def test_the_distance_leaves_the_sinks_out() -> None:
    query = np.arange(4)[:, None]
    mean_query = per_key((MAP * query).sum(0) / MAP.sum(0))
    away = query - np.arange(4)
    assert float(sinks.distance(TOTAL, mean_query, NONE)) == pytest.approx((MAP * away).sum() / 4)
    kept = MAP[:, 1:]
    assert float(sinks.distance(TOTAL, mean_query, FIRST)) == pytest.approx((kept * away[:, 1:]).sum() / kept.sum())
    assert float(sinks.distance(TOTAL, mean_query, ~NONE)) == 0
