"""Striking out the object words that a detector suspects: what it takes from a caption, wrong and right.

A detector's threshold is set on one half of the captions, where it may strike a hundredth of the true words, and judged
on the other: does the model invent less at the recall that it had?
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.vision.chair import CaptionCounts, chair_difference, verdict
from analysis.vision.detection import split
from analysis.vision.ratios import Ratio, as_estimate, intervals

LOST = 0.01  # share of true words that the choosing half may lose
METRICS = ("chair_i", "chair_s", "recall", "precision", "f1")


def threshold(scores: NDArray[np.float64], invented: NDArray[np.bool_], *, lost: float = LOST) -> float:
    """The lowest score above which at most `lost` of the true words lie; a word is struck above it."""
    true = np.sort(scores[~invented])
    return float(true[len(true) - 1 - int(lost * len(true))])


def judge(
    whole: Mapping[str, CaptionCounts],
    left: Mapping[str, CaptionCounts],
    struck: NDArray[np.bool_],
    invented: NDArray[np.bool_],
    captions: NDArray[Any],
    *,
    seed: int,
) -> dict[str, Any]:
    """On the judging half: shares of invented and of true words that were struck, and what changed, paired by caption.

    whole, left: counts of each caption before and after; struck, invented, captions: of each word.
    """
    there = ~split(captions, seed=seed)
    names = list(dict.fromkeys(captions[there]))
    of = np.array([captions[there] == name for name in names])
    shares = {
        kind: Ratio((of & (struck & mask)[there]).sum(1).astype(float), (of & mask[there]).sum(1).astype(float))
        for kind, mask in (("invented", invented), ("true", ~invented))
    }
    changed = chair_difference([left[name] for name in names], [whole[name] for name in names], seed=seed)
    return {
        **{kind: as_estimate(found, len(names)) for kind, found in intervals(shares, seed=seed).items()},
        "difference": {name: as_estimate(changed[name], len(names)) for name in METRICS},
        "verdict": verdict(changed).word,
    }
