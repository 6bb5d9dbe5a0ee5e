"""A tile as pixels and as blocks, for a page that shows it.

    cells = shown_cells(run, Head(17, 4), window, pooling="max", leave_out=[])
    pixels(cells, "log")      # a PNG, one pixel a cell
    blocks(cells)             # the same in at most 48 parts a side, to be pointed at

A cell without any weight has no colour, neither on the logarithmic scale nor on the other.
"""

import io
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from xarray import DataArray

from analysis.maps.overview import LOWEST, Pooling, overview
from analysis.maps.tiles import tile
from analysis.maps.windows import Window
from analysis.runs import Run
from probes.heads import Head

Scale = Literal["log", "linear"]
SCALES: tuple[Scale, ...] = ("log", "linear")
BLOCKS = 48  # a side: what a browser draws at once, and a finger can tell apart
MOST_PAIRS = 16_384**2  # more take longer than a reader waits: the overview is shown
VIRIDIS = ("#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725")
LEVELS = 255  # colours; one more stands for no weight


def shown_cells(run: Run, head: Head, window: Window, *, pooling: Pooling, leave_out: Sequence[int]) -> DataArray:
    """The window's weights (query, key) in at most 512 cells a side; of a very large one, the overview's cells.

    attrs: left_out, and `coarse` where they are the overview's, which leaves no key out and is exact to 3.3 %.
    """
    if window.pairs <= MOST_PAIRS:
        found = tile(run, head, queries=window.queries, keys=window.keys, pooling=pooling, leave_out=leave_out)
        return found.assign_attrs(coarse=False)
    cells = overview(run, head, pooling)
    starts: dict[str, Any] = {}
    edges: dict[str, Any] = {}
    for dim, (first, last) in (("query", window.queries), ("key", window.keys)):
        begin = np.append(cells[dim].values, window.tokens)
        inside = np.flatnonzero((begin[:-1] < last) & (begin[1:] > first))
        starts[dim] = inside
        edges |= {f"{dim}_start": (dim, begin[inside]), f"{dim}_stop": (dim, begin[inside + 1])}
    part = cells.isel(starts).drop_vars(["query", "key"]).assign_coords(edges)
    return part.assign_attrs(coarse=True, left_out=[])


def colour_range(cells: DataArray, scale: Scale) -> tuple[float, float]:
    """The weights of the darkest colour and the lightest: one range for all heads and runs if logarithmic."""
    return (LOWEST, 1.0) if scale == "log" else (0.0, float(cells.max()) or 1.0)


def shades(weights: NDArray[np.floating[Any]], span: tuple[float, float], scale: Scale) -> Float[np.ndarray, "..."]:
    """Where each weight lies between the darkest colour, 0, and the lightest, 1; NaN where there is no weight."""
    low, high = span
    if scale == "log":
        found = np.log(np.clip(weights, low, high) / low) / math.log(high / low)
    else:
        found = np.clip((weights - low) / (high - low), 0, 1)
    return np.where(weights > 0, found, np.nan)


def pixels(cells: DataArray, scale: Scale) -> bytes:
    """A PNG in viridis, a pixel a cell; clear where there is no weight."""
    found = shades(cells.values, colour_range(cells, scale), scale)
    levels = np.where(np.isnan(found), 0, 1 + np.rint(np.nan_to_num(found) * (LEVELS - 1))).astype(np.uint8)
    picture = Image.fromarray(levels)
    picture.putpalette(palette(LEVELS))
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=0)
    return file.getvalue()


def blocks(cells: DataArray, most: int = BLOCKS) -> pd.DataFrame:
    """The cells in at most `most` parts a side: query_start, query_stop, key_start, key_stop, and the strongest cell.

    That cell's own tokens are from_query up to to_query and from_key up to to_key, its weight `weight`. Parts without
    weight are left out.
    """
    values = cells.values
    tall, wide = (math.ceil(side / most) for side in values.shape)
    query = cells["query_start"].values, cells["query_stop"].values
    key = cells["key_start"].values, cells["key_stop"].values
    rows = []
    for top in range(0, values.shape[0], tall):
        for left in range(0, values.shape[1], wide):
            part = values[top : top + tall, left : left + wide]
            down, across = divmod(int(part.argmax()), part.shape[1])
            i, j, bottom, right = top + down, left + across, top + part.shape[0] - 1, left + part.shape[1] - 1
            if part[down, across] > 0:
                rows.append((query[0][top], query[1][bottom], key[0][left], key[1][right],
                             query[0][i], query[1][i], key[0][j], key[1][j], float(part[down, across])))  # fmt: skip
    names = ["query_start", "query_stop", "key_start", "key_stop", "from_query", "to_query", "from_key", "to_key"]
    return pd.DataFrame(rows, columns=[*names, "weight"])


def strongest_pair(run: Run, head: Head, window: Window, *, leave_out: Sequence[int]) -> tuple[int, int]:
    """Query and key of the window's largest weight; the window may be a cell of another's."""
    found = tile(run, head, queries=window.queries, keys=window.keys, pooling="max", leave_out=leave_out)
    down, across = np.unravel_index(int(found.values.argmax()), found.shape)
    inner = Window(
        window.tokens,
        (int(found["query_start"][down]), int(found["query_stop"][down])),
        (int(found["key_start"][across]), int(found["key_stop"][across])),
    )
    if inner.pairs == 1 or inner == window:
        return inner.queries[0], inner.keys[0]
    return strongest_pair(run, head, inner, leave_out=leave_out)


def as_table(cells: DataArray) -> pd.DataFrame:
    """A row per cell row, a column per cell column, named by the first token that each covers."""
    keys = [f"key {start}" for start in cells["key_start"].values]
    found = pd.DataFrame(cells.values, columns=keys)
    found.insert(0, "query", cells["query_start"].values)
    return found


def palette(levels: int) -> list[int]:
    """No weight first, then so many colours from the darkest to the lightest: three numbers each."""
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in VIRIDIS])
    at = np.linspace(0, len(anchors) - 1, levels)
    colours = np.stack([np.interp(at, np.arange(len(anchors)), channel) for channel in anchors.T], axis=-1)
    return [0, 0, 0, *np.rint(colours).astype(int).ravel().tolist()]
