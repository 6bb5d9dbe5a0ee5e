"""How heads rank by what a vision run read of them: alike in halves of the pictures, and in another run?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from xarray import DataArray

from analysis.runs import Run
from analysis.vision.agreement import agreement_of_halves, agreement_of_models, overlap, rank_correlation
from analysis.vision.divergence import FEW_HEADS, share_of_few
from probes.errors import HeadscopeError
from probes.heads import Head

Row = Mapping[str, Any]

TOP = 10  # heads that the summary names
FEWEST = 2  # pictures over which something is said: one has no spread
COMPARED = ("divergence", "image_mass", "ratio")  # VHD, attention, grounding


def compare(rows: Sequence[Row], others: Sequence[Row], *, run: str, model: str, seed: int) -> dict[str, Any]:
    """How alike this run and another rank the heads, by each of COMPARED, over the pictures that both show.

    Where they share none, each has its own. Raises HeadscopeError for models of other layers or heads.
    """
    found: dict[str, Any] = {"run": run, "model": model}
    for name in COMPARED:
        first, second = (
            {row["picture"]: row["per_head"][name] for row in some if name in row.get("per_head", {})}
            for some in (rows, others)
        )
        if min(len(first), len(second)) < FEWEST:
            continue
        both = [picture for picture in first if picture in second]
        paired = len(both) > 1
        a, b = (_scores([each[key] for key in (both if paired else each)]) for each in (first, second))
        top = few(a.sizes["layer"] * a.sizes["head"])
        found[name] = {**agreement_of_models(a, b, seed=seed, top=top, paired=paired), "paired": paired}
    return found


def mean_scores(run: Run, metric: str = "divergence") -> NDArray[np.float64]:
    """Each head's mean of a metric in a finished vision run, (layer, head). Raises HeadscopeError for another run."""
    if run.manifest["command"] != "vision" or not run.finished:
        raise HeadscopeError(f"{run.id} is no finished run of headscope vision, which is what says how heads rank.")
    frame = run.heads()
    own = frame[frame["metric"] == metric]
    return own.pivot(index="layer", columns="head", values="value").to_numpy(dtype=float, copy=True)


def few(heads: int) -> int:
    """How many the top tenth of the heads are."""
    return max(1, round(FEW_HEADS * heads))


def _scores(values: ArrayLike) -> DataArray:
    return DataArray(np.array(values, dtype=float), dims=("case", "layer", "head"))


def rankings(table: Mapping[str, NDArray[np.float64]], frame: pd.DataFrame, *, seed: int) -> dict[str, Any]:
    """The highest heads by each of COMPARED, the agreement of halves, and what else ranks heads as VHD does."""
    vhd = _scores(table["divergence"])
    mean, count = vhd.mean("case"), vhd[0].size
    top = few(count)

    def beside(name: str) -> dict[str, Any]:
        other = _scores(table[name]).mean("case")
        return {"correlation": rank_correlation(mean, other), "overlap": overlap(mean, other, top=top)}

    return {
        "count": count,
        "few": top,
        "divergence_share_of_few": share_of_few(mean),
        "halves": {
            name: agreement_of_halves(_scores(table[name]), seed=seed, top=top)
            for name in COMPARED
            if len(table.get(name, ())) >= 4
        },
        "divergence_beside": {
            name: beside(name) for name in ("divergence_squared", "divergence_relative", "image_mass")
        },
        "top": {name: _top(frame, name) for name in COMPARED if name in table},
    }


def _top(frame: pd.DataFrame, metric: str) -> list[dict[str, Any]]:
    own = frame[frame["metric"] == metric].sort_values("value", ascending=False, kind="stable").head(TOP)
    places = own[["layer", "head"]].to_numpy(dtype=int).tolist()
    numbers = own[["value", "low", "high"]].to_numpy(dtype=float).tolist()
    return [
        {"head": str(Head(*place)), "value": value, "low": low, "high": high}
        for place, (value, low, high) in zip(places, numbers, strict=True)
    ]
