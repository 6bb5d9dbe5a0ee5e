"""Small products on one thread, while a page waits for them.

Torch splits each of them over all cores and lets those wait for one another; beside a busy process a tile of a
millisecond's work then takes a hundred.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_inside = 0
_outside = 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Several pages may be in here at once: each leaves with the number of threads that there was before the first."""
    global _inside, _outside
    with _lock:
        _outside = _outside if _inside else torch.get_num_threads()
        _inside += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            torch.set_num_threads(_outside)
