"""One forward's q, k and L, written to disk layer by layer, and the statistics and overviews of its heads.

Nothing of a layer stays in memory but numbers per head and key, and the overviews as bytes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from analysis.maps.kept_layers import Rule, keep_layer
from analysis.maps.overview import POOLINGS, Pooling, as_bytes, whole
from analysis.sinks import attention_on, find_sinks, sink_heads
from kernels.attention import visible_in, visible_pairs
from kernels.statistics import statistics
from probes.call import AttentionCall
from probes.errors import HeadscopeError

PER_HEAD_KEY = ("received", "received_sum")
PER_QUERY = ("entropy", "distance")
CHECKED_ROWS = 512


class MapReader:
    """One prompt, whole, in one forward; only the decoder layers that are to be kept are read."""

    def __init__(self, layers: Sequence[int], folder: Path) -> None:
        self.layers, self.folder = list(layers), folder
        self.overviews: dict[Pooling, list[NDArray[np.uint8]]] = {pooling: [] for pooling in POOLINGS}
        self.dtype = "float16"
        self._found: dict[str, list[Tensor]] = {name: [] for name in (*PER_HEAD_KEY, *PER_QUERY, "seen_by")}

    def read(self, call: AttentionCall) -> None:
        layer = call.layer
        if layer.stack or layer.index not in self.layers:
            return
        rule = rule_of(call)
        q, k = in_half(call.q, call.k)
        n = q.shape[2]
        found = statistics(
            q, k, scale=rule.scale, window=rule.window, softcap=rule.softcap, sink=call.sink, tile=whole(n),
            wanted=("lse", *PER_HEAD_KEY, *PER_QUERY, *(f"tile_{pooling}" for pooling in POOLINGS)),
        )  # fmt: skip
        keep_layer(self.folder / f"L{layer.index}.safetensors", rule, {"q": q[0], "k": k[0], "lse": found["lse"][0]})
        self.dtype = str(q.dtype).removeprefix("torch.")
        for pooling in POOLINGS:
            self.overviews[pooling].append(as_bytes(found[f"tile_{pooling}"][0].cpu().numpy()))
        for name in (*PER_HEAD_KEY, *PER_QUERY):
            self._found[name].append(found[name][0].cpu())
        self._found["seen_by"].append(torch.arange(n, 0, -1).clamp_max(rule.window or n))

    def found(self) -> xr.Dataset:
        """(layer, head, key) and (layer, head, query) of the kept layers, and seen_by (layer, key)."""
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
    if not (call.causal if call.mask is None else masks_only_by(call.mask, window)):
        raise HeadscopeError(
            f"Layer {call.layer.index} hides or favours keys otherwise than by order and a sliding window: its map "
            "can't be kept as q and k."
        )
    return Rule(call.layer.index, call.scale, window, call.layer.softcap, call.sink is not None)


def masks_only_by(mask: Tensor, window: int | None) -> bool:
    """Whether a mask (1, 1, n, n) says causal order, a window if there is one, and nothing else."""
    n, m = mask.shape[-2:]
    for start in range(0, n, CHECKED_ROWS):
        rows = slice(start, start + CHECKED_ROWS)
        some, visible = mask[:, :, rows], visible_pairs(n, m, window=window, device=mask.device, rows=rows)
        if not (visible_in(some) == visible).all() or (some.dtype != torch.bool and some[..., visible].any()):
            return False
    return True


def in_half(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Half precision: the model's own where it has one, else float16, or bfloat16 for numbers too large for that."""
    if q.dtype in (torch.float16, torch.bfloat16):
        return q, k
    halves = q.half(), k.half()
    return halves if all(half.isfinite().all() for half in halves) else (q.bfloat16(), k.bfloat16())


def per_head(found: xr.Dataset) -> tuple[xr.DataArray, dict[str, xr.DataArray]]:
    """The sinks (key,), of the kept heads, and per metric (layer, head)."""
    sinks = find_sinks(found["received"], found["seen_by"])
    return sinks, {
        "sink_share": attention_on(found["received_sum"], sinks),
        "first_share": found["received_sum"].isel(key=0) / found.sizes["key"],
        "entropy": found["entropy"].mean("query"),
        "distance": found["distance"].mean("query"),
    }


def parked(found: xr.Dataset) -> xr.DataArray:
    """Share of the kept heads that park attention on each key, (key,)."""
    return sink_heads(found["received"], found["seen_by"])
