"""Ratios of sums over cases: their intervals, and the difference of two conditions on the same cases.

CHAIR, recall, F1, accuracy and mean lengths all are such ratios, so one resampling serves them. Percentile bootstrap
over cases. Where no resample differs (all captions are alike, or there is one) a bootstrap would claim certainty; a
share then gets Wilson's interval and a difference of shares Newcombe's, as elsewhere in headscope.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from analysis.uncertainty import CONFIDENCE, RESAMPLES, newcombe, wilson
from probes.errors import HeadscopeError


class Interval(NamedTuple):
    """A value and the limits of its 95 % interval."""

    value: float
    low: float
    high: float


def as_estimate(found: Interval, n: int) -> dict[str, Any]:
    """As summaries hold it; n: how many cases."""
    return {**found._asdict(), "n": n}


@dataclass(frozen=True)
class Ratio:
    """sum(part) / sum(whole) over cases, and 0 where the whole is 0.

    kind: "share" where the part is counted among the whole; "f1" for 2 hits / (2 hits + errors); "mean" for others.
    """

    part: Float[np.ndarray, "case"]
    whole: Float[np.ndarray, "case"]
    kind: Literal["share", "f1", "mean"] = "share"

    @property
    def value(self) -> float:
        return float(_divide(self.part.sum(), self.whole.sum()))

    def wilson(self) -> Interval:
        """Wilson's interval, as if everything counted were independent of the rest; a mean's is a point.

        F1 = 2 J / (1 + J) with J = hits / (hits + errors), a share of its own.
        """
        part, whole = float(self.part.sum()), float(self.whole.sum())
        if self.kind == "mean":
            return Interval(self.value, self.value, self.value)
        if self.kind == "share":
            return Interval(self.value, *wilson(self.value, round(whole)))
        union = whole - part / 2
        low, high = wilson(float(_divide(part / 2, union)), round(union))
        return Interval(self.value, 2 * low / (1 + low), 2 * high / (1 + high))


def intervals(ratios: Mapping[str, Ratio], *, seed: int) -> dict[str, Interval]:
    """Each ratio with its bootstrap interval, all from the same resamples. Raises HeadscopeError without a case."""
    resampled = _resampled(ratios, seed=seed)
    return {
        name: ratio.wilson() if _is_point(resampled[name]) else _interval(ratio.value, resampled[name])
        for name, ratio in ratios.items()
    }


def differences(treated: Mapping[str, Ratio], untreated: Mapping[str, Ratio], *, seed: int) -> dict[str, Interval]:
    """Treated minus untreated, resampled together: case i of both is the same case. Raises HeadscopeError if not."""
    after, before = _resampled(treated, seed=seed), _resampled(untreated, seed=seed)
    found = {}
    for name in treated:
        if after[name].shape != before[name].shape or _cases(treated) != _cases(untreated):
            raise HeadscopeError(
                f"There are {_cases(treated)} treated cases and {_cases(untreated)} untreated; they must be the same."
            )
        gaps = after[name] - before[name]
        value = treated[name].value - untreated[name].value
        if _is_point(gaps):
            found[name] = Interval(value, *newcombe(treated[name].wilson(), untreated[name].wilson()))
        else:
            found[name] = _interval(value, gaps)
    return found


def relative_change(treated: Ratio, untreated: Ratio, *, seed: int) -> Interval:
    """treated / untreated - 1, with its paired bootstrap interval; 0 where the untreated ratio is 0."""
    after, before = (_resampled({"ratio": ratio}, seed=seed)["ratio"] for ratio in (treated, untreated))
    value = float(_divide(treated.value - untreated.value, untreated.value))
    return _interval(value, _divide(after - before, before))


def _resampled(ratios: Mapping[str, Ratio], *, seed: int) -> dict[str, Float[np.ndarray, "resample"]]:
    n = _cases(ratios)
    if not n:
        raise HeadscopeError("There is nothing to judge: give at least one case.")
    # Counts of a resample are multinomial, so a resampled sum is one row of a matrix product.
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)
    parts = counts @ np.stack([ratio.part for ratio in ratios.values()], axis=1)
    wholes = counts @ np.stack([ratio.whole for ratio in ratios.values()], axis=1)
    return dict(zip(ratios, _divide(parts, wholes).T, strict=True))


def _cases(ratios: Mapping[str, Ratio]) -> int:
    return len(next(iter(ratios.values())).part)


def _divide(part: np.ndarray | float, whole: np.ndarray | float) -> np.ndarray:
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)


def _interval(value: float, resampled: Float[np.ndarray, "resample"]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _is_point(resampled: Float[np.ndarray, "resample"]) -> bool:
    return bool(np.ptp(resampled) < 1e-9)  # equal but for rounding is equal
