"""Attention sinks: keys that take mass whatever the query asks. Who parks attention there, and what is carried?

    headscope sinks --model smollm2-135m

    a_k = mean over the queries i that can see key k of A[i, k]
    sink rate = share of prompts on which a_k > 0.3

Gu et al., "When Attention Sink Emerges in Language Models", ICLR 2025; the share of the first token is F-Attn of Qiu et
al., "Gated Attention for Large Language Models", NeurIPS 2025. A sink is found, not assumed: any key of a prompt on
which enough heads park attention. Arrays come from probes.sink_reader; more dims, such as a prompt, may stand before
theirs.
"""

from collections.abc import Sequence

import xarray as xr
from xarray import DataArray

SINK_THRESHOLD = 0.3  # epsilon in Gu et al.
SINK_HEADS = 0.05  # of all heads: as many must park more than the threshold on a key
MIN_QUERIES = 16  # a mean over fewer queries says little: the last key's is a single number
LOCAL = 8  # nearest keys, a query's own included


def sink_rate(received: DataArray, *, key: int = 0, threshold: float = SINK_THRESHOLD) -> DataArray:
    """Share of prompts on which a head parks more than `threshold` of its attention on one key. Gu et al., section 3.

    received: mean attention each key receives from the queries that can see it, dims (prompt, layer, head, key), in
        [0, 1].
    Returns dims (layer, head), in [0, 1]: the indicator is taken prompt by prompt, and not after averaging.
    Raises ValueError where `key` lies beyond the shortest prompt.
    """
    if key >= received.sizes["key"]:
        raise ValueError(f"key {key} is beyond the prompts' {received.sizes['key']} positions")
    return (received.isel(key=key) > threshold).mean("prompt")


def find_sinks(
    received: DataArray,
    seen_by: DataArray,
    *,
    threshold: float = SINK_THRESHOLD,
    heads: float = SINK_HEADS,
    queries: int = MIN_QUERIES,
) -> DataArray:
    """Which keys are sinks: a share of at least `heads` of all heads gives the key more than `threshold`.

    received: (layer, head, key). seen_by: queries that can see a key, (layer, key); a layer where they are fewer than
        `queries` does not speak for that key.
    Returns dims (key,), bool.
    """
    return sink_heads(received, seen_by, threshold=threshold, queries=queries) >= heads


def sink_heads(
    received: DataArray, seen_by: DataArray, *, threshold: float = SINK_THRESHOLD, queries: int = MIN_QUERIES
) -> DataArray:
    """Share of all heads that park more than `threshold` on each key, (key,), in [0, 1]; see `find_sinks`."""
    return ((received > threshold) & (seen_by >= queries)).mean(("layer", "head"))


def attention_on(received_sum: DataArray, keys: DataArray) -> DataArray:
    """Share of its attention that a head gives to some keys: sum over them of sum_i A[i, k], by the number of queries.

    received_sum: (layer, head, key), in queries' worth. keys: (key,), bool. Returns dims (layer, head), in [0, 1].
    Attention that goes nowhere (`unspent`) counts among the whole.
    """
    return received_sum.where(keys, 0).sum("key") / received_sum.sizes["key"]


def first_share(received_sum: DataArray) -> DataArray:
    """Mean over queries of A[i, 0], (layer, head), in [0, 1]; its mean over heads is F-Attn."""
    return received_sum.isel(key=0) / received_sum.sizes["key"]


def unspent(received_sum: DataArray) -> DataArray:
    """1 - mean over queries of the row's sum, (layer, head), in [0, 1].

    What learned sink logits or an off-by-one softmax take, or clipping leaves out; 0 for a plain softmax.
    """
    return (1 - received_sum.sum("key") / received_sum.sizes["key"]).clip(0, 1)


