"""Exact weights for the token view: where one query looks, who looks at one key, of one head or the mean of several.

    row(run, [Head(17, 4)], query=830)          # what token 830 attends to
    column(run, layer_heads(run, 17), key=12)   # who attends to token 12, mean over the layer's heads
    mass(run, [Head(17, 4)], keys=range(3, 103))    # what every token gives a picture's tokens together
    strongest(run, row(run, [head], 830))       # the top ones as a table

In float64 from the kept q, k and L.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from xarray import DataArray

from analysis.maps.kept_layers import KeptLayer, kept_layer, record_of
from analysis.maps.one_thread import one_thread
from analysis.maps.tiles import checked_layer
from analysis.runs import Run
from kernels.attention import scores
from probes.errors import HeadscopeError
from probes.heads import Head

TOP = 10
ROWS = 512  # queries whose weights are held at once


def layer_heads(run: Run, layer: int) -> list[Head]:
    """Every head of a kept layer."""
    return [Head(layer, head) for head in range(kept_layer(run, layer).heads)]


def row(run: Run, heads: Sequence[Head], query: int) -> DataArray:
    """Weight of every key for one query, (key,), in [0, 1]; 0 for keys that it doesn't see. Mean over the heads."""
    total = np.zeros(0)
    for head, layer in _each(run, heads):
        _inside(query, layer, "query")
        if not len(total):
            total = np.zeros(layer.tokens)
        keys = layer.rule.keys_of(query)
        total[slice(*keys)] += _weights(layer, head.head, (query, query + 1), keys)[0]
    return _mean(total, heads, "key").assign_attrs(query=query)


def column(run: Run, heads: Sequence[Head], key: int) -> DataArray:
    """Weight that every query gives one key, (query,), in [0, 1]; 0 for those that don't see it. Mean over the heads.

    A query's weights sum to 1 over its keys; what a key receives sums to nothing in particular.
    """
    total = np.zeros(0)
    for head, layer in _each(run, heads):
        _inside(key, layer, "key")
        if not len(total):
            total = np.zeros(layer.tokens)
        queries = layer.rule.queries_of(key, layer.tokens)
        total[slice(*queries)] += _weights(layer, head.head, queries, (key, key + 1))[:, 0]
    return _mean(total, heads, "query").assign_attrs(key=key)


def mass(run: Run, heads: Sequence[Head], keys: Sequence[int]) -> DataArray:
    """Weight that every query gives these keys together, (query,), in [0, 1]. Mean over the heads."""
    total, stretch = np.zeros(0), (min(keys), max(keys) + 1)
    inside = [key - stretch[0] for key in keys]
    for head, layer in _each(run, heads):
        _inside(stretch[1] - 1, layer, "key")
        if not len(total):
            total = np.zeros(layer.tokens)
        for start in range(0, layer.tokens, ROWS):
            queries = start, min(layer.tokens, start + ROWS)
            weights = _weights(layer, head.head, queries, stretch) * np.asarray(layer.rule.sees(queries, stretch))
            total[slice(*queries)] += weights[:, inside].sum(1)
    return _mean(total, heads, "query")


def weight(run: Run, head: Head, query: int, key: int) -> float:
    """One weight, in [0, 1]; 0 where the query doesn't see the key."""
    layer = checked_layer(run, head)
    _inside(query, layer, "query")
    _inside(key, layer, "key")
    first, stop = layer.rule.keys_of(query)
    if not first <= key < stop:
        return 0.0
    return float(_weights(layer, head.head, (query, query + 1), (key, key + 1))[0, 0])


def strongest(run: Run, weights: DataArray, *, top: int = TOP, leave_out: Iterable[int] = ()) -> pd.DataFrame:
    """The largest of a row or a column: position, token, weight; the lower position first where two are equal."""
    kept = np.array(weights.values)
    kept[list(leave_out)] = 0
    order = [position for position in np.argsort(-kept, kind="stable")[:top].tolist() if kept[position] > 0]
    tokens = tokens_of(run)
    return pd.DataFrame(
        {"position": order, "token": [tokens[i] for i in order], "weight": [float(kept[i]) for i in order]}
    )


def tokens_of(run: Run) -> list[str]:
    """The text of each of the prompt's tokens."""
    return record_of(run)["texts"]


def sinks_of(run: Run) -> list[int]:
    """The keys on which enough of the kept heads park their attention, whatever the query (analysis.sinks)."""
    return [sink["position"] for sink in record_of(run)["sinks"]]


def _each(run: Run, heads: Sequence[Head]) -> list[tuple[Head, KeptLayer]]:
    if not heads:
        raise HeadscopeError("No head is chosen: name at least one, such as L17H4.")
    return [(head, checked_layer(run, head)) for head in heads]


def _inside(position: int, layer: KeptLayer, what: str) -> None:
    if not 0 <= position < layer.tokens:
        raise HeadscopeError(f"There is no {what} {position}: the prompt has tokens 0 to {layer.tokens - 1}.")


@one_thread()
@torch.inference_mode()
def _weights(layer: KeptLayer, head: int, queries: tuple[int, int], keys: tuple[int, int]) -> Float[np.ndarray, "n m"]:
    """exp(s_ij - L_i); of a pair that is not visible, no weight of the head's."""
    q, k, lse = layer.queries(head, *queries), layer.keys(head, *keys), layer.lse(head, *queries)
    wide: list[Tensor] = [x.double() for x in (q, k, lse)]
    logits = scores(wide[0][None, None], wide[1][None, None], scale=layer.rule.scale, softcap=layer.rule.softcap)
    return np.asarray((logits[0, 0] - wide[2][:, None]).exp().clamp_max(1.0))


def _mean(total: Float[np.ndarray, " n"], heads: Sequence[Head], dim: str) -> DataArray:
    return DataArray(
        total / len(heads), dims=dim, attrs={"heads": [str(head) for head in heads], "unit": "share of attention"}
    )
