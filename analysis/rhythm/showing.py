"""What a dashboard shows of a rhythm run: one trace under head sets that its reader chooses. Needs no model, no torch.

sets = chosen_sets(run.heads(), share=0.3, layers="all", exclude_sink=False)
shown = shown_trace(kept(run.path / "arrays" / "problem-1.safetensors"), sets, horizon=0, rule=PeakRule())
shown.waad, shown.fai          # (token,)
shown.marks.pairs              # ((preplan, anchor), ...), from 0 at the first token of the response
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray
from xarray import DataArray

from analysis.rhythm.head_sets import HeadSets, averaged, head_sets
from analysis.rhythm.kept_arrays import Arrays
from analysis.rhythm.marks import Marks, marks
from analysis.rhythm.peaks import PeakRule
from probes.errors import HeadscopeError
from probes.heads import Head, check_heads

RANKED_BY = {False: "distance", True: "distance_without_sink"}  # by whether the sink is left out


@dataclass(frozen=True)
class ShownTrace:
    """WAAD (token,) in [0, W] and FAI (token,), NaN where empty, as means over head sets; their peaks and pairs."""

    waad: Float[np.ndarray, " token"]
    fai: Float[np.ndarray, " token"]
    marks: Marks


def chosen_sets(frame: pd.DataFrame, *, share: float, layers: str | Sequence[int], exclude_sink: bool) -> HeadSets:
    """Local and global heads by their mean distance over all traces of a run.

    frame: the run's heads.parquet. Raises HeadscopeError where it has no distances, or the sets can't be made.
    """
    metric = RANKED_BY[exclude_sink]
    rows = frame[frame["metric"] == metric]
    if rows.empty:
        raise HeadscopeError(f"The run's heads have no {metric}: run headscope rhythm again.")
    table = rows.pivot(index="layer", columns="head", values="value").sort_index().sort_index(axis=1)
    coordinates = {"layer": table.index.to_numpy(), "head": table.columns.to_numpy()}
    distance = DataArray(table.to_numpy(), dims=("layer", "head"), coords=coordinates)
    return head_sets(distance, share=share, layers=layers)


def shown_trace(arrays: Arrays, sets: HeadSets, *, horizon: int, rule: PeakRule) -> ShownTrace:
    """One trace under head sets.

    arrays: what analysis.rhythm.kept_arrays keeps; horizon: its place among the run's horizons.
    Raises HeadscopeError where the arrays lack what is asked for, or the heads.
    """
    waad, fai = arrays.get("waad"), arrays.get("fai")
    if waad is None or fai is None or waad.ndim != 3 or fai.ndim != 4 or not 0 <= horizon < len(fai):
        raise HeadscopeError("The arrays of this trace lack WAAD or FAI: delete the run's folder and run again.")
    local, influence = _mean(waad, sets.local), _mean(fai[horizon], sets.global_)
    return ShownTrace(local, influence, marks(local, influence, rule))


def _mean(values: NDArray[np.float16], heads: Sequence[Head]) -> Float[np.ndarray, " token"]:
    """values: (layer, head, token)."""
    layers, per_layer, _ = values.shape
    check_heads(heads, layers, per_layer)
    return averaged(DataArray(values, dims=("layer", "head", "token")), heads).to_numpy()
