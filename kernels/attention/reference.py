"""Softmax attention as the formula reads.

s_ij = scale q_i.k_j, p_ij = exp(s_ij) / sum_j exp(s_ij), o_i = sum_j p_ij v_j.

Shapes: b batch, h query heads, g KV heads (h is a multiple of g), n queries, m keys, d head size.
The last query sits on the last key: query i sees key j where j <= i + (m - n).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def visible_pairs(
    n: int,
    m: int,
    *,
    causal: bool = True,
    window: int | None = None,
    device: torch.device | str = "cpu",
    rows: slice = slice(None),
) -> Bool[Tensor, "rows m"]:
    """Which query may look at which key. `window` counts the query itself: the last `window` keys up to it."""
    query = torch.arange(m - n, m, device=device)[rows, None]
    key = torch.arange(m, device=device)[None, :]
    visible = key <= query if causal else torch.ones(len(query), m, dtype=torch.bool, device=device)
    if window is not None:
        visible = visible & (key > query - window)
        if not causal:
            visible = visible & (key < query + window)
    return visible


def visible_in(mask: Tensor) -> Bool[Tensor, "..."]:
    """Which pairs a mask leaves visible: an additive one hides a key by -inf or by its dtype's lowest number."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min


def scores(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    *,
    scale: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "b h n m"]:
    """Logits before the softmax. mask: True where visible, or a number added to the logit (after the soft-cap)."""
    # The query heads of a group become rows of one product, so that a long cache is never copied for each of them.
    b, h, n, d = q.shape
    grouped = q.reshape(b, k.shape[1], -1, d)
    logits = scale * (grouped @ k.transpose(-1, -2)).reshape(b, h, n, -1)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is None:
        return logits
    if mask.dtype != torch.bool:
        logits = logits + mask
    # The lowest number alone would leave a row that sees no key with uniform attention on what it can't see.
    return logits.masked_fill(~visible_in(mask), float("-inf"))


def log_sum_exp(logits: Float[Tensor, "b h n m"], *, sink: Float[Tensor, " h"] | None = None) -> Float[Tensor, "b h n"]:
    """L_i = log(sum_j exp s_ij + exp sink), so that p_ij = exp(s_ij - L_i). A row that sees no key gets -inf."""
    if sink is None:
        return logits.logsumexp(-1)
    extra = sink.to(logits).view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
    return torch.cat([logits, extra], dim=-1).logsumexp(-1)


def weights(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    *,
    scale: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sink: Float[Tensor, " h"] | None = None,
) -> Float[Tensor, "b h n m"]:
    """Attention probabilities. A row that sees no key is zero; with a learned `sink` logit rows sum to less than 1."""
    logits = scores(q, k, scale=scale, mask=mask, softcap=softcap)
    total = log_sum_exp(logits, sink=sink)
    return torch.where(total.isneginf()[..., None], 0.0, (logits - total[..., None]).exp())


def attend(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m e"],
    *,
    scale: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sink: Float[Tensor, " h"] | None = None,
) -> Float[Tensor, "b h n e"]:
    """o_i = sum_j p_ij v_j."""
    return mix(weights(q, k, scale=scale, mask=mask, softcap=softcap, sink=sink), v)


def mix(p: Float[Tensor, "b h n m"], v: Float[Tensor, "b g m e"]) -> Float[Tensor, "b h n e"]:
    """sum_j p_ij v_j, a long cache never copied for each head of a group. m may be 0."""
    (b, h, n, m), g, e = p.shape, v.shape[1], v.shape[-1]
    return (p.reshape(b, g, h // g * n, m) @ v).reshape(b, h, n, e)
