"""Attention whose keys carry a class, on NVIDIA GPUs: o_i = sum_j softmax_j(scale q_i.k_j + w_i,class(j)) v_j.

FlashAttention-2's forward (Dao, 2023, algorithm 1) with one more matrix product: the logit's shift is (the row's log
weights) times (which class the key has), a product as deep as there are classes (FlashBias, Wu et al., 2025, section
3). Most keys of a long prompt are of class 0, which says nothing of single keys: blocks that hold no other are walked
first and pay nothing, for which the order of a softmax's sum need not be that of the keys.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import one_hot, pad
from triton.tools.tensor_descriptor import TensorDescriptor


class Tile(NamedTuple):
    """What a program holds and how it is compiled."""

    queries: int
    keys: int
    warps: int
    stages: int


TUNED = {
    64: Tile(64, 64, 4, 2),
    128: Tile(128, 64, 4, 2),
    256: Tile(128, 64, 8, 2),
}
"""By head size, in half precision; smaller heads take the first."""
FLOAT32 = Tile(32, 32, 4, 1)
"""Without tensor cores: exact, and for checks."""
MOST_CLASSES = 16
WIDEST_HEAD = 256
PIECES = 3
"""A log weight enters the matrix product as the sum of so many bfloat16 numbers, 24 bits; in float32 as it is."""
LENGTHS = ("n", "m", "heads", "group", "batches", "class_count")
"""Arguments that Triton need not compile for anew."""
LOG2_E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(-1.0e30)
"""Stands for -inf, which times zero were NaN."""
FLOOR = tl.constexpr(-1.0e20)
"""Above what is hidden and below every logit: a row's maximum starts here, so that no difference with it is NaN."""


@triton.jit
def load_block(tensor, b, head, first, ROWS: tl.constexpr, D: tl.constexpr):
    """[ROWS, D] of one head from row `first` on, zeros beyond its edges."""
    return tensor.load([b, head, first, 0]).reshape(ROWS, D)


