"""Statistics of attention on NVIDIA GPUs: p_ij = exp(s_ij - L_i) a tile at a time, in registers, never in memory.

A program holds a block of queries and walks the keys. What belongs to its rows stays in registers; what belongs to the
keys leaves by atomic additions of fixed-point integers, whose order can't change the sum: two runs agree bit for bit.
`hopper` is the same walk written for one kind of GPU and the statistics people ask for most.
"""

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.statistics import blocked, hopper
from kernels.statistics.request import PER_TILE, Attention, QueryWindow, Request, Statistics

QUERIES, KEYS = 64, 64
FEWEST_QUERIES = 16
"""Fewer rows than a tensor core's tile: a decode step is left to plain PyTorch."""
SMALLEST_CELL = 16
FIXED = tl.constexpr(2.0**40)
"""Resolution of sums per key: up to 2^22 queries fit 63 bits."""
ROW_STATISTICS = ("entropy", "distance", "clipped_distance", "top_key", "top_weight", "self_mass", "participation")
MOST_SPANS = 62
"""Which spans hold a key is written in the bits of one integer."""
LENGTHS = ("n", "m", "heads", "group", "window", "clip")
"""Arguments that Triton need not compile for anew."""
NO_KEY = tl.constexpr(2**31 - 1)
COLUMNS = ("SUM_OUT", "SEEN_OUT", "OTHERS_OUT", "SEEN_OTHERS_OUT", "MAX_OUT", "PLACE_OUT")


