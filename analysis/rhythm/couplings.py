"""Do peaks of attention mean anything? Three couplings over a set of traces, each against what chance would give.

    couplings([Series(waad, fai, entropy, receiver_fai), ...], seed=0)["lag"]["lift"]

entropy: the mean entropy at peaks of WAAD, against the mean over the trace. Does the model hesitate as it looks back?
receiver: the share of peaks of the receiver heads' FAI at which the global heads' FAI peaks, against the share of
    tokens where that does. Do both kinds of heads mark the same tokens?
lag: the share of peaks of WAAD with a peak of FAI at the same token or up to `lag` after. Does an anchor follow a plan?

Li et al., "Attention Illuminates LLM Reasoning", arXiv 2510.13554, section 3. Pooled over traces: sums over all peaks.

Two nulls (analysis.rhythm.nulls). "shuffle" keeps the count of peaks only, as the paper does; "shift" also keeps their
gaps. For the entropy and the receivers both expect the same, and differ in p alone. For the lag they differ, where the
peaks of FAI are the ones shuffled (the paper does not say which): since peaks are never neighbours, a token and the
next hold one more often than if they were scattered. Were 22.41 % of the tokens peaks, as in the paper, scattered ones
would be met from 39.8 % of the tokens, and real ones from 44.8 %; the paper's baseline is 36.87 %. In noise that has
nothing in common this alone is a lift of 16 % against "shuffle" and of 0 against "shift" (default rule, 1500 lognormal
traces of 40 to 160 tokens), so the second is the one to believe.

Only places where a peak could stand take part (`can_peak`): others would lower every null a little, and never a peak.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.rhythm.counting import Series, entropy_at_peaks, followed_peaks
from analysis.rhythm.judging import coupling
from analysis.rhythm.marks import LAG, check_lag
from analysis.rhythm.nulls import DRAWS, Chance
from analysis.rhythm.peaks import PeakRule, peaks
from probes.errors import HeadscopeError

# As printed, but for the first lift: the paper prints 0.5197 and in its second version 0.5160, its numbers give 0.512.
PUBLISHED: dict[str, dict[str, dict[str, float | None]]] = {
    "Qwen3-4B-Base, GSM8K": {
        "entropy": {"observed": 0.3608, "null": 0.2386, "lift": 0.512},
        "receiver": {"observed": 0.6084, "null": 0.2241, "lift": 1.7149},
        "lag": {"observed": 0.5253, "null": 0.3687, "lift": 0.4247},
    },
    "Llama-3.1-8B": {
        "entropy": {"observed": None, "null": None, "lift": 0.282},
        "receiver": {"observed": None, "null": None, "lift": 1.987},
        "lag": {"observed": None, "null": None, "lift": 0.341},
    },
    "CrossThink-QA": {
        "entropy": {"observed": None, "null": None, "lift": 0.348},
        "receiver": {"observed": None, "null": None, "lift": 2.196},
        "lag": {"observed": None, "null": None, "lift": 0.329},
    },
}


def couplings(
    traces: Sequence[Series], rule: PeakRule | None = None, *, lag: int = LAG, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """The three couplings of a set of traces as plain data, with counts; see `analysis.rhythm.judging.coupling`.

    A coupling is None where there is nothing to judge: no peak at which it could be read, or none of FAI to be found.
    "peaks" says how many there are of each kind, and of how many tokens.
    Raises HeadscopeError without a trace, without a draw, or for a negative lag.
    """
    check_lag(lag)
    if not traces:
        raise HeadscopeError("There is nothing to judge: give at least one trace.")
    if draws < 1:
        raise HeadscopeError(f"draws is {draws}, and must be 1 or more.")
    chance = Chance(draws, np.random.default_rng(seed))
    entropy = [entropy_at_peaks(trace, rule, chance) for trace in traces]
    followed = [followed_peaks(trace.waad, trace.fai, rule, chance, lag=lag) for trace in traces]
    shared = [
        followed_peaks(trace.receiver_fai, trace.fai, rule, chance, lag=0)
        for trace in traces
        if trace.receiver_fai is not None
    ]
    return {
        "entropy": coupling(entropy, kind="mean", seed=seed),
        "receiver": coupling(shared, kind="share", against="tokens", seed=seed),
        "lag": coupling(followed, kind="share", seed=seed),
        "peaks": _counts(traces, rule),
    }


def _counts(traces: Sequence[Series], rule: PeakRule | None) -> dict[str, int]:
    receivers = [trace.receiver_fai for trace in traces if trace.receiver_fai is not None]
    return {
        "waad": sum(len(peaks(trace.waad, rule)) for trace in traces),
        "fai": sum(len(peaks(trace.fai, rule)) for trace in traces),
        "receiver_fai": sum(len(peaks(values, rule)) for values in receivers),
        "tokens": sum(len(trace.waad) for trace in traces),
        "traces": len(traces),
    }
