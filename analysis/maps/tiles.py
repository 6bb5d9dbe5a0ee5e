"""A window of one head's attention map, pooled to cells, out of what a map run keeps.

    run = find_run("last", command="map")
    tile(run, Head(17, 4))                                                     # the whole map
    tile(run, Head(17, 4), queries=(3000, 4024), keys=(0, 1024), pooling="max")
    tile(run, Head(17, 4), leave_out=sinks_of(run))                            # what is left beside the sinks

Computed on the CPU from q, k and L of these queries and keys alone. The largest weight of a cell (max) lets a single
strong pair be seen at any zoom; the mean shows where the mass lies.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from xarray import DataArray

from analysis.maps.kept_layers import KeptLayer, Rule, kept_layer
from analysis.maps.one_thread import one_thread
from analysis.maps.overview import POOLINGS, Pooling
from analysis.maps.stored_tiles import store, stored, stored_file
from analysis.runs import Run
from kernels.statistics import Tile, statistics
from probes.errors import HeadscopeError
from probes.heads import Head

CELLS = 512
MOST_CELLS = 1024


def tile(
    run: Run,
    head: Head,
    *,
    queries: tuple[int, int] | None = None,
    keys: tuple[int, int] | None = None,
    cells: int = CELLS,
    pooling: Pooling = "mean",
    leave_out: Iterable[int] = (),
) -> DataArray:
    """Weights (query, key) in [0, 1], a cell each of at most `cells` a side; pairs that are not visible count as 0.

    queries, keys: from a position up to another, the whole prompt by default. leave_out: keys whose weight is set to 0;
    the others are not renormalised, so that a row shows what the head really gives them.
    Coordinates: query_start, query_stop, key_start, key_stop, the tokens that each cell covers.
    Raises HeadscopeError where the head is not kept or the window lies outside the prompt.
    """
    layer = checked_layer(run, head)
    window = Tile(
        _checked(queries, layer.tokens, "queries"), _checked(keys, layer.tokens, "keys"), min(cells, MOST_CELLS)
    )
    if cells < 1 or pooling not in POOLINGS:
        raise HeadscopeError(f"A tile has at least 1 cell a side and is pooled by {' or '.join(POOLINGS)}.")
    hidden = sorted({key for key in leave_out if window.keys[0] <= key < window.keys[1]})
    asked = {
        "layer": head.layer, "head": head.head, "digest": layer.digest, "queries": window.queries, "keys": window.keys,
        "cells": window.cells, "pooling": pooling, "leave_out": hidden,
    }  # fmt: skip
    file = stored_file(run, asked)
    found = stored(file, window.shape())
    if found is None:
        found = _computed(layer, head.head, window, pooling, hidden)
        store(file, found)
    return _labelled(found, window).assign_attrs(
        head=str(head), pooling=pooling, left_out=hidden, renormalised=False, unit="share of attention"
    )


def checked_layer(run: Run, head: Head) -> KeptLayer:
    """The layer of a head. Raises HeadscopeError where the run does not keep this head."""
    if head.stack:
        raise HeadscopeError(f"Maps are kept of the decoder's heads, and {head} is none of them.")
    layer = kept_layer(run, head.layer)
    if head.head >= layer.heads:
        raise HeadscopeError(f"{head} does not exist: the layers of this model have heads 0 to {layer.heads - 1}.")
    return layer


@one_thread()
@torch.inference_mode()
def _computed(
    layer: KeptLayer, head: int, window: Tile, pooling: Pooling, hidden: list[int]
) -> Float[np.ndarray, "row column"]:
    """The kernels put the last query on the last key: both are given from the window's start on, up to one end.

    What lies behind the window is never visited, so it is left at 0 and not read.
    """
    (first_query, last_query), (first_key, last_key) = window.queries, window.keys
    end = max(last_query, last_key)
    own_q, own_k = layer.queries(head, *window.queries), layer.keys(head, *window.keys)
    q = own_q.new_zeros(1, 1, end - first_query, own_q.shape[-1])
    k = own_k.new_zeros(1, 1, end - first_key, own_k.shape[-1])
    lse = torch.zeros(1, 1, end - first_query)
    shown = torch.ones(1, end - first_key, dtype=torch.bool)
    rows, columns = last_query - first_query, last_key - first_key
    q[0, 0, :rows], k[0, 0, :columns] = own_q, own_k
    lse[0, 0, :rows] = layer.lse(head, *window.queries)
    shown[0, [key - first_key for key in hidden]] = False
    name, rule = f"tile_{pooling}", layer.rule
    found = statistics(
        q, k, scale=rule.scale, softcap=rule.softcap, lse=lse, wanted=[name],
        padding=shown if hidden else None, tile=Tile((0, rows), (0, columns), window.cells),
        **visibility(rule, (first_query, end), (first_key, end)),
    )  # fmt: skip
    return np.asarray(found[name][0, 0].clamp_max(1.0))


def visibility(rule: Rule, queries: tuple[int, int], keys: tuple[int, int]) -> dict[str, Any]:
    """What the kernels are told of who sees whom: order and window, or every pair where tokens see each other."""
    first, end = rule.both_ways or (0, 0)
    if queries[0] >= end or keys[1] <= first:
        return {"window": rule.window}
    return {"causal": False, "mask": rule.sees(queries, keys)[None, None]}


def _checked(asked: tuple[int, int] | None, tokens: int, what: str) -> tuple[int, int]:
    start, stop = asked or (0, tokens)
    if not 0 <= start < stop <= tokens:
        raise HeadscopeError(f"The {what} {start} to {stop} are not inside the prompt's {tokens} tokens.")
    return int(start), int(stop)


def _labelled(cells: Float[np.ndarray, "row column"], window: Tile) -> DataArray:
    coords: dict[str, Any] = {}
    for dim, (start, stop), size in zip(("query", "key"), (window.queries, window.keys), window.sizes(), strict=True):
        starts = np.arange(start, stop, size)
        coords |= {f"{dim}_start": (dim, starts), f"{dim}_stop": (dim, np.minimum(starts + size, stop))}
    return DataArray(cells, dims=("query", "key"), coords=coords)
