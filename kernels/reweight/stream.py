"""Streaming heads in time linear in the length: a block of queries meets the sinks and the keys of its window only.

All blocks but the first few see the same pattern of keys, so that many of them are one call with one small mask.
Where the sinks meet queries of their own, q'_i, one product serves both: [q_i, q'_i].[k_j, 0] with a key of the window
and [q_i, q'_i].[0, k_j] with a sink.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.attention.reference import attend
from kernels.reweight.change import Call, Stream
from kernels.reweight.columns import attend_quickly

SMALLEST_BLOCK, LARGEST_BLOCK = 64, 512
QUERIES_AT_ONCE = 8192
"""Bounds the memory for the keys that blocks share and each have a copy of."""


def attend_stream(call: Call, stream: Stream) -> Float[Tensor, "b h n e"]:
    """All heads see what `stream` lets them see. Causal, positions are slots, no mask, no more queries than keys."""
    first = call.m - call.n
    # From here on the window begins behind the sinks.
    behind = min(max(stream.sink + stream.window - 1, first), call.m)
    block = min(max(stream.window, SMALLEST_BLOCK), LARGEST_BLOCK)
    rest = (call.m - behind) % block
    parts = []
    if behind > first:
        near, query = torch.arange(behind, device=call.q.device), torch.arange(first, behind, device=call.q.device)
        parts.append(_attend(call, stream, query[None], near[None]))
    if rest:
        parts.append(_attend(call, stream, *_slab(call, stream, behind, rest, 1)))
    at_once = max(1, QUERIES_AT_ONCE // block)
    for start in range(behind + rest, call.m, block * at_once):
        count = min(at_once, (call.m - start) // block)
        parts.append(_attend(call, stream, *_slab(call, stream, start, block, count)))
    return torch.cat(parts, 2)


def _slab(
    call: Call, stream: Stream, start: int, block: int, count: int
) -> tuple[Int[Tensor, "blocks queries"], Int[Tensor, "blocks keys"]]:
    """Slots of the queries of `count` blocks from slot `start` on, and of the keys that each block may see."""
    device = call.q.device
    starts = start + block * torch.arange(count, device=device)[:, None]
    sinks = torch.arange(stream.sink, device=device).expand(count, -1)
    window = starts + torch.arange(1 - stream.window, block, device=device)
    return starts + torch.arange(block, device=device), torch.cat([sinks, window], 1)


def _attend(
    call: Call, stream: Stream, query: Int[Tensor, "blocks queries"], key: Int[Tensor, "blocks keys"]
) -> Float[Tensor, "b h n e"]:
    """Blocks of queries, each over its own keys."""
    b, blocks = call.q.shape[0], len(query)
    q = _blocks(call.q, query - (call.m - call.n))
    k, v = _blocks(call.k, key), _blocks(call.v, key)
    if stream.sink_queries is not None:
        sinks: Bool[Tensor, "keys 1"] = stream.sinks(key[0])[:, None]
        q = torch.cat([q, _blocks(stream.sink_queries, query - (call.m - call.n))], -1)
        k = torch.cat([k.masked_fill(sinks, 0), k.masked_fill(~sinks, 0)], -1)
    # The pattern of one block is that of all.
    visible: Bool[Tensor, "1 1 queries keys"] = stream.sees(query[:1], key[:1]) & (key[:1] <= query[0, :, None])
    if call.softcap is None and call.sink is None:
        output = attend_quickly(q, k, v, scale=call.scale, mask=visible)
    else:
        dtype = torch.promote_types(q.dtype, torch.float32)
        q, k, v = (x.to(dtype) for x in (q, k, v))
        output = attend(q, k, v, scale=call.scale, mask=visible, softcap=call.softcap, sink=call.sink)
    return output.unflatten(0, (b, blocks)).transpose(1, 2).flatten(2, 3).to(call.q.dtype)


def _blocks(x: Float[Tensor, "b h length d"], slots: Int[Tensor, "blocks size"]) -> Float[Tensor, "b*blocks h size d"]:
    """The rows at these slots, a block to an entry of the batch."""
    return x[:, :, slots].transpose(1, 2).flatten(0, 1)