@triton.jit
def load_weights(
    LOG_WEIGHTS, rows, n, stride, class_count, scale,
    PIECES: tl.constexpr, COLUMNS: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Of each row: class 0's log weight in bits, and all classes' in units of q.k, PIECES columns for each class."""
    column = tl.arange(0, COLUMNS)
    at = LOG_WEIGHTS + rows.to(tl.int64) * stride
    present = (rows < n)[:, None] & (column < PIECES * class_count)[None, :]
    w = tl.load(at[:, None] + (column // PIECES)[None, :], mask=present, other=0.0)
    w = tl.maximum(w / scale, HIDDEN)
    high = w.to(KIND)
    middle = (w - high.to(tl.float32)).to(KIND)
    low = (w - high.to(tl.float32) - middle.to(tl.float32)).to(KIND)
    piece = (column % PIECES)[None, :]
    pieces = tl.where(piece == 0, high, tl.where(piece == 1, middle, low))
    return tl.maximum(tl.load(at, mask=rows < n, other=0.0) * LOG2_E, HIDDEN), pieces


@triton.jit
def walk(
    start, stop, q, rows, ordinary, pieces, output, total, largest,
    K, V, ORDER, CLASS_OF, b, g, classes, m, offset, scale,
    D: tl.constexpr, E: tl.constexpr, KEYS: tl.constexpr, COLUMNS: tl.constexpr,
    CLASSED: tl.constexpr, INSIDE: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Blocks of keys from `start` up to `stop`: places in ORDER where every row sees every key, else as they lie."""
    for place in range(start, stop):
        block = place
        if INSIDE:
            block = tl.load(ORDER + place)
        first = block * KEYS
        k = load_block(K, b, g, first, KEYS, D)
        s = tl.dot(q, tl.trans(k), input_precision="ieee")
        shift = ordinary
        if CLASSED:
            member = load_block(CLASS_OF, classes, 0, first, KEYS, COLUMNS)
            s = tl.dot(pieces, tl.trans(member), s, input_precision="ieee")
            shift = tl.zeros_like(ordinary)
        if not INSIDE:
            j = first + tl.arange(0, KEYS)
            visible = (j < m)[None, :]
            if CAUSAL:
                visible = visible & (j[None, :] <= (rows + offset)[:, None])
            s = tl.where(visible, s, float("-inf"))
        higher = tl.maximum(largest, tl.max(s, 1) * scale + shift)
        p = tl.exp2(s * scale - (higher - shift)[:, None])
        falls = tl.exp2(largest - higher)
        total = total * falls + tl.sum(p, 1)
        v = load_block(V, b, g, first, KEYS, E)
        output = tl.dot(p.to(v.dtype), v, output * falls[:, None], input_precision="ieee")
        largest = higher
    return output, total, largest


@triton.jit(do_not_specialize=LENGTHS)
def attend_classes_kernel(
    Q, K, V, LOG_WEIGHTS, CLASS_OF, ORDER, ORDINARY_BEFORE, OUTPUT, LSE, n, m, heads, group, batches, scale,
    w_batch, w_head, w_row, class_count,
    DIM: tl.constexpr, D: tl.constexpr, E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PIECES: tl.constexpr, COLUMNS: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    # The programs with the most keys start first, so that none of them is left to run alone at the end.
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * QUERIES
    b, h = tl.program_id(1) // heads, tl.program_id(1) % heads
    g, offset, blocks = h // group, m - n, (m + KEYS - 1) // KEYS
    classes = b % batches
    ORDER += classes * blocks
    ORDINARY_BEFORE += classes * (blocks + 1)
    rows = first + tl.arange(0, QUERIES)
    q = load_block(Q, b, h, first, QUERIES, D)
    ordinary, pieces = load_weights(
        LOG_WEIGHTS + b.to(tl.int64) * w_batch + h * w_head, rows, n, w_row, class_count, scale,
        PIECES, COLUMNS, CLASS_OF.dtype,
    )  # fmt: skip
    bits = scale * LOG2_E
    seen, whole = m, m
    if CAUSAL:
        seen = tl.minimum(m, tl.maximum(first + QUERIES + offset, 0))
        whole = tl.minimum(m, tl.maximum(first + 1 + offset, 0))
    whole = whole // KEYS
    plain = tl.load(ORDINARY_BEFORE + whole)
    all_plain = tl.load(ORDINARY_BEFORE + blocks)
    output = tl.zeros([QUERIES, E], tl.float32)
    total, largest = tl.zeros([QUERIES], tl.float32), tl.full([QUERIES], FLOOR, tl.float32)
    output, total, largest = walk(
        0, plain, q, rows, ordinary, pieces, output, total, largest,
        K, V, ORDER, CLASS_OF, b, g, classes, m, offset, bits, D, E, KEYS, COLUMNS, False, True, CAUSAL,
    )  # fmt: skip
    output, total, largest = walk(
        all_plain, all_plain + whole - plain, q, rows, ordinary, pieces, output, total, largest,
        K, V, ORDER, CLASS_OF, b, g, classes, m, offset, bits, D, E, KEYS, COLUMNS, True, True, CAUSAL,
    )  # fmt: skip
    output, total, largest = walk(
        whole, (seen + KEYS - 1) // KEYS, q, rows, ordinary, pieces, output, total, largest,
        K, V, ORDER, CLASS_OF, b, g, classes, m, offset, bits, D, E, KEYS, COLUMNS, True, False, CAUSAL,
    )  # fmt: skip
    normaliser = tl.where(total > 0, total, 1.0)
    output = output / normaliser[:, None]
    lse = tl.where(total > 0, largest / LOG2_E + tl.log(normaliser), float("-inf"))
    tl.store(LSE + tl.program_id(1).to(tl.int64) * n + rows, lse, mask=rows < n)
    column = tl.arange(0, E)
    # Heads beside each other, as the output projection wants them.
    at = OUTPUT + (((b.to(tl.int64) * n + rows) * heads + h) * DIM)[:, None] + column[None, :]
    tl.store(at, output.to(OUTPUT.dtype.element_ty), mask=(rows < n)[:, None] & (column < DIM)[None, :])


def attend_classes(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m e"],
    classes: UInt8[Tensor, "#b m"],
    log_weights: Float[Tensor, "#b h #n c"],
    *,
    scale: float,
    causal: bool,
    dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h n"]]:
    """Attention with log_weights[..., class] added to the logits of a class's keys, and the rows' log-sum-exp (nats).

    classes: below c, which is at most 16; class 0 is the one to give most keys. log_weights: finite, or -inf where a
        key is hidden. scale: above 0. The last query sits on the last key where `causal`. dtype: of the output, q's
        unless said otherwise.
    A row that sees no key has output 0 and log-sum-exp -inf. Memory grows with n + m.
    Raises ValueError where a class count, a head size or a type is not served.
    """
    (b, h, n, d), m, class_count = q.shape, k.shape[2], log_weights.shape[-1]
    if classes.dtype != torch.uint8 or classes.shape[-1] != m:
        raise ValueError(f"classes holds a byte for each of the {m} keys, not {classes.shape} of {classes.dtype}")
    if not 1 <= class_count <= MOST_CLASSES:
        raise ValueError(f"log_weights holds {class_count} classes; 1 to {MOST_CLASSES} are served")
    e = v.shape[-1]
    if max(d, e) > WIDEST_HEAD or v.shape[:-1] != k.shape[:-1]:
        raise ValueError(f"k and v must be as many, at most {WIDEST_HEAD} wide; they are {k.shape} and {v.shape}")
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32) or {k.dtype, v.dtype} != {q.dtype}:
        raise ValueError("q, k and v must share one type: float16, bfloat16 or float32")
    if scale <= 0:
        raise ValueError(f"scale must be above 0, not {scale}")
    weights = log_weights.float().contiguous().expand(b, h, n, class_count)
    padded, padded_values = (max(16, triton.next_power_of_2(width)) for width in (d, e))
    exact = q.dtype == torch.float32
    tile, pieces = (FLOAT32, 1) if exact else (TUNED[max(padded, padded_values, 64)], PIECES)
    columns = max(16, triton.next_power_of_2(pieces * class_count))
    of_column = torch.arange(columns, device=q.device) // pieces
    membership = (classes[..., None] == of_column).to(torch.float32 if exact else torch.bfloat16)
    order, ordinary_before = walking_order(classes, tile.keys)
    output = q.new_empty(b, n, h, e, dtype=dtype)
    lse = q.new_empty(b, h, n, dtype=torch.float32)
    attend_classes_kernel[(triton.cdiv(n, tile.queries), b * h)](
        in_blocks(q, tile.queries, padded),
        in_blocks(k, tile.keys, padded),
        in_blocks(v, tile.keys, padded_values),
        weights,
        in_blocks(membership[:, None], tile.keys, columns),
        order,
        ordinary_before,
        output,
        lse,
        n,
        m,
        heads=h,
        group=h // k.shape[1],
        batches=len(classes),
        scale=scale,
        w_batch=weights.stride(0),
        w_head=weights.stride(1),
        w_row=weights.stride(2),
        class_count=class_count,
        DIM=e,
        D=padded,
        E=padded_values,
        QUERIES=tile.queries,
        KEYS=tile.keys,
        PIECES=pieces,
        COLUMNS=columns,
        CAUSAL=causal,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return output.transpose(1, 2), lse


def class_masses(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    classes: UInt8[Tensor, "#b m"],
    log_weights: Float[Tensor, "#b h #n c"],
    *,
    scale: float,
    causal: bool,
) -> Float[Tensor, "b h n c"]:
    """Share of each row's attention that each class holds, the log weights included: their membership as values."""
    (b, g, m, _), count = k.shape, log_weights.shape[-1]
    member = one_hot(classes.long(), count)[:, None].to(k.dtype).expand(b, g, m, count)
    mass, _ = attend_classes(q, k, member, classes, log_weights, scale=scale, causal=causal, dtype=torch.float32)
    return mass


def walking_order(classes: UInt8[Tensor, "b m"], keys: int) -> tuple[Int[Tensor, "b blocks"], Int[Tensor, "b edges"]]:
    """Blocks of keys, those with class 0 alone first; and how many such blocks lie before each block."""
    blocks = pad(classes, (0, -classes.shape[1] % keys)).unflatten(1, (-1, keys))
    classed = blocks.amax(-1) > 0
    order = classed.byte().argsort(dim=-1, stable=True)
    return order.int(), pad((~classed).cumsum(-1), (1, 0)).int()


def in_blocks(x: Float[Tensor, "b h n d"], rows: int, columns: int) -> TensorDescriptor:
    """What a program loads [rows, columns] of a head by; a copy where the GPU can't, whose rows start on 16 bytes."""
    grain = 16 // x.element_size()
    outer = x.stride()[:-1]
    if x.stride(-1) != 1 or x.data_ptr() % 16 or any(stride <= 0 or stride % grain for stride in outer):
        fresh = x.new_empty(*x.shape[:-1], triton.cdiv(x.shape[-1], grain) * grain)
        x = fresh[..., : x.shape[-1]].copy_(x)
    return TensorDescriptor.from_tensor(x, [1, 1, rows, columns])
