"""Statistics of attention in plain PyTorch, patch by patch: memory grows with n + m, never with n times m.

Each class gathers one kind of statistic from the patches. Rows are disjoint between workers; what is kept per key has
a leading dimension of workers, whose shares are joined in the end, so that equal calls give equal results.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kernels.statistics.patches import Map, Patch, ranges
from kernels.statistics.request import PER_TILE, Attention, QueryWindow, Request, Statistics

FEW_KEYS = 32


@torch.no_grad()
def statistics(attention: Attention, asked: Request) -> Statistics:
    """What `reference` gives, in float32, or float64 where q is."""
    n, m = attention.q.shape[2], attention.k.shape[2]
    queries, keys = (0, n), (0, m)
    if asked.tile is not None and all(name in PER_TILE for name in asked.wanted):
        queries, keys = asked.tile.queries, asked.tile.keys
    layer = Map(attention, queries, keys)
    gathering: list[Gathered] = [kind(layer, asked) for kind, names in KINDS.items() if asked.any_of(*names)]
    if asked.per_key():
        gathering += [PerKey(layer, asked, suffix, window) for suffix, window in asked.over().items()]

    def take(patch: Patch) -> None:
        for each in gathering:
            each.add(patch)

    if gathering or attention.lse is None:
        layer.visit(take, whole_heads=asked.any_of(*PER_TILE))
    found = {"lse": layer.lse}
    for each in gathering:
        found |= each.result()
    return {name: found[name] for name in asked.results(layer.b, layer.h, n, m)}


class Gathered(Protocol):
    def add(self, patch: Patch) -> None:
        """Take in one patch. Those of a row come from its first keys to its last."""

    def result(self) -> Statistics:
        """The statistics by name, after all patches."""
        ...


class Entropy:
    """-sum p log p, and the sink's share like a key's."""

    def __init__(self, layer: Map, asked: Request) -> None:
        self.layer, self.bits = layer, torch.zeros_like(layer.lse)

    def add(self, patch: Patch) -> None:
        self.bits[patch.row].sub_(patch.log2_p.mul_(patch.p).sum(-1))

    def result(self) -> Statistics:
        entropy = self.bits * math.log(2)
        if (sink := self.layer.attention.sink) is not None:
            parked = torch.exp(sink.to(entropy.dtype)[:, None] - self.layer.lse)
            entropy -= torch.special.xlogy(parked, parked)
        return {"entropy": entropy}


class Distance:
    def __init__(self, layer: Map, asked: Request) -> None:
        self.distance = torch.zeros_like(layer.lse)

    def add(self, patch: Patch) -> None:
        """Where all keys lie on one side of all queries, by way of the key nearest to these: sums of what is >= 0."""
        (first_i, last_i), (first_j, last_j) = patch.i_range, patch.j_range
        if first_i >= last_j:
            to, beyond = patch.i - last_j, last_j - patch.j
        elif last_i <= first_j:
            to, beyond = first_j - patch.i, patch.j - first_j
        else:
            self.distance[patch.row].add_(torch.linalg.vecdot(patch.p, patch.away))
            return
        self.distance[patch.row].add_(to * patch.row_sum).add_(patch.p @ beyond.to(patch.p.dtype))

    def result(self) -> Statistics:
        return {"distance": self.distance}


class ClippedDistance:
    def __init__(self, layer: Map, asked: Request) -> None:
        self.clip, self.distance = asked.clip, torch.zeros_like(layer.lse)

    def add(self, patch: Patch) -> None:
        distance = self.distance[patch.row]
        if patch.distances[0] >= self.clip:
            distance.add_(patch.row_sum, alpha=self.clip)
        else:
            distance.add_(torch.linalg.vecdot(patch.p, patch.away.clamp_max(self.clip)))

    def result(self) -> Statistics:
        return {"clipped_distance": self.distance}


class TopKey:
    def __init__(self, layer: Map, asked: Request) -> None:
        self.weight = torch.zeros_like(layer.lse)
        self.key = torch.full_like(layer.lse, -1, dtype=torch.int64)

    def add(self, patch: Patch) -> None:
        weight, key = self.weight[patch.row], self.key[patch.row]
        # Where a maximum is costs ten times as much to find as what it is: look only in the rows where it rises, and
        # there among the few keys that hold it.
        columns = patch.p.shape[-1]
        few = FEW_KEYS if columns % FEW_KEYS == 0 else columns
        parts = patch.p.unflatten(-1, (-1, few))
        strongest, part = parts.amax(-1).max(-1)
        rows = (strongest > weight).nonzero(as_tuple=True)
        if len(rows[0]):
            part = part[rows]
            weight[rows], column = parts[*rows, part].max(-1)
            key[rows] = patch.j[part * few + column]

    def result(self) -> Statistics:
        return {"top_key": self.key, "top_weight": self.weight}


class TopKeys:
    def __init__(self, layer: Map, asked: Request) -> None:
        self.top = asked.top
        self.weight = layer.lse.new_zeros(*layer.lse.shape, asked.top)
        self.key = torch.full_like(self.weight, -1, dtype=torch.int64)

    def add(self, patch: Patch) -> None:
        weight, key = self.weight[patch.row], self.key[patch.row]
        rows = (patch.p.amax(-1) > weight[..., -1]).nonzero(as_tuple=True)
        if not len(rows[0]):
            return
        highest, column = first_largest(patch.p[rows], self.top)
        # Earlier patches hold lower slots, so a stable sort keeps the lowest slot first.
        merged, order = torch.cat([weight[rows], highest], 1).sort(dim=1, descending=True, stable=True)
        weight[rows] = merged[:, : self.top]
        key[rows] = torch.cat([key[rows], patch.j[column]], 1).gather(1, order[:, : self.top])

    def result(self) -> Statistics:
        return {"top_keys": self.key.masked_fill_(self.weight == 0, -1), "top_weights": self.weight}


def first_largest(p: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The `top` largest of each row and their columns, by column; of several that tie the lowest columns are in."""
    weight, column = p.topk(min(top + 1, p.shape[1]), dim=1)
    if p.shape[1] > top:
        # topk takes any of those that tie for the last place.
        tied = (weight[:, top - 1] == weight[:, top]) & (weight[:, top] > 0)
        weight, column = weight[:, :top], column[:, :top]
        if tied.any():
            weight[tied], column[tied] = (each[:, :top] for each in p[tied].sort(dim=1, descending=True, stable=True))
    column, order = column.sort(dim=1)
    return weight.gather(1, order), column


