"""The three couplings against plain loops and enumerated chance, planted ones, and series with nothing in common."""

import json
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from jaxtyping import Float

from analysis.rhythm.couplings import PUBLISHED, Series, couplings
from analysis.rhythm.nulls import Chance, chance_of_a_peak, reached, shifted_sums
from analysis.rhythm.peaks import PeakRule, can_peak, peaks
from probes.errors import HeadscopeError

NAMES = ("entropy", "receiver", "lag")
ALL = PeakRule(prominence=0)


def noise(generator: np.random.Generator, tokens: int = 120, tail: int = 8) -> Series:
    """Series with nothing in common; the last of both kinds of FAI are missing."""
    waad, fai, receiver_fai = generator.standard_normal((3, tokens))
    fai[tokens - tail :] = receiver_fai[tokens - tail :] = np.nan
    return Series(waad, fai, generator.exponential(size=tokens), receiver_fai)


def planted(generator: np.random.Generator, tokens: int = 120) -> Series:
    """Half of the peaks of WAAD raise the entropy and make an anchor, at once or just after; receivers see FAI."""
    trace = noise(generator, tokens)
    for at in peaks(trace.waad, ALL):
        if generator.random() < 0.5:
            trace.entropy[at] += 2
            trace.fai[at + generator.integers(2)] += 4
    assert trace.receiver_fai is not None
    return Series(trace.waad, trace.fai, trace.entropy, trace.fai + 0.5 * trace.receiver_fai)


def spikes(at: list[int], n: int) -> Float[np.ndarray, "token"]:
    values = np.zeros(n)
    values[at] = 1
    return values


def shift_by_hand(first: Float[np.ndarray, "token"], second: Float[np.ndarray, "token"], lag: int) -> tuple[Any, ...]:
    """Hits, peaks, and the mean hits over all turns of the ring of places, in loops."""
    starts, targets = peaks(first, ALL).tolist(), peaks(second, ALL).tolist()
    places = [
        t
        for t in range(len(first) - lag)
        if can_peak(first)[t] and all(can_peak(second)[t + later] for later in range(lag + 1))
    ]
    starts = [t for t in starts if t in places]

    def hits(tokens: list[int]) -> int:
        return sum(any(t + later in targets for later in range(lag + 1)) for t in tokens)

    turned = [hits([places[(places.index(t) + turn) % len(places)] for t in starts]) for turn in range(len(places))]
    return hits(starts), len(starts), float(np.mean(turned))


def test_counts_and_the_null_that_keeps_gaps_are_those_of_plain_loops() -> None:
    generator = np.random.default_rng(0)
    traces = [noise(generator, tokens=int(tokens)) for tokens in generator.integers(30, 60, size=4)]
    for trace in traces:
        trace.waad[:5] = trace.waad[20] = np.nan
    found = couplings(traces, ALL, lag=2, draws=200)
    for name, lag, first in (("lag", 2, "waad"), ("receiver", 0, "receiver_fai")):
        counted = [shift_by_hand(getattr(trace, first), trace.fai, lag) for trace in traces]
        hits, starts, turned = (sum(column) for column in zip(*counted, strict=True))
        assert found[name]["observed"]["value"] == pytest.approx(hits / starts)
        shift = found[name]["nulls"]["shift"]
        assert shift["null"]["value"] == pytest.approx(turned / starts)
        assert shift["lift"]["value"] == pytest.approx(hits / turned - 1)
        assert shift["difference"]["value"] == pytest.approx((hits - turned) / starts)
        assert found[name]["peaks"] == starts


def test_scattered_peaks_follow_as_often_as_all_ways_to_scatter_them_say() -> None:
    # Three peaks of FAI on the places 1 to 8 of ten tokens, two of WAAD at 2 and 5.
    waad, fai = spikes([2, 5], 10), spikes([1, 3, 8], 10)
    found = couplings([Series(waad, fai, np.ones(10))], ALL, lag=1, draws=200)["lag"]
    ways = list(combinations(range(1, 9), 3))
    share = np.mean([np.mean([t in way or t + 1 in way for t in (2, 5)]) for way in ways])
    assert found["observed"]["value"] == 0.5  # at 3, just after 2
    assert set(found["nulls"]) == {"shuffle", "shift"}  # a share of single tokens says nothing of a window
    assert found["null"]["value"] == pytest.approx(share)
    assert found["lift"]["value"] == pytest.approx(0.5 / share - 1)


