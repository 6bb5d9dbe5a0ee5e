"""The attention that SDPA does not know (soft-caps, learned sinks), a block of queries at a time.

Memory grows with m, not with n times m. Each query sees all its keys within its block, so nothing is merged.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.attention.reference import attend, visible_pairs

QUERIES_PER_BLOCK = 256


def attend_by_blocks(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m e"],
    *,
    scale: float,
    mask: Tensor | None = None,
    causal: bool = True,
    softcap: float | None = None,
    sink: Float[Tensor, " h"] | None = None,
    block: int = QUERIES_PER_BLOCK,
) -> Float[Tensor, "b h n e"]:
    """As `attend`, in float32 or wider whatever the inputs are, and given back in q's dtype.

    With mask None, `causal` says what is visible.
    """
    n, m = q.shape[2], k.shape[2]
    dtype = torch.promote_types(q.dtype, torch.float32)
    key, value = k.to(dtype), v.to(dtype)
    parts = []
    for start in range(0, n, block):
        rows = slice(start, start + block)
        some = visible_pairs(n, m, causal=causal, device=q.device, rows=rows) if mask is None else mask[..., rows, :]
        parts.append(attend(q[:, :, rows].to(dtype), key, value, scale=scale, mask=some, softcap=softcap, sink=sink))
    return torch.cat(parts, dim=2).to(q.dtype)
