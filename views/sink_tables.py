"""Rows of the sinks of a model: a run of `headscope sinks`, sorted and named for reading."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from views import tables

SHARES = {
    "sink_rate": "sink rate",
    "first_share": "attention on the first token",
    "sink_share_rest": "attention on later sinks",
    "sink_contribution": "sinks' part of the output",
}
SIZES = {
    "value_ratio": "length of a sink's value, by the median of the others",
    "write": "write, by the residual stream",
}
UNSPENT = {"unspent": "unspent attention"}
ABOVE_ROUNDING = 1e-4  # a softmax in 32 bits leaves less than this
SPREADS = {"largest": "largest |x|", "kurtosis": "kurtosis"}
ALL_TOKENS, BEYOND_FIRST = "all tokens", "without the first token"


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
                "share of prompts [95%]": tables.estimate(row["share"]),
                "at positions": ", ".join(str(each["position"]) for each in row["positions"]),
                "on tokens": ", ".join(repr(each["token"]) for each in row["tokens"]),
            }
            for row in found["massive"]
        ]
    )


def spread_table(found: Mapping[str, Any], activation: str, measure: str) -> pd.DataFrame:
    """One measure of one activation in every layer, of all tokens and without the first."""
    rows = [row for row in found["layers"] if row["activation"] == activation]
    return tables.long_table(
        [
            {"layer": row["layer"], "all": row[measure] | {"n": found["n"]}}
            | {"beyond": row["beyond_first"][measure] | {"n": found["n"]}}
            for row in rows
        ],
        {"all": ALL_TOKENS, "beyond": BEYOND_FIRST},
    )


def spread_words(frame: pd.DataFrame) -> pd.DataFrame:
    """The same numbers for reading, a row for each layer."""
    words = frame.assign(words=[tables.estimate(row) for row in frame.to_dict("records")])
    return words.pivot(index="layer", columns="measure", values="words").reset_index()
