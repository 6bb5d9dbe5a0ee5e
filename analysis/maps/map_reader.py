"""One forward's q, k and L, written to disk layer by layer, and the statistics and overviews of its heads.

Nothing of a layer stays in memory but numbers per head and key, and the overviews as bytes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from analysis.maps.kept_layers import Rule, keep_layer
from analysis.maps.overview import POOLINGS, Pooling, as_bytes, whole
from analysis.maps.tiles import visibility
from analysis.sinks import attention_on, find_sinks, sink_heads
from kernels.attention import visible_in
from kernels.statistics import QueryWindow, statistics
from probes.call import AttentionCall
from probes.errors import HeadscopeError

PER_HEAD_KEY = ("received", "received_sum")
PER_QUERY = ("entropy", "distance")
CHECKED_ROWS = 512


class MapReader:
    """One prompt, whole, in one forward; only the decoder layers that are to be kept are read.

    behind: the first query behind a picture, where there is one.
    """

    def __init__(self, layers: Sequence[int], folder: Path, *, behind: int | None = None) -> None:
        self.layers, self.folder = list(layers), folder
        self._behind = None if behind is None else {"behind": QueryWindow(start=behind)}
        self.overviews: dict[Pooling, list[NDArray[np.uint8]]] = {pooling: [] for pooling in POOLINGS}
        self.dtype = "float16"
        later = () if behind is None else (f"{name}:behind" for name in PER_HEAD_KEY)
        self._found: dict[str, list[Tensor]] = {name: [] for name in (*PER_HEAD_KEY, *PER_QUERY, *later, "seen_by")}

    def read(self, call: AttentionCall) -> None:
        layer = call.layer
        if layer.stack or layer.index not in self.layers:
            return
        rule = rule_of(call)
        q, k = in_half(call.q, call.k)
        n = q.shape[2]
        seen = {name: x.to(q.device) if name == "mask" else x for name, x in visibility(rule, (0, n), (0, n)).items()}
        found = statistics(
            q, k, scale=rule.scale, softcap=rule.softcap, sink=call.sink, tile=whole(n), **seen,
            wanted=("lse", *PER_HEAD_KEY, *PER_QUERY, *(f"tile_{pooling}" for pooling in POOLINGS)),
        )  # fmt: skip
        if self._behind is not None:
            found |= statistics(
                q, k, scale=rule.scale, softcap=rule.softcap, sink=call.sink, lse=found["lse"], **seen,
                wanted=PER_HEAD_KEY, windows=self._behind,
            )  # fmt: skip
        keep_layer(self.folder / f"L{layer.index}.safetensors", rule, {"q": q[0], "k": k[0], "lse": found["lse"][0]})
        self.dtype = str(q.dtype).removeprefix("torch.")
        for pooling in POOLINGS:
            self.overviews[pooling].append(as_bytes(found[f"tile_{pooling}"][0].cpu().numpy()))
        for name in self._found.keys() - {"seen_by"}:
            self._found[name].append(found[name][0].cpu())
        self._found["seen_by"].append(_seen_by(rule, n))

    def found(self) -> xr.Dataset:
        """(layer, head, key) and (layer, head, query) of the kept layers, and seen_by (layer, key).

        With a picture, received:behind and received_sum:behind too, from the queries behind it alone.
        """
        dims = {name: ("layer", "head", "query" if name in PER_QUERY else "key") for name in self._found}
        stacked = {name: torch.stack(each).numpy() for name, each in self._found.items()}
        return xr.Dataset(
            {name: (("layer", "key") if name == "seen_by" else dims[name], x) for name, x in stacked.items()},
            coords={"layer": self.layers},
        )


class RuleChecker:
    """Refuses, as a MapReader would, a model whose layers can't be kept at all; for a forward over two tokens."""

    def read(self, call: AttentionCall) -> None:
        if not call.layer.stack:
            rule_of(call)


