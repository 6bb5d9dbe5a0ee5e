"""Changed softmax attention as the formulas read, dense: the specification of every other path.

1. s_ij, logits as in kernels.attention.scores (scale, soft-cap, mask); a learned sink joins the normaliser. A Stream
   that gives `sink_queries` takes these in place of q_i where j is one of its sinks.
2. s_ij += log w for each renormalising Weight w; w = 0 hides the key, as each Stream hides what its heads do not see.
3. p = softmax(s). A row left without a key is zero, and counted if it had one before.
4. For each Move, in order, with a_i the row's mass on the source and t_i that on the target:
   p_ij *= 1 - share on the source, p_ij *= 1 + share a_i / t_i on the target.
   A row without mass on the target stays as it is, and is counted if it had mass to move.
5. p_ij *= w for each Weight w that does not renormalise.
6. o_i = sum_j p_ij v_j.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.attention.reference import log_sum_exp, mix, scores, visible_pairs
from kernels.reweight.change import Call, Change, Changed

FAINT = 1e-30
"""Mass that counts as none: not far below it float32 rounds a weight coarsely, and then to 0."""


@dataclass(frozen=True)
class Reweighted:
    """Changed attention weights, and the two counts of `Changed`."""

    p: Float[Tensor, "b h n m"]
    rows_without_key: Int[Tensor, ""]
    rows_without_target: Int[Tensor, ""]


def attend_changed(call: Call, change: Change) -> Changed:
    """In the dtype of q."""
    mask = visible_pairs(call.n, call.m, causal=call.causal, device=call.q.device) if call.mask is None else call.mask
    logits = scores(call.q, call.k, scale=call.scale, mask=mask, softcap=call.softcap)
    for stream in change.streams:
        if stream.sink_queries is not None:
            own = scores(stream.sink_queries.to(call.q), call.k, scale=call.scale, mask=mask, softcap=call.softcap)
            sinks = stream.sinks(call.positions()[1])[:, None, None, :]
            logits = torch.where(per_head(stream.heads) & sinks, own, logits)
    found = reweighted(logits, change, sink=call.sink, positions=call.positions())
    return Changed(mix(found.p, call.v), "reference", found.rows_without_key, found.rows_without_target)


def reweighted(
    logits: Float[Tensor, "b h n m"],
    change: Change,
    *,
    sink: Float[Tensor, " h"] | None,
    positions: tuple[Int[Tensor, "b n"], Int[Tensor, "b m"]],
    rows: slice = slice(None),
) -> Reweighted:
    """Steps 2 to 5. positions: of the queries and keys of the logits; `rows` says which of the change's queries."""
    s = logits
    for weight in change.weights:
        if weight.renormalise:
            inside = pairs(weight.queries[:, rows], weight.keys)
            s = torch.where(inside, s + per_head(weight.factor.to(s).log()), s)
    for stream in change.streams:
        s = s.masked_fill(per_head(stream.heads) & ~stream.sees(*positions), float("-inf"))
    total = log_sum_exp(s, sink=sink)[..., None]
    p = torch.where(total.isneginf(), 0.0, (s - total).exp())
    emptied = sees_a_key(logits) & ~sees_a_key(s)

    stuck = torch.zeros((), dtype=torch.int64, device=p.device)
    for move in change.moves:
        source, target = pairs(move.queries[:, rows], move.source), pairs(move.queries[:, rows], move.target)
        share = per_head(move.share.to(p))
        a = (p * source).sum(-1, keepdim=True)
        t = (p * target).sum(-1, keepdim=True)
        changed = torch.where(source, p * (1 - share), torch.where(target, p + p / t * (share * a), p))
        p = torch.where(t > FAINT, changed, p)
        stuck = stuck + ((share > 0) & (a > FAINT) & (t <= FAINT)).sum()
    for weight in change.weights:
        if not weight.renormalise:
            p = torch.where(pairs(weight.queries[:, rows], weight.keys), p * per_head(weight.factor.to(p)), p)
    return Reweighted(p, emptied.sum(), stuck)


def pairs(queries: Tensor, keys: Tensor) -> Tensor:
    """(b, 1, n, m): whether both the query and the key are in their set."""
    return queries[:, None, :, None] & keys[:, None, None, :]


def per_head(value: Tensor) -> Tensor:
    return value[:, :, None, None]


def sees_a_key(logits: Tensor) -> Tensor:
    return ~logits.isneginf().all(-1)
