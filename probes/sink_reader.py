"""What sinks are judged by: the attention each key of a prompt receives, what its value would write, what heads write.

    reader = SinkReader()
    with Tap(subject, readers=[reader]):
        subject.model(ids)
    reader.found()["received"].sel(layer=17, head=4, key=0)

Values and outputs are measured in the residual stream, where heads meet. No vector of that size is formed for them:
||v W_O||^2 = v (W_O W_O^T) v^T, and the matrix in the middle is as small as a head.
"""

from typing import Any

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from kernels.attention import visible_in
from kernels.statistics import EDGES
from probes.anatomy import LayerAnatomy
from probes.call import AttentionCall
from probes.errors import HeadscopeError
from probes.readers import StatisticsReader

WANTED = ("received", "received_sum", "mean_query", "distance_histogram")
PER_HEAD_KEY = ("received", "received_sum", "mean_query", "value_norm")


class SinkReader:
    """One forward over one prompt, all layers of a stack; memory grows with layers x heads x tokens.

    stack: "" for the decoder, "vision" for a tower. What heads write is read in the decoder only.
    """

    def __init__(self, stack: str = "") -> None:
        self.stack = stack
        self.activations = () if stack else ("input", "heads")
        self._statistics = StatisticsReader(WANTED)
        self._per_layer: dict[str, dict[int, Tensor]] = {"value_norm": {}, "seen_by": {}, "write": {}}
        self._residual: Tensor | None = None

    def read(self, call: AttentionCall) -> None:
        if call.layer.stack != self.stack:
            return
        if call.q.shape[0] > 1 or call.q.shape[2] < call.k.shape[2] or call.layer.index in self._per_layer["seen_by"]:
            raise HeadscopeError("Sinks are read over one prompt, whole, in one forward.")
        self._statistics.read(call)
        self._per_layer["seen_by"][call.layer.index] = _queries_that_see(call)
        values = call.v[0].repeat_interleave(call.layer.group_size, dim=0)
        self._per_layer["value_norm"][call.layer.index] = _written_norm(call.layer, values)

    def read_activation(self, layer: LayerAnatomy, name: str, x: Float[Tensor, "b n width"]) -> None:
        if name == "input":
            self._residual = x[0].float().norm(dim=-1)
        elif self._residual is not None:
            said = x[0].unflatten(-1, (layer.query_heads, -1)).transpose(0, 1)
            share = _written_norm(layer, said)[:, 1:] / self._residual[1:]
            self._per_layer["write"][layer.index] = share.mean(-1)

    def found(self) -> xr.Dataset:
        """What the forward showed; n queries and as many keys.

        received        (layer, head, key)  mean attention from the queries that can see the key, in [0, 1]
        received_sum    (layer, head, key)  attention from all queries, in queries' worth
        mean_query      (layer, head, key)  mean position of the queries, each weighted by its attention; -1 without any
        value_norm      (layer, head, key)  ||v W_O||, the norm of what a head writes that attends to this key alone
        seen_by         (layer, key)        how many queries can see the key
        distances       (layer, head, edge) share of a head's attention at distances from this edge to the next, tokens
        write           (layer, head)       mean over queries of ||o W_O|| / ||x||, the first query left out

        x is the residual stream that the block reads, o the head's output, gates included. A bias of the output
        projection belongs to no head and is left out, as is a norm between the attention and the residual stream.
        """
        statistics = {name: self._statistics.stacked(name, stack=self.stack)[:, 0] for name in WANTED}
        own = {name: torch.stack([x[i] for i in sorted(x)]).cpu() for name, x in self._per_layer.items() if x}
        dims = {"seen_by": ("layer", "key"), "write": ("layer", "head")}
        variables: dict[str, Any] = {name: (("layer", "head", "key"), {**statistics, **own}[name].numpy())
                                     for name in PER_HEAD_KEY}  # fmt: skip
        variables |= {name: (dims[name], own[name].numpy()) for name in dims if name in own}
        variables["distances"] = (("layer", "head", "edge"), statistics["distance_histogram"].numpy())
        return xr.Dataset(variables, coords={"edge": list(EDGES)})


def _queries_that_see(call: AttentionCall) -> Int[Tensor, " m"]:
    m = call.k.shape[2]
    if call.mask is not None:
        return visible_in(call.mask).expand(1, -1, call.q.shape[2], m)[0, 0].sum(0)
    device = call.k.device
    return torch.arange(m, 0, -1, device=device) if call.causal else torch.full((m,), m, device=device)


def _written_norm(layer: LayerAnatomy, heads: Float[Tensor, "h n d"]) -> Float[Tensor, "h n"]:
    """||x_i W_O[h]|| of every head's vectors, without going to the residual stream."""
    weight = layer.output_weight().float()
    vectors = heads.float()
    squares = ((vectors @ (weight @ weight.transpose(1, 2))) * vectors).sum(-1)
    return squares.clamp_min(0).sqrt()
