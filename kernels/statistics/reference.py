"""Statistics of attention, straight from the dense map p (b, h, n, m).

Per query:  lse        L_i = log sum_j exp s_ij (natural log of the softmax denominator)
            entropy    -sum_j p_ij log p_ij, in nats
            distance   sum_j p_ij (i - j), in tokens; a learned sink has no position and is left out
            top_key    position of the key argmax_j p_ij, the lowest j on a tie; -1 where no key is visible
            top_weight max_j p_ij
            mass:NAME  sum of p_ij over the keys of span NAME
Per key:    received   sum_i p_ij / number of queries that see j (0 where none does)
"""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kernels.attention.reference import log_sum_exp, scores

PER_QUERY = ("lse", "entropy", "distance", "top_key", "top_weight", "mass")
PER_KEY = ("received",)
STATISTICS = PER_QUERY + PER_KEY

Statistics = dict[str, Tensor]
"""Name to (b, h, n) for a statistic per query, (b, h, m) for one per key."""


def check_wanted(wanted: Iterable[str]) -> tuple[str, ...]:
    names = tuple(wanted)
    unknown = [name for name in names if name not in STATISTICS]
    if unknown:
        raise ValueError(f"unknown statistic {unknown[0]!r}; there are {', '.join(STATISTICS)}")
    return names


def row_statistics(
    logits: Float[Tensor, "b h n m"],
    *,
    wanted: tuple[str, ...],
    query_positions: Tensor,
    key_positions: Tensor,
    spans: Mapping[str, Bool[Tensor, "b m"]],
    sink: Tensor | None = None,
) -> tuple[Statistics, Float[Tensor, "b h n m"]]:
    """The statistics per query, and the probabilities they came from."""
    lse = log_sum_exp(logits, sink=sink)
    blind = lse.isneginf()[..., None]
    p = torch.where(blind, 0.0, (logits - lse[..., None]).exp())
    found: Statistics = {}
    if "lse" in wanted:
        found["lse"] = lse
    if "entropy" in wanted:
        keys = -torch.special.xlogy(p, p).sum(-1)
        rest = (1 - p.sum(-1)).clamp_min(0) if sink is not None else torch.zeros_like(keys)
        found["entropy"] = keys - torch.special.xlogy(rest, rest)
        found["entropy"] = found["entropy"].masked_fill(blind[..., 0], 0.0)
    if "distance" in wanted:
        here = query_positions[:, None, :].to(p.dtype)
        found["distance"] = here * p.sum(-1) - (p @ key_positions[:, None, :, None].to(p.dtype))[..., 0]
    if "top_key" in wanted:
        # On a tie argmax may return any index; the first maximum is asked for by name.
        top = p.max(-1, keepdim=True).values
        slots = torch.where(p == top, torch.arange(p.shape[-1], device=p.device), p.shape[-1]).amin(-1)
        positions = key_positions[:, None, None, :].expand_as(p).gather(-1, slots[..., None])[..., 0]
        found["top_key"] = positions.masked_fill(blind[..., 0] | (top[..., 0] == 0), -1)
    if "top_weight" in wanted:
        found["top_weight"] = p.amax(-1)
    if "mass" in wanted:
        for name, members in spans.items():
            found[f"mass:{name}"] = (p @ members[:, None, :, None].to(p.dtype))[..., 0]
    return found, p


def statistics(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    *,
    scale: float,
    visible: Bool[Tensor, "b 1 n m"],
    wanted: Iterable[str],
    query_positions: Tensor,
    key_positions: Tensor,
    spans: Mapping[str, Tensor] | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
) -> Statistics:
    """The whole map at once. query_positions (b, n) and key_positions (b, m) are prompt positions."""
    names = check_wanted(wanted)
    logits = scores(q, k, scale=scale, mask=visible, softcap=softcap)
    found, p = row_statistics(
        logits,
        wanted=names,
        query_positions=query_positions,
        key_positions=key_positions,
        spans=spans or {},
        sink=sink,
    )
    if "received" in names:
        found["received"] = p.sum(-2) / visible.sum(-2).clamp_min(1)
    return found
