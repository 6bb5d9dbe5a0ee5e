"""Rows and columns of image tokens: which patch of which grid each of them is.

grids = prompt.grids            # one of the whole picture; tiles and the whole beside them in some families
patch_names(grids, 100)[37]     # "[patch r3c7]"
"""

from collections.abc import Sequence
from dataclasses import dataclass

SEPARATOR = "[separator]"


@dataclass(frozen=True)
class PatchGrid:
    """Image tokens that lie side by side, row by row: those of the whole picture, or of one tile of it.

    name: empty where all patches are one grid. first: the first of them among the image tokens. step: image tokens from
    the start of one row to that of the next, more than `columns` where a separator ends each row.
    """

    name: str
    first: int
    rows: int
    columns: int
    step: int

    def tokens(self) -> list[int]:
        """Which of the image tokens these are, row by row."""
        starts = range(self.first, self.first + self.rows * self.step, self.step)
        return [start + column for start in starts for column in range(self.columns)]


def filled(name: str, first: int, rows: int, columns: int) -> PatchGrid:
    """A grid without separators."""
    return PatchGrid(name, first, rows, columns, columns)


def patch_names(grids: Sequence[PatchGrid], count: int) -> list[str]:
    """What each of `count` image tokens is called, rows and columns from 0."""
    names = [SEPARATOR] * count
    for grid in grids:
        before = f"{grid.name}, " if grid.name else ""
        for place, token in enumerate(grid.tokens()):
            row, column = divmod(place, grid.columns)
            names[token] = f"[{before}patch r{row}c{column}]"
    return names
