"""Changed attention of any kind: the reference, a block of queries at a time, in float32 or wider."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.attention.reference import mix, scores, visible_pairs
from kernels.reweight.change import Call, Change, Changed, Stream
from kernels.reweight.reference import per_head, reweighted

KEYS_AT_ONCE = 4096
"""Of keys in half precision, how many are in float32 at a time: a decode step never copies its cache."""


def attend_blocks(path: str, call: Call, change: Change, *, block: int) -> Changed:
    """What `reference` gives, in q's dtype. path: the name under which it is done."""
    queries, keys = call.positions()
    parts = []
    emptied, stuck = (torch.zeros((), dtype=torch.int64, device=call.q.device) for _ in range(2))
    for start in range(0, call.n, block):
        rows = slice(start, start + block)
        logits = _logits(call, change, rows, keys)
        found = reweighted(logits, change, sink=call.sink, positions=(queries[:, rows], keys), rows=rows)
        parts.append(_mixed(found.p, call.v).to(call.q.dtype))
        emptied, stuck = emptied + found.rows_without_key, stuck + found.rows_without_target
    return Changed(torch.cat(parts, 2), path, emptied, stuck)


def _logits(call: Call, change: Change, rows: slice, keys: Int[Tensor, "b m"]) -> Float[Tensor, "b h rows m"]:
    q = call.q[:, :, rows].to(torch.promote_types(call.q.dtype, torch.float32))
    if call.mask is None:
        mask = visible_pairs(call.n, call.m, causal=call.causal, device=q.device, rows=rows)
    else:
        mask = call.mask[..., rows, :]
    parts = _stretches(call.k, q.dtype)
    masks = mask.split([part.shape[2] for part in parts], -1)
    logits = torch.cat(
        [
            scores(q, part.to(q.dtype), scale=call.scale, mask=mask, softcap=call.softcap)
            for part, mask in zip(parts, masks, strict=True)
        ],
        -1,
    )
    for stream in change.streams:
        if stream.sink_queries is not None:
            _meet_sinks(logits, call, stream, stream.sink_queries[:, :, rows].to(q.dtype), mask, keys)
    return logits


def _meet_sinks(
    logits: Float[Tensor, "b h rows m"],
    call: Call,
    stream: Stream,
    queries: Float[Tensor, "b h rows d"],
    mask: Tensor,
    keys: Int[Tensor, "b m"],
) -> None:
    """Puts the logits of the Stream's own queries with its sinks, a few keys, in place."""
    sinks = stream.sinks(keys)
    slots = sinks.any(0).nonzero()[:, 0]
    k = call.k[:, :, slots].to(queries.dtype)
    own = scores(queries, k, scale=call.scale, mask=mask[..., slots], softcap=call.softcap)
    inside = per_head(stream.heads) & sinks[:, None, None, slots]
    logits[..., slots] = torch.where(inside, own, logits[..., slots])


def _mixed(p: Float[Tensor, "b h rows m"], v: Float[Tensor, "b g m e"]) -> Float[Tensor, "b h rows e"]:
    parts = _stretches(v, p.dtype)
    weights = p.split([part.shape[2] for part in parts], -1)
    return torch.stack([mix(some, part.to(p.dtype)) for some, part in zip(weights, parts, strict=True)]).sum(0)


def _stretches(x: Float[Tensor, "b g m d"], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (x,) if x.dtype == dtype else x.split(KEYS_AT_ONCE, 2)
