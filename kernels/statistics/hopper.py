"""The core statistics of causal attention on Hopper GPUs, in one pass over q.k, in Gluon (Triton's lower level).

What decides here is the work per element on the ordinary cores, not the matrix product, so that little of it is left:

- t = scale q.k - L in base 2, raised by 15, so that p = 2^t fills the range of half precision;
- what is linear in p (mass on spans, distance) is a matrix product of p in half precision with eight features per key;
- the strongest key is looked for once per row, after the walk: the walk remembers in which tile and which of eight
  columns the largest p was, and eight keys remain to be looked at;
- sums and maxima per key are taken over the rows of a thread first, then across lanes by exchanging halves, so that
  each lane ends with two keys and no step waits for another warp.

The layout of a warp group's accumulator is what the exchange is built on: in a tile of 128 rows, bit 3 of a row and bit
6 are registers, bits 0 to 2 are lanes, bits 4 and 5 are warps; of a column, bits 1 and 2 are lanes.
"""

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from kernels.statistics.request import Attention, Request, Statistics

STATISTICS = (
    "entropy",
    "distance",
    "clipped_distance",
    "top_key",
    "top_weight",
    "mass",
    "received",
    "received_sum",
    "received_max",
)
QUERIES, KEYS, WARPS = 128, 64, 4
FEATURES = 8
MOST_SPANS = FEATURES - 3
RAISE = gl.constexpr(15)
FIXED_BITS = gl.constexpr(40)
DETERMINISTIC = True
"""Sums per key in fixed-point integers, bit-equal between runs. False: in floats, in whatever order they arrive."""
TUNED = {64: {"STAGES": 3, "maxnreg": 168}, 128: {"STAGES": 2, "maxnreg": 168}}
"""By head size, the best of five on an H100: three programs share a multiprocessor and hide each other's waits."""


LENGTHS = ("n", "m", "heads", "group", "window", "clip", "table_blocks", "key_blocks")
"""Arguments that Triton need not compile for anew."""
all_threads_here = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # its name before Triton 3.7


def answers(attention: Attention, asked: Request) -> tuple[str, ...]:
    """Which of the statistics asked for this pass can give."""
    q, k = attention.q, attention.k
    fits = (
        q.is_cuda
        and torch.cuda.get_device_capability(q.device) == (9, 0)
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.shape[-1] in TUNED
        and attention.causal
        and attention.softcap is None
        and attention.mask is None
        and attention.padding is None
        and attention.at_slots
        and all(
            x.stride(-1) == 1 and all(s % 16 == 0 for s in x.stride()[:-1]) and x.data_ptr() % 16 == 0 for x in (q, k)
        )
    )
    if not fits or asked.windows or len(asked.spans) > MOST_SPANS:
        return ()
    return tuple(name for name in asked.wanted if name in STATISTICS)


