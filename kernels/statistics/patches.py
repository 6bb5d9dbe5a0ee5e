"""One layer's attention map in patches that stay in a core's cache.

A row's log-sum-exp L makes every patch final by itself, p_ij = exp(s_ij - L_i): nothing is rescaled afterwards. All is
kept to the base 2, whose power is the faster one. A patch that none of its queries sees is skipped; one that all of
them see wholly is not masked.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.attention.reference import visible_in
from kernels.statistics.request import Attention, QueryWindow

ROWS, PAIRS = 768, 768 * 512
"""Rows of a patch (queries, times the heads that share keys) and pairs in it, as measured: small enough for the cache,
large enough that the calls between the products cost little."""
ROWS_ON_GPU, PAIRS_ON_GPU = 2048, 2048 * 2048
WORTH_THREADS = 2**20  # pairs in the whole map; starting threads costs about 0.2 ms
LOG2_E = math.log2(math.e)
LOWEST = -1e30  # its power of 2 is 0 as that of -inf is, but 0 times it is 0 as well


@dataclass
class Patch:
    """Some queries and keys of all heads that share these keys.

    Positions i lie in `i_range` and j in `j_range`, both ends included.
    """

    p: Float[Tensor, "heads rows columns"]
    log2_p: Float[Tensor, "heads rows columns"]
    """May be overwritten by the one statistic that reads it."""
    hidden: Bool[Tensor, "#heads rows columns"] | None
    """Which pairs are invisible; None where none is."""
    worker: int
    batch: int
    heads: slice
    queries: slice
    keys: slice
    i: Int[Tensor, " rows"]
    j: Int[Tensor, " columns"]
    i_range: tuple[int, int]
    j_range: tuple[int, int]

    @property
    def row(self) -> tuple[int, slice, slice]:
        """Where the queries sit in a tensor (b, h, n)."""
        return self.batch, self.heads, self.queries

    @property
    def column(self) -> tuple[int, int, slice, slice]:
        """Where the keys sit in a tensor (workers, b, h, m)."""
        return self.worker, self.batch, self.heads, self.keys

    @property
    def lags(self) -> tuple[int, int]:
        """Between which two numbers i - j lies."""
        return self.i_range[0] - self.j_range[1], self.i_range[1] - self.j_range[0]

    @property
    def distances(self) -> tuple[int, int]:
        """Between which two numbers |i - j| lies."""
        least, most = self.lags
        return max(0, least, -most), max(most, -least)

    @cached_property
    def row_sum(self) -> Float[Tensor, "heads rows"]:
        return self.p.sum(-1)

    @cached_property
    def column_sum(self) -> Float[Tensor, "heads columns"]:
        return self.p.sum(-2)

    @cached_property
    def away(self) -> Float[Tensor, "rows columns"]:
        """|i - j|, from positions counted from the patch: exact however far along the text it lies."""
        first = self.j_range[0]
        return ((self.i - first).to(self.p.dtype)[:, None] - (self.j - first).to(self.p.dtype)).abs_()

    @cached_property
    def own(self) -> Bool[Tensor, "rows columns"] | None:
        """Which keys are at the query's own position; None where none can be."""
        return self.i[:, None] == self.j if self.distances[0] == 0 else None

    @cached_property
    def seen(self) -> Int[Tensor, "#heads columns"] | int:
        """How many of the queries see each key."""
        return len(self.i) if self.hidden is None else len(self.i) - self.hidden.sum(-2)

    @cached_property
    def by_others(self) -> "Patch":
        """The same without the pairs of a query and a key at one position."""
        return self if self.own is None else self._without(self.own)

    def within(self, window: QueryWindow) -> "Patch | None":
        """The same with the window's pairs alone; None where it holds none."""
        (first, last), (least, most) = self.i_range, self.lags
        start, stop = _bounds(window.start, window.stop)
        nearest, farthest = _bounds(window.nearest, window.farthest)
        if last < start or first >= stop or most < nearest or least > farthest:
            return None
        if start <= first and last < stop and nearest <= least and most <= farthest:
            return self
        return self._without(~window.holds(self.i[None], self.j[None])[0, 0])

    def _without(self, pairs: Bool[Tensor, "rows columns"]) -> "Patch":
        hidden = pairs[None] if self.hidden is None else self.hidden | pairs
        return replace(self, p=self.p.masked_fill(pairs, 0), hidden=hidden)


def _bounds(low: int | None, high: int | None) -> tuple[float, float]:
    return -math.inf if low is None else low, math.inf if high is None else high


