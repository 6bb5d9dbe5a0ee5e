"""What a caller may ask of an attention map, checked once for every implementation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PER_QUERY = (
    "lse",
    "entropy",
    "distance",
    "clipped_distance",
    "top_key",
    "top_weight",
    "top_keys",
    "top_weights",
    "mass",
    "self_mass",
    "participation",
)
PER_KEY = (
    "received",
    "received_sum",
    "received_by_others",
    "received_sum_by_others",
    "received_max",
    "mean_query",
)
PER_TILE = ("tile_mean", "tile_max")
PER_HEAD = ("distance_histogram",)
STATISTICS = PER_QUERY + PER_KEY + PER_TILE + PER_HEAD

CLIP = 10
"""Tokens beyond which a distance counts no further: W of the windowed average attention distance (WAAD)."""
TOP = 8
EDGES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
"""Lower edges of the distance histogram's bins, in tokens; the last bin is open."""
CELLS = 512

POSITIONS = ("top_key", "top_keys")
"""Statistics that are positions, int64; every other is a float."""

Statistics = dict[str, Tensor]
"""Name to (b, h, n) for a statistic per query, (b, h, m) per key, (b, h, rows, columns) per tile and (b, h, bins) per
head. `top_keys` and `top_weights` are (b, h, n, top)."""


@dataclass(frozen=True)
class QueryWindow:
    """Which queries count for a statistic per key: those at start <= i < stop, nearest <= i - j <= farthest.

    i and j are the positions of query and key. Future attention influence is `received` over the window
    QueryWindow(nearest=H_lo, farthest=H_hi).
    """

    start: int | None = None
    stop: int | None = None
    nearest: int | None = None
    farthest: int | None = None

    def holds(self, query: Int[Tensor, "b n"], key: Int[Tensor, "b m"]) -> Bool[Tensor, "b 1 n m"]:
        """Which pairs are inside."""
        i, j = query[:, None, :, None], key[:, None, None, :]
        lag = i - j
        inside = torch.ones_like(lag, dtype=torch.bool)
        if self.start is not None:
            inside &= i >= self.start
        if self.stop is not None:
            inside &= i < self.stop
        if self.nearest is not None:
            inside &= lag >= self.nearest
        if self.farthest is not None:
            inside &= lag <= self.farthest
        return inside


@dataclass(frozen=True)
class Tile:
    """A window of the map, in slots: queries and keys from `start` up to `stop`, pooled to at most `cells` a side.

    A cell covers ceil(length / cells) slots, the last one what is left.
    """

    queries: tuple[int, int]
    keys: tuple[int, int]
    cells: int = CELLS

    def sizes(self) -> tuple[int, int]:
        """Queries and keys in one cell."""
        rows, columns = (stop - start for start, stop in (self.queries, self.keys))
        return -(-rows // self.cells), -(-columns // self.cells)

    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        tall, wide = self.sizes()
        return -(-(self.queries[1] - self.queries[0]) // tall), -(-(self.keys[1] - self.keys[0]) // wide)


@dataclass(frozen=True)
class Request:
    """The statistics wanted, and what they are measured over."""

    wanted: tuple[str, ...]
    spans: Mapping[str, Bool[Tensor, "b m"]]
    windows: Mapping[str, QueryWindow]
    clip: int
    top: int
    tile: Tile | None
    edges: tuple[int, ...]

    def any_of(self, *names: str) -> bool:
        return any(name in self.wanted for name in names)

    def per_key(self) -> tuple[str, ...]:
        return tuple(name for name in self.wanted if name in PER_KEY)

    def over(self) -> dict[str, QueryWindow]:
        """Suffix of a per-key statistic's name to the queries that it counts."""
        return {f":{name}": window for name, window in self.windows.items()} or {"": QueryWindow()}

    def results(self, b: int, h: int, n: int, m: int) -> dict[str, tuple[int, ...]]:
        """Every result's name and shape, in the order asked, the windowed ones last."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name in self.wanted:
            if name == "mass":
                shapes |= {f"mass:{span}": (b, h, n) for span in self.spans}
            elif name in ("top_keys", "top_weights"):
                shapes[name] = (b, h, n, self.top)
            elif name in PER_TILE:
                assert self.tile is not None
                shapes[name] = (b, h, *self.tile.shape())
            elif name in PER_HEAD:
                shapes[name] = (b, h, len(self.edges))
            elif name in PER_QUERY:
                shapes[name] = (b, h, n)
        return shapes | {name + suffix: (b, h, m) for suffix in self.over() for name in self.per_key()}


def request(
    wanted: Iterable[str],
    *,
    queries: int,
    keys: int,
    spans: Mapping[str, Bool[Tensor, "b m"]] | None = None,
    windows: Mapping[str, QueryWindow] | None = None,
    clip: int = CLIP,
    top: int = TOP,
    tile: Tile | None = None,
    edges: Iterable[int] = EDGES,
) -> Request:
    """Raises ValueError on what can't be answered: an unknown statistic, a tile beyond the map, and the like."""
    names = tuple(dict.fromkeys(wanted))
    for name in names:
        if name not in STATISTICS:
            raise ValueError(f"unknown statistic {name!r}; there are {', '.join(STATISTICS)}")
    if "mass" in names and not spans:
        raise ValueError("the statistic 'mass' needs at least one span of keys")
    if clip < 1:
        raise ValueError(f"clip is {clip}, and a clipped distance needs at least 1 token")
    if top < 1:
        raise ValueError(f"top is {top}, and at least 1 key must be asked for")
    bounds = tuple(edges)
    if not bounds or bounds[0] != 0 or any(b <= a for a, b in pairwise(bounds)):
        raise ValueError(f"the histogram's edges must rise from 0; these are {bounds}")
    if any(name in names for name in PER_TILE):
        if tile is None:
            raise ValueError("a tile statistic needs a tile")
        for what, (start, stop), length in (("queries", tile.queries, queries), ("keys", tile.keys, keys)):
            if not 0 <= start < stop <= length:
                raise ValueError(f"the tile's {what} {start} to {stop} are not inside the map's 0 to {length}")
        if tile.cells < 1:
            raise ValueError(f"a tile needs at least 1 cell a side, not {tile.cells}")
    return Request(names, dict(spans or {}), dict(windows or {}), clip, top, tile, bounds)


@dataclass(frozen=True)
class Attention:
    """One layer's q and k with all that decides its attention weights.

    scale multiplies q.k; a soft-cap follows, then the mask. causal and window speak of slots, the last query sitting on
    the last key; padding is True where a key is real; mask (b or 1, 1 or h, n, m) is True where visible, or added to
    the logits. sink is a learned logit per head that takes mass and has no key. at_slots says that positions are slots
    (queries on the last n of the m). lse is the rows' log-sum-exp where a forward has already computed it, the sink
    included.
    """

    q: Float[Tensor, "b h n d"]
    k: Float[Tensor, "b g m d"]
    scale: float
    causal: bool
    window: int | None
    softcap: float | None
    sink: Float[Tensor, " h"] | None
    padding: Bool[Tensor, "b m"] | None
    mask: Tensor | None
    query_positions: Int[Tensor, "b n"]
    key_positions: Int[Tensor, "b m"]
    at_slots: bool
    lse: Float[Tensor, "b h n"] | None
