"""Numbers per query and per key of an attention map, without keeping the map.

`statistics` is the blocked path the Readers use; `reference.statistics` is its specification.
"""

from kernels.statistics.blocked import statistics
from kernels.statistics.reference import STATISTICS, Statistics

__all__ = ["STATISTICS", "Statistics", "statistics"]