@gluon.jit
def larger_pair(a, b):
    return gl.inline_asm_elementwise("max.f16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def larger_twice(pair):
    """The larger of a pair, in both places: such pairs compare as integers do."""
    return gl.inline_asm_elementwise(
        "{.reg .b32 turned; prmt.b32 turned, $1, $1, 0x1032; max.f16x2 $0, $1, turned;}", "=r,r", [pair],
        dtype=gl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def neighbours(half, ROWS: gl.constexpr, KEYS: gl.constexpr):
    """Each even column and the odd one beside it in one register: [rows, columns / 2]."""
    even, odd = gl.split(gl.reshape(half, [ROWS, KEYS // 2, 2]))
    return gl.inline_asm_elementwise(
        "mov.b32 $0, {$1, $2};", "=r,h,h", [even.to(gl.int16, bitcast=True), odd.to(gl.int16, bitcast=True)],
        dtype=gl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def even_of(pair):
    """The float bits of the even column's weight. Those of floats that are not negative rise as the floats do."""
    return gl.inline_asm_elementwise(
        "{.reg .b16 a, b; mov.b32 {a, b}, $1; cvt.f32.f16 $0, a;}", "=r,r", [pair], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def odd_of(pair):
    return gl.inline_asm_elementwise(
        "{.reg .b16 a, b; mov.b32 {a, b}, $1; cvt.f32.f16 $0, b;}", "=r,r", [pair], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.constexpr_function
def exchange_halves(combine, lane):
    """Assembly: of a pair keep one half, the higher where the lane's bit is set, and combine it with the partner's."""
    return (
        "{.reg .pred high; .reg .b32 mine, theirs, bit;"
        f"mov.u32 bit, %laneid; and.b32 bit, bit, {lane}; setp.ne.u32 high, bit, 0;"
        "selp.b32 mine, $2, $1, high; selp.b32 theirs, $1, $2, high;"
        f"shfl.sync.bfly.b32 theirs, theirs, {lane}, 0x1f, 0xffffffff;"
        f"{combine} $0, mine, theirs;}}"
    )


@gluon.jit
def add_halves(x, LANE: gl.constexpr):
    low, high = gl.split(x)
    return gl.inline_asm_elementwise(
        exchange_halves("add.f32", LANE), "=f,f,f", [low, high], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def max_halves(x, LANE: gl.constexpr):
    low, high = gl.split(x)
    return gl.inline_asm_elementwise(
        exchange_halves("max.f16x2", LANE), "=r,r,r", [low, high], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def first_column(x):
    """The even one of the two columns whose sums this lane holds after three exchanges, in the shape of x."""
    lane = gl.inline_asm_elementwise(
        "mov.u32 $0, %laneid; // $1", "=r,r", [x.to(gl.int32, bitcast=True)], dtype=gl.int32, is_pure=True, pack=1
    )
    return lane // 4 * 8 + lane % 4 * 2


@gluon.jit
def sums_per_key(p, sums, WARPS: gl.constexpr, ROWS: gl.constexpr, KEYS: gl.constexpr, DETERMINISTIC: gl.constexpr):
    x = gl.reshape(p, [ROWS // 64, WARPS, 2, 8, KEYS])
    x = gl.sum(gl.sum(x, 2), 0)
    x = gl.permute(gl.reshape(x, [WARPS, 8, 2, 2, 2, 4, 2]), (0, 1, 5, 6, 4, 3, 2))
    x = add_halves(add_halves(add_halves(x, 16), 8), 4)
    even, odd = gl.split(x)
    column = first_column(even)
    if DETERMINISTIC:
        even = (even * 2.0 ** (FIXED_BITS - RAISE)).to(gl.int64)
        odd = (odd * 2.0 ** (FIXED_BITS - RAISE)).to(gl.int64)
    gl.atomic_add(sums + column, even, sem="relaxed")
    gl.atomic_add(sums + column + 1, odd, sem="relaxed")


@gluon.jit
def maxima_per_key(pairs, maxima, WARPS: gl.constexpr, ROWS: gl.constexpr, KEYS: gl.constexpr):
    x = gl.reshape(pairs, [ROWS // 64, WARPS, 2, 8, KEYS // 2])
    x = gl.reduce(gl.reduce(x, 2, larger_pair), 0, larger_pair)
    x = gl.permute(gl.reshape(x, [WARPS, 8, 2, 2, 2, 4]), (0, 1, 5, 4, 3, 2))
    x = max_halves(max_halves(max_halves(x, 16), 8), 4)
    column = first_column(x)
    gl.atomic_max(maxima + column, even_of(x), sem="relaxed")
    gl.atomic_max(maxima + column + 1, odd_of(x), sem="relaxed")


@gluon.jit
def in_quads(x, ROWS: gl.constexpr, KEYS: gl.constexpr):
    """[rows, columns in steps of 8, the thread's place among four, even or odd]."""
    return gl.reshape(x, [ROWS, KEYS // 8, 4, 2])


@gluon.jit
def read_tile(
    s, tile, rows, lse, scale, m, window, clip, entropy, away, clipped, top, top_pair, top_tile, mass, features,
    sums, maxima,
    EDGE: gl.constexpr, WINDOW: gl.constexpr, ENTROPY: gl.constexpr, DISTANCE: gl.constexpr, TOP: gl.constexpr,
    LINEAR: gl.constexpr, SUM: gl.constexpr, MAX: gl.constexpr, DETERMINISTIC: gl.constexpr,
    WARPS: gl.constexpr, ROWS: gl.constexpr, KEYS: gl.constexpr,
    square: gl.constexpr, narrow: gl.constexpr,
):  # fmt: skip
    """All that one tile of scores adds. rows: the queries' slots among the keys."""
    t = s * scale - lse[:, None]
    if EDGE:
        keys = tile * KEYS + gl.arange(0, KEYS, layout=gl.SliceLayout(0, square))
        lag = rows[:, None] - keys[None, :]
        visible = (lag >= 0) & (keys < m)[None, :]
        if WINDOW:
            visible = visible & (lag < window)
        t = gl.where(visible, t, -1.0e9)
    p = gl.exp2(t)
    half = p.to(gl.float16)
    if ENTROPY:
        entropy += gl.sum(gl.sum(in_quads(p * t, ROWS, KEYS), 1), 2)
    if DISTANCE and EDGE:
        away += gl.sum(gl.sum(in_quads(p * lag.to(gl.float32), ROWS, KEYS), 1), 2)
        clipped += gl.sum(gl.sum(in_quads(p * gl.minimum(lag, clip).to(gl.float32), ROWS, KEYS), 1), 2)
    pairs = neighbours(half, ROWS, KEYS)
    if TOP:
        pair = gl.reduce(gl.reshape(pairs, [ROWS, KEYS // 8, 4]), 1, larger_pair)
        best = larger_twice(pair)
        better = best > top
        top = gl.where(better, best, top)
        top_pair = gl.where(better, pair, top_pair)
        top_tile = gl.where(better, tile, top_tile)
    if SUM:
        sums_per_key(p, sums + tile * KEYS, WARPS, ROWS, KEYS, DETERMINISTIC)
    if MAX:
        maxima_per_key(pairs, maxima + tile * KEYS, WARPS, ROWS, KEYS)
    if LINEAR:
        operand = gl.convert_layout(half, gl.DotOperandLayout(0, narrow, 2), assert_trivial=True)
        mass = warpgroup_mma(operand, features.permute((1, 0)), mass, is_async=True)
        mass, operand = warpgroup_mma_wait(0, deps=[mass, operand])
    return entropy, away, clipped, top, top_pair, top_tile, mass


@gluon.jit
def fetch(
    tile, tiles, keys, features, key_at, feature_at, key_row, k_inside, m, KEYS: gl.constexpr, STAGES: gl.constexpr
):
    """Start copying a tile's keys and features, where there is such a tile, as one group."""
    if tile < tiles:
        slot = keys.index(tile % STAGES)
        source = key_at + tile.to(gl.int64) * KEYS * key_row
        if (tile + 1) * KEYS <= m:
            async_copy.async_copy_global_to_shared(slot, source)
        else:
            async_copy.async_copy_global_to_shared(slot, source, mask=(k_inside + tile * KEYS < m)[:, None])
        async_copy.async_copy_global_to_shared(features.index(tile % 4), feature_at + tile * KEYS)
    async_copy.commit_group()


@gluon.jit
def walk(
    first_tile, last_tile, tiles, queries, keys, features, key_at, feature_at, key_row, k_inside,
    rows, lse, scale, m, window, clip, entropy, away, clipped, top, top_pair, top_tile, mass, sums, maxima,
    EDGE: gl.constexpr, WINDOW: gl.constexpr, ENTROPY: gl.constexpr, DISTANCE: gl.constexpr, TOP: gl.constexpr,
    LINEAR: gl.constexpr, SUM: gl.constexpr, MAX: gl.constexpr, DETERMINISTIC: gl.constexpr,
    WARPS: gl.constexpr, ROWS: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
    square: gl.constexpr, narrow: gl.constexpr,
):  # fmt: skip
    """Tiles from first_tile up to last_tile; the STAGES - 1 that come first are already on their way."""
    zero = gl.zeros([ROWS, KEYS], gl.float32, layout=square)
    for tile in range(first_tile, last_tile):
        async_copy.wait_group(STAGES - 2)
        fence_async_shared()
        all_threads_here()
        s = warpgroup_mma(queries, keys.index(tile % STAGES).permute((1, 0)), zero, use_acc=False, is_async=True)
        fetch(tile + STAGES - 1, tiles, keys, features, key_at, feature_at, key_row, k_inside, m, KEYS, STAGES)
        s = warpgroup_mma_wait(0, deps=[s])
        entropy, away, clipped, top, top_pair, top_tile, mass = read_tile(
            s, tile, rows, lse, scale, m, window, clip, entropy, away, clipped, top, top_pair, top_tile, mass,
            features.index(tile % 4), sums, maxima, EDGE, WINDOW, ENTROPY, DISTANCE, TOP, LINEAR, SUM, MAX,
            DETERMINISTIC, WARPS, ROWS, KEYS, square, narrow,
        )  # fmt: skip
    return entropy, away, clipped, top, top_pair, top_tile, mass


@gluon.jit
def feature_of(mass, column, FEATURE: gl.constexpr, row: gl.constexpr):
    return gl.convert_layout(gl.sum(gl.where(column[None, :] == FEATURE, mass, 0.0), 1), row)


@gluon.jit(do_not_specialize=LENGTHS)
def core_kernel(
    Q, K, FEATURE_TABLE, LSE, ENTROPY_OUT, DISTANCE_OUT, CLIPPED_OUT, TOP_PLACE_OUT, MASS_OUT, SUM_OUT, MAX_OUT,
    n, m, heads, group, scale, window, clip, table_blocks, key_blocks,
    q_batch, q_head, q_row, k_batch, k_head, k_row,
    D: gl.constexpr, DTYPE: gl.constexpr, WINDOW: gl.constexpr,
    ENTROPY: gl.constexpr, DISTANCE: gl.constexpr, TOP: gl.constexpr, SPANS: gl.constexpr,
    SUM: gl.constexpr, MAX: gl.constexpr, DETERMINISTIC: gl.constexpr,
    ROWS: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    WARPS: gl.constexpr = 4
    LINEAR: gl.constexpr = DISTANCE or SPANS > 0
    square: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, KEYS, 16])
    narrow: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, 8, 16])
    row: gl.constexpr = gl.SliceLayout(1, square)
    load: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [WARPS, 1], [1, 0])
    load_features: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])
    # The blocks with the most keys start first, so that none of them is left to run alone at the end.
    first = (gl.num_programs(0) - 1 - gl.program_id(0)) * ROWS
    head = gl.program_id(1).to(gl.int64)
    b, h = head // heads, head % heads
    offset = m - n
    queries = gl.allocate_shared_memory(DTYPE, [ROWS, D], gl.NVMMASharedLayout.get_default_for([ROWS, D], DTYPE))
    keys = gl.allocate_shared_memory(DTYPE, [STAGES, KEYS, D], gl.NVMMASharedLayout.get_default_for([KEYS, D], DTYPE))
    features = gl.allocate_shared_memory(
        gl.float16, [4, 8, KEYS], gl.NVMMASharedLayout.get_default_for([8, KEYS], gl.float16)
    )
    # Three kinds of tiles follow each other: cut by the window's far edge, then whole and farther than `clip` from
    # every query, then near or cut by the diagonal.
    tiles = (gl.minimum(m, gl.maximum(first + ROWS + offset, 0)) + KEYS - 1) // KEYS
    start, whole = 0, 0
    if WINDOW:
        start = gl.minimum(gl.maximum(first + offset - window + 1, 0) // KEYS, tiles)
        whole = (gl.maximum(first + ROWS + offset - window, 0) + KEYS - 1) // KEYS
    near = gl.maximum(first + offset + 1 - clip, 0) // KEYS
    near = gl.maximum(gl.minimum(near, tiles), start)
    whole = gl.minimum(gl.maximum(whole, start), near)
    d = gl.arange(0, D, layout=gl.SliceLayout(0, load))
    q_slot = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, load))
    k_inside = gl.arange(0, KEYS, layout=gl.SliceLayout(1, load))
    async_copy.async_copy_global_to_shared(
        queries, Q + b * q_batch + h * q_head + (q_slot.to(gl.int64) * q_row)[:, None] + d[None, :],
        mask=(q_slot < n)[:, None],
    )  # fmt: skip
    key_at = K + b * k_batch + (h // group) * k_head + (k_inside.to(gl.int64) * k_row)[:, None] + d[None, :]
    # Row 2 of the table falls from block to block; shifted, it reads how many blocks a key lies behind this program.
    feature = gl.arange(0, 8, layout=gl.SliceLayout(1, load_features))
    here = (first + offset + KEYS * key_blocks) // KEYS - key_blocks
    shift = (feature == 2).to(gl.int32) * ((table_blocks - key_blocks - here) * KEYS)
    feature_at = (
        FEATURE_TABLE + b * 8 * table_blocks * KEYS + (feature * (table_blocks * KEYS) + shift)[:, None]
        + gl.arange(0, KEYS, layout=gl.SliceLayout(0, load_features))[None, :]
    )  # fmt: skip
    for stage in gl.static_range(STAGES - 1):
        fetch(start + stage, tiles, keys, features, key_at, feature_at, k_row, k_inside, m, KEYS, STAGES)
    i = first + gl.arange(0, ROWS, layout=row)
    slots = i + offset
    lse = gl.load(LSE + head * n + i, mask=i < n, other=float("inf")) * 1.4426950408889634
    # A row that sees nothing has an L of -inf; far above all scores it makes every p zero, and none NaN.
    seeing = gl.abs(lse) < 1.0e30
    lse = gl.where(seeing, lse, 1.0e30) - RAISE
    zero = gl.zeros([ROWS, KEYS], gl.float32, layout=square)
    entropy = gl.sum(gl.sum(in_quads(zero, ROWS, KEYS), 1), 2)
    away, clipped = entropy, entropy
    nothing = gl.reshape(neighbours(zero.to(gl.float16), ROWS, KEYS), [ROWS, KEYS // 8, 4])
    top = gl.reduce(nothing, 1, larger_pair)
    top_pair, top_tile = top, top
    mass = gl.zeros([ROWS, 8], gl.float32, layout=narrow)
    column = gl.arange(0, 8, layout=gl.SliceLayout(0, narrow))
    sums, maxima = SUM_OUT + head * key_blocks * KEYS, MAX_OUT + head * key_blocks * KEYS
    if WINDOW:
        entropy, away, clipped, top, top_pair, top_tile, mass = walk(
            start, whole, tiles, queries, keys, features, key_at, feature_at, k_row, k_inside, slots, lse, scale,
            m, window, clip, entropy, away, clipped, top, top_pair, top_tile, mass, sums, maxima, True, WINDOW,
            ENTROPY, DISTANCE, TOP, LINEAR, SUM, MAX, DETERMINISTIC, WARPS, ROWS, KEYS, STAGES, square, narrow,
        )  # fmt: skip
        mass = gl.where((column < 3)[None, :], 0.0, mass)
    entropy, away, clipped, top, top_pair, top_tile, mass = walk(
        whole, near, tiles, queries, keys, features, key_at, feature_at, k_row, k_inside, slots, lse, scale,
        m, window, clip, entropy, away, clipped, top, top_pair, top_tile, mass, sums, maxima, False, WINDOW,
        ENTROPY, DISTANCE, TOP, LINEAR, SUM, MAX, DETERMINISTIC, WARPS, ROWS, KEYS, STAGES, square, narrow,
    )  # fmt: skip
    out = head * n + i
    if DISTANCE:
        # Far keys by their features; near ones are still to come, one by one.
        far = feature_of(mass, column, 0, row)
        ahead = (slots - here * KEYS).to(gl.float32)
        distance = KEYS * feature_of(mass, column, 2, row) - feature_of(mass, column, 1, row) + ahead * far
    entropy, away, clipped, top, top_pair, top_tile, mass = walk(
        near, tiles, tiles, queries, keys, features, key_at, feature_at, k_row, k_inside, slots, lse, scale,
        m, window, clip, entropy, away, clipped, top, top_pair, top_tile, mass, sums, maxima, True, WINDOW,
        ENTROPY, DISTANCE, TOP, LINEAR, SUM, MAX, DETERMINISTIC, WARPS, ROWS, KEYS, STAGES, square, narrow,
    )  # fmt: skip
    LOWER: gl.constexpr = 2.0**-RAISE
    if ENTROPY:
        # -sum p t ln 2, with t too high by what p was raised by.
        raised = gl.where(seeing, RAISE, 0.0) - gl.convert_layout(gl.sum(entropy, 1), row) * LOWER
        gl.store(ENTROPY_OUT + out, raised * 0.6931471805599453, mask=i < n)
    if DISTANCE:
        distance += gl.convert_layout(gl.sum(away, 1), row)
        gl.store(DISTANCE_OUT + out, distance * LOWER, mask=i < n)
        far = far * clip.to(gl.float32) + gl.convert_layout(gl.sum(clipped, 1), row)
        gl.store(CLIPPED_OUT + out, far * LOWER, mask=i < n)
    if TOP:
        # Of the four threads of a row the one with the largest p, on a tie the one with the earliest tile.
        best = gl.max(top, 1)
        quad = gl.arange(0, 4, layout=gl.SliceLayout(0, top.type.layout))
        odd = (odd_of(top_pair) > even_of(top_pair)).to(gl.int32)
        place = gl.where(top == gl.expand_dims(best, 1), (2 * top_tile + odd) * 4 + quad[None, :], 2147483647)
        place = gl.where(best > 0, gl.min(place, 1), -1)
        gl.store(TOP_PLACE_OUT + out, gl.convert_layout(place, row), mask=i < n)
    for span in gl.static_range(SPANS):
        gl.store(MASS_OUT + span * gl.num_programs(1).to(gl.int64) * n + out,
                 feature_of(mass, column, 3 + span, row) * LOWER, mask=i < n)  # fmt: skip


@triton.jit(do_not_specialize=LENGTHS)
def strongest_kernel(
    Q, K, LSE, CANDIDATE, SLOT_OUT, WEIGHT_OUT, n, m, heads, group, scale, window,
    q_batch, q_head, q_row, k_batch, k_head, k_row,
    D: tl.constexpr, WINDOW: tl.constexpr,
    KEYS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The strongest of the KEYS / 8 keys that the walk left, and its weight in float32."""
    head = tl.program_id(1).to(tl.int64)
    b, h = head // heads, head % heads
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, D)
    candidate = tl.load(CANDIDATE + head * n + i, mask=i < n, other=-1)
    known = candidate >= 0
    # All of a row's keys are asked for at once: the loads wait for memory together, not one after the other.
    step = tl.arange(0, KEYS // 8)
    j = (candidate // 8 * KEYS + candidate % 4 * 2 + candidate // 4 % 2)[:, None] + step[None, :] * 8
    visible = known[:, None] & (j < m) & (j <= (i + m - n)[:, None])
    if WINDOW:
        visible = visible & (j > (i + m - n - window)[:, None])
    k = tl.load(
        K + b * k_batch + (h // group) * k_head + j.to(tl.int64)[:, :, None] * k_row + d[None, None, :],
        mask=visible[:, :, None], other=0.0,
    ).to(tl.float32)  # fmt: skip
    q = tl.load(
        Q + b * q_batch + h * q_head + i.to(tl.int64)[:, None] * q_row + d[None, :], mask=known[:, None], other=0.0
    ).to(tl.float32)
    s = tl.where(visible, tl.sum(k * q[:, None, :], 2), float("-inf"))
    best = tl.max(s, 1)
    slot = tl.min(tl.where(visible & (s == best[:, None]), j, 2147483647), 1)
    lse = tl.load(LSE + head * n + i, mask=i < n, other=0.0)
    tl.store(SLOT_OUT + head * n + i, tl.where(known, slot, -1).to(tl.int64), mask=i < n)
    tl.store(WEIGHT_OUT + head * n + i, tl.where(known, tl.exp(best * scale - lse), 0.0), mask=i < n)


def statistics(attention: Attention, asked: Request, lse: Tensor) -> Statistics:
    """The statistics that `answers` named; asked may hold no other. lse: float32, contiguous."""
    q, k = attention.q, attention.k
    (b, h, n, d), m = q.shape, k.shape[2]
    key_blocks = triton.cdiv(m, KEYS)
    distance, top = asked.any_of("distance", "clipped_distance"), asked.any_of("top_key", "top_weight")
    total, largest = asked.any_of("received", "received_sum"), asked.any_of("received_max")
    spans = list(asked.spans.values()) if asked.any_of("mass") else []

    def rows(wanted: bool, dtype: torch.dtype = torch.float32) -> Tensor:
        return q.new_empty((b, h, n) if wanted else (1,), dtype=dtype)

    def columns(wanted: bool, dtype: torch.dtype) -> Tensor:
        return q.new_zeros((b, h, key_blocks * KEYS) if wanted else (1,), dtype=dtype)

    table_blocks = 2 * key_blocks + 4
    out = {
        "ENTROPY_OUT": rows(asked.any_of("entropy")),
        "DISTANCE_OUT": rows(distance),
        "CLIPPED_OUT": rows(distance),
        "TOP_PLACE_OUT": rows(top, torch.int32),
        "MASS_OUT": q.new_empty((len(spans), b, h, n) if spans else (1,), dtype=torch.float32),
        "SUM_OUT": columns(total, torch.int64 if DETERMINISTIC else torch.float32),
        "MAX_OUT": columns(largest, torch.int32),
    }
    strides = {
        "q_batch": q.stride(0),
        "q_head": q.stride(1),
        "q_row": q.stride(2),
        "k_batch": k.stride(0),
        "k_head": k.stride(1),
        "k_row": k.stride(2),
    }
    heads: dict[str, Any] = {"heads": h, "group": h // k.shape[1]}
    shape: dict[str, Any] = {"D": d, "WINDOW": attention.window is not None}
    core_kernel[(triton.cdiv(n, QUERIES), b * h)](
        Q=q,
        K=k,
        FEATURE_TABLE=feature_table(spans, b, key_blocks, table_blocks, q.device),
        LSE=lse,
        **out,
        n=n,
        m=m,
        **heads,
        scale=attention.scale * 1.4426950408889634,
        window=attention.window or 0,
        clip=asked.clip,
        table_blocks=table_blocks,
        key_blocks=key_blocks,
        **strides,
        **shape,
        DTYPE=gl.bfloat16 if q.dtype == torch.bfloat16 else gl.float16,
        ENTROPY=asked.any_of("entropy"),
        DISTANCE=distance,
        TOP=top,
        SPANS=len(spans),
        SUM=total,
        MAX=largest,
        DETERMINISTIC=DETERMINISTIC,
        ROWS=QUERIES,
        KEYS=KEYS,
        num_warps=WARPS,
        **TUNED[d],
    )
    found: Statistics = {
        "entropy": out["ENTROPY_OUT"],
        "distance": out["DISTANCE_OUT"],
        "clipped_distance": out["CLIPPED_OUT"],
    }
    if asked.any_of("entropy") and attention.sink is not None:
        # The kernel took the row's weights for 1; the sink, which is no key, has its share of them.
        parked = torch.exp(attention.sink.float()[None, :, None] - lse)
        found["entropy"] -= RAISE.value * LN2 * parked + torch.special.xlogy(parked, parked)
    found |= {f"mass:{name}": out["MASS_OUT"][at] for at, name in enumerate(asked.spans if spans else ())}
    if top:
        found["top_key"], found["top_weight"] = rows(True, torch.int64), rows(True)
        strongest_kernel[(triton.cdiv(n, 16), b * h)](
            q, k, lse, out["TOP_PLACE_OUT"], found["top_key"], found["top_weight"], n, m,
            *heads.values(), attention.scale, attention.window or 0, *strides.values(), **shape, KEYS=KEYS, ROWS=16,
        )  # fmt: skip
    if total:
        received = out["SUM_OUT"][..., :m] * (2.0**-FIXED_BITS.value if DETERMINISTIC else 2.0**-RAISE.value)
        found["received_sum"] = received
        if "received" in asked.wanted:
            share = seen_by(n, m, attention.window, q.device)
            found["received"] = received * share if "received_sum" in asked.wanted else received.mul_(share)
    if largest:
        found["received_max"] = out["MAX_OUT"].view(torch.float32)[..., :m] * 2.0**-RAISE.value
    return {name: found[name] for name in asked.results(b, h, n, m)}


LN2 = 0.6931471805599453


def feature_table(spans: list[Tensor], b: int, key_blocks: int, table_blocks: int, device: torch.device) -> Tensor:
    """(b, 8, keys) in half precision: 1, the key's place in its block, blocks behind, and who is in which span."""
    table = features_without_spans(b, key_blocks, table_blocks, device)
    if spans:
        table = table.clone()
        for at, members in enumerate(spans):
            table[:, 3 + at, : members.shape[1]] = members
    return table


@lru_cache(maxsize=2)
def features_without_spans(b: int, key_blocks: int, table_blocks: int, device: torch.device) -> Tensor:
    table = torch.zeros(b, FEATURES, table_blocks, KEYS, dtype=torch.float16, device=device)
    table[:, 0] = 1
    table[:, 1] = torch.arange(KEYS, device=device)
    # Tile t of a program `here` is read at block x = table_blocks - key_blocks - here + t and must say here - t.
    table[:, 2] = (table_blocks - key_blocks - torch.arange(table_blocks, device=device))[:, None]
    return table.view(b, FEATURES, -1)


@lru_cache(maxsize=2)
def seen_by(n: int, m: int, window: int | None, device: torch.device) -> Tensor:
    """One over how many queries see each key, 1 where none does."""
    key = torch.arange(m, device=device)
    first = (key - (m - n)).clamp_min(0)
    last = torch.full_like(key, n) if window is None else (key - (m - n) + window).clamp(max=n)
    return (last - first).clamp_min(1).float().reciprocal()
