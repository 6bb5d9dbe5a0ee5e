"""Whether a coupling that the paper reports shows here: by the interval of its lift, against each null."""

from collections.abc import Mapping
from typing import Any

COUPLINGS = ("entropy", "receiver", "lag")
LEAST_TRACES = 8  # a bootstrap of fewer knows too little of their spread
AGREES, REVERSES, NOT_SHOWN = "agrees", "reverses", "not shown"


def verdict(lift: Mapping[str, Any]) -> str:
    """By an estimate's interval: it agrees with the paper above 0 and reverses it below; else nothing is shown.

    Fewer than LEAST_TRACES traces show nothing.
    """
    if lift["n"] < LEAST_TRACES:
        return NOT_SHOWN
    if lift["low"] > 0:
        return AGREES
    return REVERSES if lift["high"] < 0 else NOT_SHOWN


def with_verdicts(coupling: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A coupling with a verdict by the null that stands above, and one by each of its nulls."""
    if coupling is None:
        return None
    nulls = {name: {**null, "verdict": verdict(null["lift"])} for name, null in coupling["nulls"].items()}
    return {**coupling, "nulls": nulls, "verdict": verdict(coupling["lift"])}
