"""Decoding several continuations of one prompt: the prompt's keys are read once for all of them.

softmax over [q.K_shared, q.K_own] applied to [V_shared, V_own]. Copying the shared cache once per branch would cost
its size times the branches, in memory and in bandwidth; here the shared part is one matrix product per KV head.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def attend_branches(
    q: Float[Tensor, "b h 1 d"],
    shared_k: Float[Tensor, "1 g m d"],
    shared_v: Float[Tensor, "1 g m e"],
    own_k: Float[Tensor, "b g t d"],
    own_v: Float[Tensor, "b g t e"],
    *,
    scale: float,
    softcap: float | None = None,
    sink: Float[Tensor, " h"] | None = None,
) -> Float[Tensor, "b h 1 e"]:
    """Attention of b branches, one query each; every key is visible to it. Computed in float32 or wider."""
    b, h, _, d = q.shape
    g, m = shared_k.shape[1], shared_k.shape[2]
    dtype = torch.promote_types(q.dtype, torch.float32)
    grouped = q.reshape(b, g, h // g, d)
    by_group = grouped.transpose(0, 1).reshape(g, b * (h // g), d)  # the branches become rows of one product
    shared = (by_group @ shared_k[0].transpose(-1, -2)).reshape(g, b, h // g, m).transpose(0, 1)
    own = grouped @ own_k.transpose(-1, -2)
    logits = scale * torch.cat([shared, own], dim=-1).to(dtype)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if sink is not None:
        column = sink.to(dtype).view(1, g, h // g, 1).expand(b, -1, -1, -1)
        p = torch.cat([logits, column], dim=-1).softmax(-1)[..., :-1].to(q.dtype)
    else:
        p = logits.softmax(-1).to(q.dtype)
    rows = p[..., :m].transpose(0, 1).reshape(g, b * (h // g), m)
    out = (rows @ shared_v[0]).reshape(g, b, h // g, -1).transpose(0, 1) + p[..., m:] @ own_v
    return out.reshape(b, h, 1, -1)
