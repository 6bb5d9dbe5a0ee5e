"""From what a run kept to the curves of each trace, as means over the heads that were chosen without it.

    curves = cross_fitted(records, folder, setting, horizons=["analysis", "v1", "v2"], seed=0)

Each trace's arrays are read once, whatever the number of settings, and one trace's at a time.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from xarray import DataArray

from analysis.rhythm.counting import Series
from analysis.rhythm.cross_fit import Chosen, chosen_without
from analysis.rhythm.head_sets import averaged
from analysis.rhythm.kept_arrays import Arrays, kept
from analysis.rhythm.settings import Setting
from probes.heads import Head

Record = Mapping[str, Any]


def cross_fitted(
    records: Sequence[Record], folder: Path, setting: Setting, *, horizons: Sequence[str], seed: int
) -> list[Series]:
    """The curves of every trace, by heads chosen without it."""
    choice = setting, chosen_without(records, setting, seed=seed)
    [curves] = curves_of(records, folder, [choice], horizons=horizons, windows=[setting.window])
    return curves


def curves_of(
    records: Sequence[Record],
    folder: Path,
    choices: Sequence[tuple[Setting, Sequence[Chosen]]],
    *,
    horizons: Sequence[str],
    windows: Sequence[int],
) -> list[list[Series]]:
    """For each choice the curves of every trace.

    folder: of the kept arrays. choices: a setting, and the heads that judge each trace. horizons, windows: what the
    arrays hold, in order; the first window is that of `waad`, the others those of `waad_windows`.
    Raises HeadscopeError where arrays are missing.
    """
    found: list[list[Series]] = [[] for _ in choices]
    for i, record in enumerate(records):
        arrays = kept(folder / record["arrays"])
        for curves, (setting, chosen) in zip(found, choices, strict=True):
            waad = _at_window(arrays, windows.index(setting.window))
            fai = arrays["fai"][horizons.index(setting.horizon)]
            curves.append(series(record, waad, fai, chosen[i]))
    return found


def series(
    record: Record,
    waad: Float[np.ndarray, "layer head token"],
    fai: Float[np.ndarray, "layer head token"],
    chosen: Chosen,
) -> Series:
    """One trace's curves: WAAD of the local heads, FAI of the global ones and of the receivers, and the entropy."""
    return Series(
        waad=_mean(waad, chosen.sets.local),
        fai=_mean(fai, chosen.sets.global_),
        entropy=np.array(record["entropy"], dtype=float),
        receiver_fai=_mean(fai, chosen.receivers) if chosen.receivers else None,
    )


def _at_window(arrays: Arrays, at: int) -> Float[np.ndarray, "layer head token"]:
    return arrays["waad"] if at == 0 else arrays["waad_windows"][at - 1]


def _mean(values: Float[np.ndarray, "layer head token"], heads: Sequence[Head]) -> Float[np.ndarray, " token"]:
    return averaged(DataArray(values, dims=("layer", "head", "token")), heads).values.astype(float)
