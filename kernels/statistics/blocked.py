"""Statistics of attention a block of queries at a time: memory grows with m, not with n times m.

Every query sees all its keys within its block, so one softmax per block is exact and nothing is merged.
"""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kernels.attention.reference import scores, visible_in, visible_pairs
from kernels.statistics.reference import Statistics, check_wanted, row_statistics

QUERIES_PER_BLOCK = 64


def statistics(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    *,
    scale: float,
    wanted: Iterable[str],
    mask: Tensor | None = None,
    causal: bool = True,
    window: int | None = None,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    spans: Mapping[str, Bool[Tensor, "b m"]] | None = None,
    softcap: float | None = None,
    sink: Float[Tensor, " h"] | None = None,
    block: int = QUERIES_PER_BLOCK,
) -> Statistics:
    """Statistics named in `wanted` (see `reference`), in float32 or wider whatever the inputs are.

    mask: (b or 1, 1 or h, n, m), True where visible, or added to the logits; with None, `causal` and `window` say
        what is visible. Positions default to slots: keys 0..m-1, queries on the last n of them.
    Raises ValueError on an unknown statistic and where `mass` is wanted without spans.
    """
    names = check_wanted(wanted)
    if "mass" in names and not spans:
        raise ValueError("the statistic 'mass' needs at least one span of keys")
    b, _, n, _ = q.shape
    m = k.shape[2]
    dtype = torch.promote_types(q.dtype, torch.float32)
    key = k.to(dtype)
    if key_positions is None:
        key_positions = torch.arange(m, device=q.device).expand(b, m)
    if query_positions is None:
        query_positions = torch.arange(m - n, m, device=q.device).expand(b, n)
    parts: list[Statistics] = []
    received = torch.zeros(b, q.shape[1], m, dtype=dtype, device=q.device)
    seen_by = torch.zeros(b, 1, m, dtype=dtype, device=q.device)
    for start in range(0, n, block):
        stop = min(start + block, n)
        # Keys after the block's last query are invisible under a causal mask: leave them out.
        reach = max(1, m - n + stop) if mask is None and causal else m
        if mask is None:
            some = visible_pairs(n, m, causal=causal, window=window, device=q.device, rows=slice(start, stop))
            some = some[None, None, :, :reach]
        else:
            some = mask[..., start:stop, :]
        logits = scores(q[:, :, start:stop].to(dtype), key[:, :, :reach], scale=scale, mask=some, softcap=softcap)
        found, p = row_statistics(
            logits,
            wanted=names,
            query_positions=query_positions[:, start:stop],
            key_positions=key_positions[:, :reach],
            spans={name: members[:, :reach] for name, members in (spans or {}).items()},
            sink=sink,
        )
        parts.append(found)
        if "received" in names:
            received[..., :reach] += p.sum(-2)
            seen_by = seen_by + torch.nn.functional.pad(visible_in(some).sum(-2).to(dtype), (0, m - reach))
    result = {name: torch.cat([part[name] for part in parts], dim=-1) for name in parts[0]}
    if "received" in names:
        result["received"] = received / seen_by.clamp_min(1)
    return result
