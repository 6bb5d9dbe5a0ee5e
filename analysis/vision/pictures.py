"""A picture to be judged on: the image, and what is truly in it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from PIL.Image import Image

Box = tuple[float, float, float, float]
"""left, top, right, bottom, as fractions of the image's width and height."""


@dataclass(frozen=True)
class Seen:
    """One object of a picture and where it is."""

    name: str
    box: Box


@dataclass(frozen=True)
class Picture:
    """likely: objects that are absent and that a reader would expect all the same (AMBER's hallucination targets)."""

    id: str
    objects: tuple[Seen, ...]
    theme: str | None
    likely: tuple[str, ...]
    read: Callable[[], Image] = field(repr=False, compare=False)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(seen.name for seen in self.objects)
