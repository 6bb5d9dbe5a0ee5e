"""Rows of models trained alike but for their rule of attention: a run of `headscope pairs`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from views.sink_tables import ABOVE_ROUNDING

MEASURES = {
    "loss": "loss (nats per token)",
    "int8_rise": "loss added by 8-bit weights and activations",
    "first_share": "attention on the first token",
    "largest_activation": "largest activation",
    "kurtosis": "kurtosis",
    "unspent": "unspent attention",
}
IN_TABLE = MEASURES | {"int8_loss": "loss in 8 bits", "sink_rate": "sink rate"}
OVER_TRAINING = {
    "first_share": "attention on the first token",
    "largest_activation": "largest activation",
    "loss": "loss (nats per token)",
}


def rule_words(rule: str) -> str:
    return rule.replace("_", " ")


def rules(summary: Mapping[str, Any]) -> list[str]:
    """The rules of the models and of the curves, each once, in order."""
    return list(dict.fromkeys(row["rule"] for row in [*summary["models"], *summary["curves"]]))


def model_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each model, with its estimates as they are."""
    return [row | {"model": Path(row["model"]).name, "rule": rule_words(row["rule"])} for row in summary["models"]]


def measures(summary: Mapping[str, Any]) -> dict[str, str]:
    """What is drawn: unspent attention only where some model has any."""
    spent = all(row["unspent"]["value"] < ABOVE_ROUNDING for row in summary["models"])
    return {name: words for name, words in MEASURES.items() if not (spent and name == "unspent")}


def curve_table(summary: Mapping[str, Any], chosen: Sequence[str]) -> pd.DataFrame:
    """A row for each rule, seed and step."""
    return pd.DataFrame(
        [
            {"rule": rule_words(one["rule"]), "seed": one["seed"], **point}
            for one in summary["curves"]
            if one["rule"] in chosen
            for point in one["curve"]
        ]
    )


def last_steps(table: pd.DataFrame) -> pd.DataFrame:
    """The end of each curve, its columns in words."""
    last = table.sort_values("step").groupby(["rule", "seed"]).tail(1).sort_values(["rule", "seed"])
    return last[["rule", "seed", "step", "sink_rate", *OVER_TRAINING]].rename(columns=IN_TABLE)


def span(table: pd.DataFrame, measure: str) -> tuple[float, float]:
    """What a curve's axis shows. Of the loss the part after a tenth of training: it falls far before."""
    if measure == "loss":
        table = table[table["step"] >= table["step"].max() / 10]
        return float(table[measure].min()), float(table[measure].max())
    return (0.0 if measure == "first_share" else float(table[measure].min())), float(table[measure].max())
