"""The part of a map that is on screen: zoomed, moved, and never outside the prompt."""

import re
from dataclasses import dataclass, replace

from probes.errors import HeadscopeError

FEWEST = 8  # tokens a side
Stretch = tuple[int, int]  # from a position up to another


@dataclass(frozen=True)
class Window:
    """Queries and keys, each from a position up to another, of a prompt of so many tokens."""

    tokens: int
    queries: Stretch
    keys: Stretch

    @property
    def pairs(self) -> int:
        return _long(self.queries) * _long(self.keys)

    def zoomed(self, factor: float, at: tuple[int, int] | None = None) -> "Window":
        """`factor` times as many tokens a side, around a pair of query and key; around the middle by default."""
        query, key = at or (_middle(self.queries), _middle(self.keys))
        return replace(
            self, queries=self._around(query, self.queries, factor), keys=self._around(key, self.keys, factor)
        )

    def moved(self, *, queries: float = 0, keys: float = 0) -> "Window":
        """By shares of its own sides; it stops at the prompt's ends."""
        return replace(self, queries=self._pushed(self.queries, queries), keys=self._pushed(self.keys, keys))

    def _around(self, at: int, side: Stretch, factor: float) -> Stretch:
        size = min(self.tokens, max(FEWEST, round(_long(side) * factor)))
        return self._inside(at - size // 2, size)

    def _pushed(self, side: Stretch, share: float) -> Stretch:
        return self._inside(side[0] + round(share * _long(side)), _long(side))

    def _inside(self, start: int, size: int) -> Stretch:
        start = max(0, min(start, self.tokens - size))
        return start, start + size


def whole_window(tokens: int) -> Window:
    return Window(tokens, (0, tokens), (0, tokens))


def parse_stretch(text: str, tokens: int) -> Stretch:
    """`0-1024`, the second number not included. Raises HeadscopeError where it isn't a part of the prompt."""
    found = re.fullmatch(r"\s*(\d{1,9})\s*[-–]\s*(\d{1,9})\s*", text, re.ASCII)
    start, stop = map(int, found.groups()) if found else (0, 0)
    if not 0 <= start < stop <= tokens:
        raise HeadscopeError(f"A window is written as 0-{tokens}, from a token up to another, and not as {text!r}.")
    return start, stop


def _long(side: Stretch) -> int:
    return side[1] - side[0]


def _middle(side: Stretch) -> int:
    return (side[0] + side[1]) // 2
