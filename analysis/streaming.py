"""How many KV heads can forget the middle of the prompt before needles are lost?

    rows = curve(points, baseline, seed=0)
    operating_point(rows)

DuoAttention (Xiao et al., ICLR 2025): KV groups that retrieve keep their whole cache, the others stream, with `sink`
keys from the start and `window` recent ones. Saved share of the cache at n prompt tokens, where f of G groups stay
whole: (1 - f / G) (1 - min(n, sink + window) / n).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from analysis.uncertainty import paired_difference, wilson
from probes.errors import HeadscopeError

MARGIN = 0.02  # of accuracy: what an operating point may lose


@dataclass(frozen=True)
class Point:
    """One cache tried: KV groups kept whole, share of the cache saved, and each needle case's result in [0, 1]."""

    full_groups: int
    saved: float
    correct: Float[np.ndarray, "case"]


@dataclass(frozen=True)
class Row:
    """A point of the curve: accuracy with Wilson's interval; its difference to the whole cache, paired by case."""

    full_groups: int
    saved: float
    accuracy: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float

    def within(self, margin: float) -> bool:
        """Is the accuracy at most `margin` below the baseline's, as measured?"""
        return self.difference >= -margin - 1e-9

    def shown(self, margin: float) -> bool:
        """Does the whole interval of the difference say so? With few cases it can't."""
        return self.difference_low >= -margin - 1e-9


def kv_saved(layers: int, kv_heads: int, full_groups: int, tokens: int, sink: int, window: int) -> float:
    """Share of the KV cache's entries that streaming groups save, in [0, 1).

    full_groups: of all layers x kv_heads groups, those that keep every key. tokens: keys in the cache; sink, window:
    keys that a streaming group keeps. Raises HeadscopeError for counts that no model or cache has.
    """
    groups = layers * kv_heads
    if min(layers, kv_heads, tokens) < 1 or min(sink, window) < 0 or sink + window < 1:
        raise HeadscopeError("Layers, KV heads, tokens and the keys that a streaming group keeps are at least 1.")
    if not 0 <= full_groups <= groups:
        raise HeadscopeError(f"{full_groups} whole groups: this model has {groups}.")
    return (1 - full_groups / groups) * (1 - min(tokens, sink + window) / tokens)


def curve(points: Sequence[Point], baseline: Float[np.ndarray, "case"], *, seed: int) -> list[Row]:
    """Accuracy over saving, the smallest saving first. baseline: the same cases with the whole cache, in [0, 1].

    Raises HeadscopeError where a point has other cases than the baseline, or a result outside [0, 1].
    """
    whole = np.asarray(baseline, dtype=float)
    rows = []
    for point in sorted(points, key=lambda point: point.saved):
        correct = np.asarray(point.correct, dtype=float)
        if correct.shape != whole.shape or not len(whole):
            raise HeadscopeError(
                f"The cache with {point.full_groups} whole groups answered {correct.size} cases, and the baseline "
                f"{whole.size}: they must be the same, and at least one."
            )
        if not all(((results >= 0) & (results <= 1)).all() for results in (correct, whole)):
            raise HeadscopeError(
                f"The result of a case lies in [0, 1], and with {point.full_groups} whole groups one does not."
            )
        accuracy = float(correct.mean())
        rows.append(
            Row(
                point.full_groups,
                point.saved,
                accuracy,
                *wilson(accuracy, len(correct)),
                *paired_difference(correct, whole, seed=seed),
            )
        )
    return rows


def operating_point(rows: Sequence[Row], *, margin: float = MARGIN) -> Row | None:
    """The largest saving whose accuracy is at most `margin` below the baseline's; None where every one loses more.

    Chosen by the measured difference: `Row.shown` says whether its interval agrees. The same cases choose it and judge
    it, so that other cases will find it a little worse.
    """
    return max((row for row in rows if row.within(margin)), key=lambda row: row.saved, default=None)
