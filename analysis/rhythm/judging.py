"""From what was counted in each trace to a coupling: observed, what chance gives, lift, intervals over traces."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from analysis.rhythm.nulls import reached
from analysis.uncertainty import CONFIDENCE
from analysis.vision.ratios import Interval, Ratio, as_estimate, differences, intervals, relative_change


@dataclass(frozen=True)
class Counted:
    """One trace.

    read: sum of what is read at its peaks: entropy in nats, or 1 where another peak is found. peaks: how many.
    places: tokens where such a peak could stand.
    expected: the sum that chance gives in the mean, by the name of the null; drawn: the sums of its draws.
    targets: peaks that are looked for; room: tokens where they could stand.
    """

    read: float
    peaks: int
    places: int
    expected: dict[str, float]
    drawn: dict[str, Float[np.ndarray, "draw"]] = field(repr=False)
    targets: int = 0
    room: int = 0


def coupling(
    counted: Sequence[Counted], *, kind: Literal["mean", "share"], against: str = "shuffle", seed: int
) -> dict[str, Any] | None:
    """One coupling, pooled over the traces that have a peak; None where none has, or none of a share's targets.

    observed, null, lift = observed / null - 1, difference = observed - null: {"value", "low", "high", "n"}, with
        percentile bootstrap intervals over n traces. A single trace has no spread over traces: a share then gets
        Wilson's interval and an entropy a point.
    p: how often chance reaches what was observed, one-sided, in the draws of "shuffle".
    nulls: the same for each null, "shuffle" and "shift", and the "range" in which 95 % of its draws lie.
    against: the null that stands above. "tokens" is the share of tokens that are targets, without draws.
    peaks, places, tokens: as in Counted, summed.
    """
    traces = [trace for trace in counted if trace.peaks]
    if not traces or (kind == "share" and not any(trace.targets for trace in traces)):
        return None
    observed = Ratio(_column(traces, "read"), _column(traces, "peaks"), kind)
    nulls = {
        name: _against(observed, null, seed=seed) | _draws(traces, name, observed)
        for name, null in _nulls(traces, against).items()
    }
    chosen = {name: nulls[against][name] for name in ("null", "lift", "difference")}
    found = intervals({"observed": observed}, seed=seed)["observed"]
    return {
        "observed": as_estimate(found, len(traces)),
        **chosen,
        "p": nulls["shuffle"]["p"],
        "against": against,
        "nulls": nulls,
        "peaks": sum(trace.peaks for trace in traces),
        "places": sum(trace.places for trace in traces),
    }


def _nulls(traces: Sequence[Counted], against: str) -> dict[str, Ratio]:
    peaks = _column(traces, "peaks")
    found = {
        name: Ratio(np.array([trace.expected[name] for trace in traces]), peaks, "mean") for name in traces[0].expected
    }
    if against == "tokens":
        found["tokens"] = Ratio(_column(traces, "targets"), _column(traces, "room"), "mean")
    return found


def _against(observed: Ratio, null: Ratio, *, seed: int) -> dict[str, Any]:
    n = len(observed.part)
    difference = differences({"gap": observed}, {"gap": null}, seed=seed)["gap"]
    lift = relative_change(observed, null, seed=seed)
    if n == 1 and null.value:  # nothing to resample: the null is known, the share is not
        lift = Interval(lift.value, difference.low / null.value, difference.high / null.value)
    return {
        "null": as_estimate(intervals({"null": null}, seed=seed)["null"], n),
        "lift": as_estimate(lift, n),
        "difference": as_estimate(difference, n),
    }


def _draws(traces: Sequence[Counted], name: str, observed: Ratio) -> dict[str, Any]:
    """p and the range of the pooled draws; nothing for a null without draws."""
    if name not in traces[0].drawn:
        return {}
    drawn = np.sum([trace.drawn[name] for trace in traces], axis=0)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail]) / observed.whole.sum()
    return {"p": reached(float(observed.part.sum()), drawn), "range": [float(low), float(high)], "draws": len(drawn)}


def _column(traces: Sequence[Counted], name: str) -> Float[np.ndarray, "trace"]:
    return np.array([getattr(trace, name) for trace in traces], dtype=float)