def test_a_window_longer_than_the_free_places_always_holds_a_peak() -> None:
    assert chance_of_a_peak(5, 3, 3) == 1
    assert chance_of_a_peak(5, 0, 3) == chance_of_a_peak(0, 0, 2) == 0
    assert chance_of_a_peak(5, 2, 1) == pytest.approx(2 / 5)


def test_a_shift_turns_the_whole_train_and_keeps_its_gaps() -> None:
    values = np.array([3.0, 0, 5, 1, 0, 0, 7])
    train = np.array([1, 2, 5])
    assert shifted_sums(train, values) == pytest.approx([values[(train + shift) % 7].sum() for shift in range(7)])


def test_scattered_peaks_keep_their_count_whatever_is_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.rhythm.nulls.MOST_DRAWN", 25)
    chance = Chance(500, np.random.default_rng(0))
    thrown = chance.scattered(10, 3, lambda thrown: thrown.astype(float))
    assert thrown.shape == (500, 10)
    assert (thrown.sum(-1) == 3).all()
    assert thrown.mean(0) == pytest.approx(np.full(10, 0.3), abs=0.08)


def test_a_draw_that_equals_the_observed_sum_but_for_rounding_reaches_it() -> None:
    assert reached(0.3, np.array([0.1 + 0.2 - 1e-12, 0.2, 0.29, 0.31])) == 3 / 5
    assert reached(1.0, np.zeros(9)) == 1 / 10


def test_the_entropy_at_peaks_is_held_against_each_traces_own_mean_weighed_by_its_peaks() -> None:
    first = Series(spikes([2, 4], 7), np.zeros(7), np.array([9, 1, 4, 1, 2, 2, 9.0]))
    second = Series(spikes([2], 5), np.zeros(5), np.array([9, 1, 6, 5, 9.0]))
    found = couplings([first, second], ALL, draws=200)["entropy"]
    assert found["observed"]["value"] == pytest.approx((4 + 2 + 6) / 3)
    assert found["null"]["value"] == pytest.approx((2 * (1 + 4 + 1 + 2 + 2) / 5 + (1 + 6 + 5) / 3) / 3)
    assert found["nulls"]["shift"]["null"] == found["nulls"]["shuffle"]["null"]
    assert found["places"] == 5 + 3


def test_receivers_are_held_against_the_share_of_tokens_that_are_peaks_as_in_the_paper() -> None:
    fai, receiver = spikes([2, 4], 12), spikes([4, 7], 12)
    receiver[10:] = np.nan
    found = couplings([Series(np.zeros(12), fai, np.ones(12), receiver)], ALL, draws=200)["receiver"]
    assert found["against"] == "tokens"
    assert found["observed"]["value"] == 0.5
    assert found["null"]["value"] == pytest.approx(2 / 10)  # of the tokens that could be a peak
    assert found["nulls"]["shuffle"]["null"]["value"] == pytest.approx(2 / 10)
    assert found["places"] == 8  # where both could be


def test_the_drawn_nulls_lie_around_the_ones_in_closed_form() -> None:
    generator = np.random.default_rng(1)
    found = couplings([noise(generator) for _ in range(10)], draws=2000)
    for name in NAMES:
        for null in ("shuffle", "shift"):
            block = found[name]["nulls"][null]
            low, high = block["range"]
            assert low < block["null"]["value"] < high
            assert (low + high) / 2 == pytest.approx(block["null"]["value"], rel=0.03)


def test_planted_couplings_are_found() -> None:
    generator = np.random.default_rng(2)
    found = couplings([planted(generator) for _ in range(20)], draws=500)
    for name in NAMES:
        assert found[name]["lift"]["low"] > 0.1
        for null in ("shuffle", "shift"):
            assert found[name]["nulls"][null]["lift"]["low"] > 0.1
            assert found[name]["nulls"][null]["p"] == pytest.approx(1 / 501)  # no draw reaches it
    assert found["peaks"]["traces"] == 20
    assert found["peaks"]["tokens"] == 20 * 120