def rule_of(call: AttentionCall) -> Rule:
    """Raises HeadscopeError where q, k and L alone do not say what the layer attends to."""
    if call.rule is not None:
        raise HeadscopeError(f"This model attends by {call.rule[0].name}: only a softmax's map can be kept as q and k.")
    if call.q.shape[0] > 1 or call.q.shape[2] < call.k.shape[2]:
        raise HeadscopeError("A map is kept of one prompt, whole, in one forward.")
    window = call.layer.window if call.mask is not None else None
    both_ways = both_ways_in(call.mask) if call.mask is not None else None
    rule = Rule(call.layer.index, call.scale, window, call.layer.softcap, call.sink is not None, both_ways)
    if not (call.causal if call.mask is None else masks_only_by(call.mask, rule)):
        raise HeadscopeError(
            f"Layer {call.layer.index} hides or favours keys otherwise than by order, a sliding window and one picture "
            "whose tokens see each other: its map can't be kept as q and k."
        )
    return rule


def both_ways_in(mask: Tensor) -> tuple[int, int] | None:
    """The tokens, from one up to another, among which queries see keys behind them; None where none does."""
    first, end = mask.shape[-2], 0
    for rows in _some_rows(mask):
        later = visible_in(mask[:, :, slice(*rows)])[0, 0].triu(rows[0] + 1)
        if later.any():
            first = min(first, rows[0] + int(later.any(1).nonzero()[0]))
            end = max(end, 1 + int(later.any(0).nonzero()[-1]))
    return (first, end) if end else None


def masks_only_by(mask: Tensor, rule: Rule) -> bool:
    """Whether a mask (1, 1, n, n) says what the rule says of who sees whom, and nothing else."""
    for rows in _some_rows(mask):
        some, visible = mask[:, :, slice(*rows)], rule.sees(rows, (0, mask.shape[-1])).to(mask.device)
        if not (visible_in(some) == visible).all() or (some.dtype != torch.bool and some[..., visible].any()):
            return False
    return True


def _some_rows(mask: Tensor) -> Iterator[tuple[int, int]]:
    n = mask.shape[-2]
    return ((start, min(n, start + CHECKED_ROWS)) for start in range(0, n, CHECKED_ROWS))


def _seen_by(rule: Rule, tokens: int) -> Int[Tensor, " key"]:
    """How many queries see each key."""
    count = torch.arange(tokens, 0, -1).clamp_max(rule.window or tokens)
    for key in range(*rule.both_ways or (0, 0)):
        start, stop = rule.queries_of(key, tokens)
        count[key] = stop - start
    return count


def in_half(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Half precision: the model's own where it has one, else float16, or bfloat16 for numbers too large for that."""
    if q.dtype in (torch.float16, torch.bfloat16):
        return q, k
    halves = q.half(), k.half()
    return halves if all(half.isfinite().all() for half in halves) else (q.bfloat16(), k.bfloat16())


def per_head(found: xr.Dataset, image: Sequence[int] = ()) -> tuple[xr.DataArray, dict[str, xr.DataArray]]:
    """The sinks (key,), of the kept heads, and per metric (layer, head). image: positions of a picture's tokens.

    image_share is the mean over the queries behind the picture of what they give it.
    """
    sinks = find_sinks(found["received"], found["seen_by"])
    metrics = {
        "sink_share": attention_on(found["received_sum"], sinks),
        "first_share": found["received_sum"].isel(key=0) / found.sizes["key"],
        "entropy": found["entropy"].mean("query"),
        "distance": found["distance"].mean("query"),
    }
    if image:
        queries = found.sizes["key"] - image[-1] - 1
        metrics["image_share"] = found["received_sum:behind"].isel(key=list(image)).sum("key") / queries
    return sinks, metrics


def parked(found: xr.Dataset) -> xr.DataArray:
    """Share of the kept heads that park attention on each key, (key,)."""
    return sink_heads(found["received"], found["seen_by"])
