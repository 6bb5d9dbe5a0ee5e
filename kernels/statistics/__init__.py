"""Numbers per query, per key and per cell of an attention map, without keeping the map.

`statistics` is what everyone calls; `reference` is its specification, `request` says what may be asked.
"""

from kernels.statistics.operation import map_statistics, statistics
from kernels.statistics.request import (
    CLIP,
    EDGES,
    PER_HEAD,
    PER_KEY,
    PER_QUERY,
    PER_TILE,
    STATISTICS,
    TOP,
    QueryWindow,
    Statistics,
    Tile,
)

__all__ = [
    "CLIP",
    "EDGES",
    "PER_HEAD",
    "PER_KEY",
    "PER_QUERY",
    "PER_TILE",
    "STATISTICS",
    "TOP",
    "QueryWindow",
    "Statistics",
    "Tile",
    "map_statistics",
    "statistics",
]
