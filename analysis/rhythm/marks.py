"""Preplan and anchor tokens of one trace: where the model looks far back, and what later reasoning leans on.

    found = marks(waad, fai)
    found.pairs                                     # ((12, 12), (20, 21), ...)

A preplan token is a peak of WAAD: local heads reach far back as a phrase begins. An anchor token is a peak of FAI:
later tokens attend to it. Li et al. (arXiv 2510.13554) find the second at the first or just after it, and their tables
count "just after" as one token.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from analysis.rhythm.peaks import PeakRule, peaks
from probes.errors import HeadscopeError

LAG = 1  # tokens after a preplan token at which an anchor still is its anchor


@dataclass(frozen=True)
class Marks:
    """Indices into the response, from 0, in order.

    preplan: all peaks of WAAD. anchors: all peaks of FAI.
    pairs: (preplan token, anchor token), a pair for each preplan token that has an anchor; anchors may be shared.
    """

    preplan: tuple[int, ...]
    anchors: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]

    @property
    def lone_preplan(self) -> tuple[int, ...]:
        """Preplan tokens without an anchor."""
        return tuple(sorted(set(self.preplan) - {preplan for preplan, _ in self.pairs}))

    @property
    def lone_anchors(self) -> tuple[int, ...]:
        """Anchor tokens that no preplan token leads to."""
        return tuple(sorted(set(self.anchors) - {anchor for _, anchor in self.pairs}))


def marks(
    waad: Float[np.ndarray, "token"], fai: Float[np.ndarray, "token"], rule: PeakRule | None = None, *, lag: int = LAG
) -> Marks:
    """Peaks of both series of a trace, and each preplan token with the nearest anchor 0 to `lag` tokens after it.

    waad: tokens, in [0, window]; fai: mean attention received; both one number for each token of the response, NaN
        where there is none.
    Raises HeadscopeError where the series differ in length, or the lag is negative.
    """
    check_lag(lag)
    if len(waad) != len(fai):
        raise HeadscopeError(f"WAAD has {len(waad)} tokens and FAI has {len(fai)}; both must be of the same response.")
    preplan, anchors = peaks(waad, rule), peaks(fai, rule)
    nearest = np.searchsorted(anchors, preplan)  # the first anchor that does not come before
    pairs = [
        (int(token), int(anchors[at]))
        for token, at in zip(preplan, nearest, strict=True)
        if at < len(anchors) and anchors[at] - token <= lag
    ]
    return Marks(tuple(preplan.tolist()), tuple(anchors.tolist()), tuple(pairs))


def check_lag(lag: int) -> None:
    """Raises HeadscopeError for a negative lag."""
    if lag < 0:
        raise HeadscopeError(f"The lag is {lag} tokens, and must be 0 or more.")
