"""Layers that papers name by number in models of 32 layers, at the same depth of another one.

paint = scaled(30, range(2, 32))        # range(2, 30)
named("1+17-29", 30)                    # (1, 17, ..., 29)
"""

import re

from probes.errors import HeadscopeError

PAPERS_LAYERS = 32  # of LLaVA-1.5-7B and LLaVA-NeXT-7B

_TERM = re.compile(r"(\d+)(?:-(\d+))?")


def scaled(layers: int, paper: range, *, of: int = PAPERS_LAYERS) -> range:
    """The paper's layers in proportion, edges rounded, at least one of them."""
    first, end = (round(edge / of * layers) for edge in (paper.start, paper.stop))
    first = min(first, layers - 1)
    return range(first, max(end, first + 1))


def named(text: str, layers: int) -> tuple[int, ...]:
    """Layers out of a text such as 1+17-29, in order. Raises HeadscopeError for one that the model lacks."""
    chosen: set[int] = set()
    for term in text.split("+"):
        found = _TERM.fullmatch(term.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if not first <= last < layers:
            raise HeadscopeError(
                f"layers: {term!r} is no layer of this model: write numbers from 0 to {layers - 1} such as 1+17-29."
            )
        chosen |= {*range(first, last + 1)}
    return tuple(sorted(chosen))