class Map:
    """The map of every head over some of the queries and keys, which are slots from a start up to a stop."""

    def __init__(self, attention: Attention, queries: tuple[int, int], keys: tuple[int, int]) -> None:
        self.attention, self.queries, self.keys = attention, queries, keys
        self.b, self.h, n, _ = attention.q.shape
        self.m = attention.k.shape[2]
        self.ahead = self.m - n  # the slots of keys before the first query's own
        on_cpu = attention.q.device.type == "cpu"
        self.least_lag = 0 if attention.causal else -n - self.m if attention.window is None else 1 - attention.window
        self.most_lag = n + self.m if attention.window is None else attention.window - 1
        """A query sees the keys between so many slots behind it."""
        self.query_slots = torch.arange(self.ahead, self.m, device=attention.q.device, dtype=torch.int32)
        self.key_slots = torch.arange(self.m, device=attention.q.device, dtype=torch.int32)
        self.shared = self.h // attention.k.shape[1]
        self.height = min(queries[1] - queries[0], max(1, (ROWS if on_cpu else ROWS_ON_GPU) // self.shared))
        self.width = min(self.m, max(1, (PAIRS if on_cpu else PAIRS_ON_GPU) // (self.height * self.shared)))
        self.workers = torch.get_num_threads() if on_cpu and self.b * self.h * n * self.m >= WORTH_THREADS else 1

        self.k = attention.k.to(torch.promote_types(attention.k.dtype, torch.float32))
        given = attention.lse
        self.lse = self.k.new_empty(self.b, self.h, n) if given is None else given.to(self.k.dtype)

        self.i_ranges = ranges(attention.query_positions[:, slice(*queries)], self.height)
        self.j_ranges = ranges(attention.key_positions, self.width)
        real = torch.ones_like(attention.key_positions) if attention.padding is None else attention.padding.long()
        self.real = ranges(real, self.width)
        """Per stretch of keys: (0, 0) where all are padding, (1, 1) where none is."""

    def per_key(self) -> Float[Tensor, "workers b h m"]:
        """Zeros for what is kept per key, a share for each worker."""
        return self.lse.new_zeros(self.workers, self.b, self.h, self.m)

    def visit(self, take: Callable[[Patch], None], *, whole_heads: bool) -> None:
        """Hand over every patch that anything sees, on several threads.

        Patches of different workers come at the same time, and never with the same rows; with `whole_heads` never from
        the same head either.
        """
        blocks = [
            (batch, group, start)
            for batch in range(self.b)
            for group in range(self.k.shape[1])
            for start in range(*self.queries, self.height)
        ]

        def walk(worker: int) -> None:
            # Grad mode and the like are a thread's own.
            with torch.inference_mode():
                room = self.k.new_empty(2, self.shared * self.height * self.width)
                for turn, block in enumerate(blocks):
                    owner = block[0] * self.k.shape[1] + block[1] if whole_heads else turn
                    if owner % self.workers == worker:
                        for patch in self._patches(*block, worker=worker, room=room):
                            take(patch)

        side_by_side(walk, self.workers)

    def _patches(self, batch: int, group: int, start: int, *, worker: int, room: Tensor) -> Iterator[Patch]:
        """All patches of one block of queries, from the first keys to the last."""
        of = self.attention
        heads = slice(group * self.shared, (group + 1) * self.shared)
        queries = slice(start, min(start + self.height, self.queries[1]))
        q = of.q[batch, heads, queries].to(self.k.dtype) * (of.scale / of.softcap if of.softcap else of.scale * LOG2_E)
        if of.lse is None:
            self.lse[batch, heads, queries] = self._log_sum_exp(q, batch, heads, queries, room)
        lse = self.lse[batch, heads, queries]
        # A row that sees nothing has L = -inf; whatever its logits are, its weights are to be 0.
        q.masked_fill_(lse.isneginf()[..., None], 0)
        less = (lse * -LOG2_E).masked_fill_(lse.isneginf(), LOWEST).clamp_max_(-LOWEST)
        i_range = self.i_ranges[batch][(start - self.queries[0]) // self.height]
        i = of.query_positions[batch, queries]
        for keys in self._stretches(batch, queries, self.keys):
            log2_p, hidden = self._logits(q, less, batch, heads, queries, keys, LOWEST, room[0])
            p = torch.exp2(log2_p, out=room[1, : log2_p.numel()].view_as(log2_p))
            j_range = self.j_ranges[batch][keys.start // self.width]
            j = of.key_positions[batch, keys]
            yield Patch(p, log2_p, hidden, worker, batch, heads, queries, keys, i, j, i_range, j_range)

    def _stretches(self, batch: int, queries: slice, within: tuple[int, int]) -> Iterator[slice]:
        """The keys that any of the queries may see, in stretches that never cross a multiple of `width`."""
        start = max(within[0], queries.start + self.ahead - self.most_lag)
        stop = min(within[1], queries.stop + self.ahead - self.least_lag)
        while start < stop:
            end = min(stop, (start // self.width + 1) * self.width)
            if self.real[batch][start // self.width] != (0, 0):
                yield slice(start, end)
            start = end

    def _logits(
        self,
        q: Tensor,
        less: Tensor,
        batch: int,
        heads: slice,
        queries: slice,
        keys: slice,
        invisible: float,
        room: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits to the base 2 plus `less`, with `invisible` in place of what is hidden, and what is hidden."""
        of, k = self.attention, self.k[batch, heads.start // self.shared, keys]
        logits = room[: less.numel() * len(k)].view(*less.shape, len(k))
        product = logits.view(-1, len(k))
        if of.softcap:
            torch.mm(q.flatten(0, 1), k.T, out=product).tanh_().mul_(of.softcap * LOG2_E).add_(less.reshape(-1, 1))
        else:
            torch.addmm(less.reshape(-1, 1), q.flatten(0, 1), k.T, out=product)
        if of.mask is not None and of.mask.dtype != torch.bool:
            logits.add_(self._mask(of.mask, batch, heads, queries, keys), alpha=LOG2_E).clamp_min_(LOWEST)
        hidden = self._hidden(batch, heads, queries, keys)
        if hidden is not None:
            logits.masked_fill_(hidden, invisible)
        return logits, hidden

    def _mask(self, mask: Tensor, batch: int, heads: slice, queries: slice, keys: slice) -> Tensor:
        return mask[batch % mask.shape[0], heads if mask.shape[1] > 1 else slice(1), queries, keys]

    def _hidden(
        self, batch: int, heads: slice, queries: slice, keys: slice
    ) -> Bool[Tensor, "#heads rows columns"] | None:
        """What causality, the sliding window, padding and the mask hide; None where all of it is visible."""
        of, hidden = self.attention, []
        first, last = queries.start + self.ahead, queries.stop - 1 + self.ahead
        if first - (keys.stop - 1) < self.least_lag or last - keys.start > self.most_lag:
            lag = (self.query_slots[queries, None] - self.key_slots[keys])[None]
            if first - (keys.stop - 1) < self.least_lag:
                hidden.append(lag < self.least_lag)
            if last - keys.start > self.most_lag:
                hidden.append(lag > self.most_lag)
        if of.padding is not None and self.real[batch][keys.start // self.width] != (1, 1):
            hidden.append(~of.padding[batch, keys].expand(1, queries.stop - queries.start, -1))
        if of.mask is not None:
            hidden.append(~visible_in(self._mask(of.mask, batch, heads, queries, keys)))
        return reduce(torch.logical_or, hidden) if hidden else None

    def _log_sum_exp(
        self, q: Tensor, batch: int, heads: slice, queries: slice, room: Tensor
    ) -> Float[Tensor, "heads rows"]:
        """L of every query, over all keys and the sink: a pass of its own, rescaled as the greatest logit rises."""
        greatest = q.new_full(q.shape[:-1], LOWEST)
        total, nothing = torch.zeros_like(greatest), torch.zeros_like(greatest)
        for keys in self._stretches(batch, queries, (0, self.m)):
            logits, _ = self._logits(q, nothing, batch, heads, queries, keys, -math.inf, room[0])
            rise = torch.maximum(greatest, logits.amax(-1))
            total.mul_(torch.exp2(greatest - rise)).add_(logits.sub_(rise[..., None]).exp2_().sum(-1))
            greatest = rise
        lse = (greatest + total.log2()) / LOG2_E
        return (
            lse if self.attention.sink is None else torch.logaddexp(lse, self.attention.sink[heads, None].to(lse.dtype))
        )


def ranges(values: Int[Tensor, "b length"], size: int) -> list[list[tuple[int, int]]]:
    """Least and greatest of every stretch of `size` values, per batch."""
    stretches = values.split(size, dim=1)
    least, greatest = (
        torch.stack([bound(each, 1) for each in stretches], 1).tolist() for bound in (torch.amin, torch.amax)
    )
    return [list(zip(*pair, strict=True)) for pair in zip(least, greatest, strict=True)]


def side_by_side(work: Callable[[int], None], workers: int) -> None:
    """Call `work` with 0 up to `workers`, on a thread each, and every operation within it on that thread alone.

    Torch by itself splits each operation over the cores and lets them wait for one another after it. On patches of this
    size that costs a third of the time, and another busy process makes it a multiple.
    """
    threads = torch.get_num_threads()
    if workers == 1:
        work(0)
        return
    # What a thread finds when it first calls torch, and MKL at any time; the threads of others keep theirs.
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
    finally:
        torch.set_num_threads(threads)