class Mass:
    def __init__(self, layer: Map, asked: Request) -> None:
        self.width = layer.width
        self.members = {span: members.to(layer.lse.dtype) for span, members in asked.spans.items()}
        self.any = {span: ranges(members.long(), layer.width) for span, members in asked.spans.items()}
        self.mass = {span: torch.zeros_like(layer.lse) for span in asked.spans}

    def add(self, patch: Patch) -> None:
        for span, members in self.members.items():
            if self.any[span][patch.batch][patch.keys.start // self.width] != (0, 0):
                self.mass[span][patch.row].add_(patch.p @ members[patch.batch, patch.keys])

    def result(self) -> Statistics:
        return {f"mass:{span}": mass for span, mass in self.mass.items()}


class SelfMass:
    def __init__(self, layer: Map, asked: Request) -> None:
        self.mass = torch.zeros_like(layer.lse)

    def add(self, patch: Patch) -> None:
        if patch.own is not None:
            self.mass[patch.row].add_((patch.p * patch.own).sum(-1))

    def result(self) -> Statistics:
        return {"self_mass": self.mass}


class Participation:
    def __init__(self, layer: Map, asked: Request) -> None:
        self.peak, self.sum, self.squares = (torch.zeros_like(layer.lse) for _ in range(3))

    def add(self, patch: Patch) -> None:
        """Of the row's largest weight so far: beside a strong sink the squares of the weights are too small."""
        peak, total, squares = self.peak[patch.row], self.sum[patch.row], self.squares[patch.row]
        higher = torch.maximum(peak, patch.p.amax(-1)).clamp_min_(torch.finfo(peak.dtype).tiny)
        falls = peak / higher
        relative = patch.p / higher[..., None]
        total.mul_(falls).add_(relative.sum(-1))
        squares.mul_(falls.square_()).add_(torch.linalg.vecdot(relative, relative))
        peak.copy_(higher)

    def result(self) -> Statistics:
        return {"participation": self.sum.square() / self.squares.clamp_min(1)}


class DistanceHistogram:
    def __init__(self, layer: Map, asked: Request) -> None:
        self.edges = (*asked.edges, math.inf)
        self.mass = layer.lse.new_zeros(layer.workers, layer.b, layer.h, len(asked.edges))

    def add(self, patch: Patch) -> None:
        mass = self.mass[patch.worker, patch.batch, patch.heads]
        first, last = (bisect_right(self.edges, distance) - 1 for distance in patch.distances)
        if first == last:
            mass[:, first].add_(patch.p.sum((-2, -1)))
            return
        for bin in range(first, last + 1):
            inside = (patch.away >= self.edges[bin]) & (patch.away < self.edges[bin + 1])
            mass[:, bin].add_((patch.p * inside).sum((-2, -1)))

    def result(self) -> Statistics:
        mass = self.mass.sum(0)
        return {"distance_histogram": mass / mass.sum(-1, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny)}


class TileCells:
    """A cell may take its queries from two blocks, so a whole head has to be one worker's."""

    def __init__(self, layer: Map, asked: Request) -> None:
        assert asked.tile is not None
        self.tile, self.sizes, self.shape = asked.tile, asked.tile.sizes(), asked.tile.shape()
        self.kept = {
            name: layer.lse.new_zeros(layer.b, layer.h, *self.shape) for name in PER_TILE if asked.any_of(name)
        }

    def add(self, patch: Patch) -> None:
        tall, wide = self.sizes
        rows, columns = overlap(patch.queries, self.tile.queries, tall), overlap(patch.keys, self.tile.keys, wide)
        if rows is None or columns is None:
            return
        part = patch.p[:, rows.slots, columns.slots]
        for name, kept in self.kept.items():
            cells = kept[patch.batch, patch.heads, rows.cells, columns.cells]
            if name == "tile_mean":
                cells.add_(columns.pool(rows.pool(part.mT, tall, torch.sum).mT, wide, torch.sum))
            else:
                largest = columns.pool(rows.pool(part.mT, tall, torch.amax).mT, wide, torch.amax)
                torch.maximum(cells, largest, out=cells)

    def result(self) -> Statistics:
        if "tile_mean" in self.kept:
            for dim, (start, stop), size in zip((-2, -1), (self.tile.queries, self.tile.keys), self.sizes, strict=True):
                count = self.shape[dim]
                lengths = self.kept["tile_mean"].new_full((count,), size)
                lengths[-1] = stop - start - (count - 1) * size
                self.kept["tile_mean"] /= lengths[:, None] if dim == -2 else lengths
        return self.kept


@dataclass(frozen=True)
class Overlap:
    """Where a patch and the tile overlap, on one side."""

    slots: slice
    """Counted from the patch's first."""
    cells: slice
    missing: tuple[int, int]
    """How many slots the cells have before and after these."""

    def pool(self, part: Tensor, size: int, reduce: Callable[..., Tensor]) -> Tensor:
        """The last dimension's slots by cell."""
        count = self.cells.stop - self.cells.start
        if count > 2:
            # What is filled up with is 0, and changes neither a sum nor a maximum of weights.
            return reduce(torch.nn.functional.pad(part, self.missing).unflatten(-1, (count, size)), -1)
        first = min(part.shape[-1], size - self.missing[0])
        pieces = part.split([first, part.shape[-1] - first][:count], dim=-1)
        return torch.stack([reduce(piece, -1) for piece in pieces], -1)


def overlap(slots: slice, tile: tuple[int, int], size: int) -> Overlap | None:
    start, stop = max(slots.start, tile[0]), min(slots.stop, tile[1])
    if start >= stop:
        return None
    cells = slice((start - tile[0]) // size, -(-(stop - tile[0]) // size))
    missing = start - tile[0] - cells.start * size, cells.stop * size - (stop - tile[0])
    return Overlap(slice(start - slots.start, stop - slots.start), cells, missing)


class PerKey:
    """Every statistic per key, over the queries of one window."""

    def __init__(self, layer: Map, asked: Request, suffix: str, window: QueryWindow) -> None:
        self.suffix, self.window = suffix, window
        self.kinds: list[Gathered] = [
            kind(layer, asked) for kind, names in KINDS_PER_KEY.items() if asked.any_of(*names)
        ]

    def add(self, patch: Patch) -> None:
        counted = patch.within(self.window)
        if counted is not None:
            for kind in self.kinds:
                kind.add(counted)

    def result(self) -> Statistics:
        return {name + self.suffix: value for kind in self.kinds for name, value in kind.result().items()}


class Received:
    ending = ""

    def __init__(self, layer: Map, asked: Request) -> None:
        mask = layer.attention.mask
        self.sum, self.seen = layer.per_key(), layer.per_key()
        self.alike = mask is None or mask.shape[1] == 1
        """Whether all heads see the same, so that the first ones tell."""

    def add(self, patch: Patch) -> None:
        self.sum[patch.column].add_(patch.column_sum)
        if not self.alike or patch.heads.start == 0:
            self.seen[patch.column].add_(patch.seen)

    def result(self) -> Statistics:
        total, seen = self.sum.sum(0), self.seen.sum(0)
        return {
            "received" + self.ending: total / (seen[:, :1] if self.alike else seen).clamp_min(1),
            "received_sum" + self.ending: total,
        }


class ReceivedByOthers(Received):
    ending = "_by_others"

    def add(self, patch: Patch) -> None:
        super().add(patch.by_others)


class ReceivedMax:
    def __init__(self, layer: Map, asked: Request) -> None:
        self.max = layer.per_key()

    def add(self, patch: Patch) -> None:
        kept = self.max[patch.column]
        torch.maximum(kept, patch.p.amax(-2), out=kept)

    def result(self) -> Statistics:
        return {"received_max": self.max.amax(0)}


class MeanQuery:
    def __init__(self, layer: Map, asked: Request) -> None:
        self.sum, self.moment = layer.per_key(), layer.per_key()

    def add(self, patch: Patch) -> None:
        self.sum[patch.column].add_(patch.column_sum)
        self.moment[patch.column].add_(patch.i.to(patch.p.dtype) @ patch.p)

    def result(self) -> Statistics:
        total = self.sum.sum(0)
        return {"mean_query": torch.where(total > 0, self.moment.sum(0) / total, -1.0)}


KINDS: dict[Callable[[Map, Request], Gathered], tuple[str, ...]] = {
    Entropy: ("entropy",),
    Distance: ("distance",),
    ClippedDistance: ("clipped_distance",),
    TopKey: ("top_key", "top_weight"),
    TopKeys: ("top_keys", "top_weights"),
    Mass: ("mass",),
    SelfMass: ("self_mass",),
    Participation: ("participation",),
    DistanceHistogram: ("distance_histogram",),
    TileCells: PER_TILE,
}
KINDS_PER_KEY: dict[Callable[[Map, Request], Gathered], tuple[str, ...]] = {
    Received: ("received", "received_sum"),
    ReceivedByOthers: ("received_by_others", "received_sum_by_others"),
    ReceivedMax: ("received_max",),
    MeanQuery: ("mean_query",),
}
