"""What each key receives, the way flash-colreduce finds it: a baseline for ours, written from its idea alone.

One launch. A program holds a block of queries and walks the keys twice: for the rows' log-sum-exp, then for exp(s - L),
summed over the rows and added to the keys by float atomics, whose order is nobody's. Tiles and warps are the ones that
flash-colreduce has settled on; like it, this one wants as many key heads as query heads.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

QUERIES, KEYS, WARPS, STAGES = 64, 64, 4, 3
LOG2_E = 1.4426950408889634


@triton.jit
def logits_of(q, keys, i, j, n, m, scale, D: tl.constexpr, CAUSAL: tl.constexpr):
    """Logits of a tile in base 2, -inf where invisible."""
    columns = tl.arange(0, D)
    k = tl.load(keys + j[:, None] * D + columns[None, :], mask=(j < m)[:, None], other=0.0)
    visible = (i < n)[:, None] & (j < m)[None, :]
    if CAUSAL:
        visible = visible & (j[None, :] <= (i + m - n)[:, None])
    return tl.where(visible, tl.dot(q, tl.trans(k)) * scale, float("-inf"))


@triton.jit
def column_sums_kernel(
    Q, K, SUMS, n, m, scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * QUERIES
    head = tl.program_id(1).to(tl.int64)
    i = first + tl.arange(0, QUERIES)
    columns = tl.arange(0, D)
    q = tl.load(Q + head * n * D + i[:, None] * D + columns[None, :], mask=(i < n)[:, None], other=0.0)
    keys = K + head * m * D
    stop = m
    if CAUSAL:
        stop = tl.minimum(m, first + QUERIES + m - n)
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    for at in range(0, stop, KEYS):
        s = logits_of(q, keys, i, at + tl.arange(0, KEYS), n, m, scale, D, CAUSAL)
        higher = tl.maximum(largest, tl.max(s, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(largest - base) + tl.sum(tl.exp2(s - base[:, None]), 1)
        largest = higher
    lse = tl.where(i < n, largest + tl.log2(total), 0.0)
    for at in range(0, stop, KEYS):
        j = at + tl.arange(0, KEYS)
        s = logits_of(q, keys, i, j, n, m, scale, D, CAUSAL)
        received = tl.sum(tl.exp2(s - lse[:, None]), 0)
        tl.atomic_add(SUMS + head * m + j, received, mask=j < m, sem="relaxed")


def column_sums(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h m d"], *, scale: float, causal: bool = True
) -> Float[Tensor, "b h m"]:
    """sum_i p_ij in float32; the queries sit on the last n of the m keys, and d is a power of two."""
    (b, h, n, d), m = q.shape, k.shape[2]
    if k.shape[1] != h:
        raise ValueError(f"{h} query heads need as many key heads, not {k.shape[1]}: repeat them")
    sums = torch.zeros(b, h, m, device=q.device, dtype=torch.float32)
    column_sums_kernel[triton.cdiv(n, QUERIES), b * h](
        q.contiguous(), k.contiguous(), sums, n, m, scale * LOG2_E,
        D=d, CAUSAL=causal, QUERIES=QUERIES, KEYS=KEYS, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return sums
