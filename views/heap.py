"""Memory that a reader's thread gave back is used again by the next one's.

glibc gives threads heaps of their own, up to eight for each core, and what is free in one is of no use to another. A
dashboard draws every view in a new thread: with ten readers it grew by 14 to 38 MB a minute, with two heaps it stays.
"""

import ctypes
import sys

ARENA_MAX, TRIM_THRESHOLD = -8, -1  # numbers that mallopt knows them by
HEAPS = 2
GIVEN_BACK = 1_000_000  # bytes free at the end of a heap from which they go back to the system


def share_heaps() -> None:
    """For threads that begin later; nothing where there is no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(ARENA_MAX, HEAPS)
        mallopt(TRIM_THRESHOLD, GIVEN_BACK)
