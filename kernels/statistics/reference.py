"""Statistics of attention, straight from the dense map p (b, h, n, m). i and j are positions, in tokens.

Per query
    lse                 L_i = log sum_j exp s_ij (natural log of the softmax denominator)
    entropy             -sum_j p_ij log p_ij, in nats; a learned sink counts as one more key
    distance            sum_j p_ij |i - j|, in tokens; a learned sink has no position and is left out
    clipped_distance    sum_j p_ij min(|i - j|, clip), in tokens
    top_key             position of the key argmax_j p_ij, the lowest slot on a tie; -1 where no key is visible
    top_weight          max_j p_ij
    top_keys, _weights  the `top` largest of the row, falling; -1 and 0 where fewer are visible
    mass:NAME           sum of p_ij over the keys of span NAME
    self_mass           sum of p_ij over the keys at the query's own position
    participation       (sum_j p_ij)^2 / sum_j p_ij^2: how many keys share the attention; 0 where none is visible
Per key, over all queries, or with `windows` over those of each window as STATISTIC:NAME
    received            sum_i p_ij / number of those queries that see j (0 where none does)
    received_sum        sum_i p_ij
    received_by_others, received_sum_by_others    the same without queries at j's own position
    received_max        max_i p_ij
    mean_query          sum_i p_ij i / sum_i p_ij; -1 where nothing is received
Per cell of the tile
    tile_mean, tile_max    over all pairs of the cell, an invisible pair counting as 0
Per head
    distance_histogram  share of all its attention that goes to distances |i - j| in [edge, next edge)
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.attention.reference import log_sum_exp, scores, visible_in, visible_pairs
from kernels.statistics.request import Attention, Request, Statistics


def statistics(attention: Attention, asked: Request) -> Statistics:
    """The whole map at once, in the dtype of q, or float32 where that is half precision."""
    visible, p, lse = whole_map(attention)
    parks = attention.sink is not None
    return from_map(p, visible, lse, attention.query_positions, attention.key_positions, asked, parks=parks)


def from_map(
    p: Float[Tensor, "b h n m"],
    visible: Bool[Tensor, "b 1|h n m"],
    lse: Float[Tensor, "b h n"],
    query_positions: Int[Tensor, "b n"],
    key_positions: Int[Tensor, "b m"],
    asked: Request,
    *,
    parks: bool,
) -> Statistics:
    """The statistics of a map p with the rows' log-sum-exp. parks: unspent attention is on a sink without a key."""
    i, j = query_positions[:, None, :, None], key_positions[:, None, None, :]
    away = (i - j).abs().to(p.dtype)
    found: Statistics = {}
    for name in asked.wanted:
        match name:
            case "lse":
                found[name] = lse
            case "entropy":
                parked = (1 - p.sum(-1)).clamp_min(0) if parks else torch.zeros_like(lse)
                found[name] = -torch.special.xlogy(p, p).sum(-1) - torch.special.xlogy(parked, parked)
            case "distance":
                found[name] = (p * away).sum(-1)
            case "clipped_distance":
                found[name] = (p * away.clamp_max(asked.clip)).sum(-1)
            case "top_key" | "top_weight":
                weight, key = strongest(p, key_positions, 1)
                found[name] = (key if name == "top_key" else weight)[..., 0].contiguous()
            case "top_keys" | "top_weights":
                weight, key = strongest(p, key_positions, asked.top)
                found[name] = (key if name == "top_keys" else weight).contiguous()
            case "mass":
                for span, members in asked.spans.items():
                    found[f"mass:{span}"] = (p * members[:, None, None, :]).sum(-1)
            case "self_mass":
                found[name] = (p * (i == j)).sum(-1)
            case "participation":
                # Of the largest weight: beside a strong sink the squares of the weights themselves are too small.
                relative = p / p.amax(-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
                found[name] = relative.sum(-1).square() / relative.square().sum(-1).clamp_min(1)
            case "tile_mean" | "tile_max":
                found[name] = pooled(p, asked, largest=name == "tile_max")
            case "distance_histogram":
                edges = torch.tensor(asked.edges, device=p.device)
                bins = torch.bucketize((i - j).abs(), edges, right=True) - 1
                sums = [(p * (bins == bin)).sum((-2, -1)) for bin in range(len(edges))]
                share = torch.stack(sums, dim=-1)
                found[name] = share / share.sum(-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
    for suffix, window in asked.over().items():
        inside = window.holds(query_positions, key_positions)
        for name in asked.per_key():
            found[name + suffix] = column(name, p * inside, visible & inside, i, j)
    return found


def whole_map(attention: Attention) -> tuple[Bool[Tensor, "b 1 n m"], Float[Tensor, "b h n m"], Float[Tensor, "b h n"]]:
    """Which pairs are visible, the probabilities (0 for a row that sees nothing), and the rows' log-sum-exp."""
    q, k, mask = attention.q, attention.k, attention.mask
    dtype = torch.promote_types(q.dtype, torch.float32)
    n, m = q.shape[2], k.shape[2]
    visible = visible_pairs(n, m, causal=attention.causal, window=attention.window, device=q.device)[None, None]
    if attention.padding is not None:
        visible = visible & attention.padding[:, None, None, :]
    logits = scores(q.to(dtype), k.to(dtype), scale=attention.scale, mask=mask, softcap=attention.softcap)
    if mask is not None:
        visible = visible & visible_in(mask)
    logits = logits.masked_fill(~visible, float("-inf"))
    lse = log_sum_exp(logits, sink=attention.sink) if attention.lse is None else attention.lse.to(dtype)
    p = torch.where(lse.isneginf()[..., None], 0.0, (logits - lse[..., None]).exp())
    return visible, p, lse


def strongest(p: Tensor, key_positions: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The `top` largest weights of each row and their positions, the lowest slot first on a tie."""
    p = torch.nn.functional.pad(p, (0, max(0, top - p.shape[-1])))
    weight, slot = p.sort(dim=-1, descending=True, stable=True)
    weight, slot = weight[..., :top], slot[..., :top]
    places = torch.nn.functional.pad(key_positions, (0, p.shape[-1] - key_positions.shape[-1]))
    key = places[:, None, None, :].expand_as(p).gather(-1, slot)
    return weight, key.masked_fill(weight == 0, -1)


def column(name: str, p: Tensor, visible: Tensor, i: Tensor, j: Tensor) -> Float[Tensor, "b h m"]:
    if name == "received_max":
        return p.amax(-2)
    if name == "mean_query":
        total = p.sum(-2)
        return torch.where(total > 0, (p * i).sum(-2) / total, -1.0)
    if name.endswith("by_others"):
        p, visible = p * (i != j), visible & (i != j)
    total = p.sum(-2)
    return total if "sum" in name else total / visible.sum(-2).clamp_min(1)


def pooled(p: Tensor, asked: Request, *, largest: bool) -> Float[Tensor, "b h rows columns"]:
    assert asked.tile is not None
    part = p[..., slice(*asked.tile.queries), slice(*asked.tile.keys)]
    tall, wide = asked.tile.sizes()
    rows = [
        torch.stack([cell.amax((-2, -1)) if largest else cell.mean((-2, -1)) for cell in row.split(wide, dim=-1)], -1)
        for row in part.split(tall, dim=-2)
    ]
    return torch.stack(rows, dim=-2)
