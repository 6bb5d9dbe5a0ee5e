"""Rewritten rows as the formulas read, dense: the specification.

1. s_ij = scale q_i.k_j.
2. Each Boost in order, on what those before it left: see its kinds.
3. Soft-cap, mask, p = softmax(s), a learned sink in the normaliser. A row that sees no key is zero.
4. Each Redistribution in order. With A = p, in row i of a head: total = sum of A over the image, target = sum of A over
   image keys that are no sinks, held = sum of A over the sinks. The row is image-centric where total >= floor and
   target / total >= ratio; then
   A_ij *= 1 - give on the sinks, A_ij *= 1 + give held / target on image keys that are no sinks.
   A row without target stays as it is.
5. o_i = sum_j p_ij v_j where something was rewritten, and `output` elsewhere: a Boost rewrites the rows of its queries
   and of the heads on which its strength is not neutral, a Redistribution those that it found image-centric.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.attention.reference import log_sum_exp, mix, scores, visible_in, visible_pairs
from kernels.rows.rewriting import Boost, Redistribution, Rewritten, check

FAINT = 1e-30
"""Mass that counts as none: not far below it float32 rounds a weight coarsely, and then to 0."""


class Redistributed(NamedTuple):
    """Weights after one Redistribution, which rows it changed, and its two counts as `Rewritten` has them."""

    p: Float[Tensor, "b h n m"]
    changed: Bool[Tensor, "b h n"]
    rows_image_centric: Int[Tensor, ""]
    rows_without_target: Int[Tensor, ""]


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
    """In the dtype of q. As `kernels.rows.attend_rows` takes it."""
    check(q, k, boosts, redistributions)
    s = scores(q, k, scale=scale)
    changed = torch.zeros(q.shape[:3], dtype=torch.bool, device=q.device)
    for boost in boosts:
        s = boosted(s, boost)
        changed = changed | rewritten_by(boost)
    if softcap is not None:
        s = softcap * torch.tanh(s / softcap)
    if mask is None:
        mask = visible_pairs(q.shape[2], k.shape[2], causal=causal, device=q.device)
    if mask.dtype != torch.bool:
        s = s + mask
    s = s.masked_fill(~visible_in(mask), float("-inf"))
    total = log_sum_exp(s, sink=sink)[..., None]
    p = torch.where(total.isneginf(), 0.0, (s - total).exp())
    centric, without = (torch.zeros((), dtype=torch.int64, device=q.device) for _ in range(2))
    for each in redistributions:
        found = redistributed(p, each)
        p, changed = found.p, changed | found.changed
        centric, without = centric + found.rows_image_centric, without + found.rows_without_target
    return Rewritten(torch.where(changed[..., None], mix(p, v), output), centric, without)


def boosted(s: Float[Tensor, "b h n m"], boost: Boost) -> Float[Tensor, "b h n m"]:
    """Step 2."""
    inside = boost.queries[:, None, :, None] & boost.keys[:, None, None, :]
    strength = boost.strength.to(s)[:, :, None, None]
    if boost.kind == "multiply":
        return torch.where(inside, s * strength, s)
    size = s.abs()
    if boost.kind == "across heads":
        size = size.mean(1, keepdim=True)
    return torch.addcmul(s, inside * strength, size)


def rewritten_by(boost: Boost) -> Bool[Tensor, "b h n"]:
    """The rows that a Boost changes."""
    return boost.queries[:, None, :] & (boost.strength != boost.neutral)[:, :, None]


def redistributed(p: Float[Tensor, "b h n m"], given: Redistribution) -> Redistributed:
    """Step 4."""
    receivers = given.image & ~given.sinks
    sets = torch.stack(torch.broadcast_tensors(given.image, receivers, given.sinks), -1)
    total, target, held = (p @ sets[:, None].to(p)).unbind(-1)
    asked = given.queries[:, None, :] & given.heads[:, :, None]
    on_image = asked & (total >= given.floor) & (total > FAINT)
    centric = on_image & (target / total >= given.ratio)
    chosen = centric if given.shuffle is None else of_another_head(centric, given.heads, given.shuffle)
    has_target, has_held = target > FAINT, held > FAINT
    changed = chosen & has_target & has_held if given.give else torch.zeros_like(chosen)
    gain = torch.where(changed, given.give * held / target, 0.0)[..., None]
    loss = (changed.to(p) * given.give)[..., None]
    inside, sinks = receivers[:, None, None, :].to(p), given.sinks[:, None, None, :].to(p)
    without = (chosen | on_image) & has_held & ~has_target
    return Redistributed(p * (1 + gain * inside - loss * sinks), changed, centric.sum(), without.sum())


def of_another_head(gate: Bool[Tensor, "b h n"], heads: Bool[Tensor, "#b h"], seed: int) -> Bool[Tensor, "b h n"]:
    """The gate, each of `heads` with that of another of them: the next one in an order drawn from the seed."""
    (b, h, _), device = gate.shape, gate.device
    drawn = torch.randperm(h, generator=torch.Generator().manual_seed(seed)).to(device)
    # Heads that take part come first, in the order drawn; the others keep their own.
    order = torch.where(heads, drawn, h + torch.arange(h, device=device)).argsort(-1)
    place = torch.arange(h, device=device)
    count = heads.sum(-1, keepdim=True)
    following = order.gather(-1, torch.where(place < count, (place + 1) % count.clamp_min(1), place))
    other = torch.empty_like(order).scatter_(-1, order, following)
    return gate.gather(1, other[..., None].expand(b, h, gate.shape[2]))
