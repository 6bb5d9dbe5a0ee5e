"""Positions of high and of low influence in a response, and pairs of them that stand equally deep."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

DEPTHS = 10  # parts of a response within which two positions count as equally deep


@dataclass(frozen=True)
class Chosen:
    """Positions among the response's tokens, from 0, the strongest first; matched ones are paired in order."""

    high: tuple[int, ...]
    low: tuple[int, ...]


def choose(fai: Float[np.ndarray, " token"], *, count: int, margin: int, matched: bool = False) -> Chosen | None:
    """`count` positions of the highest influence and as many of the lowest, at least `margin` tokens before the end.

    matched: each position of high influence, from the highest on, takes the lowest that is left in its tenth of the
        response; tenths where nothing lower is left are passed over, so there may be fewer than `count` pairs.
    None where there are not so many with a known influence, or no pair. Of equal ones the earlier comes first.
    """
    series = np.asarray(fai, dtype=float)
    open_to = [i for i in range(max(0, len(series) - margin)) if np.isfinite(series[i])]
    if len(open_to) < 2 * count:
        return None
    falling = sorted(open_to, key=lambda i: (-series[i], i))
    if matched:
        return _pairs(series, falling, count)
    rising = sorted(set(open_to) - set(falling[:count]), key=lambda i: (series[i], i))
    return Chosen(tuple(falling[:count]), tuple(rising[:count]))


def _pairs(series: Float[np.ndarray, " token"], falling: list[int], count: int) -> Chosen | None:
    high, low, left = list[int](), list[int](), list(falling)
    while left and len(high) < count:
        first = left.pop(0)
        same = [i for i in left if _depth(i, len(series)) == _depth(first, len(series)) and series[i] < series[first]]
        if same:
            partner = min(same, key=lambda i: (series[i], i))
            left.remove(partner)
            high.append(first)
            low.append(partner)
    return Chosen(tuple(high), tuple(low)) if high else None


def _depth(position: int, tokens: int) -> int:
    return position * DEPTHS // tokens