def contribution(received_sum: DataArray, value_norm: DataArray, keys: DataArray) -> DataArray:
    """Share of some keys in what a head could write: sum of (attention x ||v W_O||) over them, by that over all keys.

    Beside `attention_on` it says whether the mass carries anything: a sink takes much mass and has a short value.
    Returns dims (layer, head), in [0, 1].
    """
    written = received_sum * value_norm
    return _share(written.where(keys, 0).sum("key"), written.sum("key"))


def value_lengths(value_norm: DataArray, sinks: DataArray) -> DataArray:
    """Each key's ||v W_O|| by the median of those that are no sinks, (layer, head, key); 0 where that median is 0."""
    return _share(value_norm, value_norm.where(~sinks).median("key"))


def value_ratio(value_norm: DataArray, sinks: DataArray) -> DataArray:
    """Mean ||v W_O|| of the sinks by the median of the other keys, (layer, head); NaN without a sink."""
    return value_lengths(value_norm, sinks).where(sinks).mean("key")


def delimiter_share(received_sum: DataArray, delimiters: DataArray) -> DataArray:
    """Share of delimiters in the attention that keys after the first receive, (layer, head), in [0, 1].

    Compare with the share of delimiters among those keys.
    """
    later = received_sum.isel(key=slice(1, None))
    return _share(later.where(delimiters.isel(key=slice(1, None)), 0).sum("key"), later.sum("key"))


def local_share(distances: DataArray, received_sum: DataArray, *, nearest: int = LOCAL) -> DataArray:
    """Mean over queries of the attention to keys less than `nearest` tokens away, (layer, head), in [0, 1].

    distances: (layer, head, edge), see probes.sink_reader. Raises ValueError where `nearest` is no edge.
    """
    if nearest not in distances["edge"].values:
        raise ValueError(f"nearest is {nearest}, and must be an edge of the histogram")
    return distances.sel(edge=distances["edge"] < nearest).sum("edge") * (1 - unspent(received_sum))


def previous_share(distances: DataArray, received_sum: DataArray) -> DataArray:
    """Mean over the queries but the first of A[i, i - 1], (layer, head), in [0, 1].

    In a bidirectional head, the attention to both neighbours.
    """
    n = received_sum.sizes["key"]
    return distances.sel(edge=1) * (1 - unspent(received_sum)) * n / (n - 1)


def distance(received_sum: DataArray, mean_query: DataArray, sinks: DataArray) -> DataArray:
    """Mean distance i - k of what a causal head attends to, sinks left out, in tokens, (layer, head).

    sum over the other keys of sum_i A[i, k] (i - k), by the attention that they receive. 0 where they receive none.
    """
    kept = received_sum.where(~sinks, 0)
    away = mean_query - xr.DataArray(range(received_sum.sizes["key"]), dims="key")
    return _share((kept * away).sum("key"), kept.sum("key"))


def per_head(found: xr.Dataset, sinks: DataArray, delimiters: Sequence[bool]) -> dict[str, DataArray]:
    """Every metric of one prompt, dims (layer, head). value_ratio is left out where the prompt has no sink."""
    total, keys = found["received_sum"], DataArray(range(found.sizes["key"]), dims="key")
    metrics = {
        "received_first": found["received"].isel(key=0),
        "first_share": first_share(total),
        "sink_share": attention_on(total, sinks),
        "sink_share_rest": attention_on(total, sinks & (keys > 0)),
        "sink_contribution": contribution(total, found["value_norm"], sinks),
        "first_contribution": contribution(total, found["value_norm"], keys == 0),
        "delimiter_share": delimiter_share(total, DataArray(list(delimiters), dims="key")),
        "write": found["write"],
        "unspent": unspent(total),
        "local_share": local_share(found["distances"], total),
        "previous_share": previous_share(found["distances"], total),
        "distance": distance(total, found["mean_query"], sinks),
    }
    if sinks.any():
        metrics["value_ratio"] = value_ratio(found["value_norm"], sinks)
    return metrics


def _share(part: DataArray, whole: DataArray) -> DataArray:
    return xr.where(whole > 0, part / whole.where(whole > 0, 1), 0.0)
