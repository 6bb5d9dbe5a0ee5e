"""From the records of a sink run to its answers: per head, per layer, by kind of prompt, by token."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from xarray import DataArray

from analysis.retrieval import head_frame
from analysis.sinks import LOCAL, MIN_QUERIES, SINK_HEADS, SINK_THRESHOLD, sink_rate
from analysis.uncertainty import CONFIDENCE, estimate, wilson
from probes.heads import Head

Record = Mapping[str, Any]
Condition = tuple[str, bool, int | None]

LAYER_METRICS = (
    "sink_rate", "first_share", "sink_share", "sink_share_rest", "sink_contribution", "value_ratio", "write", "unspent",
)  # fmt: skip
CONDITION_METRICS = ("sink_rate", "first_share", "sink_share", "sink_share_rest", "sink_contribution", "unspent")
SINK_HEAD_RATE = 0.5  # a sink head parks on the first key in at least half of the prompts
TOP = 10
TOKENS = 8  # rows of the token table for each kind


def metric_table(records: Sequence[Record]) -> dict[str, NDArray[np.float64]]:
    """Metric to (prompt, layer, head); prompts without a sink are not among those of value_ratio.

    sink_rate is the indicator of each prompt; its mean is the rate.
    """
    names = dict.fromkeys(name for record in records for name in record["per_head"])
    table = {
        name: np.array([record["per_head"][name] for record in records if name in record["per_head"]], dtype=float)
        for name in names
    }
    received = DataArray(table.pop("received_first")[..., None], dims=("prompt", "layer", "head", "key"))
    each = [sink_rate(received.isel(prompt=[i])).values for i in range(len(records))]
    return {"sink_rate": np.stack(each), **table}


def metric_frame(table: Mapping[str, NDArray[np.float64]], *, seed: int) -> pd.DataFrame:
    """A row per head and metric: mean over prompts with its interval, Wilson's for the sink rate, which is a share."""
    frame = head_frame(table, seed=seed)
    shares = frame["metric"] == "sink_rate"
    rates = frame.loc[shares, ["value", "n"]].to_numpy()
    frame.loc[shares, ["low", "high"]] = [wilson(float(rate), int(n)) for rate, n in rates]
    return frame


def summarise(records: Sequence[Record], frame: pd.DataFrame, judged: Sequence[Record], *, seed: int) -> dict[str, Any]:
    """The answers of a run as plain data. judged: the records that speak for the heads, see `frame`."""
    table = metric_table(judged)
    values = frame.pivot(index=["layer", "head"], columns="metric", values="value")
    return {
        "n_cases": len(records),
        "confidence": CONFIDENCE,
        "correction": "intervals are over prompts, for each head or layer alone: not corrected for many",
        "threshold": SINK_THRESHOLD,
        "found_by": {"heads": SINK_HEADS, "queries": MIN_QUERIES},
        "local": LOCAL,
        "judged_on": {"kind": judged[0]["kind"], "bos": judged[0]["bos"], "n": len(judged)},
        "overall": {name: estimate(per_prompt.mean((1, 2)), seed=seed) for name, per_prompt in table.items()},
        "layers": _layers(table, seed=seed),
        "by_condition": by_condition(records, seed=seed),
        "sink_tokens": sink_tokens(records),
        "delimiter_keys": float(np.mean([record["delimiter_keys"] for record in judged])),
        "sink_heads": _heads(frame, values.sort_values(["sink_rate", "first_share"], ascending=False)),
        "do_nothing_heads": _heads(frame, values.sort_values("write")),
        "counts": {
            "heads": len(values),
            "sink_heads": int((values["sink_rate"] >= SINK_HEAD_RATE).sum()),
            "sink_head_rate": SINK_HEAD_RATE,
        },
    }


def by_condition(records: Sequence[Record], *, seed: int) -> list[dict[str, Any]]:
    """Means over heads, prompt by prompt, for each kind of prompt, beginning and length asked for."""
    groups: dict[Condition, list[Record]] = defaultdict(list)
    for record in records:
        groups[record["kind"], record["bos"], record["length"]].append(record)
    rows = []
    for (kind, bos, length), group in groups.items():
        table = metric_table(group)
        at_first = sum(any(sink["position"] == 0 for sink in record["sinks"]) for record in group)
        low, high = wilson(at_first / len(group), len(group))
        rows.append(
            {"kind": kind, "bos": bos, "length": length, "n": len(group),
             "first_is_sink": {"value": at_first / len(group), "low": low, "high": high, "n": len(group)},
             "sinks_per_prompt": estimate(np.array([len(record["sinks"]) for record in group], float), seed=seed)}
            | {name: estimate(table[name].mean((1, 2)), seed=seed) for name in CONDITION_METRICS}
        )  # fmt: skip
    return rows


def sink_tokens(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Tokens found to be sinks: of each kind of prompt the TOKENS most frequent, told apart by where they stood.

    prompts: those that hold the token there; sink_in: those where it is a sink; received: mean over its sinks, and all
    heads, of the attention received.
    """
    found: dict[tuple[str, str, bool, int], list[tuple[int, float]]] = defaultdict(list)
    for i, record in enumerate(records):
        for sink in record["sinks"]:
            place = record["kind"], sink["token"], sink["position"] == 0, record["ids"][sink["position"]]
            found[place].append((i, sink["received"]))
    rows = []
    for (kind, token, first, number), sinks in found.items():
        own = [record["ids"] for record in records if record["kind"] == kind]
        holding = sum(number == ids[0] if first else number in ids[1:] for ids in own)
        rows.append(
            {"kind": kind, "token": token, "first": first, "prompts": holding, "sink_in": len({i for i, _ in sinks}),
             "received": float(np.mean([received for _, received in sinks]))}
        )  # fmt: skip
    rows.sort(key=lambda row: (-row["sink_in"], -row["received"]))
    kinds = dict.fromkeys(record["kind"] for record in records)
    return [row for kind in kinds for row in [row for row in rows if row["kind"] == kind][:TOKENS]]


def _layers(table: Mapping[str, NDArray[np.float64]], *, seed: int) -> list[dict[str, Any]]:
    layers = table["sink_rate"].shape[1]
    return [
        {"layer": layer}
        | {name: estimate(table[name][:, layer].mean(-1), seed=seed) for name in LAYER_METRICS if name in table}
        for layer in range(layers)
    ]


def _heads(frame: pd.DataFrame, order: pd.DataFrame) -> list[dict[str, Any]]:
    """Every metric, with its interval, of the TOP heads of a table that is in order."""
    rows = frame.set_index(["layer", "head", "metric"]).sort_index()
    return [
        {"head": str(Head(int(layer), int(head)))} | rows.loc[(layer, head)].to_dict("index")
        for layer, head in order.index[:TOP].to_list()
    ]