def test_series_with_nothing_in_common_show_no_lift() -> None:
    covered: dict[str, int] = dict.fromkeys(NAMES, 0)
    surprising: dict[str, int] = dict.fromkeys(NAMES, 0)
    for seed in range(12):
        generator = np.random.default_rng(seed)
        found = couplings([noise(generator) for _ in range(25)], draws=200, seed=seed)
        for name in NAMES:
            shift = found[name]["nulls"]["shift"]
            covered[name] += shift["lift"]["low"] <= 0 <= shift["lift"]["high"]
            surprising[name] += shift["p"] < 0.1
    assert all(count >= 9 for count in covered.values()), covered  # 11 of 12 are expected
    assert all(count <= 4 for count in surprising.values()), surprising  # 1 of 12 is expected


def test_gaps_alone_lift_the_lag_above_scattered_peaks_and_not_above_those_that_keep_them() -> None:
    generator = np.random.default_rng(3)
    found = couplings([noise(generator) for _ in range(60)], draws=200)["lag"]
    assert found["nulls"]["shuffle"]["lift"]["low"] > 0.05
    assert found["nulls"]["shift"]["lift"]["low"] < 0 < found["nulls"]["shift"]["lift"]["high"]


def test_peaks_whose_following_tokens_have_no_influence_are_left_out() -> None:
    fai = spikes([2], 9)
    fai[6:] = np.nan
    found = couplings([Series(spikes([2, 4, 7], 9), fai, np.ones(9))], ALL, draws=200)["lag"]
    assert (found["peaks"], found["places"]) == (
        1,
        3,
    )  # 5, the last with FAI, can be no peak: neither 4 nor 7 is judged
    assert found["observed"]["value"] == 1


def test_a_single_trace_claims_no_certainty() -> None:
    found = couplings([noise(np.random.default_rng(4))], draws=200)
    for name in ("receiver", "lag"):
        for key in ("observed", "difference", "lift"):
            assert found[name][key]["low"] < found[name][key]["value"] < found[name][key]["high"]
            assert found[name][key]["n"] == 1


def test_what_cannot_be_judged_is_none_and_the_counts_say_why() -> None:
    flat = np.zeros(20)
    found = couplings([Series(flat, flat, flat)], draws=200)
    assert [found[name] for name in NAMES] == [None] * 3
    assert found["peaks"] == {"waad": 0, "fai": 0, "receiver_fai": 0, "tokens": 20, "traces": 1}
    found = couplings([Series(spikes([4], 20), flat, flat + 1)], draws=200)
    assert found["entropy"] is not None
    assert found["lag"] is None


def test_the_result_is_plain_data_without_gaps_and_the_same_for_the_same_seed() -> None:
    generator = np.random.default_rng(5)
    traces = [noise(generator) for _ in range(5)] + [noise(generator, tokens=6), noise(generator, tokens=1, tail=0)]
    first = couplings(traces, draws=200, seed=1)
    assert json.loads(json.dumps(first, allow_nan=False)) == couplings(traces, draws=200, seed=1) == first
    assert first["lag"]["p"] != couplings(traces, draws=200, seed=2)["lag"]["p"]


def test_the_published_lifts_are_those_of_the_published_numbers() -> None:
    for numbers in PUBLISHED["Qwen3-4B-Base, GSM8K"].values():
        observed, null, lift = numbers["observed"], numbers["null"], numbers["lift"]
        assert observed is not None
        assert null is not None
        assert lift == pytest.approx(observed / null - 1, abs=5e-4)


def test_nothing_to_judge_is_refused() -> None:
    flat = np.zeros(5)
    with pytest.raises(HeadscopeError, match="at least one trace"):
        couplings([])
    with pytest.raises(HeadscopeError, match="lag is -1"):
        couplings([Series(flat, flat, flat)], lag=-1)
    with pytest.raises(HeadscopeError, match="draws is 0"):
        couplings([Series(flat, flat, flat)], draws=0)
    with pytest.raises(HeadscopeError, match="differ in length"):
        Series(flat, flat, np.zeros(4))
