"""From the records of a vision run to its answers: per head, per set of pictures, and beside another run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.retrieval import head_frame
from analysis.uncertainty import CONFIDENCE, estimate
from analysis.vision import inventions
from analysis.vision.cases import PictureSet
from analysis.vision.head_rankings import FEWEST, rankings
from analysis.vision.masses import SPANS
from analysis.vision.ratios import Ratio, as_estimate, intervals
from analysis.vision.visual_sinks import LEAST_IMAGE_MASS, TAU
from probes.errors import HeadscopeError
from probes.heads import Head

Row = Mapping[str, Any]

GROUNDING = ("hit", "inside", "ratio")


def metric_table(rows: Sequence[Row]) -> dict[str, NDArray[np.float64]]:
    """Metric to (picture, layer, head).

    Grounding has the pictures alone of which a true object was named, and is left out where they are fewer than FEWEST.
    """
    spoken = [row["per_head"] for row in rows if "per_head" in row]
    names = dict.fromkeys(name for each in spoken for name in each)
    table = {name: np.array([each[name] for each in spoken if name in each], dtype=float) for name in names}
    return {name: values for name, values in table.items() if len(values) >= FEWEST or len(values) == len(spoken)}


def metric_frame(rows: Sequence[Row], *, seed: int) -> pd.DataFrame:
    """A row per head and metric: the mean over pictures with its bootstrap interval."""
    return head_frame(metric_table(rows), seed=seed)


def summarise(
    records: Sequence[Row], frame: pd.DataFrame, sets: Sequence[PictureSet], *, ratio: float, seed: int
) -> dict[str, Any]:
    """The answers of a run as plain data. Raises HeadscopeError where the model said nothing of any picture."""
    rows = [row for record in records for row in record["rows"]]
    if frame.empty:
        raise HeadscopeError("The model wrote no token for any picture: its first word is already a stop token.")
    return {
        "n_cases": len(rows),
        "confidence": CONFIDENCE,
        "correction": "intervals are over pictures, for each head or layer alone: not corrected for many",
        "silent": [row["picture"] for row in rows if not row["tokens"]],
        "heads": rankings(metric_table(rows), frame, seed=seed),
        "image_centric": {"least": LEAST_IMAGE_MASS, "ratio": ratio},
        "sink_threshold": TAU,
        "sets": {
            each.name: summarise_set(
                [row for record in records if record["set"] == each.name for row in record["rows"]], each, seed=seed
            )
            for each in sets
        },
    }  # fmt: skip


def summarise_set(rows: Sequence[Row], among: PictureSet, *, seed: int) -> dict[str, Any]:
    """Means over pictures of what the heads do together, and what is invented."""
    spoken = [row for row in rows if "per_head" in row]
    if not spoken:
        return {"n": len(rows), **inventions.summarise(rows, among, seed=seed)}
    table = metric_table(spoken)
    over_heads = {name: estimate(values.mean((1, 2)), seed=seed) for name, values in table.items()}
    return {
        "n": len(rows),
        "masses": {name: over_heads[f"{name}_mass"] for name in SPANS},
        "divergence": over_heads["divergence"],
        "image_centric": over_heads["image_centric"],
        "layers": _layers(table, seed=seed),
        "sinks": sinks(spoken, seed=seed),
        "grounding": grounding(spoken, table, seed=seed),
        **inventions.summarise(rows, among, seed=seed),
    }


def sinks(rows: Sequence[Row], *, seed: int) -> dict[str, Any]:
    """By each rule, the share of image tokens that are sinks, and how many of these lie in the background.

    base: the background's share of the picture, which sinks reach by luck. Layers of each picture count together.
    """
    found = {}
    for rule in dict.fromkeys(name for row in rows for name in row["sinks"]):
        each = [row["sinks"][rule] for row in rows]
        count = np.array([np.sum(one["count"]) for one in each], dtype=float)
        tokens = np.array([one["image_tokens"] * np.size(one["count"]) for one in each], dtype=float)
        outside = np.array([np.sum(one["in_background"]) for one in each], dtype=float)
        base = np.array([one["base"] for one in each])
        shares = intervals({"share": Ratio(count, tokens), "background": Ratio(outside, count)}, seed=seed)
        found[rule] = {
            **{name: as_estimate(value, len(rows)) for name, value in shares.items()},
            "base": estimate(base, seed=seed),
            "pictures_with": int((count > 0).sum()),
            "by_layer": np.mean([np.atleast_1d(one["count"]) for one in each], axis=0).tolist(),
        }
    return found


def grounding(rows: Sequence[Row], table: Mapping[str, NDArray[np.float64]], *, seed: int) -> dict[str, Any] | None:
    """Means over heads, those of the head that points best on one half judged on the other, controls and baselines.

    baselines: maps through all layers, of the pictures that were explained.
    None where true objects were named of fewer than FEWEST pictures.
    """
    pointed = [row["controls"] for row in rows if row["controls"]]
    if len(pointed) < FEWEST:
        return None
    names = [name for name in pointed[0] if name not in ("objects",)]
    controls = {name: estimate(np.array([one[name] for one in pointed]), seed=seed) for name in names}
    heads = {name: estimate(table[name].mean((1, 2)), seed=seed) for name in GROUNDING}
    other = {f"elsewhere_{name}": table.get(f"elsewhere_{name}") for name in GROUNDING}
    elsewhere = {name: estimate(x.mean((1, 2)), seed=seed) for name, x in other.items() if x is not None}
    through = [row["explained"] for row in rows if row.get("explained")]
    baselines = {
        name: estimate(np.array([one[name] for one in through]), seed=seed) for name in (through[0] if through else ())
    }
    mean = {**heads, **elsewhere}
    return {"n": len(pointed), "controls": controls, "mean": mean, "best": _best(table, seed=seed),
            "baselines": baselines}  # fmt: skip


def _layers(table: Mapping[str, NDArray[np.float64]], *, seed: int) -> list[dict[str, Any]]:
    names = ["divergence", "image_centric", *(f"{name}_mass" for name in SPANS)]
    return [
        {"layer": layer, **{name: estimate(table[name][:, layer].mean(-1), seed=seed) for name in names}}
        for layer in range(table["divergence"].shape[1])
    ]


def _best(table: Mapping[str, NDArray[np.float64]], *, seed: int) -> dict[str, Any] | None:
    """The head with the highest ratio in one half of the pictures, and what it does in the other."""
    values = table["ratio"]
    if len(values) < 4:
        return None
    order = np.random.default_rng(seed).permutation(len(values))
    choosing, judging = order[: len(order) // 2], order[len(order) // 2 :]
    layer, head = np.unravel_index(values[choosing].mean(0).argmax(), values.shape[1:])
    judged = {name: estimate(table[name][judging, layer, head], seed=seed) for name in GROUNDING}
    return {"head": str(Head(int(layer), int(head))), **judged}
