"""What the dashboard reads of a rhythm run."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from analysis.rhythm.head_sets import HeadSets
from analysis.rhythm.peaks import PeakRule
from analysis.rhythm.showing import chosen_sets, shown_trace
from probes.errors import HeadscopeError
from probes.heads import Head

SETS = HeadSets(local=(Head(0, 0), Head(1, 1)), global_=(Head(1, 0),))
EVERY_PEAK = PeakRule(prominence=0.0)


def arrays() -> dict[str, np.ndarray]:
    """Two layers of two heads, seven tokens. The local heads peak at token 2, the global one at 3, of horizon 1."""
    waad = np.zeros((2, 2, 7), np.float16)
    waad[0, 0, 2], waad[1, 1, 2], waad[0, 1, 5] = 4, 2, 9
    fai = np.full((2, 2, 2, 7), 0.5, np.float16)
    fai[1, 1, 0] = [0.1, 0.1, 0.1, 0.75, 0.1, 0.1, np.nan]
    return {"waad": waad, "fai": fai}


def frame(**distances: list[float]) -> pd.DataFrame:
    """Two layers of two heads, out of order."""
    rows = [
        {"layer": at // 2, "head": at % 2, "metric": metric, "value": value}
        for metric, values in distances.items()
        for at, value in enumerate(values)
    ]
    return pd.DataFrame(rows).iloc[::-1]


def test_curves_are_means_over_the_chosen_heads_and_an_anchor_follows_its_preplan_token() -> None:
    shown = shown_trace(arrays(), SETS, horizon=1, rule=EVERY_PEAK)
    np.testing.assert_allclose(shown.waad, [0, 0, 3, 0, 0, 0, 0])
    np.testing.assert_allclose(shown.fai, [0.1, 0.1, 0.1, 0.75, 0.1, 0.1, np.nan], rtol=1e-3)
    assert shown.marks.preplan == (2,)
    assert shown.marks.anchors == (3,)
    assert shown.marks.pairs == ((2, 3),)


def test_half_precision_is_left_before_the_heads_are_averaged() -> None:
    many = {"waad": np.full((1, 2, 3), 40_000, np.float16), "fai": np.zeros((1, 1, 2, 3), np.float16)}
    both = HeadSets(local=(Head(0, 0), Head(0, 1)), global_=(Head(0, 0),))
    np.testing.assert_allclose(shown_trace(many, both, horizon=0, rule=EVERY_PEAK).waad, 40_000)


def test_sets_are_chosen_by_distance_with_or_without_the_sink() -> None:
    scores = frame(distance=[1, 2, 3, 4], distance_without_sink=[4, 1, 2, 3])
    plain = chosen_sets(scores, share=0.25, layers="all", exclude_sink=False)
    without = chosen_sets(scores, share=0.25, layers="all", exclude_sink=True)
    assert (plain.local, plain.global_) == ((Head(0, 0),), (Head(1, 1),))
    assert (without.local, without.global_) == ((Head(0, 1),), (Head(0, 0),))


def test_what_a_damaged_run_lacks_is_said_in_a_sentence() -> None:
    with pytest.raises(HeadscopeError, match="no distance_without_sink"):
        chosen_sets(frame(distance=[1, 2, 3, 4]), share=0.25, layers="all", exclude_sink=True)
    with pytest.raises(HeadscopeError, match="lack WAAD or FAI"):
        shown_trace({"waad": arrays()["waad"]}, SETS, horizon=0, rule=EVERY_PEAK)
    with pytest.raises(HeadscopeError, match="lack WAAD or FAI"):
        shown_trace(arrays(), SETS, horizon=2, rule=EVERY_PEAK)
    with pytest.raises(HeadscopeError, match="L5H0 does not exist"):
        shown_trace(arrays(), HeadSets((Head(5, 0),), (Head(0, 0),)), horizon=0, rule=EVERY_PEAK)


def test_showing_a_trace_needs_no_torch() -> None:
    code = "import sys, analysis.rhythm.showing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
