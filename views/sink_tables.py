"""Rows of the sinks of a model: a run of `headscope sinks`, sorted and named for reading."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis import uncertainty

SHARES = {
    "sink_rate": "sink rate",
    "first_share": "attention on the first token",
    "sink_share_rest": "attention on later sinks",
    "sink_contribution": "sinks' part of the output",
}
SIZES = {
    "value_ratio": "length of a sink's value",
    "write": "norm that a head writes",
}
UNSPENT = {"unspent": "unspent attention"}
ABOVE_ROUNDING = 1e-4  # a softmax in 32 bits leaves less than this
SPREADS = {"largest": "largest |x|", "kurtosis": "kurtosis"}


def begun(bos: bool) -> str:
    return "with BOS" if bos else "without BOS"


def spends_all(layers: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all attention goes to tokens: nothing is left out, and no learned sink takes any."""
    return all(row["unspent"]["value"] < ABOVE_ROUNDING for row in layers)


def condition_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each kind of prompt, length and beginning, with its estimates as they are."""
    return [
        {
            "prompts": f"{row['kind']}, {row['length'] or 'whole'}",
            "begins": begun(row["bos"]),
            "n": row["n"],
        }
        | {name: value for name, value in row.items() if isinstance(value, Mapping)}
        for row in summary["by_condition"]
    ]


def token_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "prompts": row["kind"],
                "token": repr(row["token"]),
                "where": "first" if row["first"] else "later",
                "a sink in": f"{row['sink_in']} of {row['prompts']}",
                "receives": row["received"],
            }
            for row in summary["sink_tokens"]
        ]
    )


def massive_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each massive coordinate of each layer."""
    return pd.DataFrame(
        [
            {
                "layer": row["layer"],
                "coordinate": row["coordinate"],
                "mean": row["value"],
                "times the median": row["times_median"],
                "share of prompts [95%]": uncertainty.interval(row["share"]),
                "at positions": ", ".join(str(each["position"]) for each in row["positions"]),
                "on tokens": ", ".join(repr(each["token"]) for each in row["tokens"]),
            }
            for row in found["massive"]
        ]
    )


def spread_rows(found: Mapping[str, Any], activation: str) -> list[dict[str, Any]]:
    """Each layer's measures of one activation, of all tokens and without the first, as they are."""
    return [
        {"layer": row["layer"]}
        | {name: row[name] | {"n": found["n"]} for name in SPREADS}
        | {f"later {name}": row["beyond_first"][name] | {"n": found["n"]} for name in SPREADS}
        for row in found["layers"]
        if row["activation"] == activation
    ]
