"""Over traces: does less survive at positions of high influence than at those of low influence?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import wilcoxon

from analysis.uncertainty import estimate, paired_difference, wilson

# Li et al., section 3: 70 problems of GSM8K, Qwen3-4B-Base. lower: share of traces where high lies below low.
PUBLISHED: Mapping[str, float] = {"high": 0.534, "low": 0.631, "lower": 0.8714, "n": 70}
MEASURES = ("survival", "unforced")


def perturbation_test(records: Sequence[Mapping[str, Any] | None], *, seed: int) -> dict[str, Any]:
    """The paired test over traces, of perturbation.perturb's records; those that are None are passed over.

    Returns for "plain" and "matched" and each measure: "high" and "low" (means), "difference" (high - low, with its
        paired bootstrap interval), "lower" (share of traces where high lies below low, with Wilson's interval), "ties"
        (traces where both are equal, which do not count as lower) and "p" (Wilcoxon's signed-rank test, two-sided; 1
        where all are equal). None in place of a choice that no trace has. "published": the paper's numbers.
    """
    found: dict[str, Any] = {"published": dict(PUBLISHED)}
    for choice in ("plain", "matched"):
        kept = [record[choice] for record in records if record is not None and record[choice] is not None]
        found[choice] = {measure: _paired(kept, measure, seed=seed) for measure in MEASURES} if kept else None
    return found


def _paired(kept: Sequence[Mapping[str, Any]], measure: str, *, seed: int) -> dict[str, Any]:
    high, low = (np.array([each[measure][half] for each in kept]) for half in ("high", "low"))
    value, left, right = paired_difference(high, low, seed=seed)
    lower = float((high < low).mean())
    start, stop = wilson(lower, len(kept))
    return {
        "high": estimate(high, seed=seed),
        "low": estimate(low, seed=seed),
        "difference": {"value": value, "low": left, "high": right, "n": len(kept)},
        "lower": {"value": lower, "low": start, "high": stop, "n": len(kept)},
        "ties": int((high == low).sum()),
        "p": _signed_rank(high - low),
    }


def _signed_rank(gap: Float[np.ndarray, " trace"]) -> float:
    return float(wilcoxon(gap).pvalue) if np.any(gap) else 1.0
