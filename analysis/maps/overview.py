"""Every kept head's whole map at once, small: at most 256 x 256 cells, a byte each, on one logarithmic scale.

A byte b > 0 stands for the weight LOWEST^(1 - (b - 1) / 254), so that neighbours differ by 6.5 %; 0 stands for no
weight at all. The scale is the same for all heads, layers and runs: pictures of two heads can be compared.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from xarray import DataArray

from analysis.maps.kept_layers import ARRAYS, keep, record_of
from analysis.runs import Run
from kernels.statistics import Tile
from probes.errors import HeadscopeError
from probes.heads import Head

Pooling = Literal["mean", "max"]
POOLINGS: tuple[Pooling, ...] = ("mean", "max")
CELLS = 256
LOWEST = 1e-7  # a smaller weight is shown as this one
STEPS = 254


def as_bytes(weights: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Weights in [0, 1] on the logarithmic scale."""
    above = np.log(np.clip(weights, LOWEST, 1.0)) / -math.log(LOWEST) + 1
    return np.where(weights > 0, 1 + np.rint(STEPS * above), 0).astype(np.uint8)


def as_weights(levels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the bytes stand for."""
    weights = LOWEST ** (1 - (levels.astype(np.float64) - 1) / STEPS)
    return np.where(levels > 0, weights, 0.0).astype(np.float32)


def keep_overviews(file: Path, levels: Mapping[Pooling, NDArray[np.uint8]], layers: list[int], tokens: int) -> None:
    """levels: per pooling (layer, head, row, column)."""
    facts = json.dumps({"layers": layers, "tokens": tokens, "lowest": LOWEST, "highest": 1.0}, sort_keys=True)
    keep(file, {name: torch.from_numpy(np.ascontiguousarray(each)) for name, each in levels.items()}, facts)


def overview_bytes(run: Run, pooling: Pooling = "mean", *, layer: int | None = None) -> DataArray:
    """Every kept head's map as bytes (layer, head, query, key) with the first token of each cell; a few MB at most.

    layer: only this one is read. attrs: the weights that bytes 1 and 255 stand for. Raises HeadscopeError where the run
    has none.
    """
    if pooling not in POOLINGS:
        raise HeadscopeError(f"There is no pooling {pooling!r}: choose {' or '.join(POOLINGS)}.")
    case = record_of(run)
    layers = [each for each in case["layers"] if layer in (None, each)]
    first = case["layers"].index(layers[0]) if layers else 0
    file = run.path / ARRAYS / "overview.safetensors"
    try:
        with safe_open(file, "np") as kept:
            levels = kept.get_slice(pooling)[first : first + len(layers)]
    except (OSError, SafetensorError):
        raise HeadscopeError(f"{file} is missing or damaged: delete the run's folder and run again.") from None
    tall, _ = whole(case["tokens"]).sizes()
    starts = list(range(0, case["tokens"], tall))
    if levels.ndim != 4 or levels.shape[0] != len(layers) or levels.shape[2:] != (len(starts), len(starts)):
        raise HeadscopeError(f"{file} does not belong to this run's prompt: delete the run's folder and run again.")
    coords = {"layer": layers, "head": range(levels.shape[1]), "query": starts, "key": starts}
    return DataArray(
        levels, dims=("layer", "head", "query", "key"), coords=coords,
        attrs={"pooling": pooling, "lowest": LOWEST, "highest": 1.0, "unit": "share of attention, log scale"},
    )  # fmt: skip


def overview(run: Run, head: Head, pooling: Pooling = "mean") -> DataArray:
    """One head's whole map as weights (query, key), to 3.3 %. Raises HeadscopeError where the head isn't kept."""
    levels = overview_bytes(run, pooling, layer=head.layer)
    if head.stack or head.layer not in levels["layer"] or head.head not in levels["head"]:
        raise HeadscopeError(f"The run {run.id} keeps no map of {head}.")
    one = levels.sel(layer=head.layer, head=head.head)
    return one.copy(data=as_weights(one.values)).assign_attrs(head=str(head), unit="share of attention")


def whole(tokens: int) -> Tile:
    return Tile((0, tokens), (0, tokens), CELLS)
