"""Where does a head look hardest in a text? Its strongest pairs of query and key, each in another place of the map.

for pair in strongest_pairs(run, Head(17, 4), whole_window(tokens), leave_out=sinks_of(run)):
    print(pair.weight, stretches(pair, tokens))
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from xarray import DataArray

from analysis.maps.drawing import shown_cells, strongest_pair
from analysis.maps.exact import weight
from analysis.maps.windows import Stretch, Window
from analysis.runs import Run
from probes.heads import Head

TOP = 6
AROUND = 12  # tokens of text on either side of a query or a key


@dataclass(frozen=True)
class Pair:
    """weight: what the query gives the key, exact, in [0, 1]."""

    query: int
    key: int
    weight: float


def strongest_pairs(run: Run, head: Head, window: Window, *, leave_out: Sequence[int], top: int = TOP) -> list[Pair]:
    """At most `top` pairs of a window, strongest first, no two of them in one row or column of its 512 cells a side.

    leave_out: keys that are passed over. Where the window is so large that it is drawn from the overview, cells that
    hold such a key are passed over whole. The first token is no example: it sees but itself.
    """
    first, stop = window.queries
    window = replace(window, queries=(max(first, min(1, stop - 1)), stop))
    cells = shown_cells(run, head, window, pooling="max", leave_out=leave_out)
    values = np.array(cells.values)
    if cells.attrs["coarse"]:
        values[:, np.searchsorted(cells["key_stop"].values, _inside(leave_out, window), side="right")] = 0
    found: list[Pair] = []
    while len(found) < top and values.max() > 0:
        row, column = (int(at) for at in np.unravel_index(int(values.argmax()), values.shape))
        query, key = strongest_pair(run, head, _cell(cells, row, column, window.tokens), leave_out=leave_out)
        found.append(Pair(query, key, weight(run, head, query, key)))
        values[row], values[:, column] = 0, 0
    return sorted(found, key=lambda pair: -pair.weight)


def stretches(pair: Pair, tokens: int) -> list[Stretch]:
    """The text to show with a pair: around the earlier, then around the other; one stretch where they meet."""
    (first, middle), (after, last) = (
        (max(0, at - AROUND), min(tokens, at + AROUND + 1)) for at in sorted((pair.query, pair.key))
    )
    return [(first, last)] if after <= middle else [(first, middle), (after, last)]


def _inside(keys: Sequence[int], window: Window) -> list[int]:
    return [key for key in keys if window.keys[0] <= key < window.keys[1]]


def _cell(cells: DataArray, row: int, column: int, tokens: int) -> Window:
    queries, keys = (
        (int(cells[f"{name}_start"][at]), int(cells[f"{name}_stop"][at]))
        for name, at in (("query", row), ("key", column))
    )
    return Window(tokens, queries, keys)
