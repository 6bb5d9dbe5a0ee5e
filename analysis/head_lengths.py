"""Does a head do the same in longer prompts? Its statistics by the length of the prompt, from the cases that runs keep.

retrieval_by_length(run.cases(), Head(17, 4))
sinks_by_length(run.cases(), Head(17, 4), "sink_share", kind="natural", bos=True)
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.uncertainty import estimate
from probes.heads import Head


def retrieval_by_length(cases: Iterable[Mapping[str, Any]], head: Head) -> pd.DataFrame:
    """Its retrieval score over the answered cases of each length asked for: length, value, low, high, n."""
    key = f"{head.layer}-{head.head}"
    return _by_length((case["length"], case["scores"].get(key, 0.0)) for case in cases if case["passed"])


def sinks_by_length(
    cases: Iterable[Mapping[str, Any]], head: Head, metric: str, *, kind: str, bos: bool
) -> pd.DataFrame:
    """A metric of a sink run over its prompts of one kind and beginning: length, value, low, high, n."""
    return _by_length(
        (case["length"] or case["tokens"], case["per_head"][metric][head.layer][head.head])
        for case in cases
        if (case["kind"], case["bos"]) == (kind, bos) and metric in case["per_head"]
    )


def _by_length(found: Iterable[tuple[int, float]]) -> pd.DataFrame:
    """Means with bootstrap intervals over prompts; of a single prompt the spread is unknown, and there is none."""
    groups: dict[int, list[float]] = defaultdict(list)
    for length, value in found:
        groups[length].append(value)
    rows = []
    for length in sorted(groups):
        row = estimate(np.array(groups[length], float), seed=0)
        rows.append({"length": length, **row} | ({"low": None, "high": None} if row["n"] == 1 else {}))
    return pd.DataFrame(rows, columns=["length", "value", "low", "high", "n"]).astype({"low": float, "high": float})
