"""A weight per row and class of keys as a few more columns of q and k, so that any fused SDPA runs it at full speed.

scale q_i.k_j + w_i,class(j) = scale [q_i, w_i / scale].[k_j, 1 at the column of j's class], as Wu et al., "FlashBias"
(2025), section 3, write a bias of low rank. In half precision each log weight is the sum of several columns.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot, pad

from kernels.attention.fused import attend_fused
from kernels.attention.reference import visible_pairs
from kernels.reweight.change import Call

WIDTH = 8
"""Fused kernels take heads whose size this divides."""
PIECES = {torch.float16: 2, torch.bfloat16: 3}
"""How many numbers add up to a log weight within 2^-20 of it; one of any wider type."""
ONE = 256.0
"""What stands for 1 in k: a power of 2, so that nothing is rounded, and so large that float16 reaches far enough."""
HIDDEN = -1e20
"""For a hidden class in q, or what comes closest in float16: times ONE and a usual scale below any real logit."""


def append_columns(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    of_key: Int[Tensor, "#b m"],
    log_weights: Float[Tensor, "#b h #n classes"],
    *,
    scale: float,
) -> tuple[Float[Tensor, "b h n wide"], Float[Tensor, "b g m wide"]]:
    """q and k with whose product the log weights are added to the logits. Keys of class 0 must have log weight 0."""
    (b, h, n, d), g = q.shape, k.shape[1]
    pieces = PIECES.get(q.dtype, 1)
    least = max(HIDDEN, torch.finfo(q.dtype).min)
    rest = (log_weights[..., 1:].to(torch.promote_types(q.dtype, torch.float32)) / (scale * ONE)).clamp(least, -least)
    parts = []
    for _ in range(pieces):
        parts.append(rest.to(q.dtype))
        rest = rest - parts[-1].to(rest.dtype)
    query = torch.cat(parts, -1).expand(b, h, n, -1)
    key = ONE * one_hot(of_key, log_weights.shape[-1])[:, None, :, 1:].to(k.dtype)
    columns = query.shape[-1]
    filling = -(d + columns) % WIDTH
    return (
        pad(torch.cat([q, query], -1), (0, filling)),
        pad(torch.cat([k, key.repeat(1, 1, 1, pieces).expand(b, g, -1, -1)], -1), (0, filling)),
    )


def width(head_size: int, classes: int, dtype: torch.dtype) -> int:
    """How wide heads become."""
    wide = head_size + (classes - 1) * PIECES.get(dtype, 1)
    return wide + -wide % WIDTH


def attend_columns(
    call: Call, of_key: Int[Tensor, "#b m"], log_weights: Float[Tensor, "#b h #n classes"]
) -> Float[Tensor, "b h n e"]:
    """Softmax attention with the log weights added to the logits. A row that sees no key comes out as anything."""
    q, k = call.q, call.k
    if log_weights.shape[-1] > 1:
        q, k = append_columns(q, k, of_key, log_weights, scale=call.scale)
    mask, causal = call.mask, False
    if mask is None and call.causal:
        causal = call.n == call.m
        mask = None if causal else visible_pairs(call.n, call.m, device=q.device)
    return attend_quickly(q, k, call.v, scale=call.scale, mask=mask, causal=causal)


def attend_quickly(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m e"],
    *,
    scale: float,
    mask: Tensor | None,
    causal: bool = False,
) -> Float[Tensor, "b h n e"]:
    """SDPA by a fused kernel, heads of unequal size filled up. causal: query i sees keys up to i; give no mask then."""
    d, e = q.shape[-1], v.shape[-1]
    if d != e:
        q, k, v = (pad(x, (0, max(d, e) - x.shape[-1])) for x in (q, k, v))
    if q.is_cuda and q.dtype == torch.float32 and k.shape[1] != q.shape[1]:
        # PyTorch's fused kernels share KV heads in half precision only.
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    return attend_fused(q, k, v, scale=scale, mask=mask, causal=causal)[0][..., :e]