@triton.jit
def load_rows(pointer, rows, length, stride, D: tl.constexpr, DIM: tl.constexpr):
    """[rows, D] of a (length, d) matrix, zeros beyond its edges."""
    columns = tl.arange(0, D)
    inside = (rows < length)[:, None] & (columns < DIM)[None, :]
    return tl.load(pointer + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def load_lse(pointer, rows, stop):
    """L of each row; infinite for one that sees nothing or is beyond the last: every p is 0 there, and none is NaN."""
    lse = tl.load(pointer + rows, mask=rows < stop, other=float("inf"))
    return tl.where(lse == float("-inf"), float("inf"), lse)


@triton.jit
def logits_of(
    q, k, i, j, n, m, mask, mask_row, mask_column, padding, scale, softcap, lowest, window,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PADDED: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Logits of a tile, -inf where invisible. i, j: slots. MASK: "" for none, "bool" or "added"."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if SOFTCAP:
        s = softcap * (1.0 - 2.0 / (tl.exp(2.0 * s / softcap) + 1.0))
    here = (i + (m - n))[:, None]
    visible = (i < n)[:, None] & (j < m)[None, :]
    if CAUSAL:
        visible = visible & (j[None, :] <= here)
    if WINDOW:
        visible = visible & (j[None, :] > here - window)
        if not CAUSAL:
            visible = visible & (j[None, :] < here + window)
    if PADDED:
        visible = visible & (tl.load(padding + j, mask=j < m, other=0) != 0)[None, :]
    if MASK != "":
        at = mask + i.to(tl.int64)[:, None] * mask_row + j.to(tl.int64)[None, :] * mask_column
        inside = (i < n)[:, None] & (j < m)[None, :]
        if MASK == "bool":
            visible = visible & (tl.load(at, mask=inside, other=0) != 0)
        else:
            added = tl.load(at, mask=inside, other=float("-inf")).to(tl.float32)
            visible = visible & (added > lowest)
            s = s + added
    return tl.where(visible, s, float("-inf"))


@triton.jit
def reach(first, n, m, window, QUERIES: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Keys from `start` up to `stop` that any of the block's queries may see."""
    start, stop = 0, m
    if CAUSAL:
        stop = tl.maximum(tl.minimum(m, first + QUERIES + m - n), 0)
    if WINDOW:
        start = tl.maximum(first + m - n - window + 1, 0)
        if not CAUSAL:
            stop = tl.maximum(tl.minimum(m, first + QUERIES + m - n + window - 1), 0)
    return start, stop


@triton.jit(do_not_specialize=LENGTHS)
def log_sum_exp_kernel(
    Q, K, MASK_AT, PADDING, SINK, LSE, n, m, heads, group, scale, softcap, lowest, window,
    q_batch, q_head, q_row, k_batch, k_head, k_row, mask_batch, mask_head, mask_row, mask_column,
    DIM: tl.constexpr, D: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HAS_SINK: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PADDED: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * QUERIES
    b, h = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    i = first + tl.arange(0, QUERIES)
    q = load_rows(Q + b * q_batch + h * q_head, i, n, q_row, D, DIM)
    keys = K + b * k_batch + (h // group) * k_head
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    if HAS_SINK:
        largest = tl.zeros([QUERIES], tl.float32) + tl.load(SINK + h).to(tl.float32)
        total += 1.0
    start, stop = reach(first, n, m, window, QUERIES, CAUSAL, WINDOW)
    for at in range(start // KEYS * KEYS, stop, KEYS):
        j = at + tl.arange(0, KEYS)
        k = load_rows(keys, j, m, k_row, D, DIM)
        s = logits_of(
            q, k, i, j, n, m, MASK_AT + b * mask_batch + h * mask_head, mask_row, mask_column, PADDING + b * m,
            scale, softcap, lowest, window, CAUSAL, WINDOW, SOFTCAP, PADDED, MASK,
        )  # fmt: skip
        higher = tl.maximum(largest, tl.max(s, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(largest - base) + tl.sum(tl.exp(s - base[:, None]), 1)
        largest = higher
    lse = tl.where(total > 0, largest + tl.log(total), float("-inf"))
    tl.store(LSE + tl.program_id(1).to(tl.int64) * n + i, lse, mask=i < n)


@triton.jit(do_not_specialize=LENGTHS)
def statistics_kernel(
    Q, K, MASK_AT, PADDING, LSE, QUERY_AT, KEY_AT, SPANS, WINDOWS,
    ENTROPY_OUT, DISTANCE_OUT, CLIPPED_OUT, TOP_SLOT, TOP_WEIGHT, SELF_OUT, SQUARES_OUT, MASS_OUT,
    SUM_OUT, OTHERS_OUT, MAX_OUT, PLACE_OUT, SEEN_OUT, SEEN_OTHERS_OUT,
    n, m, heads, group, scale, softcap, lowest, window, clip, place_unit,
    q_batch, q_head, q_row, k_batch, k_head, k_row, mask_batch, mask_head, mask_row, mask_column,
    DIM: tl.constexpr, D: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PADDED: tl.constexpr, MASK: tl.constexpr,
    ENTROPY: tl.constexpr, DISTANCE: tl.constexpr, TOP: tl.constexpr, SELF: tl.constexpr, SQUARES: tl.constexpr,
    SPAN_COUNT: tl.constexpr, SPAN_COLUMNS: tl.constexpr, WINDOW_COUNT: tl.constexpr,
    SUM: tl.constexpr, OTHERS: tl.constexpr, MAX: tl.constexpr, PLACE: tl.constexpr,
):  # fmt: skip
    """Everything per query and per key that was asked for, the rows' log-sum-exp known."""
    first = tl.program_id(0) * QUERIES
    row = tl.program_id(1).to(tl.int64)
    b, h = row // heads, row % heads
    i = first + tl.arange(0, QUERIES)
    q = load_rows(Q + b * q_batch + h * q_head, i, n, q_row, D, DIM)
    keys = K + b * k_batch + (h // group) * k_head
    lse = load_lse(LSE + row * n, i, n)
    query_at = tl.load(QUERY_AT + b * n + i, mask=i < n, other=0)
    earliest = tl.load(QUERY_AT + b * n)
    entropy, distance, clipped, own, squares = (
        tl.zeros([QUERIES], tl.float32), tl.zeros([QUERIES], tl.float32), tl.zeros([QUERIES], tl.float32),
        tl.zeros([QUERIES], tl.float32), tl.zeros([QUERIES], tl.float32),
    )  # fmt: skip
    whole, peak = tl.zeros([QUERIES], tl.float32), tl.zeros([QUERIES], tl.float32)
    top, slot = tl.zeros([QUERIES], tl.float32), tl.full([QUERIES], -1, tl.int32)
    mass = tl.zeros([QUERIES, SPAN_COLUMNS], tl.float32)
    start, stop = reach(first, n, m, window, QUERIES, CAUSAL, WINDOW)
    for at in range(start // KEYS * KEYS, stop, KEYS):
        j = at + tl.arange(0, KEYS)
        k = load_rows(keys, j, m, k_row, D, DIM)
        s = logits_of(
            q, k, i, j, n, m, MASK_AT + b * mask_batch + h * mask_head, mask_row, mask_column, PADDING + b * m,
            scale, softcap, lowest, window, CAUSAL, WINDOW, SOFTCAP, PADDED, MASK,
        )  # fmt: skip
        log_p = s - lse[:, None]
        p = tl.exp(log_p)
        key_at = tl.load(KEY_AT + b * m + j, mask=j < m, other=0)
        lag = query_at[:, None] - key_at[None, :]
        if ENTROPY:
            entropy -= tl.sum(tl.where(p > 0, p * log_p, 0.0), 1)
        if DISTANCE:
            away = tl.abs(lag)
            distance += tl.sum(p * away.to(tl.float32), 1)
            clipped += tl.sum(p * tl.minimum(away, clip).to(tl.float32), 1)
        if SELF:
            own += tl.sum(tl.where(lag == 0, p, 0.0), 1)
        if SQUARES:
            # Of the row's largest weight so far: beside a strong sink the squares of the weights are too small.
            higher = tl.maximum(peak, tl.max(p, 1))
            falls = tl.where(higher > 0, peak / higher, 0.0)
            relative = tl.where(higher > 0, 1.0 / higher, 0.0)[:, None] * p
            whole = whole * falls + tl.sum(relative, 1)
            squares = squares * falls * falls + tl.sum(relative * relative, 1)
            peak = higher
        if TOP:
            best = tl.max(p, 1)
            where = tl.min(tl.where(p == best[:, None], j[None, :], NO_KEY), 1)
            slot = tl.where(best > top, where, slot)
            top = tl.maximum(best, top)
        if SPAN_COUNT > 0:
            member = tl.load(SPANS + b * m + j, mask=j < m, other=0)
            for span in tl.static_range(SPAN_COUNT):
                part = tl.sum(tl.where(((member >> span) & 1)[None, :] != 0, p, 0.0), 1)
                mass += tl.where(tl.arange(0, SPAN_COLUMNS)[None, :] == span, part[:, None], 0.0)
        for w in tl.static_range(WINDOW_COUNT):
            low, high = tl.load(WINDOWS + 4 * w), tl.load(WINDOWS + 4 * w + 1)
            nearest, farthest = tl.load(WINDOWS + 4 * w + 2), tl.load(WINDOWS + 4 * w + 3)
            inside = ((query_at >= low) & (query_at < high))[:, None] & (lag >= nearest) & (lag <= farthest)
            column = (row * WINDOW_COUNT + w) * m + j
            weight = tl.where(inside, p, 0.0)
            seen = inside & (s > float("-inf"))
            if SUM:
                received = (tl.sum(weight, 0) * FIXED).to(tl.int64)
                tl.atomic_add(SUM_OUT + column, received, mask=j < m, sem="relaxed")
                tl.atomic_add(SEEN_OUT + column, tl.sum(seen.to(tl.int32), 0), mask=j < m, sem="relaxed")
            if OTHERS:
                others = (tl.sum(tl.where(lag == 0, 0.0, weight), 0) * FIXED).to(tl.int64)
                tl.atomic_add(OTHERS_OUT + column, others, mask=j < m, sem="relaxed")
                seen_others = tl.sum((seen & (lag != 0)).to(tl.int32), 0)
                tl.atomic_add(SEEN_OTHERS_OUT + column, seen_others, mask=j < m, sem="relaxed")
            if PLACE:
                place = (tl.sum(weight * (query_at - earliest)[:, None].to(tl.float32), 0) * place_unit).to(tl.int64)
                tl.atomic_add(PLACE_OUT + column, place, mask=j < m, sem="relaxed")
            if MAX:
                # The bits of floats that are not negative rise as the floats do.
                bits = tl.max(weight, 0).to(tl.int32, bitcast=True)
                tl.atomic_max(MAX_OUT + column, bits, mask=j < m, sem="relaxed")
    out = row * n + i
    rows = i < n
    if ENTROPY:
        tl.store(ENTROPY_OUT + out, entropy, mask=rows)
    if DISTANCE:
        tl.store(DISTANCE_OUT + out, distance, mask=rows)
        tl.store(CLIPPED_OUT + out, clipped, mask=rows)
    if TOP:
        tl.store(TOP_SLOT + out, slot, mask=rows)
        tl.store(TOP_WEIGHT + out, top, mask=rows)
    if SELF:
        tl.store(SELF_OUT + out, own, mask=rows)
    if SQUARES:
        tl.store(SQUARES_OUT + out, tl.where(squares > 0, whole * whole / squares, 0.0), mask=rows)
    if SPAN_COUNT > 0:
        columns = tl.arange(0, SPAN_COLUMNS)
        tl.store(
            MASS_OUT + out[:, None] * SPAN_COUNT + columns[None, :], mass,
            mask=rows[:, None] & (columns < SPAN_COUNT)[None, :],
        )  # fmt: skip


@triton.jit(do_not_specialize=LENGTHS)
def top_keys_kernel(
    Q, K, MASK_AT, PADDING, LSE, SLOTS_OUT, WEIGHTS_OUT, n, m, heads, group, scale, softcap, lowest, window,
    q_batch, q_head, q_row, k_batch, k_head, k_row, mask_batch, mask_head, mask_row, mask_column,
    DIM: tl.constexpr, D: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PADDED: tl.constexpr, MASK: tl.constexpr,
    COUNT: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """Each row's COUNT largest weights, in no order: a tile's own largest push out the list's smallest."""
    first = tl.program_id(0) * QUERIES
    row = tl.program_id(1).to(tl.int64)
    b, h = row // heads, row % heads
    i = first + tl.arange(0, QUERIES)
    q = load_rows(Q + b * q_batch + h * q_head, i, n, q_row, D, DIM)
    keys = K + b * k_batch + (h // group) * k_head
    lse = load_lse(LSE + row * n, i, n)
    place = tl.arange(0, PLACES)
    # Places beyond COUNT hold more than any weight, so that nothing is ever put there.
    weights = tl.zeros([QUERIES, PLACES], tl.float32) + tl.where(place < COUNT, 0.0, 2.0)[None, :]
    slots = tl.full([QUERIES, PLACES], NO_KEY, tl.int32)
    start, stop = reach(first, n, m, window, QUERIES, CAUSAL, WINDOW)
    for at in range(start // KEYS * KEYS, stop, KEYS):
        j = at + tl.arange(0, KEYS)
        k = load_rows(keys, j, m, k_row, D, DIM)
        s = logits_of(
            q, k, i, j, n, m, MASK_AT + b * mask_batch + h * mask_head, mask_row, mask_column, PADDING + b * m,
            scale, softcap, lowest, window, CAUSAL, WINDOW, SOFTCAP, PADDED, MASK,
        )  # fmt: skip
        p = tl.exp(s - lse[:, None])
        best, least = tl.max(p, 1), tl.min(weights, 1)
        while tl.max((best > least).to(tl.int32), 0) > 0:
            slot = tl.min(tl.where(p == best[:, None], j[None, :], NO_KEY), 1)
            # Of equal weights the highest slot goes.
            leaving = tl.max(tl.where(weights == least[:, None], slots, -1), 1)
            spot = (weights == least[:, None]) & (slots == leaving[:, None])
            spot = spot & (place[None, :] == tl.min(tl.where(spot, place[None, :], PLACES), 1)[:, None])
            spot = spot & (best > least)[:, None]
            weights = tl.where(spot, best[:, None], weights)
            slots = tl.where(spot, slot[:, None], slots)
            p = tl.where(j[None, :] == slot[:, None], 0.0, p)
            best, least = tl.max(p, 1), tl.min(weights, 1)
    kept = (i < n)[:, None] & (place < COUNT)[None, :]
    out = (row * n + i)[:, None] * COUNT + place[None, :]
    tl.store(SLOTS_OUT + out, slots, mask=kept)
    tl.store(WEIGHTS_OUT + out, weights, mask=kept)


@triton.jit(do_not_specialize=LENGTHS)
def histogram_kernel(
    Q, K, MASK_AT, PADDING, LSE, QUERY_AT, KEY_AT, EDGES, OUT, n, m, heads, group, scale, softcap, lowest, window,
    q_batch, q_head, q_row, k_batch, k_head, k_row, mask_batch, mask_head, mask_row, mask_column,
    DIM: tl.constexpr, D: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PADDED: tl.constexpr, MASK: tl.constexpr,
    BINS: tl.constexpr,
):  # fmt: skip
    """Attention mass by distance, all queries of a head together."""
    first = tl.program_id(0) * QUERIES
    row = tl.program_id(1).to(tl.int64)
    b, h = row // heads, row % heads
    i = first + tl.arange(0, QUERIES)
    q = load_rows(Q + b * q_batch + h * q_head, i, n, q_row, D, DIM)
    keys = K + b * k_batch + (h // group) * k_head
    lse = load_lse(LSE + row * n, i, n)
    query_at = tl.load(QUERY_AT + b * n + i, mask=i < n, other=0)
    start, stop = reach(first, n, m, window, QUERIES, CAUSAL, WINDOW)
    for at in range(start // KEYS * KEYS, stop, KEYS):
        j = at + tl.arange(0, KEYS)
        k = load_rows(keys, j, m, k_row, D, DIM)
        s = logits_of(
            q, k, i, j, n, m, MASK_AT + b * mask_batch + h * mask_head, mask_row, mask_column, PADDING + b * m,
            scale, softcap, lowest, window, CAUSAL, WINDOW, SOFTCAP, PADDED, MASK,
        )  # fmt: skip
        p = tl.exp(s - lse[:, None])
        key_at = tl.load(KEY_AT + b * m + j, mask=j < m, other=0)
        away = tl.abs(query_at[:, None] - key_at[None, :])
        shown = p > 0
        shortest = tl.min(tl.min(tl.where(shown, away, NO_KEY), 1), 0)
        longest = tl.max(tl.max(tl.where(shown, away, -1), 1), 0)
        for bin in range(BINS):
            low, high = tl.load(EDGES + bin), tl.load(EDGES + bin + 1)
            if (longest >= low) & (shortest < high):
                part = tl.sum(tl.sum(tl.where((away >= low) & (away < high), p, 0.0), 1), 0)
                tl.atomic_add(OUT + row * BINS + bin, (part * FIXED).to(tl.int64), sem="relaxed")


@triton.jit(do_not_specialize=LENGTHS)
def tile_kernel(
    Q, K, MASK_AT, PADDING, LSE, MEAN_OUT, MAX_OUT, n, m, heads, group, scale, softcap, lowest, window,
    query_start, query_stop, key_start, key_stop, tall, wide,
    q_batch, q_head, q_row, k_batch, k_head, k_row, mask_batch, mask_head, mask_row, mask_column,
    DIM: tl.constexpr, D: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PADDED: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """One cell of a pooled window of the map."""
    row = tl.program_id(2).to(tl.int64)
    b, h = row // heads, row % heads
    top, left = query_start + tl.program_id(1) * tall, key_start + tl.program_id(0) * wide
    bottom, right = tl.minimum(top + tall, query_stop), tl.minimum(left + wide, key_stop)
    total, largest = 0.0, 0.0
    for first in range(top, bottom, QUERIES):
        i = first + tl.arange(0, QUERIES)
        start, stop = reach(first, n, m, window, QUERIES, CAUSAL, WINDOW)
        start, stop = tl.maximum(start, left), tl.minimum(stop, right)
        if start < stop:
            q = load_rows(Q + b * q_batch + h * q_head, i, n, q_row, D, DIM)
            lse = load_lse(LSE + row * n, i, bottom)
            for at in range(start, stop, KEYS):
                j = at + tl.arange(0, KEYS)
                k = load_rows(K + b * k_batch + (h // group) * k_head, j, m, k_row, D, DIM)
                s = logits_of(
                    q, k, i, j, n, m, MASK_AT + b * mask_batch + h * mask_head, mask_row, mask_column,
                    PADDING + b * m, scale, softcap, lowest, window, CAUSAL, WINDOW, SOFTCAP, PADDED, MASK,
                )  # fmt: skip
                p = tl.where((j < right)[None, :], tl.exp(s - lse[:, None]), 0.0)
                total += tl.sum(tl.sum(p, 1), 0)
                largest = tl.maximum(largest, tl.max(tl.max(p, 1), 0))
    out = (row * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    tl.store(MEAN_OUT + out, total / ((bottom - top) * (right - left)))
    tl.store(MAX_OUT + out, largest)


def statistics(attention: Attention, asked: Request) -> Statistics:
    """As `reference`, in float32."""
    q = attention.q
    if q.shape[2] < FEWEST_QUERIES or q.dtype == torch.float64:
        return blocked.statistics(attention, asked)
    common = _common(attention)
    if attention.lse is None:
        common["LSE"] = _log_sum_exp(attention, common)
    found: Statistics = {"lse": common["LSE"]}
    if "mass" in asked.wanted and len(asked.spans) > MOST_SPANS:
        return _in_lots(replace(attention, lse=common["LSE"]), asked)
    quick = hopper.answers(attention, asked) if q.is_cuda else ()
    if quick:
        found |= hopper.statistics(attention, replace(asked, wanted=quick), common["LSE"])
        asked, everything = replace(asked, wanted=tuple(name for name in asked.wanted if name not in quick)), asked
    else:
        everything = asked
    if asked.any_of(*ROW_STATISTICS, "mass") or asked.per_key():
        found |= _rows_and_columns(attention, asked, common)
    if asked.any_of("top_keys", "top_weights"):
        found["top_keys"], found["top_weights"] = _top_keys(attention, asked, common)
    if asked.any_of("distance_histogram"):
        found["distance_histogram"] = _histogram(attention, asked, common)
    if asked.any_of(*PER_TILE):
        found |= _tiles(attention, asked, common)
    b, h, n, _ = q.shape
    return {name: found[name] for name in everything.results(b, h, n, attention.k.shape[2])}


def _in_lots(attention: Attention, asked: Request) -> Statistics:
    """More spans than bits: some of them at a time, all else with the first."""
    spans = list(asked.spans.items())
    found = statistics(attention, replace(asked, spans=dict(spans[:MOST_SPANS])))
    for start in range(MOST_SPANS, len(spans), MOST_SPANS):
        lot = replace(asked, wanted=("mass",), spans=dict(spans[start : start + MOST_SPANS]))
        found |= statistics(attention, lot)
    b, h, n, _ = attention.q.shape
    return {name: found[name] for name in asked.results(b, h, n, attention.k.shape[2])}


def _common(attention: Attention) -> dict[str, Any]:
    """Arguments that every kernel takes."""
    q, k, mask = attention.q, attention.k, attention.mask
    (b, h, n, d), m = q.shape, k.shape[2]
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    if mask is not None:
        mask = mask.expand(b, h, n, m)
    return {
        "Q": q,
        "K": k,
        "MASK_AT": q if mask is None else mask.view(torch.uint8) if mask.dtype == torch.bool else mask,
        "PADDING": q if attention.padding is None else attention.padding.contiguous().view(torch.uint8),
        "LSE": None if attention.lse is None else attention.lse.float().contiguous(),
        "n": n,
        "m": m,
        "heads": h,
        "group": h // k.shape[1],
        "scale": attention.scale,
        "softcap": attention.softcap or 0.0,
        "lowest": torch.finfo(mask.dtype).min if mask is not None and mask.dtype != torch.bool else 0.0,
        "window": attention.window or 0,
        "q_batch": q.stride(0),
        "q_head": q.stride(1),
        "q_row": q.stride(2),
        "k_batch": k.stride(0),
        "k_head": k.stride(1),
        "k_row": k.stride(2),
        **dict(
            zip(
                ("mask_batch", "mask_head", "mask_row", "mask_column"),
                (0, 0, 0, 0) if mask is None else mask.stride(),
                strict=True,
            )
        ),
        "DIM": d,
        "D": max(16, triton.next_power_of_2(d)),
        "QUERIES": QUERIES,
        "KEYS": KEYS,
        "CAUSAL": attention.causal,
        "WINDOW": attention.window is not None,
        "SOFTCAP": attention.softcap is not None,
        "PADDED": attention.padding is not None,
        "MASK": "" if mask is None else "bool" if mask.dtype == torch.bool else "added",
    }


def _grid(attention: Attention) -> tuple[int, int]:
    b, h, n, _ = attention.q.shape
    return triton.cdiv(n, QUERIES), b * h


def _log_sum_exp(attention: Attention, common: dict[str, Any]) -> Tensor:
    lse = attention.q.new_empty(attention.q.shape[:3], dtype=torch.float32)
    sink = attention.sink
    arguments = {**common, "LSE": lse, "SINK": lse if sink is None else sink.contiguous(), "HAS_SINK": sink is not None}
    log_sum_exp_kernel[_grid(attention)](**arguments)
    return lse


def _rows_and_columns(attention: Attention, asked: Request, common: dict[str, Any]) -> Statistics:
    (b, h, n, _), m = attention.q.shape, attention.k.shape[2]
    per_key, windows = asked.per_key(), list(asked.over().values())
    spans = list(asked.spans.values()) if "mass" in asked.wanted else []

    def rows(wanted: bool, dtype: torch.dtype = torch.float32, *more: int) -> Tensor:
        return attention.q.new_empty((b, h, n, *more) if wanted else (1,), dtype=dtype)

    def columns(wanted: bool, dtype: torch.dtype) -> Tensor:
        return attention.q.new_zeros((b, h, len(windows), m) if wanted else (1,), dtype=dtype)

    entropy, top = asked.any_of("entropy"), asked.any_of("top_key", "top_weight")
    distance = asked.any_of("distance", "clipped_distance")
    own, squares = asked.any_of("self_mass"), asked.any_of("participation")
    place = "mean_query" in per_key
    total = place or asked.any_of("received", "received_sum")
    others = asked.any_of("received_by_others", "received_sum_by_others")
    largest = "received_max" in per_key
    out = {
        "ENTROPY_OUT": rows(entropy),
        "DISTANCE_OUT": rows(distance),
        "CLIPPED_OUT": rows(distance),
        "TOP_SLOT": rows(top, torch.int32),
        "TOP_WEIGHT": rows(top),
        "SELF_OUT": rows(own),
        "SQUARES_OUT": rows(squares),
        "MASS_OUT": rows(bool(spans), torch.float32, len(spans)),
        "SUM_OUT": columns(total, torch.int64),
        "SEEN_OUT": columns(total, torch.int32),
        "OTHERS_OUT": columns(others, torch.int64),
        "SEEN_OTHERS_OUT": columns(others, torch.int32),
        "MAX_OUT": columns(largest, torch.int32),
        "PLACE_OUT": columns(place, torch.int64),
    }
    statistics_kernel[_grid(attention)](
        **common,
        **out,
        QUERY_AT=attention.query_positions.to(torch.int32).contiguous(),
        KEY_AT=attention.key_positions.to(torch.int32).contiguous(),
        SPANS=_membership(spans, attention.q),
        WINDOWS=_bounds(windows, attention.q),
        clip=asked.clip,
        place_unit=2.0 ** place_bits(n),
        ENTROPY=entropy,
        DISTANCE=distance,
        TOP=top,
        SELF=own,
        SQUARES=squares,
        SPAN_COUNT=len(spans),
        SPAN_COLUMNS=max(2, triton.next_power_of_2(len(spans))),
        WINDOW_COUNT=len(windows) if per_key else 0,
        SUM=total,
        OTHERS=others,
        MAX=largest,
        PLACE=place,
    )
    found: Statistics = {
        "entropy": out["ENTROPY_OUT"],
        "distance": out["DISTANCE_OUT"],
        "clipped_distance": out["CLIPPED_OUT"],
        "top_weight": out["TOP_WEIGHT"],
        "self_mass": out["SELF_OUT"],
        "participation": out["SQUARES_OUT"],
    }
    if entropy and attention.sink is not None:
        parked = torch.exp(attention.sink.float()[None, :, None] - common["LSE"])
        found["entropy"] = found["entropy"] - torch.special.xlogy(parked, parked)
    if top:
        found["top_key"] = positions_of(out["TOP_SLOT"], attention.key_positions)
    found |= {f"mass:{name}": out["MASS_OUT"][..., at].contiguous() for at, name in enumerate(asked.spans) if spans}
    for at, suffix in enumerate(asked.over()):
        kept = {kind: out[kind][:, :, at] for kind in COLUMNS if out[kind].ndim == 4}
        for name in per_key:
            found[name + suffix] = _column(name, kept, attention.query_positions)
    return {name: found[name] for name in asked.results(b, h, n, m) if name in found}


def place_bits(n: int) -> int:
    """Resolution of a sum of n places, each at most n, in 63 bits."""
    return 62 - 2 * n.bit_length()


def _column(name: str, out: dict[str, Tensor], query_positions: Tensor) -> Tensor:
    if name == "received_max":
        return out["MAX_OUT"].contiguous().view(torch.float32)
    kind = "OTHERS_OUT" if name.endswith("by_others") else "SUM_OUT"
    total = out[kind].float() / FIXED.value
    if name == "mean_query":
        place = out["PLACE_OUT"].double() * 2.0 ** -place_bits(query_positions.shape[1]) / total
        return torch.where(total > 0, place + query_positions[:, None, :1], -1.0).float()
    return total if "sum" in name else total / out["SEEN_" + kind.removeprefix("SUM_")].clamp_min(1)


def positions_of(slots: Tensor, key_positions: Tensor) -> Tensor:
    """The position of each slot (b, h, x), -1 where there is none."""
    places = key_positions[:, None, :].expand(*slots.shape[:2], -1)
    return places.gather(-1, slots.clamp_min(0).long()).masked_fill(slots < 0, -1)


def _membership(spans: list[Tensor], like: Tensor) -> Tensor:
    """Which spans hold each key, a bit for each."""
    if not spans:
        return like.new_zeros(1, dtype=torch.int64)
    bits = torch.zeros(spans[0].shape, dtype=torch.int64, device=like.device)
    for at, members in enumerate(spans):
        bits |= members.to(torch.int64) << at
    return bits


def _bounds(windows: list[QueryWindow], like: Tensor) -> Tensor:
    far = 2**31 - 1
    rows = [
        [bound if bound is not None else open_ for bound, open_ in
         ((each.start, -far), (each.stop, far), (each.nearest, -far), (each.farthest, far))]
        for each in windows
    ]  # fmt: skip
    return torch.tensor(rows, dtype=torch.int32, device=like.device)


def _top_keys(attention: Attention, asked: Request, common: dict[str, Any]) -> tuple[Tensor, Tensor]:
    q = attention.q
    slots = q.new_empty((*q.shape[:3], asked.top), dtype=torch.int32)
    weights = q.new_empty(slots.shape, dtype=torch.float32)
    places = max(2, triton.next_power_of_2(asked.top))
    top_keys_kernel[_grid(attention)](
        **common, SLOTS_OUT=slots, WEIGHTS_OUT=weights, COUNT=asked.top, PLACES=places
    )  # fmt: skip
    slots, order = slots.sort(dim=-1)
    weights, by_weight = weights.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    slots = slots.gather(-1, by_weight).masked_fill(weights == 0, -1)
    return positions_of(slots.flatten(2), attention.key_positions).view(weights.shape), weights


def _histogram(attention: Attention, asked: Request, common: dict[str, Any]) -> Tensor:
    b, h = attention.q.shape[:2]
    mass = attention.q.new_zeros((b, h, len(asked.edges)), dtype=torch.int64)
    histogram_kernel[_grid(attention)](
        **common,
        QUERY_AT=attention.query_positions.to(torch.int32).contiguous(),
        KEY_AT=attention.key_positions.to(torch.int32).contiguous(),
        EDGES=torch.tensor([*asked.edges, 2**31 - 1], dtype=torch.int32, device=mass.device),
        OUT=mass,
        BINS=len(asked.edges),
    )
    return mass.float() / mass.sum(-1, keepdim=True).clamp_min(1)


def _tiles(attention: Attention, asked: Request, common: dict[str, Any]) -> Statistics:
    assert asked.tile is not None
    (b, h), (tall, wide), (rows, columns) = attention.q.shape[:2], asked.tile.sizes(), asked.tile.shape()
    if min(tall, wide) < SMALLEST_CELL:
        # Cells smaller than a tile would each waste most of one; such a window is small enough for plain PyTorch.
        only = tuple(name for name in asked.wanted if name in PER_TILE)
        return blocked.statistics(replace(attention, lse=common["LSE"]), replace(asked, wanted=only))
    mean = attention.q.new_empty((b, h, rows, columns), dtype=torch.float32)
    largest = torch.empty_like(mean)
    fitted = {"QUERIES": min(128, triton.next_power_of_2(tall)), "KEYS": min(128, triton.next_power_of_2(wide))}
    tile_kernel[(columns, rows, b * h)](
        **{**common, **fitted},
        MEAN_OUT=mean,
        MAX_OUT=largest,
        query_start=asked.tile.queries[0],
        query_stop=asked.tile.queries[1],
        key_start=asked.tile.keys[0],
        key_stop=asked.tile.keys[1],
        tall=tall,
        wide=wide,
        num_warps=8 if fitted["QUERIES"] == 128 else 4,
    )
    return {"tile_mean": mean, "tile_max": largest}
