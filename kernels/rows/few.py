"""Rewritten rows, and only those computed: memory grows with the rows that are named, times keys.

A decode step has one row and computes it; in a prefill the rows are found first, which asks the GPU once.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.attention.reference import mix, scores, visible_in
from kernels.rows.reference import boosted, redistributed, rewritten_by
from kernels.rows.rewriting import Boost, Redistribution, Rewritten, check

FEW_QUERIES = 16
"""So many are computed whether named or not."""
ROWS_AT_ONCE = 256
KEYS_AT_ONCE = 4096
"""Of keys in half precision, how many are in float32 at a time: a decode step never copies its cache."""


def attend_rows(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m e"],
    output: Float[Tensor, "b h n e"],
    *,
    scale: float,
    mask: Tensor | None = None,
    causal: bool = True,
    softcap: float | None = None,
    sink: Float[Tensor, " h"] | None = None,
    boosts: Sequence[Boost] = (),
    redistributions: Sequence[Redistribution] = (),
) -> Rewritten:
    """`output` with the rewritten rows in place, as kernels.rows.reference defines them; all others bit for bit.

    Computed in float32 or wider and given back in the output's dtype. mask: broadcastable to (b, 1 or h, n, m), True
    where visible, or added to the logits; without one, `causal` says what is visible, the last query on the last key.
    sink: learned logits. Raises ValueError where a part does not fit.
    """
    check(q, k, boosts, redistributions)
    n, m, device = q.shape[2], k.shape[2], q.device
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape).expand(-1, -1, n, m)
    rewritten = partial(_rewritten, scale=scale, softcap=softcap, sink=sink)
    if n <= FEW_QUERIES:
        if mask is None and causal and n > 1:
            mask = _visible(torch.arange(n, device=device), n, m)
        return rewritten(q, k, v, output, mask=mask, boosts=boosts, redistributions=redistributions)
    output = output.clone()
    centric, without = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))
    parts: tuple[Boost | Redistribution, ...] = (*boosts, *redistributions)
    named = [part.queries.any(0) for part in parts]
    rows = torch.stack(named).any(0).nonzero()[:, 0]
    for some in rows.split(ROWS_AT_ONCE):
        own = mask[:, :, some] if mask is not None else _visible(some, n, m) if causal else None
        found = rewritten(
            q[:, :, some], k, v, output[:, :, some], mask=own,
            boosts=[replace(each, queries=each.queries[:, some]) for each in boosts],
            redistributions=[replace(each, queries=each.queries[:, some]) for each in redistributions],
        )  # fmt: skip
        output[:, :, some] = found.output
        centric, without = centric + found.rows_image_centric, without + found.rows_without_target
    return Rewritten(output, centric, without)


def _visible(rows: Int[Tensor, " rows"], n: int, m: int) -> Tensor:
    return torch.arange(m, device=rows.device) <= (rows + m - n)[:, None]


def _rewritten(
    q: Float[Tensor, "b h rows d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m e"],
    output: Float[Tensor, "b h rows e"],
    *,
    scale: float,
    softcap: float | None,
    sink: Float[Tensor, " h"] | None,
    mask: Tensor | None,
    boosts: Sequence[Boost],
    redistributions: Sequence[Redistribution],
) -> Rewritten:
    wide = torch.promote_types(q.dtype, torch.float32)
    q = q.to(wide)
    stretches = (k,) if k.dtype == wide else k.split(KEYS_AT_ONCE, 2)
    parts = [scores(q, part.to(wide), scale=scale) for part in stretches]
    s = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    for boost in boosts:
        s = boosted(s, boost)
    if softcap is not None:
        s = softcap * torch.tanh(s / softcap)
    p = _weights(s, mask, sink)
    changed = [rewritten_by(boost) for boost in boosts]
    centric: int | Tensor = 0
    without: int | Tensor = 0
    for each in redistributions:
        found = redistributed(p, each)
        p = found.p
        changed.append(found.changed)
        centric, without = centric + found.rows_image_centric, without + found.rows_without_target
    touched = changed[0]
    for more in changed[1:]:
        touched = touched | more
    return Rewritten(torch.where(touched[..., None], _mixed(p, v).to(output.dtype), output), centric, without)


def _weights(s: Float[Tensor, "b h rows m"], mask: Tensor | None, sink: Tensor | None) -> Float[Tensor, "b h rows m"]:
    """Softmax with as few steps as can be: a decode step is a row, and pays for steps and not for numbers."""
    hidden = None
    if mask is not None:
        hidden = ~visible_in(mask)
        if mask.dtype != torch.bool:
            s = s + mask
        # Not -inf, whose softmax is NaN in a row that sees no key.
        s = s.masked_fill(hidden, torch.finfo(s.dtype).min)
    if sink is not None:
        s = torch.cat([s, sink.to(s).view(1, -1, 1, 1).expand(*s.shape[:-1], 1)], -1)
    p = s.softmax(-1)
    if sink is not None:
        p = p[..., :-1]
    return p if hidden is None else p.masked_fill(hidden, 0)


def _mixed(p: Float[Tensor, "b h rows m"], v: Float[Tensor, "b g m e"]) -> Float[Tensor, "b h rows e"]:
    if v.dtype == p.dtype:
        return mix(p, v)
    pairs = zip(p.split(KEYS_AT_ONCE, -1), v.split(KEYS_AT_ONCE, 2), strict=True)
    total = None
    for some, part in pairs:
        mixed = mix(some, part.to(p.dtype))
        total = mixed if total is None else total + mixed
    assert total is not None
    return total
