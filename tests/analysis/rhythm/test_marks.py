"""Which preplan token leads to which anchor, on series small enough to see."""

import numpy as np
import pytest
from jaxtyping import Float

from analysis.rhythm.marks import Marks, marks
from analysis.rhythm.peaks import PeakRule
from probes.errors import HeadscopeError

ALL = PeakRule(prominence=0)


def spikes(at: list[int], n: int = 16) -> Float[np.ndarray, "token"]:
    values = np.zeros(n)
    values[at] = 1
    return values


def test_an_anchor_stands_at_its_preplan_token_or_just_after_and_not_before() -> None:
    found = marks(spikes([2, 5, 9, 13]), spikes([2, 6, 8]), ALL)
    assert found == Marks(preplan=(2, 5, 9, 13), anchors=(2, 6, 8), pairs=((2, 2), (5, 6)))
    assert found.lone_preplan == (9, 13)
    assert found.lone_anchors == (8,)


def test_the_lag_is_the_last_token_at_which_an_anchor_still_counts() -> None:
    waad, fai = spikes([3, 8]), spikes([5, 8])
    assert marks(waad, fai, ALL, lag=0).pairs == ((8, 8),)
    assert marks(waad, fai, ALL, lag=1).pairs == ((8, 8),)
    assert marks(waad, fai, ALL, lag=2).pairs == ((3, 5), (8, 8))


def test_a_preplan_token_takes_the_nearest_anchor_and_two_may_share_one() -> None:
    assert marks(spikes([3]), spikes([4, 6]), ALL, lag=3).pairs == ((3, 4),)
    assert marks(spikes([2, 4]), spikes([5]), ALL, lag=3).pairs == ((2, 5), (4, 5))


def test_the_missing_tail_of_the_influence_holds_no_anchor() -> None:
    fai = spikes([2, 14])
    fai[13:] = float("nan")
    found = marks(spikes([2, 14]), fai, ALL)
    assert found.anchors == (2,)
    assert found.lone_preplan == (14,)


def test_without_peaks_there_are_no_marks() -> None:
    assert marks(np.zeros(5), np.zeros(5)) == Marks((), (), ())
    assert marks(np.zeros(0), np.zeros(0)) == Marks((), (), ())


def test_series_of_different_responses_and_a_negative_lag_are_refused() -> None:
    with pytest.raises(HeadscopeError, match="WAAD has 5 tokens and FAI has 6"):
        marks(np.zeros(5), np.zeros(6))
    with pytest.raises(HeadscopeError, match="lag is -1"):
        marks(np.zeros(5), np.zeros(5), lag=-1)
