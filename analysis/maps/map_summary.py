"""What a map run says of its one prompt: its picture and the answer to it where there are any, sinks, a few numbers
per head, means per layer.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.runs import rounded


def ranges(positions: Sequence[int]) -> list[list[int]]:
    """Sorted positions as stretches [start, stop)."""
    stretches: list[list[int]] = []
    for position in positions:
        if stretches and stretches[-1][1] == position:
            stretches[-1][1] += 1
        else:
            stretches.append([position, position + 1])
    return stretches


def head_frame(record: dict[str, Any]) -> pd.DataFrame:
    """A row per kept head and metric; of one prompt, so that an interval is its value."""
    rows = []
    for metric, values in record["per_head"].items():
        for layer, of_layer in zip(record["layers"], values, strict=True):
            for head, value in enumerate(of_layer):
                rows.append((layer, head, metric, value, value, value, 1))
    return pd.DataFrame(rows, columns=["layer", "head", "metric", "value", "low", "high", "n"])


def summarise(record: dict[str, Any]) -> dict[str, Any]:
    """What a run says of itself: one prompt, no intervals."""
    means = {name: [float(np.mean(row)) for row in values] for name, values in record["per_head"].items()}
    kept = ("tokens", "layers", "kept_as", "sinks")
    heads = sum(map(len, record["per_head"]["entropy"]))
    found = {"n_cases": 1, "heads": heads, **{name: record[name] for name in kept}, "layer_means": rounded(means)}
    if "picture" in record:
        found["picture"] = record["picture"]["name"]
    if said := record["spans"].get("generated"):
        found["answer"] = "".join(text for start, stop in said for text in record["texts"][start:stop])
    return found
